"""A simulated step's time, fitted to real runs on this machine: `python -m experiments calibrate`.

Runs the part `fit` of experiment=calibration (what is stored is not run again), fits the time from
one step's start to the next one's to what the steps had to do, and writes the calibration for
`executor=simulated executor.cost=calibrated executor.calibration=FILE`. With --validate it also
runs the part `held_out`, real and simulated, and shows how far the two are apart. With --runs it
fits stored runs instead, which need measure.step_work=true.

Other arguments are keys as of `python -m harness`: model=NAME, preset=full, device.threads=2, ...
Nothing else should run meanwhile. Exit status: 0, 1 if a run failed, 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.calibration.error import Pair, draw, errors, to_markdown
from experiments.calibration.fit import fit
from harness.compose import compose_study, hydra_session, parse_command
from harness.config import ConfigError, ExecutorConfig
from harness.engine.cost.calibrated import Calibration
from harness.measure.environment import capture_environment
from harness.runs.code_hash import CodeHashes
from harness.runs.display import SweepDisplay
from harness.runs.half_written import write_whole
from harness.runs.interrupted import go_on, resumable, what_is_left
from harness.runs.jobs import Job, make_job
from harness.runs.planning import plan_study
from harness.runs.store import RunStore, StoredRun
from harness.runs.sweep import pending_jobs, run_jobs

_EXAMPLES = """\
examples:
  python -m experiments calibrate                               # the small model on this machine
  python -m experiments calibrate --validate                    # and how far off it is
  python -m experiments calibrate model=llama_3_2_1b            # another model
  python -m experiments calibrate --runs results/single --out calibration.json
"""


EXPERIMENT = "calibration"

DISTURBED = 0.1
"""A fit this far off, in the median, is of a machine that did something else."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, fit, write; 0, or 1 if a run failed. Raises ConfigError for a wrong command line."""
    given, keys = _parser().parse_known_args(arguments)
    if unknown := [key for key in keys if "=" not in key]:
        raise ConfigError(f"{unknown[0]}: neither an option of this command nor a key=value")
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if given.runs is not None:
        if keys or given.validate:
            raise ConfigError("--runs fits stored runs alone: leave out keys and --validate")
        runs, folder = _stored(given.runs), given.runs
        path = given.out or folder / "calibration.json"
        _write(runs, path, console)
        return 0
    jobs = _plan(keys, console)
    folder = jobs[0].root
    path = given.out or folder / "calibration.json"
    to_fit = [job for job in jobs if job.part == "fit"]
    held_out = [job for job in jobs if job.part == "held_out"] if given.validate else []
    _run(_by_turns(to_fit, held_out), arguments or (), console)
    runs = _complete(to_fit)
    _write(runs, path, console)
    failed = len(to_fit) + len(held_out) - len(runs) - len(_complete(held_out))
    if held_out:
        _validate(held_out, path, folder, console)
    if failed:
        console.print(f"{failed} runs failed; repeat the command to try them again", style="bold")
    return 1 if failed else 0


def _plan(keys: Sequence[str], console: Console) -> list[Job]:
    with hydra_session():
        command = parse_command([f"experiment={EXPERIMENT}", *keys])
        study = compose_study(command)
        plan = plan_study(study, command, study.results_dir / study.name, console)
        return list(plan.jobs)


def _run(jobs: Sequence[Job], arguments: Sequence[str], console: Console) -> None:
    """Those of `jobs` that are not stored yet. arguments: of the command, to repeat it."""
    pending = pending_jobs(jobs)
    if not pending:
        return
    display = SweepDisplay(console, pending, jobs)

    def finished(job: Job, run: StoredRun | None) -> Sequence[Job]:
        display.finished(job, run)
        return ()

    def interrupted() -> str:
        RunStore(jobs[0].root).remove_partial()
        repeated = go_on("experiments calibrate", arguments)
        return what_is_left(display.num_stored, display.num_left, repeated)

    with resumable(interrupted), display:
        run_jobs(pending, capture_environment("none", 1), finished, display.started)


def _by_turns(first: Sequence[Job], second: Sequence[Job]) -> list[Job]:
    """Both spread evenly, so that a machine that grows slower does so for both."""
    placed = [
        ((index + 0.5) / len(jobs), job)
        for jobs in (first, second)
        for index, job in enumerate(jobs)
    ]
    return [job for _, job in sorted(placed, key=lambda pair: pair[0])]


def _complete(jobs: Sequence[Job]) -> list[StoredRun]:
    found = [RunStore(job.root).find(job.run_id) for job in jobs]
    return [run for run in found if run is not None and run.status == "complete"]


def _stored(folder: Path) -> list[StoredRun]:
    """Real runs in `folder` whose steps' work was recorded."""
    store = RunStore(folder)
    names = sorted(path.name for path in folder.glob("*") if path.is_dir())
    found = [run for name in names if (run := store.find(name)) is not None]
    runs = [
        run
        for run in found
        if run.status == "complete"
        and run.config["executor"]["kind"] == "torch"
        and run.config.get("measure", {}).get("step_work")
    ]
    if not runs:
        raise ConfigError(
            f"--runs {folder}: no complete run with executor=torch measure.step_work=true in it "
            f"({len(found)} others)"
        )
    return runs


def _write(runs: Sequence[StoredRun], path: Path, console: Console) -> None:
    if not runs:
        raise ConfigError("none of the runs to fit was completed: their errors stand above")
    calibration = fit(runs, _environment(runs))
    calibration.save(path)
    _describe(calibration, console)
    console.print(f"calibration: {path}")


def _environment(runs: Sequence[StoredRun]) -> dict[str, Any]:
    """Of the first run: all were made on one machine."""
    try:
        values: dict[str, Any] = json.loads((runs[0].path / "environment.json").read_text())
    except (OSError, ValueError):
        return {}
    return values


def _describe(calibration: Calibration, console: Console) -> None:
    console.print(
        f"\n{calibration.num_steps:,} busy steps of {calibration.num_runs} runs of "
        f"{calibration.model['name']} ({', '.join(calibration.allocators)}; pages of "
        f"{', '.join(map(str, calibration.page_sizes))}; {', '.join(calibration.workloads)}): "
        f"half of the steps are fitted to within {100 * calibration.fit_error:.1f} %"
    )
    if calibration.fit_error > DISTURBED:
        console.print(
            "steps of like work take unlike times: something else ran on the machine, or its "
            "clock changed; repeat the command into another results_dir when it is quiet",
            style="bold",
        )
    for name, seconds in calibration.seconds.items():
        if seconds > 0:
            highest = calibration.highest[name]
            console.print(f"  {name:<24} {1e6 * seconds:12.4g} us each, up to {highest:,.0f}")


def _validate(held_out: Sequence[Job], path: Path, folder: Path, console: Console) -> None:
    hashes = CodeHashes()
    pairs = [Pair(job, _simulated(job, path, hashes)) for job in held_out]
    _run([pair.simulated for pair in pairs], console)
    frame = errors(pairs)
    if frame.empty:
        return
    text = to_markdown(frame)
    write_whole(folder / "simulator_error.md", text)
    console.print(f"\n{text}")
    written = draw(frame, [job for pair in pairs for job in pair], folder / "figures")
    names = ", ".join(["simulator_error.md", *(file.name for file in written)])
    console.print(f"results: {folder}/  ({names})")


def _simulated(job: Job, path: Path, hashes: CodeHashes) -> Job:
    """The same run under the calibrated clock."""
    config = dataclasses.replace(
        job.config,
        executor=ExecutorConfig("simulated", "calibrated", calibration=str(path)),
        measure=dataclasses.replace(job.config.measure, step_work=False),
    )
    return make_job(config, "simulated", job.root, "simulated", hashes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments calibrate",
        description=__doc__,
        epilog=_EXAMPLES,
        allow_abbrev=False,
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, help="file to write (calibration.json by the runs)")
    parser.add_argument("--runs", type=Path, metavar="FOLDER", help="fit its stored runs")
    parser.add_argument("--validate", action="store_true", help="try it on runs it has not seen")
    return parser
