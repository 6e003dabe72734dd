"""What a user asks of the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, overload, runtime_checkable

from harness.engine.scheduling.beam_search import BeamParams


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. `temperature` 0 is greedy.

    top_k 0 and top_p 1.0 switch the respective filter off. `seed` fixes the request's own
    random stream: its tokens do not depend on the batch it runs in.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def for_sample(self, index: int) -> SamplingParams:
        """The same with the random stream of a request's `index`-th sample; 0 keeps this one."""
        return replace(self, seed=self.seed + index * _SAMPLE_STRIDE) if index else self


_SAMPLE_STRIDE = 0x9E3779B97F4A7C15
"""Odd, of 64 bits: all samples' seeds differ modulo 2**64 (the golden ratio, as in SplitMix64)."""


class LazyTokens(Sequence[int]):
    """The first `length` ids of what `make` returns, made each time they are read: a request that
    waits takes no memory for them. Equal to any sequence of the same ids."""

    __slots__ = ("_length", "_make")

    def __init__(self, length: int, make: Callable[[], Sequence[int]]) -> None:
        self._length = length
        self._make = make

    def head(self, length: int) -> LazyTokens:
        """At most the first `length` of them."""
        return self if length >= self._length else LazyTokens(length, self._make)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        return iter(self[:])

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[int, ...]: ...

    def __getitem__(self, index: int | slice) -> int | tuple[int, ...]:
        return tuple(self._make()[: self._length])[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return self[:] == tuple(other)

    def __hash__(self) -> int:
        return hash(self[:])


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and what is wanted of it.

    request_id: position in the workload, from 0.
    arrival_s: scheduled arrival, seconds from the run's start; where `after_request` is set,
        seconds after that request's end instead (think time of a chat).
    prompt_ids: tokens of the prompt, at least one; like forced_ids, read once by whoever needs
        more of them than their number.
    max_tokens: bound on the output tokens, at least one.
    num_samples: outputs drawn for the prompt, each from a random stream of its own.
    beam: beam search in place of sampling.
    forced_ids: output tokens fed back in place of the model's own choices; the model's
        choices are recorded all the same.
    forced_len: output length without forced ids; end-of-sequence is ignored. Of all samples.
        With neither, the output ends at `eos_ids` or `max_tokens`.
    shared_prefix_id, shared_prefix_len: requests of the same id declare that their first
        `shared_prefix_len` tokens are the same.
    session_id: requests of one chat or agent session, or -1.
    """

    request_id: int
    arrival_s: float
    prompt_ids: Sequence[int]
    max_tokens: int
    num_samples: int = 1
    beam: BeamParams | None = None
    forced_ids: Sequence[int] | None = None
    forced_len: int | None = None
    eos_ids: frozenset[int] = frozenset()
    sampling: SamplingParams = field(default_factory=SamplingParams)
    shared_prefix_id: int = -1
    shared_prefix_len: int = 0
    session_id: int = -1
    after_request: int | None = None

    @property
    def num_sequences(self) -> int:
        """Branches decoded at one time: samples, or beams."""
        return self.num_samples if self.beam is None else self.beam.width

    @property
    def max_len(self) -> int:
        """Tokens the sequence can reach: the KV of the last output token is never written."""
        return len(self.prompt_ids) + self.max_tokens - 1

    @property
    def true_output_len(self) -> int | None:
        """Output tokens where they are known beforehand, else None."""
        if self.forced_ids is not None:
            return len(self.forced_ids)
        return self.forced_len


class RequestOutline(NamedTuple):
    """What can be known of a request without its tokens; names as in `Request`."""

    arrival_s: float
    num_prompt_tokens: int
    max_tokens: int
    true_output_len: int | None
    num_sequences: int
    after_request: int | None

    @property
    def max_len(self) -> int:
        """As `Request.max_len`."""
        return self.num_prompt_tokens + self.max_tokens - 1


@runtime_checkable
class Outlined(Protocol):
    """Requests that are made when they are asked for, and outlined without making them."""

    def outlines(self) -> Iterable[RequestOutline]: ...


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in order of `request_id`, which is their index, and how they are let in.

    closed_loop: number of requests kept in the system (arrival times are then ignored), or
        None for an open loop.
    description: one line for tables and figures, with what is synthetic said to be so.
    """

    name: str
    requests: Sequence[Request]
    description: str
    closed_loop: int | None = None

    def outlines(self) -> Iterable[RequestOutline]:
        """Of each request, in order: in place of the requests wherever tokens do not matter, as
        there may be more of them than memory holds."""
        if isinstance(self.requests, Outlined):
            return self.requests.outlines()
        return (
            RequestOutline(
                request.arrival_s,
                len(request.prompt_ids),
                request.max_tokens,
                request.true_output_len,
                request.num_sequences,
                request.after_request,
            )
            for request in self.requests
        )
