"""The executor without a device: a virtual clock, and a cost model that says how far it goes."""

from __future__ import annotations

from functools import lru_cache

from harness.engine.cost.model import ConstantCost, CostModel
from harness.engine.plan import Chunk, StepOutcome, StepPlan
from harness.engine.scheduling.beam_search import Candidates

_SEQUENCE_BITS = 40
"""More sequences than any engine numbers."""

_SEED_STRIDE = 0xD1B54A32D192ED03
"""Odd, of 64 bits: the sequences of one seed are numbered far from those of another."""


class SimulatedExecutor:
    """Answers every plan after the virtual time that `cost` says; a number is a constant cost.

    Its choices are placeholders, hashed from a draw's seed and its position in the output, so
    that samples differ as real ones do: a simulated run needs forced ids or forced lengths to
    stand for a real one. Beams are given log-probabilities of the same kind, independent of one
    another: how real beams descend depends on the model. Drafts of a draft model stand with
    probability `acceptance`; speculation needs forced ids. seed, and replica of a fleet: what
    beams and drafts meet is another for each, so that none is a copy of another.
    """

    def __init__(
        self,
        cost: CostModel | float,
        vocab_size: int = 2**31,
        acceptance: float = 0.0,
        seed: int = 0,
        replica: int = 0,
    ) -> None:
        self._cost = ConstantCost(cost) if isinstance(cost, float | int) else cost
        self._vocab_size = vocab_size
        self._acceptance = acceptance
        self._first_id = (replica << _SEQUENCE_BITS) + seed * _SEED_STRIDE

    def execute(self, plan: StepPlan) -> StepOutcome:
        vocab = self._vocab_size
        token_ids: list[int] = []
        accepted: list[int] = []
        candidates: list[Candidates] = []
        for chunk in plan.chunks:
            _, _, _, draws, position, num_candidates, num_drafts, true_ids = chunk
            if num_drafts:
                accepted.append(self._accept(chunk))
                token_ids += true_ids[: accepted[-1] + 1]
            elif num_candidates:
                candidates.append(_candidates(self._noise(chunk), chunk.num_candidates, vocab))
            else:
                for draw in draws:
                    token_ids.append(_hash(draw.seed, position) % vocab)
        step_s = self._cost.step_s(plan)
        return StepOutcome(token_ids, (), step_s, candidates, accepted, device_s=step_s)

    def _accept(self, chunk: Chunk) -> int:
        """Leading drafts that are right; those of a draft model with a given probability."""
        drafts = chunk.token_ids[-chunk.num_drafts :]
        for index, (draft, true_id) in enumerate(zip(drafts, chunk.true_ids, strict=False)):
            if draft < 0:
                if self._noise(chunk, index) / 2.0**64 >= self._acceptance:
                    return index
            elif draft != true_id:
                return index
        return chunk.num_drafts

    def _noise(self, chunk: Chunk, index: int = 0) -> int:
        """64 bits of a sequence and a position of its output."""
        return _hash(self._first_id + chunk.seq_id, chunk.output_position + index)

    @property
    def extrapolated_share(self) -> float:
        """Of the steps so far, those unlike any that the cost model was fitted to."""
        return self._cost.extrapolated_share

    def close(self) -> None:
        return None


def _candidates(state: int, count: int, vocab_size: int) -> Candidates:
    """Geometric log-probabilities with a random head start: all beams' best are alike, some
    better."""
    start = -(state % 1000) / 1000
    first = state % vocab_size
    token_ids = [(first + rank) % vocab_size for rank in range(count)]
    return Candidates(token_ids, [start - 0.5 * (rank + 1) for rank in range(count)])


@lru_cache(maxsize=2**16)
def _hash(seed: int, position: int) -> int:
    """64 bits of both, mixed by two rounds of multiplication."""
    x = (seed * 0xBF58476D1CE4E5B9 + position * 0x9E3779B97F4A7C15 + 1) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 31)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return x ^ (x >> 29)
