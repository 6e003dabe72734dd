"""Requests that are made when they are asked for: a million of them take no more memory than
their lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import overload

from harness.engine.request import Request, RequestOutline
from harness.workloads.streams import Floats, Ints


class LazyRequests(Sequence[Request]):
    """Request i is `make(i)`, made anew each time.

    arrivals_s, prompt_lens, max_tokens, output_lens: of each request, known beforehand; no
    output_lens where outputs end by themselves. num_sequences: of every request.
    """

    def __init__(
        self,
        make: Callable[[int], Request],
        arrivals_s: Floats,
        prompt_lens: Ints,
        max_tokens: Ints,
        output_lens: Ints | None,
        num_sequences: int,
    ) -> None:
        self._make = make
        self._arrivals_s = arrivals_s
        self._prompt_lens = prompt_lens
        self._max_tokens = max_tokens
        self._output_lens = output_lens
        self._num_sequences = num_sequences

    def outlines(self) -> Iterator[RequestOutline]:
        """Of each request, without making it."""
        output_lens = self._output_lens
        for index, (arrival_s, prompt_len, max_tokens) in enumerate(
            zip(self._arrivals_s, self._prompt_lens, self._max_tokens, strict=True)
        ):
            yield RequestOutline(
                float(arrival_s),
                int(prompt_len),
                int(max_tokens),
                None if output_lens is None else int(output_lens[index]),
                self._num_sequences,
                None,
            )

    def __len__(self) -> int:
        return len(self._prompt_lens)

    @overload
    def __getitem__(self, index: int) -> Request: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Request]: ...

    def __getitem__(self, index: int | slice) -> Request | Sequence[Request]:
        if isinstance(index, slice):
            return tuple(self._make(i) for i in range(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._make(index % len(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return NotImplemented
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]
