"""The executor that runs the model."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from harness.engine.device.batch import BatchBuilder
from harness.engine.device.choose import choose
from harness.engine.device.draft_runner import DraftRunner, Drafts
from harness.engine.device.kv_pool import HostKV, KVPool
from harness.engine.device.model_runner import ModelRunner
from harness.engine.device.model_shape import LayerGroup
from harness.engine.device.models import LoadedModel
from harness.engine.plan import StepOutcome, StepPlan
from harness.engine.scheduling.beam_search import Candidates
from kernels import backend


class TorchExecutor:
    """Carries out step plans on a CPU or a GPU.

    num_pages, page_size: the KV pool. max_seqs: sequences with a block table at one time.
    max_len: tokens of the longest sequence. kernels: a name that `kernels.backend.load`
    knows, or "auto". kv_dtype: a torch dtype's name, or "auto" for the model's. host_pages:
    pages on the host for preempted sequences. fused: take the lean forward pass where the
    model allows it. poison: fill the pool with NaN first (for tests). draft: the draft
    model of speculative decoding, given as many slots for each of its tokens. groups: layers
    that have block tables and pages of their own; all layers together by default. Raises
    ValueError where the kernels cannot run these shapes.
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
    ) -> None:
        self.model = loaded.model
        self.device = torch.device(self.model.device)
        self.kernels = backend.load(self.device.type, kernels)
        dtype = self.model.dtype if kv_dtype == "auto" else getattr(torch, kv_dtype)
        self.kernels.check(
            page_size=page_size,
            num_q_heads=loaded.shape.num_q_heads,
            num_kv_heads=loaded.shape.num_kv_heads,
            head_dim=loaded.shape.head_dim,
            dtype=dtype,
        )
        self.pool = KVPool(
            loaded.shape,
            num_pages,
            page_size,
            dtype=dtype,
            device=self.device,
            poison=poison,
            groups=groups,
        )
        num_groups = len(self.pool.groups)
        self.host_pool = HostKV(self.pool, host_pages)
        self.batches = BatchBuilder(max_seqs, max_len, page_size, num_groups)
        self.drafter: DraftRunner | None = None
        if draft is not None:
            self.drafter = DraftRunner(
                draft,
                num_pages=num_pages // num_groups,
                page_size=page_size,
                max_seqs=max_seqs,
                max_len=max_len,
                dtype=dtype,
                kernels=self.kernels,
                fused=fused,
            )
        self.runner = ModelRunner(loaded, self.pool, self.kernels, attention=attention, fused=fused)

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
        drafting = None if self.drafter is None else self.drafter.lean
        for lean in (self.runner.lean, drafting):
            if lean is not None:
                lean.reserve(max_tokens, max_samples)

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepOutcome:
        """Free rows, update tables, move pages, run the chunks, choose tokens."""
        start_s = time.perf_counter()
        self.batches.free(plan.freed_seq_ids)
        self.batches.update(plan.table_updates)
        if plan.saves:
            self.host_pool.save(self.pool, plan.saves)
        self.pool.copy(plan.copies, self.kernels)
        if plan.restores:
            self.host_pool.restore(self.pool, plan.restores)
        token_ids: list[int] = []
        margins: list[float] = []
        candidates: list[Candidates] = []
        accepted: list[int] = []
        if plan.chunks:
            chunks = plan.chunks
            drafts = Drafts()
            if plan.draft is not None and self.drafter is not None:
                drafts = self.drafter.propose(plan.draft)
                chunks = tuple(drafts.fill(chunk) for chunk in chunks)
            logits = self.runner.forward(self.batches.build(chunks))
            token_ids, margins, candidates, accepted = choose(logits, chunks, drafts.probs)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return StepOutcome(token_ids, margins, time.perf_counter() - start_s, candidates, accepted)

    def close(self) -> None:
        """Give the pool and the model's memory back."""
        del self.runner, self.drafter, self.pool, self.host_pool, self.model
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
