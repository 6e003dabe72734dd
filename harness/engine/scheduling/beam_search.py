"""Which beams go on, which are finished, and when a beam search is over.

The policy alone: it is told each beam's best next tokens and names the continuations. The rules
and their order are those of transformers 5.23 (`GenerationMixin._beam_search`, without sampling),
for one prompt, in float32 where transformers computes in float32, so that the outputs are token
for token those of `generate(num_beams=width, num_return_sequences=width)` for the same
log-probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

# Bound on length ** |length_penalty|: scores stay finite in float32 (3.4e38) on both sides of it.
_MAX_LENGTH_SCALE = 1e30


class Candidates(NamedTuple):
    """Best next tokens of one sequence, best first, with natural log-probabilities (float32
    values). No token stands twice."""

    token_ids: Sequence[int]
    log_probs: Sequence[float]


@dataclass(frozen=True, slots=True)
class BeamParams:
    """How beams are searched; the fields mean what they mean in transformers.

    width: beams that go on at each step, and hypotheses returned (`num_beams`). 1 is greedy
        decoding, which ends at the first end-of-sequence whatever `early_stopping` says.
    length_penalty: a hypothesis of n output tokens scores its summed log-probability divided by
        n ** length_penalty. Above 0 favours long outputs, below 0 short ones.
    early_stopping: what ends the search once `width` hypotheses are finished. True: that alone.
        False: also that the best beam, scored at its present length, is no better than the worst
        hypothesis. "never": as False, but with a length penalty above 0 the best beam is scored
        at the greatest length it may reach.
    """

    width: int
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(
                f"beam width {self.width} is below 1: use 1 for a single beam, 2 or more to compare"
            )
        if not math.isfinite(self.length_penalty):
            raise ValueError(
                f"length_penalty {self.length_penalty} is not finite: use 0.0 for none, 1.0 for "
                "the mean log-probability of a token"
            )
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise ValueError(
                f"early_stopping {self.early_stopping!r} is unknown: use False, True or 'never'"
            )


class BeamStep(NamedTuple):
    """What a step decided.

    parents: parents[i] is the index, before the step, of the beam that beam i now continues. A
        beam that nobody names is pruned. After the first step all are 0, the prompt.
    token_ids: token_ids[i] is the token that beam i gained.
    done: the search is over. No beam goes on, and both tuples are empty.
    """

    parents: tuple[int, ...]
    token_ids: tuple[int, ...]
    done: bool


class Hypothesis(NamedTuple):
    """A finished output: its tokens, with the end-of-sequence where it ended so, and its summed
    log-probability over len(token_ids) ** length_penalty."""

    token_ids: tuple[int, ...]
    score: float


class _Continuation(NamedTuple):
    """One beam and one more token; `log_prob` is the sum over all output tokens."""

    parent: int
    token_id: int
    log_prob: np.float32


class BeamSearch:
    """The state of one prompt's search. Call `step` until it says done, then `hypotheses`.

    max_tokens: bound on the output tokens, at least 1; beams that reach it are finished.
    eos_ids: tokens that finish a hypothesis; with none, all run to `max_tokens`.

    Where two continuations score exactly alike, the lower beam comes first, then the candidate
    that was given first; of two hypotheses, the one that finished first. (transformers leaves
    that to torch.topk, which promises no order.)
    """

    def __init__(
        self,
        params: BeamParams,
        max_tokens: int,
        eos_ids: frozenset[int],
    ) -> None:
        if max_tokens < 1:
            raise ValueError(
                f"max_tokens {max_tokens} is below 1: beam search needs at least one token"
            )
        exponent = abs(params.length_penalty)
        if exponent * math.log(max_tokens) > math.log(_MAX_LENGTH_SCALE):
            raise ValueError(
                f"max_tokens ** |length_penalty| = {max_tokens} ** {exponent} exceeds "
                f"{_MAX_LENGTH_SCALE:g}, what float32 scores can bear: bring length_penalty "
                "nearer to 0 or lower max_tokens"
            )
        self._params = params
        self._max_tokens = max_tokens
        self._eos_ids = eos_ids
        self._steps: list[BeamStep] = []
        self._running_log_probs = np.zeros(1, dtype=np.float32)
        self._finished: list[Hypothesis] = []
        self._done = False

    @property
    def num_candidates(self) -> int:
        """Best tokens of each beam that a step needs: so many that `width` beams can go on even
        where every beam's candidates hold all end-of-sequence tokens."""
        return max(2, 1 + len(self._eos_ids)) * self._params.width

    def step(self, candidates: Sequence[Candidates]) -> BeamStep:
        """Take each beam's best next tokens and choose the next beams.

        candidates: for the first call those of the prompt alone, one entry; afterwards one entry
            a beam, in the order of the last step. Each holds `num_candidates` tokens; what is
            beyond is not looked at.

        Raises ValueError for a wrong number of entries or tokens, or after the search is over.
        """
        self._check(candidates)
        width = self._params.width
        length = len(self._steps) + 1
        is_last = length == self._max_tokens
        best = self._best_continuations(candidates)
        ended = [is_last or c.token_id in self._eos_ids for c in best]
        # Only the best `width` may finish. Those behind stand in for the beams that end here.
        self._finish([c for c, end in zip(best[:width], ended, strict=False) if end], length)
        running = [c for c, end in zip(best, ended, strict=True) if not end][:width]
        if is_last or self._is_settled(running[0].log_prob, length):
            self._done = True
            return BeamStep((), (), done=True)
        self._running_log_probs = np.array([c.log_prob for c in running], dtype=np.float32)
        parents = tuple(c.parent for c in running)
        step = BeamStep(parents, tuple(c.token_id for c in running), done=False)
        self._steps.append(step)
        return step

    def hypotheses(self) -> tuple[Hypothesis, ...]:
        """The `width` outputs, best first. Raises ValueError before the search is over."""
        if not self._done:
            raise ValueError(
                f"the search is not over after {len(self._steps)} of at most {self._max_tokens} "
                "steps: call step until it says done"
            )
        return tuple(self._finished)

    def _check(self, candidates: Sequence[Candidates]) -> None:
        if self._done:
            raise ValueError("the search is over: take its hypotheses, start another for more")
        num_beams = len(self._running_log_probs)
        if len(candidates) != num_beams:
            raise ValueError(
                f"got candidates of {len(candidates)} sequences, but the search has {num_beams}: "
                "give one entry a beam, and the prompt's alone at first"
            )
        for beam, (token_ids, log_probs) in enumerate(candidates):
            have = min(len(token_ids), len(log_probs))
            if have < self.num_candidates:
                raise ValueError(
                    f"beam {beam} has {have} candidates, but width {self._params.width} with "
                    f"{len(self._eos_ids)} end-of-sequence tokens needs {self.num_candidates}: "
                    "give as many, or lower the width where the vocabulary is smaller"
                )

    def _best_continuations(self, candidates: Sequence[Candidates]) -> list[_Continuation]:
        """The `num_candidates` best of all beams' continuations, best first."""
        count = self.num_candidates
        log_probs = np.array([c.log_probs[:count] for c in candidates], dtype=np.float32)
        totals = (log_probs + self._running_log_probs[:, None]).ravel()
        order = np.argsort(-totals, kind="stable")[:count]
        best = []
        for index in order.tolist():
            parent, rank = divmod(index, count)
            best.append(_Continuation(parent, candidates[parent].token_ids[rank], totals[index]))
        return best

    def _finish(self, ended: Sequence[_Continuation], length: int) -> None:
        """Keep the best `width` of the hypotheses so far and of those that end now."""
        for c in ended:
            token_ids = (*self._output_of(c.parent), c.token_id)
            self._finished.append(Hypothesis(token_ids, self._score(c.log_prob, length)))
        self._finished.sort(key=lambda hypothesis: hypothesis.score, reverse=True)
        del self._finished[self._params.width :]

    def _output_of(self, beam: int) -> tuple[int, ...]:
        """Output tokens of a running beam: up the tree from the last step."""
        backwards = []
        for step in reversed(self._steps):
            backwards.append(step.token_ids[beam])
            beam = step.parents[beam]
        return tuple(reversed(backwards))

    def _is_settled(self, best_running_log_prob: np.float32, length: int) -> bool:
        """Nothing that still runs is expected to displace a hypothesis."""
        if len(self._finished) < self._params.width:
            return False
        if self._params.early_stopping is True or self._params.width == 1:
            return True
        grows = self._params.early_stopping == "never" and self._params.length_penalty > 0.0
        hoped_for = self._score(best_running_log_prob, self._max_tokens if grows else length)
        return hoped_for <= self._finished[-1].score

    def _score(self, log_prob: np.float32, length: int) -> float:
        return float(log_prob / np.float32(length**self._params.length_penalty))
