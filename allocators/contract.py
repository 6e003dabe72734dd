"""The contract test of any allocator: `python -m allocators.contract NAME_OR_FILE`.

Random operations against a token tape (`allocators.tape`) on small pools; the first violation
is cut down to the operations it takes and told as a story. Then a long life on one pool for each
setting, without and with faults (`allocators.endurance`).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import random
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from allocators.base import KVCacheAllocator
from allocators.contract_record import record_pass
from allocators.discovery import load, option_choices
from allocators.endurance import endure
from allocators.page_pool import PagePool
from allocators.replay import Build, Failure, Operation, perform, replay, shrink
from allocators.tape import ContractViolationError, TapeEngine

PAGE_SIZES = (4, 1, 2, 16)
MAX_LIVE = 6
LIFE_PAGES, LIFE_PAGE_SIZE = 24, 4
MAX_STORY_LINES = 60


class Verdict(NamedTuple):
    """Outcome for one allocator: where it failed, or how many operations it passed."""

    num_operations: int
    setting: str
    failure: Failure | None


def verify(
    cls: type[KVCacheAllocator], num_steps: int = 150, num_seeds: int = 40, limit_s: float = 8.0
) -> Verdict:
    """Try an allocator under each combination of its Literal options, on pages of several
    sizes, until one fails, all are done or `limit_s` is over."""
    deadline = time.monotonic() + limit_s
    count = 0
    for seed in range(num_seeds):
        for page_size, chosen in itertools.product(PAGE_SIZES, option_sets(cls)):
            if seed and time.monotonic() > deadline:
                return Verdict(count, "", None)
            rng = random.Random(1000 * seed + page_size)
            num_pages = rng.randint(3, 13)

            def build(
                num_pages: int = num_pages,
                page_size: int = page_size,
                chosen: dict[str, object] = chosen,
            ) -> KVCacheAllocator:
                return cls(PagePool(num_pages, page_size), **chosen)

            operations = []
            for operation in random_operations(build, rng, num_steps):
                operations.append(operation)
            count += len(operations)
            failure = replay(build, operations)
            if failure is not None:
                setting = f"{num_pages} pages of {page_size}{_named(chosen)}, seed {seed}"
                return Verdict(count, setting, shrink(build, failure))
    return Verdict(count, "", None)


def verify_long(
    cls: type[KVCacheAllocator], num_steps: int = 10_000, limit_s: float = 8.0
) -> Verdict:
    """Have an allocator live long under each combination of its Literal options, without and
    with faults; each life gets an equal part of `limit_s` at most."""
    lives = list(itertools.product(option_sets(cls), (False, True)))
    count = 0
    for chosen, faults in lives:
        build = functools.partial(_build_for_life, cls, chosen)
        life = endure(build, num_steps, faults=faults, limit_s=limit_s / len(lives))
        count += life.num_steps
        if life.failure is not None:
            setting = f"{LIFE_PAGES} pages of {LIFE_PAGE_SIZE}{_named(chosen)}, a long life"
            setting += " with faults" * faults
            return Verdict(count, setting, shrink(build, life.failure))
    return Verdict(count, "", None)


def _build_for_life(cls: type[KVCacheAllocator], chosen: dict[str, object]) -> KVCacheAllocator:
    return cls(PagePool(LIFE_PAGES, LIFE_PAGE_SIZE), **chosen)


def _named(chosen: dict[str, object]) -> str:
    return "".join(f", {name}={value}" for name, value in chosen.items())


def option_sets(cls: type[KVCacheAllocator]) -> list[dict[str, object]]:
    """Every combination of the Literal options of an allocator."""
    choices = option_choices(cls)
    return [
        dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())
    ]


def random_operations(build: Build, rng: random.Random, num_steps: int) -> Iterator[Operation]:
    """Operations that an engine could ask for, up to the first that breaks the contract."""
    engine = TapeEngine(build())
    chooser = OperationChooser(engine, rng)
    for _ in range(num_steps):
        operation = chooser.choose()
        yield operation
        try:
            perform(engine, operation)
        except ContractViolationError:  # `replay` says which
            return


class OperationChooser:
    """Chooses what an engine would do next: few different tokens and many common prefixes, so
    that reuse, sharing and eviction meet in small pools."""

    def __init__(self, engine: TapeEngine, rng: random.Random) -> None:
        self._engine = engine
        self._rng = rng
        self._slots = engine.num_pages * engine.page_size
        self._next_id = 0
        self._seen: list[list[int]] = []

    def choose(self) -> Operation:
        """The next operation; it makes sense in the engine's present state."""
        rng, engine = self._rng, self._engine
        seq_ids = list(engine.live)
        if not seq_ids or (len(seq_ids) < MAX_LIVE and rng.random() < 0.12):
            return self._allocate()
        if engine.swapped and rng.random() < 0.2:
            return self._return_swapped()
        pending = [s for s in seq_ids if self._pending(s)]
        if pending and rng.random() < 0.4:
            seq_id = rng.choice(pending)
            count = rng.choice([self._pending(seq_id), rng.randint(1, self._pending(seq_id))])
            return Operation("compute", (seq_id, count))
        kinds = [self._append, self._free, self._fork, self._truncate, self._release]
        kinds += [self._swap_out, self._rebranch]
        (kind,) = rng.choices(kinds, weights=[12, 3, 2 * (len(seq_ids) < MAX_LIVE), 1, 1, 1, 2])
        return kind(rng.choice(seq_ids))

    def _pending(self, seq_id: int) -> int:
        sequence = self._engine.live[seq_id]
        return len(sequence.token_ids) - sequence.num_computed

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id

    def _tokens(self, count: int) -> list[int]:
        return [self._rng.randrange(3) for _ in range(count)]

    def _bounds(self, length: int) -> tuple[int, int]:
        """max_len, and an estimate: none, the bound, or anything in between."""
        max_len = length + self._rng.randint(0, 2 * self._engine.page_size + 4)
        return max_len, self._rng.choice([0, 0, max_len, self._rng.randint(1, max_len)])

    def _allocate(self) -> Operation:
        rng = self._rng
        prefix: list[int] = []
        if self._seen and rng.random() < 0.8:
            known = rng.choice(self._seen[-8:])
            prefix = known[: rng.randint(1, len(known))]
        limit = max(1, self._slots * 2 // 3)
        token_ids = (prefix + self._tokens(rng.randint(1, self._engine.page_size + 2)))[:limit]
        self._seen.append(token_ids)
        keep_free = rng.choice([0, 0, 0, 1])
        method = "allocate" if rng.random() < 0.9 else "allocate_and_retract"
        return Operation(
            method, (self._new_id(), token_ids, *self._bounds(len(token_ids)), keep_free)
        )

    def _append(self, seq_id: int) -> Operation:
        sequence = self._engine.live[seq_id]
        room = sequence.max_len - len(sequence.token_ids)
        if room == 0:
            self._seen.append(sequence.token_ids.copy())
            return self._free(seq_id)
        count = self._rng.choice([1, 1, 1, min(room, self._rng.randint(1, 5))])
        return Operation("append", (seq_id, self._tokens(count)))

    def _free(self, seq_id: int) -> Operation:
        return Operation("free", (seq_id,))

    def _fork(self, seq_id: int) -> Operation:
        length = len(self._engine.live[seq_id].token_ids)
        return Operation("fork", (seq_id, self._new_id(), *self._bounds(length)))

    def _rebranch(self, seq_id: int) -> Operation:
        live = self._engine.live
        group = [s for s in live if self._engine.are_beams([seq_id, s])]
        if not self._engine.are_beams(group):
            group = [seq_id, *[s for s in group if s != seq_id][:1]]
        if len(group) == 1 and len(live) < MAX_LIVE:
            return self._fork(seq_id)
        children = self._rng.sample(group, self._rng.randint(1, len(group)))
        return Operation("rebranch", ({child: self._rng.choice(group) for child in children},))

    def _truncate(self, seq_id: int) -> Operation:
        sequence = self._engine.live[seq_id]
        least = max(1, sequence.num_released)
        new_len = self._rng.randint(least, len(sequence.token_ids))
        return Operation("truncate", (seq_id, new_len))

    def _release(self, seq_id: int) -> Operation:
        upto = self._rng.randint(0, self._engine.live[seq_id].num_computed)
        return Operation("release", (seq_id, upto))

    def _swap_out(self, seq_id: int) -> Operation:
        others = [s for s in self._engine.live if s != seq_id]
        most = self._rng.choice([min(2, len(others)), len(others)])
        chosen = self._rng.sample(others, self._rng.randint(0, most))
        return Operation("swap_out", ([seq_id, *chosen],))

    def _return_swapped(self) -> Operation:
        rng = self._rng
        seq_ids = list(self._engine.swapped)
        if rng.random() < 0.2:
            return Operation("discard_swapped", (rng.choice(seq_ids),))
        count = rng.choice([len(seq_ids), rng.randint(1, len(seq_ids))])
        method = "swap_in" if rng.random() < 0.8 else "swap_in_and_retract"
        return Operation(method, (rng.sample(seq_ids, count),))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a verdict; 0 when the allocator keeps the contract, 1 when not."""
    parser = argparse.ArgumentParser(prog="python -m allocators.contract", description=__doc__)
    parser.add_argument("allocator", help="a name, or path/to/file.py:Class")
    parser.add_argument("--steps", type=int, default=150, help="operations a run")
    parser.add_argument("--seeds", type=int, default=40, help="runs a setting")
    parser.add_argument("--life", type=int, default=10_000, help="operations of a long life")
    given = parser.parse_args(arguments)
    try:
        cls = load(given.allocator)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    started = time.monotonic()
    verdict = verify(cls, given.steps, given.seeds)
    num_operations = verdict.num_operations
    if verdict.failure is None:
        verdict = verify_long(cls, given.life)
        num_operations += verdict.num_operations
    took = f"{time.monotonic() - started:.1f} s"
    if verdict.failure is None:
        print(f"{given.allocator}: keeps the contract ({num_operations} operations, {took})")
        if all(
            getattr(given, key) >= parser.get_default(key) for key in ("steps", "seeds", "life")
        ):
            record_pass(cls)
        return 0
    print(f"{given.allocator}: BREAKS the contract ({verdict.setting})")
    story = verdict.failure.story
    if len(story) > MAX_STORY_LINES:
        print(f"  ... {len(story) - MAX_STORY_LINES} lines before")
    for line in story[-MAX_STORY_LINES:]:
        print(f"  {line}")
    print(f"  => {verdict.failure.message}")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
