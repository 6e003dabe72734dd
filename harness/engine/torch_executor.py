"""The executor that runs the model."""

from __future__ import annotations

import time

import torch

from harness.engine.batch import BatchBuilder
from harness.engine.kv_pool import KVPool
from harness.engine.model_runner import ModelRunner
from harness.engine.models import LoadedModel
from harness.engine.plan import StepOutcome, StepPlan
from harness.engine.sampler import sample
from kernels import backend


class TorchExecutor:
    """Carries out step plans on a CPU or a GPU.

    num_pages, page_size: the KV pool. max_seqs: sequences with a block table at one time.
    max_len: tokens of the longest sequence. kernels: a name that `kernels.backend.load`
    knows, or "auto". kv_dtype: a torch dtype's name, or "auto" for the model's. fused: take
    the lean forward pass where the model allows it. poison: fill the pool with NaN first (for
    tests). Raises ValueError where the kernels cannot run these shapes.
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
        fused: bool = True,
        poison: bool = False,
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
        )
        self.batches = BatchBuilder(max_seqs, max_len, page_size)
        self.runner = ModelRunner(loaded, self.pool, self.kernels, attention=attention, fused=fused)

    @property
    def fused(self) -> bool:
        """The lean forward pass is in use."""
        return self.runner.lean is not None

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepOutcome:
        """Free rows, update tables, copy pages, run the chunks, sample."""
        start_s = time.perf_counter()
        self.batches.free(plan.freed_seq_ids)
        self.batches.update(plan.table_updates)
        self.pool.copy(plan.copies, self.kernels)
        token_ids: list[int] = []
        margins: list[float] = []
        if plan.chunks:
            logits = self.runner.forward(self.batches.build(plan.chunks))
            sampling = [chunk for chunk in plan.chunks if chunk.samples]
            token_ids, margins = sample(
                logits,
                [chunk.sampling for chunk in sampling],
                [chunk.output_position for chunk in sampling],
            )
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return StepOutcome(token_ids, margins, time.perf_counter() - start_s)

    def close(self) -> None:
        """Give the pool and the model's memory back."""
        del self.runner, self.pool, self.model
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
