"""What the engine works on: a request's group of decoded branches, and each of them."""

from __future__ import annotations

import collections.abc
import math
from typing import TYPE_CHECKING, Any

from harness.engine.request import Request, SamplingParams
from harness.engine.scheduling.beam_search import BeamSearch, BeamStep, Candidates

if TYPE_CHECKING:
    from harness.engine.scheduling.swap import SavedPages


class Sequence:
    """Tokens and progress of one decoded branch.

    token_ids: prompt, then output so far. num_computed_tokens: leading tokens whose KV is in
    the pool; furthest_computed: the most there ever were. num_slots: tokens the allocator has
    made room for; 0 while it holds nothing. token_s: when each output token came. chosen_ids,
    margins: the executor's own choice at each of them. num_drafted, num_accepted: drafts that
    were verified, and that stood.
    """

    __slots__ = (
        "_eos_ids",
        "_forced_ids",
        "chosen_ids",
        "draws",
        "finished",
        "furthest_computed",
        "group",
        "margins",
        "num_accepted",
        "num_computed_tokens",
        "num_drafted",
        "num_slots",
        "recomputed_tokens",
        "seq_id",
        "target_output_len",
        "token_ids",
        "token_s",
    )

    def __init__(self, seq_id: int, group: SequenceGroup, sampling: SamplingParams) -> None:
        request = group.request
        self.seq_id = seq_id
        self.group = group
        self.draws = (sampling,)
        true_len = request.true_output_len
        self.target_output_len = request.max_tokens if true_len is None else true_len
        self._eos_ids = request.eos_ids if true_len is None else frozenset()
        self.num_computed_tokens = 0
        self.num_slots = 0
        self.num_drafted = 0
        self.num_accepted = 0
        self.recomputed_tokens = 0
        self.furthest_computed = 0
        self.finished = False
        self.token_s: list[float] = []
        self.chosen_ids: list[int] = []
        self.margins: list[float] = []

    def __getattr__(self, name: str) -> Any:
        """Tokens are taken from the request at their first use: a queue of long prompts would need
        more memory for them than there is."""
        if name not in ("token_ids", "_forced_ids"):
            raise AttributeError(name)
        request = self.group.request
        self.token_ids: list[int] = list(request.prompt_ids)
        self._forced_ids = None if request.forced_ids is None else tuple(request.forced_ids)
        return getattr(self, name)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_s)

    @property
    def is_at_last_token(self) -> bool:
        """The next output token is the last by its number, if no other was before."""
        return len(self.token_s) + 1 >= self.target_output_len

    @property
    def final_len(self) -> int | None:
        """Positions whose KV will be computed, where known: the last output's never is."""
        request = self.group.request
        if request.true_output_len is None:
            return None
        return len(request.prompt_ids) + self.target_output_len - 1

    def known_ids(self, position: int, count: int) -> collections.abc.Sequence[int] | None:
        """Output tokens from `position` on, at most `count`, where they are given beforehand."""
        forced = self._forced_ids
        return None if forced is None else forced[position : position + count]

    @property
    def has_known_ids(self) -> bool:
        """All output tokens are given beforehand."""
        return self.group.request.forced_ids is not None

    def accept(self, chosen_id: int, margin: float, now_s: float) -> None:
        """Append the next output token: the forced one where there is one."""
        forced, token_s = self._forced_ids, self.token_s
        token_id = chosen_id if forced is None else forced[len(token_s)]
        self.token_ids.append(token_id)
        token_s.append(now_s)
        self.chosen_ids.append(chosen_id)
        self.margins.append(margin)
        if len(token_s) >= self.target_output_len or token_id in self._eos_ids:
            self.finished = True

    def fill_in(self, chosen_id: int, margin: float, now_s: float) -> None:
        """What the last output token is, that was accepted before it came."""
        if self._forced_ids is None:
            self.token_ids[-1] = chosen_id
        self.token_s[-1] = now_s
        self.chosen_ids[-1] = chosen_id
        self.margins[-1] = margin

    def inherit(self, num_tokens: int) -> None:
        """Another sequence has computed its first tokens for it."""
        self.num_computed_tokens = num_tokens
        self.furthest_computed = max(self.furthest_computed, num_tokens)

    def lose_memory(self) -> None:
        """Everything computed is gone; it is to be computed again."""
        self.num_computed_tokens = 0
        self.num_slots = 0


class SequenceGroup:
    """A request's branches, scheduled and preempted together (PagedAttention, section 4.5).

    sequences: all branches; only: the branch of a group that has but one; live: those that go
    on. is_branched: each live sequence has computed tokens of its own; until then the carrier
    computes the prompt for all. num_cached_tokens: tokens found cached that it had not computed
    itself. asked_len: tokens a sequence was last asked for, estimate included. preempted_s: when
    it lost its memory, NaN once it is back where it was; stalled_s: the time between, in all.
    candidates: of beams, those of this step so far. parents: of a beam step that is still to be
    told to the allocator, by seq_id. resumes_from_s: `preempted_s` of a stop that ends with a
    token that is not in yet.
    """

    __slots__ = (
        "admissions",
        "asked_len",
        "candidates",
        "carrier",
        "finish_s",
        "first_scheduled_s",
        "is_branched",
        "is_running",
        "live",
        "num_cached_tokens",
        "num_preemptions",
        "num_swaps",
        "only",
        "parents",
        "preempted_s",
        "released_s",
        "request",
        "resumes_from_s",
        "saved",
        "search",
        "sequences",
        "stalled_s",
        "waits_for_room",
    )

    def __init__(self, first_seq_id: int, request: Request, released_s: float) -> None:
        self.request = request
        self.released_s = released_s
        self.sequences = [
            Sequence(first_seq_id + index, self, request.sampling.for_sample(index))
            for index in range(request.num_sequences)
        ]
        self.live = list(self.sequences)
        self.only = self.sequences[0] if len(self.sequences) == 1 else None
        self.carrier = self.sequences[0]
        self.is_running = False
        self.is_branched = len(self.sequences) == 1
        self.search = _search(request)
        self.candidates: list[Candidates] = []
        self.parents: dict[int, int] = {}
        self.saved: SavedPages | None = None
        self.asked_len = 0
        self.admissions = 0
        self.num_cached_tokens = 0
        self.num_preemptions = 0
        self.num_swaps = 0
        self.waits_for_room = False
        self.first_scheduled_s = math.nan
        self.finish_s = math.nan
        self.preempted_s = math.nan
        self.resumes_from_s = math.nan
        self.stalled_s = 0.0

    @property
    def order(self) -> int:
        """Place in the order of arrival."""
        return self.sequences[0].seq_id

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def longest_len(self) -> int:
        """Tokens of the longest live sequence."""
        return max(len(sequence.token_ids) for sequence in self.live)

    @property
    def num_computed_tokens(self) -> int:
        """Tokens in the pool that a preemption loses, each branch by itself."""
        return sum(sequence.num_computed_tokens for sequence in self.live)

    @property
    def recomputed_tokens(self) -> int:
        """Tokens computed more than once."""
        return sum(sequence.recomputed_tokens for sequence in self.sequences)

    def let_go(self) -> None:
        """It has ended and is on record: its sequences forget it, so that all of it is freed at
        once, and not when the garbage collector finds that they only hold each other."""
        for sequence in self.sequences:
            del sequence.group

    def resume(self, now_s: float) -> None:
        """It has a new token: if a preemption had stopped it, that is over. now_s: NaN where the
        token is yet to come, until `resumed`."""
        if not math.isnan(self.preempted_s):
            self.resumes_from_s, self.preempted_s = self.preempted_s, math.nan
            if not math.isnan(now_s):
                self.resumed(now_s)

    def resumed(self, now_s: float) -> None:
        """The new token is there."""
        if not math.isnan(self.resumes_from_s):
            self.stalled_s += now_s - self.resumes_from_s
            self.resumes_from_s = math.nan

    def move_tokens(self, decided: BeamStep, now_s: float) -> None:
        """Let each beam go on from its parent's tokens."""
        histories = [beam.token_ids for beam in self.sequences]
        for beam, parent, token_id in zip(
            self.sequences, decided.parents, decided.token_ids, strict=True
        ):
            beam.token_ids = [*histories[parent], token_id]
            beam.token_s.append(now_s)

    def take_hypotheses(self, now_s: float) -> None:
        """The search is over: beam i has the i-th best output."""
        assert self.search is not None
        for beam, hypothesis in zip(self.sequences, self.search.hypotheses(), strict=True):
            beam.token_s = [*beam.token_s, now_s][: len(hypothesis.token_ids)]
            beam.chosen_ids = list(hypothesis.token_ids)
            beam.finished = True


def _search(request: Request) -> BeamSearch | None:
    if request.beam is None or request.beam.width == 1:
        return None
    max_tokens = request.true_output_len or request.max_tokens
    eos_ids = request.eos_ids if request.true_output_len is None else frozenset[int]()
    return BeamSearch(request.beam, max_tokens, eos_ids)
