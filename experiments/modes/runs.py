"""Serves one mode under one strategy, and compares it with the reference token for token."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from experiments.modes.cases import FAMILIES, PAGE_SIZE, Mode, modes, save_near_draft
from experiments.modes.reference import Answer, Reference
from harness.config import AllocatorConfig, DeviceConfig, KVConfig, RunConfig
from harness.engine.device.model_shape import ModelConfig
from harness.engine.request import Workload
from harness.measure.ledger import CLASSES
from harness.measure.record_files import KeptRecords
from harness.measure.records import RequestRecord
from harness.runs.build import PreparedRun, prepare
from harness.runs.torch_device import TorchDevice

CPU = DeviceConfig(kind="cpu", threads=1)


class Difference(NamedTuple):
    """Where a request's output first left the reference.

    sequence: of the request's samples or beams. position: in that output. expected_id, found_id:
    -1 where one of the two had ended. margin: the larger of both sides' gaps between the best
    logit and the second; NaN for beams, which are ranked by sums.
    """

    request_id: int
    sequence: int
    position: int
    expected_id: int
    found_id: int
    margin: float

    def __str__(self) -> str:
        margin = "" if math.isnan(self.margin) else f", logit margin {self.margin:.2g}"
        return (
            f"request {self.request_id}, output {self.sequence}, position {self.position}: "
            f"token {self.found_id}, reference {self.expected_id}{margin}"
        )


class Cell(NamedTuple):
    """One mode of one model under one strategy.

    num_equal: requests whose every token is the reference's. num_happened: how often the mode
    happened (`Mode.count`). difference: the first, if there is one. error: why the cell proves
    nothing, or empty.
    """

    family: str
    mode: Mode
    strategy: AllocatorConfig
    num_equal: int
    num_happened: int
    difference: Difference | None
    error: str

    @property
    def num_requests(self) -> int:
        return len(self.mode.requests)

    @property
    def is_proof(self) -> bool:
        """All tokens are the reference's, and the mode happened where it had to."""
        return not self.error and self.num_equal == self.num_requests


def family_cells(family: str, strategies: Sequence[AllocatorConfig]) -> Iterator[Cell]:
    """Every mode of one of FAMILIES under every strategy, as they finish."""
    config = FAMILIES[family]
    device, reference = TorchDevice(config, CPU), Reference(config)
    with TemporaryDirectory() as folder:
        save_near_draft(config, Path(folder))
        for mode in modes(config, Path(folder)):
            answers = [reference.answer(request) for request in mode.requests]
            for strategy in strategies:
                yield mode_cell(family, mode, strategy, config, device, answers)


def mode_cell(
    family: str,
    mode: Mode,
    strategy: AllocatorConfig,
    config: ModelConfig,
    device: TorchDevice,
    answers: Sequence[Answer],
) -> Cell:
    """Serve `mode`; a run that fails is a cell with its error, and what it had finished."""
    run = _prepare(mode, strategy, config, device)
    error, happened = "", 0
    try:
        run.run()
        happened = mode.count(run)
        error = _unsound(run)
        run.allocator.check_integrity()
    except Exception as failure:  # whatever a strategy under test may raise
        error = f"{type(failure).__name__}: {failure}".splitlines()[0]
    finally:
        run.executor.close()
    records = {record.request_id: record for record in run.recorder.sink.requests}
    num_equal, first = 0, None
    for request, answer in zip(mode.requests, answers, strict=True):
        record = records.get(request.request_id)
        if record is None or record.status != "finished":
            reason = "never finished" if record is None else record.reason
            error = error or f"request {request.request_id}: {reason}"
            continue
        difference = first_difference(record, answer)
        num_equal += difference is None
        first = first or difference
    if not happened and not error and mode.must_happen(strategy.name):
        error = f"the mode did not happen: 0 {mode.unit}"
    return Cell(family, mode, strategy, num_equal, happened, first, error)


def first_difference(record: RequestRecord, answer: Answer) -> Difference | None:
    """The first position of the first output that is not the reference's."""
    start = 0
    lengths = [*record.sequence_lens, *[0] * (len(answer.token_ids) - len(record.sequence_lens))]
    for index, length in enumerate(lengths):
        found = record.chosen_ids[start : start + length]
        expected = answer.token_ids[index] if index < len(answer.token_ids) else ()
        for position in range(max(len(found), len(expected))):
            wanted = expected[position] if position < len(expected) else -1
            got = found[position] if position < len(found) else -1
            if got != wanted:
                gaps = [*record.margins[start + position :][: got >= 0]]
                if answer.margins and wanted >= 0:
                    gaps.append(answer.margins[index][position])
                margin = max(gaps, default=math.nan)
                return Difference(record.request_id, index, position, wanted, got, margin)
        start += length
    return None


def _prepare(
    mode: Mode, strategy: AllocatorConfig, config: ModelConfig, device: TorchDevice
) -> PreparedRun:
    run = RunConfig(
        allocator=strategy,
        kv=KVConfig(page_size=PAGE_SIZE, pool_tokens=mode.pool_tokens),
        engine=mode.engine,
        model=config,
        device=CPU,
    )
    return prepare(run, _workload(mode), mode.pool_tokens // PAGE_SIZE, device, KeptRecords())


def _workload(mode: Mode) -> Workload:
    return Workload(mode.name, mode.requests, mode.name)


def _unsound(run: PreparedRun) -> str:
    """A step after which the ledger's classes were not the whole pool, or nothing."""
    num_slots = run.allocator.pool.num_pages * PAGE_SIZE
    for step, entry in enumerate(run.recorder.sink.entries):
        if (total := sum(entry[: len(CLASSES)])) != num_slots:
            return f"step {step}: the ledger has {total} of {num_slots} slots"
    return ""
