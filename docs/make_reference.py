"""Makes results/reference/: runs the commands of docs/reference.py and keeps what they printed and
what it came from. `make readme` then fills README from there.

All commands are run before anything is kept, so that every run is of the revision that is checked
out: begin with a clean checkout, on an idle machine. Runs go to build/reference/, and what is there
is not run again: an interrupted `make reference` goes on where it stopped. --fresh forgets them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from reference import FOLDER, OUTPUT, REFERENCES, ROOT, Reference

from experiments.exporting import REPORT, export_study
from experiments.stored import StoredStudy, find_study
from harness.measure.environment import capture_environment
from harness.runs.study_record import read_studies

WORKPLACE = ROOT / "build" / "reference"
ENVIRONMENT = "environment.json"
MAX_REPORT_BYTES = 1_500_000
MAX_TOTAL_BYTES = 8_000_000


def main() -> int:
    """Run all, then keep all. 1 where a command fails, or the whole gets too large."""
    given = _parser().parse_args()
    chosen = [each for each in REFERENCES if not given.only or each.name in given.only]
    if given.fresh:
        shutil.rmtree(WORKPLACE, ignore_errors=True)
    for reference in chosen:
        if not run(reference):
            return 1
    for reference in chosen:
        keep(reference)
    total = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    print(f"{FOLDER.relative_to(ROOT)}/: {total / 1e6:.2f} MB in all; now: make readme")
    if total > MAX_TOTAL_BYTES:
        print(f"more than {MAX_TOTAL_BYTES / 1e6:g} MB: keep less", file=sys.stderr)
        return 1
    return 0


def run(reference: Reference) -> bool:
    """Run the command in the workplace, unless it was at this revision; whether it went well."""
    environment = dataclasses.asdict(capture_environment("cpu", os.cpu_count() or 1))
    revision = environment["git_revision"]
    earlier = _record(reference)
    if earlier.get("environment", {}).get("git_revision") == revision and revision[-1] != "+":
        print(f"{reference.name}: is there already, of this revision", flush=True)
        return True
    print(f"$ {reference.command}", flush=True)
    started = time.perf_counter()
    status, output = _printed(reference)
    if status != 0:
        print(f"{reference.name}: exit status {status}", file=sys.stderr)
        return False
    print(f"({reference.name}: {time.perf_counter() - started:.0f} s)\n", flush=True)
    study_id = find_results(reference).record.study_id if reference.study else ""
    if "already stored" in output and study_id == earlier.get("study_id"):
        output = with_head_of(_transcript(reference).read_text(), output)
    _transcript(reference).write_text(output)
    record = {"study_id": study_id, "environment": environment}
    _record_path(reference).write_text(json.dumps(record, indent=1) + "\n")
    return True


def with_head_of(earlier: str, output: str) -> str:
    """What was printed when the runs were made, up to the first blank line, then the tables that
    `output`, of a command that found all runs stored, has of them."""
    return "\n\n".join([earlier.partition("\n\n")[0], output.partition("\n\n")[2]])


def keep(reference: Reference) -> None:
    """Put what the command left in the workplace into results/reference/NAME/, in place of what
    is there. Nothing else decides what is written."""
    if reference.study:
        export_study(find_results(reference), reference.folder, with_report=True, with_pdf=False)
        for path in (reference.folder / "figures").glob("*.[ps][nv]g"):  # the report has them
            if path.name not in {f"{name}.png" for name in reference.pictures}:
                path.unlink()
        report = reference.folder / REPORT
        size = report.stat().st_size
        if size > MAX_REPORT_BYTES:
            report.unlink()
            print(f"{reference.name}: a report of {size / 1e6:.2f} MB is left out")
    else:
        shutil.rmtree(reference.folder, ignore_errors=True)
        reference.folder.mkdir(parents=True)
        for name in reference.files:
            shutil.copy(WORKPLACE / name, reference.folder / Path(name).name)
        environment = json.dumps(_record(reference)["environment"], indent=1)
        (reference.folder / ENVIRONMENT).write_text(environment + "\n")
    shutil.copy(_transcript(reference), reference.folder / OUTPUT)


def find_results(reference: Reference) -> StoredStudy:
    """What the command stored. Where it is what is kept already, it is of the time of that."""
    study = find_study(reference.study, WORKPLACE / "results")
    for kept in read_studies(reference.folder):
        if dataclasses.replace(study.record, updated_at=kept.updated_at) == kept:
            return study._replace(record=kept)
    return study


def _printed(reference: Reference) -> tuple[int, str]:
    """Exit status and output, which goes to the screen as well."""
    for name in reference.reads:
        (WORKPLACE / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, WORKPLACE / name)
    WORKPLACE.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "110", "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    command = [sys.executable, *reference.arguments]
    lines = []
    with subprocess.Popen(
        command, cwd=WORKPLACE, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    return process.returncode, "\n".join(lines).strip("\n") + "\n"


def _transcript(reference: Reference) -> Path:
    return WORKPLACE / f"{reference.name}.txt"


def _record_path(reference: Reference) -> Path:
    return WORKPLACE / f"{reference.name}.json"


def _record(reference: Reference) -> dict[str, Any]:
    """What `run` wrote when the command had gone well; empty where it has not."""
    if not _record_path(reference).is_file():
        return {}
    values: dict[str, Any] = json.loads(_record_path(reference).read_text())
    return values


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [reference.name for reference in REFERENCES]
    parser.add_argument(
        "--only", choices=names, action="append", metavar="NAME",
        help=f"may be repeated: {', '.join(names)}",
    )  # fmt: skip
    parser.add_argument("--fresh", action="store_true", help="forget the runs of earlier times")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
