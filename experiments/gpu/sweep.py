"""One experiment's preset `gpu` through `python -m harness`, which goes on where it stopped."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from experiments.gpu.child import Task, conclude, parser, task
from experiments.gpu.processes import run_to_limit
from experiments.gpu.rows import RowLog
from experiments.gpu.stages import ROOT

DRY_OVERRIDES = {
    "sweep_page_size": ("kv.pool_tokens=512",),
    "compare_allocators": ("kv.pool_tokens=512",),
    "sweep_memory_fraction": ("device.imagined_memory_gib=0.005", "engine.token_budget=64"),
}
_DRY_FOR_ALL = (
    "model=tiny",
    "device=cpu",
    "workload.num_requests=4",
    "workload.length_scale=0.03",
    "repetitions=1",
)


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--experiment", required=True, choices=DRY_OVERRIDES)
    given = task(made)
    log = given.log()
    experiment = given.extra.experiment
    overrides = (*_DRY_FOR_ALL, *DRY_OVERRIDES[experiment]) if given.dry else ()
    command = [
        sys.executable, "-m", "harness", f"experiment={experiment}", "preset=gpu",
        f"results_dir={runs_folder(given)}", "tracking=none", *overrides,
    ]  # fmt: skip
    exit_code = _run(command, given)
    _note_runs(log, runs_folder(given) / experiment)
    if exit_code is None:
        log.add("runs beyond the limit", "cut")
    elif exit_code:
        log.add("harness", "failed", error=f"exit status {exit_code}")
    return conclude(log)


def runs_folder(given: Task) -> Path:
    """Runs of this key alone: those of other code, device or options have the same labels."""
    return given.folder / "runs" / given.key.replace(" ", "_")


def _run(command: list[str], given: Task) -> int | None:
    done = run_to_limit(command, given.budget.left_s, cwd=ROOT)
    return None if done is None else done.returncode


def _note_runs(log: RowLog, folder: Path) -> None:
    """A row a stored run, with what its summary says of its first repetition."""
    for label, status, values in read_runs(folder):
        log.add(label, "ok" if status == "complete" else "failed", **values)


def read_runs(folder: Path) -> Iterator[tuple[str, str, dict[str, object]]]:
    """Label, status and metrics of the runs stored in an experiment's folder."""
    for path in sorted(folder.glob("[!.]*/status.json")):
        status = json.loads(path.read_text())
        summary = json.loads((path.parent / "summary.json").read_text())
        values = {
            key: value
            for key, value in (summary[0] if summary else {}).items()
            if isinstance(value, int | float | str)
        }
        values["wall_s"] = status["wall_s"]
        yield status["label"], status["status"], {**values, "error": status["error"]}


if __name__ == "__main__":
    sys.exit(main())
