"""What a generator is given beside the config, and how it builds a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from harness.engine.request import Request, SamplingParams
from harness.engine.scheduling.beam_search import BeamParams
from harness.workloads.config import WorkloadConfig
from harness.workloads.limits import Limits
from harness.workloads.streams import Stream, TokenSource, rng

_MOST_REQUESTS = 2**31
"""Of a run: two seeds' requests have no random stream in common."""


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


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request stands: its arrival, its session, what it declares as shared."""

    arrival_s: float = 0.0
    session_id: int = -1
    after_request: int | None = None
    shared_prefix_id: int = -1
    shared_prefix_len: int = 0


@dataclass(slots=True)
class RequestBuilder:
    """Makes requests of one workload, numbering them from 0."""

    config: WorkloadConfig
    context: Context
    limits: Limits
    requests: list[Request] = field(default_factory=list)

    @property
    def next_id(self) -> int:
        return len(self.requests)

    def random_tokens(
        self, request_id: int, prompt_len: int, output_len: int
    ) -> tuple[list[int], list[int]]:
        """A request's own prompt and output tokens."""
        source = self.context.tokens
        prompt = source.draw(Stream.TOKENS, request_id, prompt_len)
        return prompt.tolist(), source.draw(Stream.OUTPUT, request_id, output_len).tolist()

    def check_ids(self, *token_ids: Sequence[int]) -> None:
        """Raises ValueError where a tokenizer gave ids beyond the model's vocabulary."""
        largest = max(max(ids, default=0) for ids in token_ids)
        if largest >= self.context.tokens.vocab_size:
            raise ValueError(
                f"token id {largest} of the text is beyond the model's vocabulary of "
                f"{self.context.tokens.vocab_size}: take a model with a larger one, or its own "
                "tokenizer (the built-in one needs 256 ids from workload.first_regular_id on)"
            )

    def add(self, prompt_ids: tuple[int, ...], output_ids: Sequence[int], place: Place) -> Request:
        """Append what `make` makes of the next request_id."""
        request = self.make(self.next_id, prompt_ids, output_ids, place)
        self.requests.append(request)
        return request

    def make(
        self, request_id: int, prompt_ids: tuple[int, ...], output_ids: Sequence[int], place: Place
    ) -> Request:
        """A request whose true output would be `output_ids`, cut to the bounds.

        Scaled lengths were rounded one by one, so that a prompt may overstep by a token or two.
        """
        config = self.config
        prompt_ids = prompt_ids[: self.limits.max_len - 1]
        output_len = self.limits.cut_output(len(prompt_ids), len(output_ids))
        is_forced = config.output == "forced_ids" and config.num_sequences == 1
        has_length = config.output != "free" and not is_forced
        return Request(
            request_id=request_id,
            arrival_s=place.arrival_s,
            prompt_ids=prompt_ids,
            max_tokens=self.limits.max_tokens(len(prompt_ids)),
            num_samples=config.samples,
            beam=self._beam(),
            forced_ids=tuple(output_ids[:output_len]) if is_forced else None,
            forced_len=output_len if has_length else None,
            eos_ids=self.context.eos_ids if config.output == "free" else frozenset(),
            sampling=self._sampling(request_id),
            shared_prefix_id=place.shared_prefix_id,
            shared_prefix_len=min(place.shared_prefix_len, len(prompt_ids)),
            session_id=place.session_id,
            after_request=place.after_request,
        )

    def _beam(self) -> BeamParams | None:
        config = self.config
        if config.beam_width == 1:
            return None
        stops: dict[str, bool | Literal["never"]] = {
            "heuristic": False, "first": True, "never": "never",
        }  # fmt: skip
        return BeamParams(config.beam_width, config.length_penalty, stops[config.early_stopping])

    def _sampling(self, request_id: int) -> SamplingParams:
        config = self.config
        if config.temperature == 0:  # injected drafts are drawn from it, by request
            return SamplingParams(seed=self.context.seed * _MOST_REQUESTS)
        seed = int(rng(self.context.seed, Stream.SAMPLING, request_id).integers(2**31))
        return SamplingParams(config.temperature, config.top_k, config.top_p, seed)
