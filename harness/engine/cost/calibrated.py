"""A step's time from steps of real runs on one machine: fitted to what they had to do."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from harness.engine.cost.step_work import WorkCounter, WorkCounts
from harness.engine.plan import StepPlan
from harness.numbers import parse_json, real, shown

TOKEN_KNOTS = (0, 2, 4, 8, 16, 32, 64, 128, 256)
"""The time of a pass is linear in its tokens between these: so a GEMM's efficiency by M may be
anything that never makes more tokens quicker."""

_TOKENS = [f"tokens from {low}" for low in TOKEN_KNOTS]

FEATURES = (
    "step", *_TOKENS, "sequences", "prompts", "decode keys", "decode pages",
    "prompt context tokens", "prompt query-key pairs", "logits", "tokens drawn", "beams",
    "copies at all", "copied tokens", "moved tokens", "moved pages", "table updates",
    "freed sequences", "draft passes", "draft tokens", "draft query-key pairs",
)  # fmt: skip
"""What a step's time is a sum over, each times seconds that are fitted and not negative."""

BEYOND = 1.1
"""A step is unlike those of the fit where a feature is more than so many times the largest seen."""

_COUNTED_SINGLY = ("prompts", "table updates", "freed sequences")
"""Work of the host one by one, which more of does not change: it only has to have been seen."""


def features(counts: WorkCounts, page_size: int) -> tuple[float, ...]:
    """FEATURES of a step. Pages that a prompt gathers, copies or moves count by their tokens."""
    return (
        1.0,
        *_token_segments(counts.num_tokens),
        counts.num_sequences,
        counts.num_prompts,
        counts.decode_pairs,
        counts.decode_pages,
        counts.prompt_pages * page_size,
        counts.prompt_pairs,
        counts.num_logits,
        counts.num_drawn,
        counts.num_beams,
        int(counts.num_copied > 0),
        counts.num_copied * page_size,
        counts.num_moved * page_size,
        counts.num_moved,
        counts.num_updates,
        counts.num_freed,
        counts.draft_passes,
        counts.draft_tokens,
        counts.draft_pairs,
    )


@cache
def _token_segments(num_tokens: int) -> tuple[int, ...]:
    """How many of them lie in each segment between knots."""
    bounds = [min(num_tokens, knot) for knot in TOKEN_KNOTS]
    return tuple(high - low for low, high in pairwise([*bounds, num_tokens]))


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was fitted, and to what.

    seconds: of each of FEATURES; highest: the largest value seen. noise: measured over fitted
    time, as equally likely values in rising order, of steps that only decode and of the others.
    model, kv_dtype: what ran; any other needs a fit of its own. page_sizes, allocators,
    workloads: what was seen. fit_error: median of |fitted - measured| / measured over the steps.
    """

    seconds: Mapping[str, float]
    highest: Mapping[str, float]
    decode_noise: Sequence[float]
    prompt_noise: Sequence[float]
    model: Mapping[str, Any]
    kv_dtype: str
    page_sizes: Sequence[int]
    allocators: Sequence[str]
    workloads: Sequence[str]
    num_runs: int
    num_steps: int
    fit_error: float
    environment: Mapping[str, Any]

    def save(self, path: Path) -> None:
        """As JSON, replaced in one rename."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(dataclasses.asdict(self), indent=1, default=str) + "\n")
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Raises ValueError for a file that is none of `save`'s."""
        try:
            if path.exists() and not path.is_file():
                raise ValueError("no regular file")
            values = parse_json(path.read_text())
            if not isinstance(values, dict):
                raise ValueError("no JSON object")
            calibration = cls(**values)
        except OSError as error:
            raise ValueError(f"cannot be read: {error.strerror}") from error
        except (ValueError, TypeError) as error:
            raise ValueError(f"is no calibration: {error}") from error
        for name in ("seconds", "highest"):
            found = getattr(calibration, name)
            if not isinstance(found, dict) or set(found) != set(FEATURES):
                raise ValueError(f"was made for other features than this version's: {name}")
            for feature, value in getattr(calibration, name).items():
                real(value, f"has {name}.{feature}", 0.0, 1e30)
        for name in ("decode_noise", "prompt_noise"):
            if not isinstance(noise := getattr(calibration, name), list) or not noise:
                raise ValueError(f"has {name}={shown(noise)}, and no list of factors")
            for factor in noise:
                real(factor, f"has {name}", 0.0, 1e6)
        if not isinstance(calibration.model, dict):
            raise ValueError(f"has model={shown(calibration.model)}")
        return calibration


def _limit(name: str, highest: float) -> float:
    """Up to where a feature is like what was seen."""
    return math.inf if highest > 0 and name in _COUNTED_SINGLY else BEYOND * highest


class CalibratedCost:
    """Steps take what a calibration says of their work, times noise that is drawn as it was
    measured: the same numbers for the same seed and, of a fleet, the same replica."""

    def __init__(
        self,
        calibration: Calibration,
        counter: WorkCounter,
        page_size: int,
        seed: int = 0,
        replica: int = 0,
    ) -> None:
        self._counter = counter
        self._page_size = page_size
        self._seconds = [calibration.seconds[name] for name in FEATURES]
        self._highest = [_limit(name, calibration.highest[name]) for name in FEATURES]
        self._decode_noise = list(calibration.decode_noise)
        self._prompt_noise = list(calibration.prompt_noise)
        self._random = random.Random(f"{seed} {replica}")
        self._num_steps = 0
        self._num_beyond = 0

    @property
    def extrapolated_share(self) -> float:
        """Steps with a feature beyond the fit's range, of all."""
        return self._num_beyond / max(1, self._num_steps)

    def step_s(self, plan: StepPlan) -> float:
        counts = WorkCounts.of(self._counter.count(plan))
        values = features(counts, self._page_size)
        self._num_steps += 1
        self._num_beyond += any(map(float.__gt__, map(float, values), self._highest))
        seconds = sum([a * b for a, b in zip(values, self._seconds, strict=True)])
        noise = self._prompt_noise if counts.num_prompts else self._decode_noise
        return seconds * noise[int(self._random.random() * len(noise))]
