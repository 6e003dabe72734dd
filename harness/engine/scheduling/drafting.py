"""Which sequences are given drafts in a step, and what these are."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.engine.plan import UNKNOWN_DRAFT
from harness.engine.scheduling.draft_memory import DraftMemory
from harness.engine.scheduling.group_memory import GroupMemory
from harness.engine.scheduling.sequence import Sequence
from harness.engine.scheduling.speculation import NgramIndex, SpeculationConfig, inject_drafts
from harness.engine.scheduling.step_builder import StepBuilder


@dataclass(slots=True)
class Drafter:
    """Proposes drafts for sequences that decode; never at the cost of another's memory.

    vocab_size: for injected drafts that are wrong. model: the draft model's memory, if there
    is one.
    """

    config: SpeculationConfig
    memory: GroupMemory
    vocab_size: int
    model: DraftMemory | None = None
    _indices: dict[int, NgramIndex] = field(default_factory=dict)

    def propose(self, sequence: Sequence, budget: int, step: StepBuilder) -> tuple[int, ...]:
        """Drafts after the sequence's last token, with room for each of them; perhaps none.
        budget: tokens that may be computed, the last one included."""
        most = min(
            self.config.num_tokens,
            sequence.target_output_len - len(sequence.token_s) - 1,
            budget - 1,
        )
        if most < 1 or sequence.group.search is not None:
            return ()
        if self.model is not None and not self.model.prepare(sequence, most):
            return ()
        drafts = self._drafts(sequence, most)
        if not drafts or not self.memory.extend(sequence, len(drafts), step):
            return ()
        if self.model is not None:
            self.model.add(sequence, most)
        return drafts

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended, or lost its memory."""
        self._indices.pop(sequence.seq_id, None)
        if self.model is not None:
            self.model.free(sequence.seq_id)

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
