"""Independent random streams of one seed, so that one axis never disturbs another."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Stream(IntEnum):
    """What a random stream is used for."""

    LENGTHS = 0
    ARRIVALS = 1
    TOKENS = 2
    SHARED_PREFIX = 3
    BLOCK = 4
    OUTPUT = 5
    SAMPLING = 6
    CLIENTS = 7
    POPULARITY = 8


def rng(seed: int, stream: Stream, index: int = 0) -> np.random.Generator:
    """The generator of one stream; `index` separates, for instance, requests."""
    return np.random.default_rng((seed, int(stream), index))


class TokenSource:
    """Draws regular token ids (no special ones) that depend on (seed, stream, index) only."""

    def __init__(
        self, seed: int, vocab_size: int, first_regular_id: int, eos_ids: Iterable[int] = ()
    ) -> None:
        self.seed = seed
        self.vocab_size = vocab_size
        self.regular: Ints = np.setdiff1d(
            np.arange(first_regular_id, vocab_size, dtype=np.int64),
            np.fromiter(eos_ids, dtype=np.int64),
        )
        if len(self.regular) < 2:
            raise ValueError(
                f"a vocabulary of {vocab_size} has {len(self.regular)} regular tokens from id "
                f"{first_regular_id} on, at least 2 are needed: lower workload.first_regular_id"
            )

    def draw(self, stream: Stream, index: int, count: int) -> Ints:
        """`count` token ids; a longer draw starts with a shorter one's ids."""
        picks = rng(self.seed, stream, index).integers(0, len(self.regular), size=count)
        ids: Ints = self.regular[picks]
        return ids

    def check(self, ids: NDArray[np.integer]) -> None:
        """Raise ValueError where a tokenizer gave ids beyond the model's vocabulary."""
        largest = int(ids.max(initial=0))
        if largest >= self.vocab_size:
            raise ValueError(
                f"token id {largest} of the text is beyond the model's vocabulary of "
                f"{self.vocab_size}: take a model with a larger one, or its own tokenizer (the "
                "built-in one needs 256 ids from workload.first_regular_id on)"
            )
