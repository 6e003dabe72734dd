"""Decode steps in row order on fixed addresses, captured once for each padded number of rows.

A step computes the rows 0 up to the highest in use, padded to a captured size. Nothing is
gathered: row i of every input is row i of the block tables. Rows that do not run are padding:
slot -1, so that no KV is written, length 0, so that none is read, and what comes out of them is
ignored.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import Any

import torch

from harness.engine.device.batch import BatchBuilder
from harness.engine.device.capture import Capture, CaptureWatch
from harness.engine.device.device_tables import DeviceTables
from harness.engine.device.model_runner import ModelRunner, take_drawn
from harness.engine.device.sampler import NOT_DRAWN, draw, draw_columns, greedy
from harness.engine.device.staging import Field, StagedInputs, StagedOutputs
from harness.engine.executor import CaptureReport
from harness.engine.plan import Chunk, StepPlan


class DecodeGraphs:
    """Captured decode steps of up to the largest of `sizes` rows.

    outputs: where tokens and margins go, entry by row, and where ids below 0 are taken from.
    samples: rows may be drawn at random; without it, only greedy steps are taken. Raises
    CaptureRefusedError where the model cannot be captured.
    """

    def __init__(
        self,
        runner: ModelRunner,
        batches: BatchBuilder,
        outputs: StagedOutputs,
        capture: Capture,
        sizes: tuple[int, ...],
        *,
        samples: bool = False,
    ) -> None:
        self._runner = runner.for_graphs(sizes[-1])
        self._batches = batches
        self._drawn = outputs.device["tokens"]
        self._margins = outputs.device["margins"]
        self._samples = samples
        self._sizes = sizes
        device, most = runner.device, sizes[-1]
        batches.changes = []
        self._tables = DeviceTables(batches.table, device)
        self._inputs = StagedInputs(
            [
                Field("ids", torch.int64, (most,)),
                Field("positions", torch.int64, (most,)),
                Field("slots", torch.int64, (batches.table.shape[0], most)),
                Field("seq_lens", torch.int32, (most,)),
                Field("columns", torch.float64, (4, most)),
            ],
            device,
        )
        self._bounds = torch.arange(most + 1, dtype=torch.int32, device=device)
        self._rows = torch.arange(most, device=device)
        self._prepared = most
        self._clear(most)
        self._inputs.send()
        watch = CaptureWatch(capture)
        self._replay = {size: capture(self._step_of(size)) for size in reversed(sizes)}
        self.report: CaptureReport = watch.report(sizes)

    def takes(self, plan: StepPlan) -> bool:
        """`plan` is of decodes alone, with at most one plain draw each, in rows that were
        captured."""
        if plan.draft is not None or not plan.chunks:
            return False
        for _, _, token_ids, draws, _, num_candidates, num_drafts, _ in plan.chunks:
            if len(token_ids) != 1 or len(draws) > 1 or num_candidates or num_drafts:
                return False
            if draws and draws[0].temperature > 0 and not self._samples:
                return False
        return self._batches.highest_row(plan.chunks) < self._sizes[-1]

    def update_tables(self) -> None:
        """Bring the block tables on the device up to date."""
        changes = self._batches.changes
        if changes:
            self._tables.update(changes)
            changes.clear()

    def prepare(self, chunks: tuple[Chunk, ...]) -> list[int]:
        """Set out on the host what `run` computes: `chunks`, which `takes` said can be. Returns
        the entries of the outputs that will hold the draws, in plan order."""
        batch = self._batches.build_rows(chunks)
        size = self._sizes[bisect.bisect_left(self._sizes, int(batch.rows.max()) + 1)]
        inputs = self._clear(size)
        rows = batch.rows
        inputs["ids"][rows] = batch.input_ids
        inputs["positions"][rows] = batch.positions
        inputs["slots"][:, rows] = batch.slot_mapping
        inputs["seq_lens"][rows] = batch.positions + 1
        drawing = [
            (int(row), chunk) for row, chunk in zip(rows, chunks, strict=True) if chunk.draws
        ]
        if self._samples and drawing:
            inputs["columns"][:, [row for row, _ in drawing]] = draw_columns(
                [chunk.draws[0] for _, chunk in drawing],
                [chunk.output_position for _, chunk in drawing],
            )
        self._prepared = size
        return [row for row, _ in drawing]

    def run(self) -> None:
        """Compute what was prepared last. The host waits for nothing."""
        self._inputs.send()
        self._replay[self._prepared]()

    def _clear(self, size: int) -> dict[str, Any]:
        """Inputs of which every row is padding."""
        inputs = self._inputs.begin()
        inputs["ids"][:size] = 0
        inputs["positions"][:size] = 0
        inputs["slots"][:, :size] = -1
        inputs["seq_lens"][:size] = 0
        inputs["columns"][:, :size] = [[1.0], [0.0], [1.0], [NOT_DRAWN]]
        return inputs

    def _step_of(self, size: int) -> Callable[[], None]:
        """What a step of `size` rows does on the device."""
        there = self._inputs.device

        def step() -> None:
            runner = self._runner
            attention = runner.attention_step(
                self._bounds[: size + 1],
                there["seq_lens"][:size],
                there["slots"][:, :size],
                self._tables.tensor[:, :size],
            )
            ids = take_drawn(there["ids"][:size], self._drawn)
            logits = runner.logits(ids, there["positions"][:size], self._rows[:size], attention)
            tokens, margins = greedy(logits)
            if self._samples:
                columns = there["columns"][:, :size]
                tokens = torch.where(columns[3] >= 0, draw(logits, columns), tokens)
            self._drawn[:size].copy_(tokens)
            self._margins[:size].copy_(margins)

        return step
