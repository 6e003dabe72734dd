"""What a generator is given beside the config."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from harness.workloads.streams import TokenSource


class TextTokenizer(Protocol):
    """Turns text into token ids: a Hugging Face tokenizer or the built-in byte tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Context:
    """The run's side of a workload: nothing here depends on the allocator.

    tokens: where random token ids come from. tokenizer: None for the built-in one.
    eos_ids: end a request whose output is free. longest_len: tokens that the longest request
    of a trace is fitted to, None for any.
    """

    seed: int
    tokens: TokenSource
    tokenizer: TextTokenizer | None = None
    eos_ids: frozenset[int] = frozenset()
    longest_len: int | None = None
