"""Cells that ask for a seed of the same simulated run more than once have it run once."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Sequence

from harness.config import RunConfig
from harness.conversion import to_mapping


def seeds_once(cells: Sequence[tuple[str, RunConfig]]) -> list[list[RunConfig]]:
    """For each cell, given as its part and config, what is left of it to run: a config a stretch of
    seeds that no cell of the same part and settings has with as many or more repetitions.

    `seed=0,1 repetitions=5` asks for seeds 1 to 4 twice, and means and intervals would take the
    same figures for more observations. Timed runs have a seed each, and are once by their address.
    """
    left: list[list[RunConfig]] = [[config] for _, config in cells]
    taken: dict[str, set[int]] = {}
    largest_first = sorted(range(len(cells)), key=lambda index: -cells[index][1].repetitions)
    for index in largest_first:
        part, config = cells[index]
        if config.executor.kind != "simulated":
            continue
        before = taken.setdefault(f"{part} {_settings(config)}", set())
        seeds = range(config.seed, config.seed + config.repetitions)
        own = [seed for seed in seeds if seed not in before]
        before.update(own)
        left[index] = [
            dataclasses.replace(config, seed=stretch[0], repetitions=len(stretch))
            for stretch in _stretches(own)
        ]
    return left


def _settings(config: RunConfig) -> str:
    plain = to_mapping(config)
    return json.dumps({**plain, "seed": 0, "repetitions": 1}, sort_keys=True, default=str)


def _stretches(seeds: Iterable[int]) -> list[list[int]]:
    """Ascending numbers, cut where one is left out."""
    numbered = enumerate(seeds)
    runs = itertools.groupby(numbered, key=lambda pair: pair[1] - pair[0])
    return [[seed for _, seed in run] for _, run in runs]
