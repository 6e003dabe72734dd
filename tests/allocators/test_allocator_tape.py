"""Every allocator against the token tape, driven by Hypothesis."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from allocators.contract import option_sets
from allocators.discovery import available
from allocators.page_pool import PagePool
from allocators.tape import TapeEngine

CASES = [
    pytest.param(cls, chosen, id="-".join([name, *map(str, chosen.values())]))
    for name, cls in available().items()
    for chosen in [*option_sets(cls), *([{"partial_reuse": False}] * (name == "paged_prefix"))]
]
tokens = st.integers(0, 2)


class AllocatorMachine(RuleBasedStateMachine):
    """Everything an engine may ask for, in any order; TapeEngine checks after each."""

    cls: type
    chosen: dict[str, Any]

    @initialize(num_pages=st.integers(2, 17), page_size=st.sampled_from([1, 2, 3, 4, 16]))
    def start(self, num_pages: int, page_size: int) -> None:
        self.engine = TapeEngine(self.cls(PagePool(num_pages, page_size), **self.chosen))
        self.seen: list[list[int]] = [[]]
        self.next_id = 0

    def any_live(self) -> bool:
        return hasattr(self, "engine") and bool(self.engine.live)

    def any_swapped(self) -> bool:
        return hasattr(self, "engine") and bool(self.engine.swapped)

    def pick(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.engine.live)), label="seq_id")

    def bounds(self, data: st.DataObject, length: int) -> tuple[int, int]:
        max_len = length + data.draw(st.integers(0, 3 * self.engine.page_size), label="room")
        return max_len, data.draw(st.integers(0, max_len), label="expected_len")

    @rule(data=st.data(), fresh=st.lists(tokens, min_size=1, max_size=20))
    def allocate(self, data: st.DataObject, fresh: list[int]) -> None:
        known = data.draw(st.sampled_from(self.seen[-10:]), label="known prefix")
        prompt = (known[: data.draw(st.integers(0, len(known)))] + fresh)[:40]
        self.seen.append(prompt)
        self.next_id += 1
        keep_free = data.draw(st.sampled_from([0, 0, 1, 2]), label="keep_free")
        self.engine.allocate(self.next_id, prompt, *self.bounds(data, len(prompt)), keep_free)

    @precondition(any_live)
    @rule(data=st.data(), fresh=st.lists(tokens, min_size=1, max_size=6))
    def append(self, data: st.DataObject, fresh: list[int]) -> None:
        seq_id = self.pick(data)
        sequence = self.engine.live[seq_id]
        fresh = fresh[: sequence.max_len - len(sequence.token_ids)]
        if fresh:
            self.engine.append(seq_id, fresh)

    @precondition(any_live)
    @rule(data=st.data(), count=st.integers(1, 40))
    def compute(self, data: st.DataObject, count: int) -> None:
        seq_id = self.pick(data)
        sequence = self.engine.live[seq_id]
        if sequence.num_computed < len(sequence.token_ids):
            self.engine.compute(seq_id, count)
            self.seen.append(sequence.token_ids.copy())

    @precondition(any_live)
    @rule(data=st.data())
    def decode(self, data: st.DataObject) -> None:
        """One engine step: compute what is pending, then room for a token of each and its KV."""
        self.compute_everything()
        for seq_id, sequence in list(self.engine.live.items()):
            if len(sequence.token_ids) < sequence.max_len:
                self.engine.append(seq_id, [data.draw(tokens, label="token")])
        self.compute_everything()

    def compute_everything(self) -> None:
        for seq_id, sequence in self.engine.live.items():
            if sequence.num_computed < len(sequence.token_ids):
                self.engine.compute(seq_id, len(sequence.token_ids))

    @precondition(any_live)
    @rule(data=st.data(), width=st.integers(2, 3))
    def branch_and_decode(self, data: st.DataObject, width: int) -> None:
        """Beams of one prompt that diverge, and maybe cross, step after step."""
        parent_id = self.pick(data)
        length = len(self.engine.live[parent_id].token_ids)
        beams = [parent_id]
        for _ in range(width - 1):
            self.next_id += 1
            if self.engine.fork(parent_id, self.next_id, *self.bounds(data, length)):
                beams.append(self.next_id)
        for step in range(3):
            if step and self.engine.are_beams(beams):
                choice = st.sampled_from(beams)
                self.engine.rebranch({beam: data.draw(choice, label="parent") for beam in beams})
            self.decode(data)

    @precondition(any_live)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        parent_id = self.pick(data)
        self.next_id += 1
        length = len(self.engine.live[parent_id].token_ids)
        self.engine.fork(parent_id, self.next_id, *self.bounds(data, length))

    @precondition(any_live)
    @rule(data=st.data())
    def rebranch(self, data: st.DataObject) -> None:
        beams: list[int] = []
        for seq_id in [self.pick(data), *self.engine.live]:
            if seq_id not in beams and self.engine.are_beams([*beams, seq_id]):
                beams.append(seq_id)
        parents = st.dictionaries(st.sampled_from(beams), st.sampled_from(beams), min_size=1)
        self.engine.rebranch(data.draw(parents, label="parents"))

    @precondition(any_live)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        seq_id = self.pick(data)
        sequence = self.engine.live[seq_id]
        lengths = st.integers(max(1, sequence.num_released), len(sequence.token_ids))
        self.engine.truncate(seq_id, data.draw(lengths, label="new_len"))

    @precondition(any_live)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        seq_id = self.pick(data)
        upto = st.integers(0, self.engine.live[seq_id].num_computed)
        self.engine.release(seq_id, data.draw(upto, label="upto"))

    @precondition(any_live)
    @rule(data=st.data())
    def swap_out(self, data: st.DataObject) -> None:
        chosen = st.sets(st.sampled_from(sorted(self.engine.live)), min_size=1, max_size=3)
        self.engine.swap_out(sorted(data.draw(chosen, label="seq_ids")))

    @precondition(any_swapped)
    @rule(data=st.data())
    def swap_in(self, data: st.DataObject) -> None:
        chosen = st.sets(st.sampled_from(sorted(self.engine.swapped)), min_size=1)
        self.engine.swap_in(sorted(data.draw(chosen, label="seq_ids")))

    @precondition(any_swapped)
    @rule(data=st.data())
    def discard_swapped(self, data: st.DataObject) -> None:
        self.engine.discard_swapped(data.draw(st.sampled_from(sorted(self.engine.swapped))))

    @precondition(any_live)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        self.engine.free(self.pick(data))

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.engine.finish()


@pytest.mark.parametrize(("cls", "chosen"), CASES)
def test_any_sequence_of_operations(cls: type, chosen: dict[str, Any]) -> None:
    machine = type("Machine", (AllocatorMachine,), {"cls": cls, "chosen": chosen})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
