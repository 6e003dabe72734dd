"""Where the drafts of speculative decoding come from when no draft model proposes them.

Speculative decoding (Leviathan et al., 2023; Chen et al., 2023) lets something cheap propose the
next tokens and checks them all in one forward pass of the model. Nothing here touches a tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Method = Literal["none", "ngram", "draft_model", "injected"]


@dataclass(frozen=True, slots=True)
class SpeculationConfig:
    """Who drafts, and how much.

    method: none; ngram (prompt lookup in the sequence's own tokens); draft_model; injected
        (drafts of a set quality, for sequences whose next tokens are known beforehand).
    num_tokens: drafts a step, the `k` of the papers; a step emits 1 to k + 1 tokens.
    ngram_min, ngram_max: lengths of the suffix that prompt lookup searches for, longest first.
    acceptance: for `injected`, and for a draft model in simulation, the probability that a
        draft is right.
    draft: of draft_model, a model preset or a checkpoint's folder.
    """

    method: Method = "none"
    num_tokens: int = 4
    ngram_min: int = 1
    ngram_max: int = 3
    acceptance: float = 0.7
    draft: str | None = None

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            choices = ", ".join(get_args(Method))
            raise ValueError(f"engine.speculation.method={self.method!r}: choose one of {choices}")
        for key in ("num_tokens", "ngram_min"):
            value = getattr(self, key)
            if value < 1:
                raise ValueError(f"engine.speculation.{key}={value}: must be at least 1")
        if self.ngram_max < self.ngram_min:
            raise ValueError(
                f"engine.speculation.ngram_max={self.ngram_max}: must be at least "
                f"engine.speculation.ngram_min={self.ngram_min}"
            )
        if (self.method == "draft_model") != (self.draft is not None):
            raise ValueError(
                f"engine.speculation.draft={self.draft} with engine.speculation.method="
                f"{self.method}: a draft model needs both, "
                "engine.speculation.method=draft_model engine.speculation.draft=PRESET_OR_DIR"
            )
        if not 0 <= self.acceptance <= 1:
            raise ValueError(f"engine.speculation.acceptance={self.acceptance}: must be in [0, 1]")


def expected_tokens_per_step(acceptance: float, num_tokens: int) -> float:
    """Mean tokens a step emits where each draft is accepted with the same probability.

    (1 - a^(k+1)) / (1 - a): Leviathan et al. (2023), equation 1.
    """
    return sum(acceptance**i for i in range(num_tokens + 1))


def propose_ngram(
    token_ids: Sequence[int], num_tokens: int, ngram_min: int, ngram_max: int
) -> tuple[int, ...]:
    """Drafts by prompt lookup for one history; see `NgramIndex`, which keeps it up to date."""
    return NgramIndex(ngram_min, ngram_max, token_ids).propose(num_tokens)


class NgramIndex:
    """Prompt lookup (Saxena, 2023) over a history that only grows.

    The longest suffix of ngram_max down to ngram_min tokens that occurred before is looked
    up; what followed it is the draft. Of several occurrences the most recent counts: text
    repeats what is near, and an index of it costs a dictionary write a token and length
    (transformers and vLLM take the first). An occurrence may overlap the suffix. Where the
    history ends before `num_tokens` are found, copying goes on into the draft itself, as in
    LZ77, so a cycle is continued and not cut off.

    Appending and looking up take O(ngram_max) each, whatever the length; memory is one entry
    a distinct n-gram.
    """

    __slots__ = ("_ends", "_lengths", "_matches", "_tokens")

    def __init__(self, ngram_min: int, ngram_max: int, token_ids: Iterable[int] = ()) -> None:
        if not 1 <= ngram_min <= ngram_max:
            raise ValueError(
                f"ngram_min={ngram_min}, ngram_max={ngram_max}: 1 <= ngram_min <= ngram_max"
            )
        self._lengths = range(ngram_max, ngram_min - 1, -1)
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}
        self._matches: list[int | None] = []
        self.extend(token_ids)

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, token_ids: Iterable[int]) -> None:
        """Add tokens that are certain: a rejected draft cannot be taken back."""
        for token in token_ids:
            self.append(token)

    def append(self, token_id: int) -> None:
        """Add one token."""
        tokens, ends = self._tokens, self._ends
        tokens.append(token_id)
        end = len(tokens)
        self._matches = []
        for length in self._lengths:
            if length <= end:
                ngram = tuple(tokens[-length:])
                self._matches.append(ends.get(ngram))
                ends[ngram] = end

    def propose(self, num_tokens: int) -> tuple[int, ...]:
        """`num_tokens` drafts, or none where no suffix occurred before."""
        start = next((end for end in self._matches if end is not None), None)
        if start is None:
            return ()
        period = len(self._tokens) - start
        found = self._tokens[start : start + num_tokens]
        return tuple(found[i % period] for i in range(num_tokens))


def inject_drafts(
    true_ids: Sequence[int], acceptance: float, seed: int, position: int, vocab_size: int
) -> tuple[int, ...]:
    """A draft for each token of `true_ids`, right with probability `acceptance`.

    The draft at output position `position + i` is a function of `seed` and that position
    alone, so the same drafts come up under every allocator, batch and number of drafts.
    `acceptance` is the conditional probability that the papers call alpha: independent from
    token to token. A wrong draft is any other token, equally likely.
    """
    if vocab_size < 2:
        raise ValueError(f"vocab_size={vocab_size}: a wrong draft needs a second token")
    drafts = []
    for i, true_id in enumerate(true_ids):
        bits = _hash(seed, position + i)
        if (bits >> 11) * 2.0**-53 < acceptance:
            drafts.append(true_id)
        else:
            other = _splitmix(bits) % (vocab_size - 1)
            drafts.append(other + (other >= true_id))
    return tuple(drafts)


_MASK = 2**64 - 1
_DRAFT_STREAM = 0x6B7661_64726166  # keeps these numbers apart from the sampler's


def _hash(seed: int, position: int) -> int:
    return _splitmix(_splitmix(_splitmix(seed & _MASK) ^ _DRAFT_STREAM) ^ position)


def _splitmix(x: int) -> int:
    """SplitMix64 (Steele et al., 2014)."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
