"""Ranks as threads of one process: the collectives without the processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from harness.engine.device.parallel.ranks import local_rows


class _Meeting:
    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=60)
        self.brought: list[Any] = [None] * size


class ThreadRanks:
    """One of `size` threads; computes by definition what `RankGroup` leaves to torch. Without a
    meeting it is there to be counted alone."""

    def __init__(self, rank: int, size: int, meeting: _Meeting | None) -> None:
        self.rank = rank
        self.size = size
        self._meeting = meeting

    def _exchange(self, mine: Tensor) -> list[Tensor]:
        meeting = self._meeting
        assert meeting is not None
        meeting.brought[self.rank] = mine.clone()
        meeting.barrier.wait()
        everyones = list(meeting.brought)
        meeting.barrier.wait()
        return everyones

    def embed(self, table: Tensor, ids: Tensor, out: Tensor) -> Tensor:
        local, is_elsewhere = local_rows(ids, self.rank, len(table))
        out.copy_(functional.embedding(local, table).masked_fill(is_elsewhere[:, None], 0.0))
        return self.sum(out)

    def sum(self, partial: Tensor) -> Tensor:
        return partial.copy_(torch.stack(self._exchange(partial)).sum(dim=0))

    def join_vocabulary(self, logits: Tensor, vocab_size: int) -> Tensor:
        return torch.cat(self._exchange(logits), dim=-1)[..., :vocab_size]

    def agree(self, verdict: bool) -> bool:
        return all(map(bool, self._exchange(torch.tensor(verdict))))


def on_all_ranks(size: int, work: Callable[[ThreadRanks], Any]) -> list[Any]:
    """What `work` returns on each of `size` ranks; raises what any of them does."""
    meeting = _Meeting(size)
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            with torch.inference_mode():
                results[rank] = work(ThreadRanks(rank, size, meeting))
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return results
