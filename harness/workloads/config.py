"""What a user types as `workload.KEY=`: one flat dataclass with every default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.workloads.choices import unknown

LENGTHS = ("sharegpt", "alpaca_like", "fixed", "uniform", "lognormal")
ARRIVALS = ("all_at_once", "closed_loop", "constant", "poisson", "gamma", "trace")
SHARING = ("none", "system_prompt", "chat")
EARLY_STOPPING = ("heuristic", "first", "never")
OUTPUTS = ("forced_ids", "forced_length", "free")


@dataclass(frozen=True, slots=True)
class WorkloadConfig:
    """A workload: lengths x arrivals x sharing, or a trace. Lengths are in tokens.

    generator: module of `harness.workloads` that makes the requests (synthetic, trace).
    num_requests: None takes all of a trace; fewer than it has are a stretch of it, which the
        seed chooses (0: its start).
    lengths: distribution of (prompt, output); the `fixed`, `uniform` and `lognormal` ones
        read the keys below. `*_cv` is standard deviation over mean.
    max_len: serving bound on prompt + output, before scaling. Samples with
        prompt + output >= max_len are drawn again, rows of a trace are dropped (the
        PagedAttention artifact's rule). None, for traces: what the pool and the model serve.
    max_output_len: bound on the output alone, before scaling; longer outputs are cut.
        A request asks for min(max_len - prompt, max_output_len) tokens.
    max_prompt_len: of a chat, before scaling: a longer prompt keeps its last tokens, so that a
        session goes on but no longer begins as it did before.
    length_scale: multiplies every length, rounded to at least 1; `max_len`,
        `max_output_len`, `max_prompt_len` and `shared_len` are given before it. None: 1, and for
        a trace whatever fits it to the pool and the model (see `trace_fit`).
    fit_len: tokens of the longest request that a trace is fitted to where length_scale or max_len
        is None. None: what a quarter of the smallest kv.pool_tokens and the model allow, the same
        for all cells of a table.
    arrivals: `trace` takes the trace's own times. rate: requests (chat: sessions) per second.
    burstiness: shape of the gamma distribution of gaps (vLLM's convention): 1 is Poisson,
        below 1 comes in bursts; the coefficient of variation is 1 / sqrt(burstiness).
    concurrency: requests kept in the system by a closed loop.
    speed_up: the trace's times are divided by it. start_s: a trace's rows before this many
        seconds from its start are skipped.
    sharing: `system_prompt` puts the same `shared_len` tokens before a `shared_fraction` of
        the prompts; `chat` makes sessions of up to `turns` turns, each with the whole
        history as its prompt, `think_s` seconds after the last answer (a `shared_len` then
        heads that share of the sessions).
    output: `forced_ids` feeds given tokens back, `forced_length` runs to the sampled length,
        `free` ends at end-of-sequence or the bound.
    samples: outputs drawn for each prompt, each from a random stream of its own. beam_width,
        length_penalty, early_stopping: beam search in place of sampling, as in transformers'
        `generate` (`heuristic` is its False, `first` its True). Several sequences have the
        sampled output length, and tokens of the model's own choice.
    first_regular_id: random tokens are drawn from here on; special tokens lie below.
    format, path: of a trace. block_len: tokens of a shared block after scaling (None: the
        trace's block times length_scale, to the nearest multiple of page_multiple).
    options: for a generator of one's own: `+workload.options.KEY=`.
    """

    name: str = "sharegpt"
    generator: str = "synthetic"
    num_requests: int | None = 200
    lengths: str = "sharegpt"
    prompt_len: int = 128
    output_len: int = 128
    prompt_min: int = 16
    prompt_max: int = 512
    output_min: int = 16
    output_max: int = 512
    prompt_mean: float = 128.0
    prompt_cv: float = 1.0
    output_mean: float = 128.0
    output_cv: float = 1.0
    max_len: int | None = 2048
    max_output_len: int | None = None
    max_prompt_len: int | None = None
    length_scale: float | None = None
    fit_len: int | None = None
    arrivals: str = "all_at_once"
    rate: float = 1.0
    burstiness: float = 1.0
    concurrency: int = 16
    speed_up: float = 1.0
    start_s: float = 0.0
    sharing: str = "none"
    shared_len: int = 0
    shared_fraction: float = 1.0
    turns: int = 4
    think_s: float = 1.0
    output: str = "forced_ids"
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    samples: int = 1
    beam_width: int = 1
    length_penalty: float = 1.0
    early_stopping: str = "heuristic"
    first_regular_id: int = 3
    format: str | None = None
    path: str | None = None
    block_len: int | None = None
    page_multiple: int = 16
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def num_sequences(self) -> int:
        """Samples or beams of each request."""
        return max(self.samples, self.beam_width)

    @property
    def scale(self) -> float:
        """The factor on lengths; 1 where none was given."""
        return 1.0 if self.length_scale is None else self.length_scale

    def __post_init__(self) -> None:
        self._check_choices()
        self._check_ranges()
        self._check_combinations()

    def _check_choices(self) -> None:
        for key, choices in (
            ("lengths", LENGTHS),
            ("arrivals", ARRIVALS),
            ("sharing", SHARING),
            ("output", OUTPUTS),
            ("early_stopping", EARLY_STOPPING),
        ):
            value = getattr(self, key)
            if value not in choices:
                raise unknown(f"workload.{key}", value, choices)

    def _check_ranges(self) -> None:
        for key in _AT_LEAST_ONE:
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"workload.{key}={value}: must be at least 1")
        for key in _POSITIVE:
            value = getattr(self, key)
            if value is not None and not value > 0:
                raise ValueError(f"workload.{key}={value}: must be above 0")
        for key in _NOT_NEGATIVE:
            value = getattr(self, key)
            if not value >= 0:
                raise ValueError(f"workload.{key}={value}: must be 0 or more")
        if self.num_requests is not None and self.num_requests > _MOST_REQUESTS:
            raise ValueError(
                f"workload.num_requests={self.num_requests}: must be at most {_MOST_REQUESTS}"
            )
        if self.scale > _MAX_SCALE:
            raise ValueError(
                f"workload.length_scale={self.length_scale:g}: must be at most {_MAX_SCALE:g}"
            )
        if not 0 <= self.shared_fraction <= 1:
            raise ValueError(f"workload.shared_fraction={self.shared_fraction}: must be in [0, 1]")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"workload.top_p={self.top_p}: must be in (0, 1]; 1 switches it off")
        for what in ("prompt", "output"):
            low, high = getattr(self, f"{what}_min"), getattr(self, f"{what}_max")
            if low > high:
                raise ValueError(
                    f"workload.{what}_min={low} is above workload.{what}_max={high}: "
                    f"lower the one or raise the other"
                )

    def _check_combinations(self) -> None:
        if self.sharing == "system_prompt" and self.shared_len == 0:
            raise ValueError(
                "workload.sharing=system_prompt with workload.shared_len=0 shares nothing: "
                "set workload.shared_len, or workload.sharing=none"
            )
        if self.samples > 1 and self.beam_width > 1:
            raise ValueError(
                f"workload.samples={self.samples} with workload.beam_width={self.beam_width}: "
                "a request is either sampled or searched, set one of them to 1"
            )
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"workload.samples={self.samples} with workload.temperature=0 gives as many equal "
                "outputs: set workload.temperature above 0"
            )
        if self.block_len is not None and self.length_scale is not None:
            raise ValueError(
                f"workload.block_len={self.block_len} with workload.length_scale="
                f"{self.length_scale:g}: a block's tokens after scaling give the scale of all "
                "lengths, so give one of them"
            )
        if self.max_prompt_len is not None and self.sharing != "chat":
            raise ValueError(
                f"workload.max_prompt_len={self.max_prompt_len} cuts the history of a chat, and "
                f"workload.sharing={self.sharing} has none: set workload.sharing=chat, or leave "
                "workload.max_prompt_len out"
            )
        if self.sharing == "chat" and self.num_sequences > 1:
            raise ValueError(
                f"workload.sharing=chat with {self.num_sequences} sequences a request: the next "
                "turn continues one answer, set workload.samples=1 and workload.beam_width=1"
            )
        if self.sharing == "chat" and self.output != "forced_ids":
            raise ValueError(
                f"workload.sharing=chat with workload.output={self.output}: the next turn's "
                "prompt needs the answer beforehand: set workload.output=forced_ids"
            )


_AT_LEAST_ONE = (
    "num_requests", "prompt_len", "output_len", "prompt_min", "output_min", "prompt_mean",
    "output_mean", "max_output_len", "max_prompt_len", "samples", "beam_width", "concurrency",
    "turns", "fit_len", "block_len", "page_multiple",
)  # fmt: skip
_MOST_REQUESTS = 10_000_000
"""Whose lengths take a gigabyte."""

_MAX_SCALE = 1_000.0
"""Turns a hundred tokens into more than any model is served with."""

_POSITIVE = ("length_scale", "rate", "burstiness", "speed_up")
_NOT_NEGATIVE = (
    "prompt_cv", "output_cv", "start_s", "shared_len", "think_s", "temperature", "top_k",
    "first_regular_id",
)  # fmt: skip
