"""Decides a stored run again from what it was told, and says whether it decides the same:
`python -m experiments replay RUN_FOLDER`.

The run is one that was made with `measure.outcome_log=true`: who arrived before which step, and
what the device answered, are in its folder. Replayed, they stand in for clock and device; of a real
run the model is loaded for its tokenizer and shape, and computes nothing. Compared, step by step,
are the calls that the allocator got, its answers, and what each step computed, copied, saved and
restored. An allocator of one's own is executed from the file that the run names, only with
--own-code. Exit status: 0 where all is identical, 1 where not, 2 for a wrong command line.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from harness.config import ConfigError, RunConfig
from harness.conversion import from_mapping
from harness.engine.outcome_log import OutcomeLog, Replay, ReplayError
from harness.measure.outcome_rows import from_rows
from harness.measure.record_files import KeptRecords
from harness.own_code import is_file
from harness.runs.build import prepare
from harness.runs.one_run import make_workload
from harness.runs.store import RunStore, StoredRun
from harness.runs.surroundings import Device
from harness.runs.worker import DeviceCache

_EXAMPLES = """\
examples:
  python -m harness executor=simulated measure.outcome_log=true    # makes such a run
  python -m experiments replay results/single/RUN_ID                # decides it again
"""


class Replayed(NamedTuple):
    """difference: where the replay left the run, empty where it did not."""

    num_steps: int
    num_calls: int
    difference: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay every repetition of the run; see the module's docstring."""
    given = _parser().parse_args(arguments)
    run = _find(given.run)
    config = from_mapping(RunConfig, run.config)
    if is_file(config.allocator.name) and not given.own_code:
        raise ConfigError(
            f"{given.run}: its allocator is {config.allocator.name}, which a replay executes: look "
            "at what lies there, then add --own-code"
        )
    device = DeviceCache().get(config)
    logs = run.frame("outcome_log")
    status = 0
    for summary in run.summary:
        repetition, seed = int(summary["repetition"]), int(summary["seed"])
        log, digests = from_rows(logs[logs["repetition"] == repetition])
        own = dataclasses.replace(config, seed=seed)
        found = replay(own, device, log, digests, int(summary["pool_pages"]))
        if found.difference:
            print(f"seed {seed}: {found.difference}", file=sys.stderr)
            status = 1
        else:
            print(
                f"seed {seed}: identical decisions in {found.num_steps:,} steps, "
                f"{found.num_calls:,} calls of the allocator ({run.label})"
            )
    return status


def replay(
    config: RunConfig,
    device: Device,
    log: OutcomeLog,
    digests: Sequence[str],
    num_pages: int,
) -> Replayed:
    """Decide again. config: of the repetition, with its seed. digests: what was decided in each
    step of the run whose `log` this is."""
    workload = make_workload(config, device)
    prepared = prepare(config, workload, num_pages, device, KeptRecords(), log)
    assert prepared.decisions is not None and isinstance(prepared.arrivals, Replay)
    difference = ""
    try:
        prepared.run()
        prepared.arrivals.check_end()
    except ReplayError as error:
        difference = str(error)
    found = prepared.decisions.digests
    for step, (mine, theirs) in enumerate(zip_longest(found, digests)):
        if mine != theirs:
            difference = f"step {step}: decided otherwise" + (difference and f"; {difference}")
            break
    return Replayed(len(found), prepared.decisions.num_calls, difference)


def _find(folder: Path) -> StoredRun:
    run = RunStore(folder.parent).find(folder.name)
    if run is None or run.status != "complete":
        raise ConfigError(f"{folder}: no complete run; give results/EXPERIMENT/RUN_ID")
    if not (folder / "outcome_log.parquet").is_file():
        raise ConfigError(f"{folder}: has no outcome log: repeat it with measure.outcome_log=true")
    return run


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments replay", description=__doc__, epilog=_EXAMPLES
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="results/EXPERIMENT/RUN_ID")
    parser.add_argument(
        "--own-code", action="store_true", help="execute the allocator's file that the run names"
    )
    return parser
