"""A decoded branch of a request, while the engine works on it."""

from __future__ import annotations

import math

from harness.engine.request import Request


class Sequence:
    """Tokens and progress of one decoded branch.

    token_ids: prompt, then output so far. num_computed_tokens: leading tokens whose KV is in
    the pool; furthest_computed: the most there ever were. num_cached_tokens: tokens found
    cached that it had not computed itself. num_slots: tokens the allocator has made room for.
    asked_len: tokens it was last asked for, estimate included. token_s: when each output token
    came. chosen_ids, margins: the executor's own choice at each of them.
    """

    __slots__ = (
        "_eos_ids",
        "_forced_ids",
        "admissions",
        "asked_len",
        "chosen_ids",
        "finish_s",
        "finished",
        "first_scheduled_s",
        "furthest_computed",
        "margins",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_preemptions",
        "num_prompt_tokens",
        "num_slots",
        "recomputed_tokens",
        "released_s",
        "request",
        "seq_id",
        "target_output_len",
        "token_ids",
        "token_s",
        "waits_for_room",
    )

    def __init__(self, seq_id: int, request: Request, released_s: float) -> None:
        self.seq_id = seq_id
        self.request = request
        self.released_s = released_s
        self.token_ids: list[int] = list(request.prompt_ids)
        self.num_prompt_tokens = len(self.token_ids)
        true_len = request.true_output_len
        self.target_output_len = request.max_tokens if true_len is None else true_len
        self._forced_ids = request.forced_ids
        self._eos_ids = request.eos_ids if true_len is None else frozenset()
        self.num_computed_tokens = 0
        self.num_cached_tokens = 0
        self.num_slots = 0
        self.asked_len = 0
        self.admissions = 0
        self.num_preemptions = 0
        self.recomputed_tokens = 0
        self.furthest_computed = 0
        self.waits_for_room = False
        self.finished = False
        self.first_scheduled_s = math.nan
        self.finish_s = math.nan
        self.token_s: list[float] = []
        self.chosen_ids: list[int] = []
        self.margins: list[float] = []

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_s)

    @property
    def final_len(self) -> int | None:
        """Positions whose KV will be computed, where known: the last output's never is."""
        if self.request.true_output_len is None:
            return None
        return self.num_prompt_tokens + self.target_output_len - 1

    def accept(self, chosen_id: int, margin: float, now_s: float) -> None:
        """Append the next output token: the forced one where there is one."""
        forced = self._forced_ids
        token_id = chosen_id if forced is None else forced[len(self.token_s)]
        self.token_ids.append(token_id)
        self.token_s.append(now_s)
        self.chosen_ids.append(chosen_id)
        self.margins.append(margin)
        if len(self.token_s) >= self.target_output_len or token_id in self._eos_ids:
            self.finished = True
            self.finish_s = now_s

    def preempt(self) -> None:
        """Lose everything computed; it is to be computed again."""
        self.num_preemptions += 1
        self.num_computed_tokens = 0
        self.num_slots = 0
