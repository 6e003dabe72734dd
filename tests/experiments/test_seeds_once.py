"""A seed of a simulated run is run once, however many cells ask for it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from tiny_study import plan

from harness.config import ExecutorConfig, KVConfig, RunConfig
from harness.runs.seeds_once import seeds_once

SIMULATED = RunConfig(executor=ExecutorConfig("simulated"))
CELLS = st.lists(
    st.builds(
        lambda part, size, seed, repetitions: (
            part,
            replace(SIMULATED, kv=KVConfig(size), seed=seed, repetitions=repetitions),
        ),
        st.sampled_from(["waste", "times"]),
        st.sampled_from([8, 16]),
        st.integers(0, 6),
        st.integers(1, 6),
    ),
    max_size=8,
)


def seeds(config: RunConfig) -> range:
    return range(config.seed, config.seed + config.repetitions)


@given(CELLS)
def test_all_seeds_that_were_asked_for_are_left_and_each_is_once(cells) -> None:
    asked = {(part, config.kv.page_size, seed) for part, config in cells for seed in seeds(config)}
    left: Counter[tuple[str, int, int]] = Counter()
    for (part, _), own in zip(cells, seeds_once(cells), strict=True):
        left.update((part, each.kv.page_size, seed) for each in own for seed in seeds(each))
    assert left == dict.fromkeys(asked, 1)


def test_cells_without_a_seed_in_common_stay_as_they_are() -> None:
    cells = [("a", replace(SIMULATED, seed=seed, repetitions=2)) for seed in (0, 2, 7)]
    assert seeds_once(cells) == [[config] for _, config in cells]
    timed = [("a", replace(config, executor=ExecutorConfig("torch"))) for _, config in cells * 2]
    assert seeds_once(timed) == [[config] for _, config in timed]


def test_a_command_is_planned_with_each_seed_once(tmp_path) -> None:
    words = ("executor=simulated", "model=tiny", "seed=0,1", "repetitions=5", "kv.page_size=8,16")
    jobs, _ = plan(tmp_path, *words)
    assert Counter(seed for job in jobs for seed in seeds(job.config)) == dict.fromkeys(range(6), 2)
