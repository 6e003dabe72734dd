"""Token ids for prompts that are known by the hashes of their blocks only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain

from harness.workloads.streams import Stream, TokenSource


class BlockTokens:
    """Gives block ids token ids, such that prompts share exactly what their ids share.

    Equal ids have equal tokens. Blocks that follow the same block differ in their first token,
    as long as there are no more of them than regular tokens (the Mooncake trace of FAST 2025
    has 2,211 first blocks); beyond that, prompts may share a token more than their ids.
    """

    def __init__(self, source: TokenSource, block_len: int) -> None:
        self.source = source
        self.block_len = block_len
        self._blocks: dict[int, tuple[int, ...]] = {}
        self._followers: Counter[int] = Counter()

    def prompt(self, block_ids: Sequence[int], length: int) -> tuple[int, ...]:
        """The first `length` tokens of the blocks, the last of which may be partial."""
        blocks = [
            self._block(block, parent)
            for parent, block in zip((-1, *block_ids[:-1]), block_ids, strict=True)
        ]
        return tuple(chain.from_iterable(blocks))[:length]

    def _block(self, block: int, parent: int) -> tuple[int, ...]:
        if block not in self._blocks:
            regular = self.source.regular
            rank = self._followers[parent]
            self._followers[parent] += 1
            first = int(regular[(parent + 1 + rank) % len(regular)])
            rest = self.source.draw(Stream.BLOCK, block, self.block_len)[1:].tolist()
            self._blocks[block] = (first, *rest)
        return self._blocks[block]


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
