"""A long life for an allocator: thousands of operations of one engine on one pool, without a
restart in which a leak could hide, and on request with faults.

Faults are what an engine has to expect of the world around it: a request for room refused at
random (`allocators.faults` does that to a real engine), pages of the shared pool that somebody
else holds while a call lasts, so that a call of several takes is refused in the middle, and a
request cancelled between any two calls. That `take` fails although `num_free` says that there
is room is not among them: a strategy may count first and rely on PagePool's promise.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from allocators.replay import FINISH, Build, Failure, Operation, perform
from allocators.tape import ContractViolationError, TapeEngine

MAX_GROUPS = 6
MAX_BRANCHES = 4
VOCABULARY = 4
ASKS_FOR_ROOM = frozenset(
    {"allocate", "allocate_and_retract", "append", "fork", "rebranch", "swap_in",
     "swap_in_and_retract"}
)  # fmt: skip


class Endurance(NamedTuple):
    """What a walk did: calls that were granted and refused, by operation; requests refused on
    the engine's side, as an injected fault; groups that were cancelled; and the first violation,
    with everything that led to it."""

    granted: Mapping[str, int]
    refused: Mapping[str, int]
    num_injected: int
    num_cancelled: int
    failure: Failure | None

    @property
    def num_steps(self) -> int:
        """Calls in all."""
        return sum(self.granted.values()) + sum(self.refused.values())


class Odds(NamedTuple):
    """How often, a call, something happens that no group of sequences asks for."""

    refused: float
    withheld: float
    cancelled: float
    all_cancelled: float = 0.001


CALM = Odds(refused=0.0, withheld=0.0, cancelled=0.002)
FAULTY = Odds(refused=0.08, withheld=0.15, cancelled=0.02)


def endure(
    build: Build,
    num_steps: int = 10_000,
    seed: int = 0,
    faults: bool = False,
    limit_s: float = math.inf,
) -> Endurance:
    """Drive a new allocator through at least `num_steps` calls, checking everything after each,
    then end everything and see that every page is back; less where `limit_s` is over before.

    The same arguments give the same walk. `allocators.replay.shrink` cuts a failure down.
    """
    deadline = time.monotonic() + limit_s
    life = EngineLife(TapeEngine(build()), random.Random(seed), FAULTY if faults else CALM)
    failure = None
    try:
        while life.num_steps < num_steps and time.monotonic() < deadline:
            life.turn()
        perform(life.engine, FINISH)
    except ContractViolationError as error:
        failure = Failure(str(error), life.done, life.engine.log)
    return Endurance(life.granted, life.refused, life.num_injected, life.num_cancelled, failure)


class Style(NamedTuple):
    """How a group decodes: in branches; as beams, which go on from one another's tokens; with so
    many tokens drafted a round, at most; reading a window of tokens only (0: all)."""

    num_branches: int
    are_beams: bool
    num_drafted: int
    window: int


class Group:
    """A request: its sequences, the call that it waits for, and those after it."""

    def __init__(self, calls: Iterator[Operation], seq_ids: list[int]) -> None:
        self.seq_ids = seq_ids
        self.is_swapped = False
        self._calls = calls
        self.wanted = next(calls, None)

    def advance(self) -> None:
        """The call was granted: on to the next."""
        self.wanted = next(self._calls, None)


class EngineLife:
    """Requests that come, decode each in its style, and go. A refused one waits, makes room by
    preempting somebody (by swap or by recomputation), or gives up."""

    def __init__(self, engine: TapeEngine, rng: random.Random, odds: Odds) -> None:
        self.engine = engine
        self.done: list[Operation] = []
        self.granted: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.num_injected = 0
        self.num_cancelled = 0
        self._rng = rng
        self._odds = odds
        self._slots = engine.allocator.max_sequence_pages * engine.page_size
        self._groups: list[Group] = []
        self._texts: deque[list[int]] = deque([[0]], maxlen=10)
        self._num_ids = 0

    @property
    def num_steps(self) -> int:
        """Calls so far."""
        return len(self.done)

    def turn(self) -> None:
        """One scheduling decision: a few calls."""
        rng, odds = self._rng, self._odds
        if rng.random() < odds.all_cancelled:
            for group in self._groups.copy():
                self._cancel(group)
        if self._groups and rng.random() < odds.cancelled:
            self._cancel(rng.choice(self._groups))
        if not self._groups or (len(self._groups) < MAX_GROUPS and rng.random() < 0.1):
            self._admit(self._prompt())
        group = rng.choice(self._groups)
        if group.is_swapped:
            if rng.random() < 0.1:
                self._call(Operation("swap_in_and_retract", (group.seq_ids.copy(),)))
            elif rng.random() < 0.4:
                group.is_swapped = not self._call(Operation("swap_in", (group.seq_ids.copy(),)))
        elif rng.random() < 0.01:
            self._swap_out(group)
        elif group.wanted is None:
            self._groups.remove(group)
        elif self._call(group.wanted):
            group.advance()
        else:
            self._make_room(group)

    def _call(self, operation: Operation) -> bool:
        """Make a call, or have it refused by a fault."""
        rng, odds = self._rng, self._odds
        if operation.method in ASKS_FOR_ROOM:
            if rng.random() < odds.refused:
                self.num_injected += 1
                return False
            if rng.random() < odds.withheld:
                num_free = self.engine.allocator.pool.num_free
                operation = operation._replace(num_withheld=rng.randint(0, num_free))
        self.done.append(operation)
        granted = perform(self.engine, operation)
        (self.granted if granted else self.refused)[operation.method] += 1
        return granted

    def _make_room(self, group: Group) -> None:
        choice = self._rng.random()
        if choice < 0.5:
            return
        victim = self._rng.choice(self._groups)
        if choice < 0.8:
            self._swap_out(victim)
        elif choice < 0.95 and victim.seq_ids and not victim.is_swapped:
            tokens = self.engine.live[victim.seq_ids[0]].token_ids
            self._cancel(victim)
            self._admit(tokens[: self._slots // 2])
        else:
            self._cancel(group)

    def _swap_out(self, group: Group) -> None:
        if group.seq_ids and not group.is_swapped:
            group.is_swapped = self._call(Operation("swap_out", (group.seq_ids.copy(),)))

    def _cancel(self, group: Group) -> None:
        self.num_cancelled += 1
        self._groups.remove(group)
        method = "discard_swapped" if group.is_swapped else "free"
        for seq_id in group.seq_ids:
            self._call(Operation(method, (seq_id,)))

    def _prompt(self) -> list[int]:
        """Often the beginning of an earlier text."""
        rng = self._rng
        known = rng.choice(self._texts) if rng.random() < 0.8 else []
        fresh = self._tokens(rng.randint(1, 2 * self.engine.page_size + 2))
        prompt = (known[: rng.randint(0, len(known))] + fresh)[: max(1, self._slots // 3)]
        self._texts.append(prompt)
        return prompt

    def _admit(self, prompt: list[int]) -> None:
        rng, page_size = self._rng, self.engine.page_size
        num_branches = rng.choice([1, rng.randint(2, MAX_BRANCHES)])
        are_beams = num_branches > 1 and rng.random() < 0.6
        drafts = rng.random() < 0.4
        style = Style(
            num_branches=num_branches,
            are_beams=are_beams,
            num_drafted=rng.randint(1, 2 * page_size + 1) if drafts else 0,
            window=rng.randint(1, 3 * page_size) if rng.random() < 0.25 else 0,
        )
        seq_ids: list[int] = []
        self._groups.append(Group(self._life(seq_ids, prompt, style), seq_ids))

    def _life(self, seq_ids: list[int], prompt: list[int], style: Style) -> Iterator[Operation]:
        """The calls of one request, each given once the one before is granted."""
        rng, root = self._rng, self._new_id()
        max_len, expected_len = self._bounds(len(prompt))
        keep_free = rng.choice([0, 0, 1])
        request = (root, prompt, max_len, expected_len, keep_free)
        if rng.random() < 0.1:
            yield Operation("allocate_and_retract", request)
        yield Operation("allocate", request)
        seq_ids.append(root)
        yield from self._compute(root)
        for _ in range(style.num_branches - 1):
            child = self._new_id()
            bounds = self._bounds(len(prompt))
            if style.are_beams:
                bounds = max_len, expected_len
            yield Operation("fork", (root, child, *bounds))
            seq_ids.append(child)
        while seq_ids:
            yield from self._end_some(seq_ids)
            yield from self._decode(seq_ids, style)

    def _end_some(self, seq_ids: list[int]) -> Iterator[Operation]:
        for seq_id in seq_ids.copy():
            sequence = self.engine.live[seq_id]
            if len(sequence.token_ids) == sequence.max_len or self._rng.random() < 0.02:
                self._texts.append(sequence.token_ids.copy())
                yield Operation("free", (seq_id,))
                seq_ids.remove(seq_id)

    def _decode(self, seq_ids: list[int], style: Style) -> Iterator[Operation]:
        """A round: every sequence gets room and computes, one after the other or all at once."""
        live, rng = self.engine.live, self._rng
        one_by_one = rng.random() < 0.3
        for seq_id in seq_ids:
            room = live[seq_id].max_len - len(live[seq_id].token_ids)
            count = min(room, 1 + rng.randint(0, style.num_drafted))
            yield Operation("append", (seq_id, self._tokens(count)))
            if one_by_one:
                yield from self._compute(seq_id)
        for seq_id in seq_ids:
            yield from self._compute(seq_id)
        branches_first = rng.random() < 0.5
        if style.are_beams and branches_first:
            yield from self._branch(seq_ids)
        for seq_id in seq_ids:
            yield from self._let_go(seq_id, style)
        if style.are_beams and not branches_first:
            yield from self._branch(seq_ids)

    def _branch(self, seq_ids: list[int]) -> Iterator[Operation]:
        """A beam step of those as long as one of them: some go on twice, others are pruned."""
        if not seq_ids:
            return
        first = self._rng.choice(seq_ids)
        beams = [s for s in seq_ids if self.engine.are_beams([first, s])]
        if len(beams) > 1 and self.engine.are_beams(beams):
            yield Operation("rebranch", ({s: self._rng.choice(beams) for s in beams},))

    def _let_go(self, seq_id: int, style: Style) -> Iterator[Operation]:
        """Reject some of the draft, now and then all the way back; then what left the window."""
        rng, sequence = self._rng, self.engine.live[seq_id]
        if style.num_drafted:
            length = len(sequence.token_ids)
            least = max(1, sequence.num_released)
            if rng.random() < 0.9:
                least = max(least, length - style.num_drafted)
            self._texts.append(sequence.token_ids.copy())
            yield Operation("truncate", (seq_id, rng.randint(least, length)))
        upto = sequence.num_computed - style.window
        if style.window and upto > sequence.num_released:
            yield Operation("release", (seq_id, upto))

    def _compute(self, seq_id: int) -> Iterator[Operation]:
        """In one go or in chunks."""
        while True:
            sequence = self.engine.live[seq_id]
            pending = len(sequence.token_ids) - sequence.num_computed
            if not pending:
                return
            chunk = self._rng.choice([pending, pending, self._rng.randint(1, pending)])
            yield Operation("compute", (seq_id, chunk))

    def _bounds(self, length: int) -> tuple[int, int]:
        """max_len, and an estimate: none, the bound, or anything in between."""
        rng = self._rng
        most = max(length, self._slots * 2 // 3)
        max_len = min(most, length + rng.randint(0, 4 * self.engine.page_size + 4))
        return max_len, rng.choice([0, 0, max_len, rng.randint(1, max_len)])

    def _tokens(self, count: int) -> list[int]:
        return [self._rng.randrange(VOCABULARY) for _ in range(count)]

    def _new_id(self) -> int:
        self._num_ids += 1
        return self._num_ids
