"""The executor that runs the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor

from harness.engine.device.batch import Batch, BatchBuilder
from harness.engine.device.capture import Capture, free_workspaces, graph_sizes
from harness.engine.device.choose import Chosen, choose, draws_one_each
from harness.engine.device.compiled import CompiledModel
from harness.engine.device.decode_graphs import DecodeGraphs
from harness.engine.device.draft_runner import DraftRunner, Drafts
from harness.engine.device.model_shape import LayerGroup
from harness.engine.device.models import LoadedModel
from harness.engine.device.parallel.commands import (
    BuildPool,
    Command,
    ReleasePool,
    Reserve,
)
from harness.engine.device.parallel.followers import Followers
from harness.engine.device.parallel.step_message import StepMessage
from harness.engine.device.pooled_model import PooledModel, PoolSpec
from harness.engine.device.sampler import sample_rows
from harness.engine.device.staging import Array, Field, StagedOutputs
from harness.engine.executor import CaptureReport
from harness.engine.plan import PENDING_TOKEN, Chunk, StepOutcome, StepPlan


@dataclass(frozen=True, slots=True)
class PendingTokens:
    """A step that the device works on. entries: of `fetched`, the step's draws in plan order.
    events: on a GPU, the begin and the end of its work. chosen: where the host had to wait."""

    start_s: float
    submitted_s: float
    entries: Sequence[int] = ()
    fetched: Mapping[str, Array] | None = None
    events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
    chosen: Chosen | None = None
    broadcast_bytes: int = 0


class TorchExecutor:
    """Carries out step plans on a CPU or a GPU.

    num_pages, page_size: the KV pool. max_seqs: sequences with a block table at one time.
    max_len: tokens of the longest sequence. kernels: a name that `kernels.backend.load`
    knows, or "auto". kv_dtype: a torch dtype's name, or "auto" for the model's. host_pages:
    pages on the host for preempted sequences. fused: take the lean forward pass where the
    model allows it. poison: fill the pool with NaN first (for tests). draft: the draft
    model of speculative decoding, given as many slots for each of its tokens. groups: layers
    that have block tables and pages of their own; all layers together by default. capture: records
    decode steps of up to `most_captured` rows (all, where None) beforehand; samples: with random
    draws. compiled: takes the place of the forward pass. followers: the other ranks of a model that
    is split, which is neither captured nor compiled. Raises ValueError where the kernels cannot run
    these shapes, CaptureRefusedError and NotCompiledError where the model cannot be captured or
    compiled, RankLostError where one of the ranks is gone.

    captured: what capturing took.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        num_pages: int,
        page_size: int,
        max_seqs: int,
        max_len: int,
        attention: str = "paged",
        kernels: str = "auto",
        kv_dtype: str = "auto",
        host_pages: int = 0,
        fused: bool = True,
        poison: bool = False,
        draft: LoadedModel | None = None,
        groups: Sequence[LayerGroup] = (),
        capture: Capture | None = None,
        most_captured: int | None = None,
        samples: bool = False,
        compiled: CompiledModel | None = None,
        followers: Followers | None = None,
    ) -> None:
        self.model = loaded.model
        self.device = torch.device(self.model.device)
        spec = PoolSpec(
            num_pages=num_pages,
            page_size=page_size,
            max_seqs=max_seqs,
            max_len=max_len,
            attention=attention,
            kernels=kernels,
            kv_dtype=kv_dtype,
            host_pages=host_pages,
            fused=fused,
            poison=poison,
            groups=tuple(groups),
        )
        self._followers = followers
        with self._together():
            self._tell(BuildPool(spec))
            self.pooled = PooledModel(loaded, spec, compiled)
        self.kernels, self.runner = self.pooled.kernels, self.pooled.runner
        self.pool, self.host_pool = self.pooled.pool, self.pooled.host_pool
        num_groups = len(self.pool.groups)
        self.batches = BatchBuilder(max_seqs, max_len, page_size, num_groups)
        if followers is not None:
            self.batches.changes = []
        self.drafter = None if draft is None else self._draft_runner(draft, spec)
        if compiled is not None:
            with torch.inference_mode():
                self.runner.compile()
        self._outputs = StagedOutputs(
            [
                Field("tokens", torch.int64, (max_seqs,)),
                Field("margins", torch.float32, (max_seqs,)),
            ],
            self.device,
        )
        self._drawn_at: dict[int, int] = {}
        self._graphs = None if capture is None else self._record(capture, most_captured, samples)
        self.captured = CaptureReport() if self._graphs is None else self._graphs.report

    def _draft_runner(self, draft: LoadedModel, spec: PoolSpec) -> DraftRunner:
        return DraftRunner(
            draft,
            num_pages=spec.num_pages // len(self.pool.groups),
            page_size=spec.page_size,
            max_seqs=spec.max_seqs,
            max_len=spec.max_len,
            dtype=self.pooled.dtype,
            kernels=self.kernels,
            fused=spec.fused,
        )

    @torch.inference_mode()
    def _record(self, capture: Capture, most_rows: int | None, samples: bool) -> DecodeGraphs:
        max_seqs = self.batches.max_seqs
        sizes = graph_sizes(min(max_seqs, most_rows or max_seqs))
        return DecodeGraphs(
            self.runner, self.batches, self._outputs, capture, sizes, samples=samples
        )

    @property
    def fused(self) -> bool:
        """The lean forward pass is in use."""
        return self.runner.lean is not None

    @property
    def kv_bytes(self) -> int:
        """Size of the pool, and of the draft model's."""
        return self.pool.kv_bytes + (0 if self.drafter is None else self.drafter.kv_bytes)

    @torch.inference_mode()
    def reserve(self, max_tokens: int, max_samples: int) -> None:
        """Take the activations' buffers for steps of at most so many tokens and sampled rows, so
        that nothing grows later on; the draft model's too."""
        with self._together():
            self._tell(Reserve(max_tokens, max_samples))
            self.pooled.reserve(max_tokens, max_samples)
        if self.drafter is not None and self.drafter.lean is not None:
            self.drafter.lean.reserve(max_tokens, max_samples)

    @property
    def works_apart(self) -> bool:
        """The device goes on while the host does something else. Where other ranks are to be told
        each token, the host must know them first."""
        return self.device.type == "cuda" and self._followers is None

    def execute(self, plan: StepPlan) -> StepOutcome:
        """`submit`, and wait for the result."""
        return self.result(self.submit(plan))

    @torch.inference_mode()
    def submit(self, plan: StepPlan) -> PendingTokens:
        """Free rows, update tables, move pages, run the chunks, choose tokens: in order on the
        device. The host waits for it where beams, drafts or branching samples are chosen."""
        start_s = perf_counter()
        chunks = plan.chunks
        some_pending = any(chunk.token_ids[-1] == PENDING_TOKEN for chunk in chunks)
        if some_pending:
            chunks = tuple(self._with_drawn_token(chunk) for chunk in chunks)
        self.batches.free(plan.freed_seq_ids)
        self.batches.update(plan.table_updates)
        entries: Sequence[int] = ()
        broadcast_bytes = 0
        chosen = batch = None
        graphs = self._graphs if self._graphs is not None and self._graphs.takes(plan) else None
        if graphs is not None:
            entries = graphs.prepare(chunks)
        elif chunks and plan.draft is None:
            batch = self.batches.build(chunks)
        begin = self._event()  # all that the host can do before is done
        self._prepare_memory(plan)
        if graphs is not None:
            graphs.run()
        elif chunks:
            drafts = Drafts()
            if plan.draft is not None and self.drafter is not None:
                drafts = self.drafter.propose(plan.draft)
                chunks = tuple(drafts.fill(chunk) for chunk in chunks)
            drawn = self._outputs.device["tokens"] if some_pending else None
            batch = batch or self.batches.build(chunks)
            with self._together():
                broadcast_bytes = self._tell_step(plan, batch)
                logits = self.runner.forward(batch, drawn)
                if draws_one_each(chunks):
                    entries = self._sample(logits, [chunk for chunk in chunks if chunk.draws])
                else:
                    chosen = choose(logits, chunks, drafts.probs)
        elif _moves_pages(plan):
            broadcast_bytes = self._tell_step(plan, None)
        asking = [chunk.seq_id for chunk in chunks if chunk.draws]
        self._drawn_at = dict(zip(asking, entries, strict=False))
        fetched = self._outputs.fetch() if entries else None
        end = self._event()
        events = None if begin is None or end is None else (begin, end)
        return PendingTokens(
            start_s, perf_counter(), entries, fetched, events, chosen, broadcast_bytes
        )

    def result(self, pending: PendingTokens) -> StepOutcome:
        """Wait until the device is done with a step; what it chose. duration_s: since the step
        was submitted."""
        with self._together():
            return self._outcome(pending)

    def _outcome(self, pending: PendingTokens) -> StepOutcome:
        device_s = waited_s = pending.submitted_s - pending.start_s  # a CPU is its own device
        if pending.events is not None:
            begin, end = pending.events
            asked_s = perf_counter()
            end.synchronize()
            waited_s = perf_counter() - asked_s
            device_s = begin.elapsed_time(end) / 1e3
        chosen = pending.chosen or Chosen([], [], [], [])
        if pending.fetched is not None:
            entries = list(pending.entries)
            tokens = pending.fetched["tokens"][entries].tolist()
            chosen = Chosen(tokens, pending.fetched["margins"][entries].tolist(), [], [])
        duration_s = perf_counter() - pending.start_s
        return StepOutcome(
            chosen.token_ids,
            chosen.margins,
            duration_s,
            chosen.candidates,
            chosen.num_accepted,
            device_s,
            waited_s,
            pending.broadcast_bytes,
        )

    def _prepare_memory(self, plan: StepPlan) -> None:
        """Tables on the device, and pages where the step expects them."""
        if self._graphs is not None:
            self._graphs.update_tables()
        self.pooled.move_pages(plan.saves, plan.copies, plan.restores)

    def _together(self) -> AbstractContextManager[None]:
        """What all ranks do, or none."""
        return nullcontext() if self._followers is None else self._followers.ended_on_error()

    def _tell(self, command: Command) -> None:
        if self._followers is not None:
            self._followers.tell(command)

    def _tell_step(self, plan: StepPlan, batch: Batch | None) -> int:
        """Have the other ranks do the same; bytes that each is sent."""
        if self._followers is None:
            return 0
        changes, entries = self.batches.take_changes()
        moves = (plan.saves, plan.copies, plan.restores)
        return self._followers.step(StepMessage(batch, changes, entries, *moves))

    def _sample(self, logits: Tensor, asking: Sequence[Chunk]) -> range:
        """A draw each of `asking`, into the first entries of the outputs."""
        count = len(asking)
        if count:
            sampled = sample_rows(
                logits,
                [chunk.draws[0] for chunk in asking],
                [chunk.output_position for chunk in asking],
            )
            self._outputs.device["tokens"][:count].copy_(sampled.tokens)
            self._outputs.device["margins"][:count].copy_(sampled.margins)
        return range(count)

    def _with_drawn_token(self, chunk: Chunk) -> Chunk:
        """`chunk`, with the place of a token that the step before drew in place of the token,
        which the host does not know yet: as -1 - entry of the outputs."""
        if chunk.token_ids[-1] != PENDING_TOKEN:
            return chunk
        entry = self._drawn_at[chunk.seq_id]
        return chunk._replace(token_ids=[*chunk.token_ids[:-1], -1 - entry])

    def _event(self) -> torch.cuda.Event | None:
        """A mark in the device's work, with its time."""
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def close(self) -> None:
        """Give the pool and the model's memory back."""
        self._graphs = None
        if self._followers is not None and self._followers.is_open:
            self._followers.tell(ReleasePool())
        del self.pooled, self.runner, self.drafter, self.pool, self.host_pool, self.model
        if self.device.type == "cuda":
            free_workspaces()
            torch.cuda.empty_cache()


def _moves_pages(plan: StepPlan) -> bool:
    return bool(plan.saves or plan.copies or plan.restores)
