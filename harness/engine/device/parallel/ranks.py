"""The processes that share a model's forward pass, and what they do together in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from harness.engine.executor import RankLostError


class Ranks(Protocol):
    """What a forward pass asks of the group of ranks it is split over."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def embed(self, table: Tensor, ids: Tensor, out: Tensor) -> Tensor:
        """Rows `ids` (T,) of a table (vocabulary, width) in `out` (T, width); `table` is this
        rank's slice of it."""
        ...

    def sum(self, partial: Tensor) -> Tensor:
        """The sum of all ranks' `partial`, in place."""
        ...

    def join_vocabulary(self, logits: Tensor, vocab_size: int) -> Tensor:
        """(rows, vocabulary) on rank 0, from all ranks' slices; elsewhere the slice as it is."""
        ...

    def agree(self, verdict: bool) -> bool:
        """Whether the verdict is yes on every rank."""
        ...


class Alone:
    """One process with the whole model."""

    rank = 0
    size = 1

    def embed(self, table: Tensor, ids: Tensor, out: Tensor) -> Tensor:
        return torch.index_select(table, 0, ids, out=out)

    def sum(self, partial: Tensor) -> Tensor:
        return partial

    def join_vocabulary(self, logits: Tensor, vocab_size: int) -> Tensor:
        return logits

    def agree(self, verdict: bool) -> bool:
        return verdict


ALONE = Alone()


class RankGroup:
    """Ranks of a torch.distributed group, one slice of the model each.

    Every method is a collective: all ranks call it, in the same order. diagnosed: turns what a
    collective failed with into what the user is told. Raises what that gives.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        group: dist.ProcessGroup,
        diagnosed: Callable[[RuntimeError], RankLostError],
    ) -> None:
        self.rank = rank
        self.size = size
        self._group = group
        self._diagnosed = diagnosed

    def embed(self, table: Tensor, ids: Tensor, out: Tensor) -> Tensor:
        """Vocabulary-parallel (Megatron-LM, section 3): rows of other ranks' slices count 0."""
        local, is_elsewhere = local_rows(ids, self.rank, len(table))
        out.copy_(functional.embedding(local, table))
        out.masked_fill_(is_elsewhere[:, None], 0.0)
        return self.sum(out)

    def sum(self, partial: Tensor) -> Tensor:
        try:
            dist.all_reduce(partial, group=self._group)
        except RuntimeError as error:
            raise self._diagnosed(error) from error
        return partial

    def join_vocabulary(self, logits: Tensor, vocab_size: int) -> Tensor:
        mine = logits.contiguous()
        slices = [torch.empty_like(mine) for _ in range(self.size)] if self.rank == 0 else None
        try:
            dist.gather(mine, slices, dst=0, group=self._group)
        except RuntimeError as error:
            raise self._diagnosed(error) from error
        return logits if slices is None else torch.cat(slices, dim=-1)[..., :vocab_size]

    def agree(self, verdict: bool) -> bool:
        device = "cuda" if dist.get_backend(self._group) == "nccl" else "cpu"
        num_for = self.sum(torch.tensor([float(verdict)], device=device))
        return int(num_for.item()) == self.size


def local_rows(ids: Tensor, rank: int, num_rows: int) -> tuple[Tensor, Tensor]:
    """Of a table of which each rank has `num_rows`: the rows of `ids` in this rank's slice, 0 for
    those that are in another, and which these are."""
    local = ids - rank * num_rows
    is_elsewhere = (local < 0) | (local >= num_rows)
    return local.masked_fill(is_elsewhere, 0), is_elsewhere
