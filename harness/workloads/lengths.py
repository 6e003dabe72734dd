"""Joint distributions of prompt and output lengths, in tokens before scaling."""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harness.workloads.config import WorkloadConfig
from harness.workloads.streams import Bools, Floats, Ints

SHAREGPT_TABLE = Path(__file__).parent / "data" / "sharegpt_quantiles.csv"

ALPACA_PROMPT_MEAN, ALPACA_PROMPT_SIGMA = 19.31, 0.6
ALPACA_OUTPUT_MEAN, ALPACA_OUTPUT_SIGMA = 58.45, 0.9
"""Means of Alpaca in PagedAttention (SOSP 2023), Fig. 11; the sigmas (of the logarithm) are
an assumption: no spread is published."""

_BATCH = 1024
_MAX_BATCHES_WITHOUT_HIT = 64


class Pairs(NamedTuple):
    """Prompt and output lengths of as many requests, and a uniform [0, 1) variate of each.

    The variate decides whether a request shares: it is drawn together with the lengths, so
    that resampling what is too long moves neither.
    """

    prompts: Ints
    outputs: Ints
    variates: Floats


Sampler = Callable[[np.random.Generator, int], tuple[Ints, Ints]]


def sampler(config: WorkloadConfig) -> Sampler:
    """The distribution that `config.lengths` names."""
    match config.lengths:
        case "fixed":
            return _fixed(config.prompt_len, config.output_len)
        case "uniform":
            return _uniform(config)
        case "lognormal":
            return _lognormals(
                config.prompt_mean, sigma_of_cv(config.prompt_cv),
                config.output_mean, sigma_of_cv(config.output_cv),
            )  # fmt: skip
        case "alpaca_like":
            return _lognormals(
                ALPACA_PROMPT_MEAN, ALPACA_PROMPT_SIGMA, ALPACA_OUTPUT_MEAN, ALPACA_OUTPUT_SIGMA
            )
        case _:
            return _sharegpt


def describe(config: WorkloadConfig) -> str:
    """The lengths in words, with what is synthetic said to be so."""
    match config.lengths:
        case "fixed":
            return f"fixed lengths {config.prompt_len}/{config.output_len}"
        case "uniform":
            return (
                f"uniform lengths {config.prompt_min}-{config.prompt_max}/"
                f"{config.output_min}-{config.output_max} (synthetic)"
            )
        case "lognormal":
            return (
                f"lognormal lengths, means {config.prompt_mean:g}/{config.output_mean:g}, "
                f"CV {config.prompt_cv:g}/{config.output_cv:g} (synthetic)"
            )
        case "alpaca_like":
            return (
                f"Alpaca-like lengths (synthetic: lognormal, means {ALPACA_PROMPT_MEAN}/"
                f"{ALPACA_OUTPUT_MEAN} as published, sigma {ALPACA_PROMPT_SIGMA}/"
                f"{ALPACA_OUTPUT_SIGMA} assumed)"
            )
        case _:
            return "ShareGPT lengths (joint quantile table, OPT tokens)"


def sigma_of_cv(cv: float) -> float:
    """Standard deviation of the logarithm of a lognormal whose std over mean is `cv`."""
    return math.sqrt(math.log1p(cv * cv))


def sample_fitting(
    sample: Sampler, generator: np.random.Generator, count: int, fits: Callable[[Pairs], Bools]
) -> Pairs:
    """`count` samples for which `fits` (a mask) holds, in the order they were drawn.

    Draws whole batches of a fixed size: a larger `count` starts with a smaller one's samples.
    """
    kept: list[Pairs] = []
    total = 0
    for batch in _batches(sample, generator):
        mask = fits(batch)
        kept.append(Pairs(batch.prompts[mask], batch.outputs[mask], batch.variates[mask]))
        total += len(kept[-1].prompts)
        if total >= count:
            break
        if total == 0 and len(kept) == _MAX_BATCHES_WITHOUT_HIT:
            raise ValueError(
                f"none of {_BATCH * len(kept):,} sampled requests has prompt + output below the "
                "bound: raise workload.max_len or lower the lengths"
            )
    return Pairs(
        np.concatenate([part.prompts for part in kept])[:count],
        np.concatenate([part.outputs for part in kept])[:count],
        np.concatenate([part.variates for part in kept])[:count],
    )


def _batches(sample: Sampler, generator: np.random.Generator) -> Iterator[Pairs]:
    while True:
        prompts, outputs = sample(generator, _BATCH)
        yield Pairs(prompts, outputs, generator.random(_BATCH))


def _fixed(prompt: int, output: int) -> Sampler:
    def sample(_: np.random.Generator, count: int) -> tuple[Ints, Ints]:
        return np.full(count, prompt, np.int64), np.full(count, output, np.int64)

    return sample


def _uniform(config: WorkloadConfig) -> Sampler:
    def sample(generator: np.random.Generator, count: int) -> tuple[Ints, Ints]:
        prompts = generator.integers(config.prompt_min, config.prompt_max, count, endpoint=True)
        outputs = generator.integers(config.output_min, config.output_max, count, endpoint=True)
        return prompts, outputs

    return sample


def _lognormals(
    prompt_mean: float, prompt_sigma: float, output_mean: float, output_sigma: float
) -> Sampler:
    def draw(generator: np.random.Generator, mean: float, sigma: float, count: int) -> Ints:
        mu = math.log(mean) - sigma * sigma / 2
        return np.maximum(np.rint(generator.lognormal(mu, sigma, count)), 1).astype(np.int64)

    def sample(generator: np.random.Generator, count: int) -> tuple[Ints, Ints]:
        return (
            draw(generator, prompt_mean, prompt_sigma, count),
            draw(generator, output_mean, output_sigma, count),
        )

    return sample


def _sharegpt(generator: np.random.Generator, count: int) -> tuple[Ints, Ints]:
    table = sharegpt_table()
    cumulated = np.cumsum(table[:, 0])
    cells = np.searchsorted(
        cumulated, generator.integers(0, cumulated[-1], size=count), side="right"
    )
    return table[cells, 1], table[cells, 2]


@functools.cache
def sharegpt_table() -> Ints:
    """Rows of (pairs, prompt, output): the shipped joint quantile table."""
    with SHAREGPT_TABLE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(line for line in file if not line.startswith("#")))
    return np.array(rows[1:], dtype=np.int64)
