"""Which sequences are given drafts in a step, and what these are."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.engine.group_memory import GroupMemory
from harness.engine.sequence import Sequence
from harness.engine.speculation import NgramIndex, SpeculationConfig, inject_drafts
from harness.engine.step_builder import StepBuilder

UNKNOWN_DRAFT = -1
"""A draft that the executor's draft model is yet to propose."""


@dataclass(slots=True)
class Drafter:
    """Proposes drafts for sequences that decode; never at the cost of another's memory.

    vocab_size: for injected drafts that are wrong.
    """

    config: SpeculationConfig
    memory: GroupMemory
    vocab_size: int
    _indices: dict[int, NgramIndex] = field(default_factory=dict)

    def propose(self, sequence: Sequence, step: StepBuilder) -> tuple[int, ...]:
        """Drafts after the sequence's last token, with room for each of them; perhaps none."""
        most = min(
            self.config.num_tokens,
            sequence.target_output_len - len(sequence.token_s) - 1,
            step.budget - 1,
        )
        if most < 1 or sequence.group.search is not None:
            return ()
        drafts = self._drafts(sequence, most)
        if not drafts or not self.memory.extend(sequence, len(drafts), step):
            return ()
        return drafts

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        self._indices.pop(sequence.seq_id, None)

    def _drafts(self, sequence: Sequence, count: int) -> tuple[int, ...]:
        position = len(sequence.token_s)
        match self.config.method:
            case "ngram":
                index = self._indices.get(sequence.seq_id)
                if index is None:
                    index = NgramIndex(self.config.ngram_min, self.config.ngram_max)
                    self._indices[sequence.seq_id] = index
                index.extend(sequence.token_ids[len(index) :])
                return index.propose(count)
            case "injected":
                true_ids = sequence.known_ids(position, count)
                if true_ids is None:
                    return ()
                seed = sequence.draws[0].seed + sequence.group.request.request_id
                return inject_drafts(
                    true_ids, self.config.acceptance, seed, position, self.vocab_size
                )
            case "draft_model":
                return (UNKNOWN_DRAFT,) * count
        return ()
