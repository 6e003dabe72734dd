"""Token ids for prompts that are known by the hashes of their blocks only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

from harness.workloads.streams import Ints, Stream, TokenSource

_TOKENS_KEPT = 2**21
"""Of blocks that were drawn last: the heads that many prompts share."""


class BlockTokens:
    """Gives block ids token ids, such that prompts share exactly what their ids share.

    Equal ids have equal tokens. Blocks that follow the same block differ in their first token,
    as long as there are no more of them than regular tokens (the Mooncake trace of FAST 2025
    has 2,211 first blocks); beyond that, prompts may share a token more than their ids.

    prompts: the ids of every prompt there is, in order. Tokens are drawn as they are asked for:
    what is kept of a block is its first one.
    """

    def __init__(
        self, source: TokenSource, block_len: int, prompts: Iterable[Sequence[int]]
    ) -> None:
        self.block_len = block_len
        self._source = source
        self._first: dict[int, int] = {}
        followers: Counter[int] = Counter()
        regular = source.regular
        for block_ids in prompts:
            for parent, block in pairwise((-1, *block_ids)):
                if block not in self._first:
                    rank = followers[parent]
                    followers[parent] += 1
                    self._first[block] = int(regular[(parent + 1 + rank) % len(regular)])
        self._block = lru_cache(maxsize=max(1, _TOKENS_KEPT // block_len))(self._draw)

    def prompt(self, block_ids: Sequence[int], length: int) -> list[int]:
        """The first `length` tokens of the blocks, the last of which may be partial."""
        tokens: list[int] = np.concatenate([self._block(block) for block in block_ids]).tolist()
        return tokens[:length]

    def _draw(self, block: int) -> Ints:
        tokens = self._source.draw(Stream.BLOCK, block, self.block_len)
        tokens[0] = self._first[block]
        return tokens


def scaled_block_len(block_len: int, scale: float, page_multiple: int, given: int | None) -> int:
    """Tokens of a block after scaling: as given, or to the nearest whole pages, at least one."""
    if given is not None:
        return given
    if scale == 1.0:
        return block_len
    return page_multiple * max(1, round(block_len * scale / page_multiple))


def scaled_prompt_len(prompt_len: int, block_len: int, scaled_block: int) -> int:
    """Whole blocks scale exactly, the partial last one by proportion to at least 1 token."""
    full, rest = divmod(prompt_len, block_len)
    if rest == 0:
        return full * scaled_block
    return full * scaled_block + max(1, round(rest * scaled_block / block_len))
