"""What a user asks of `python -m experiments advise`, from the words typed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.config import ConfigError
from harness.conversion import unknown_name
from harness.engine.cost.gpu import GPUS
from harness.engine.device.model_shape import model_presets
from harness.own_code import is_file
from harness.workloads.traces import readers

TYPICAL_HOST_US = 4000.0
"""Time of the host that a step adds. Nobody publishes it. vLLM's own profile of version 0.5 (blog,
5 September 2024) has 29 % of the time in scheduling and 38 % on the GPU for Llama 3 8B on an H100,
where a step takes some 5 ms (blog on V1, January 2025): 4 ms, to the digit that this allows."""

NEEDED = ("trace", "format", "model", "gpu", "slo")
OPTIONAL = ("load", "attainment", "requests", "host_us", "error", "results_dir")
OWN_KEYS = {
    "kv.memory_fraction": "is what is searched, leave it out",
    "kv.pool_tokens": "the pool's size is what is searched, leave it out",
    "kv.pool_demand": "the pool's size is what is searched, leave it out",
    "executor.gpu": "give gpu=",
    "executor.host_us": "give host_us=",
    "workload.path": "give trace=",
    "workload.format": "give format=",
    "workload.speed_up": "give load=",
    "workload.rate": "the trace has its own arrivals, give load=",
    "workload.arrivals": "the trace has its own, give load=",
    "workload.length_scale": "the trace is advised on as it is, leave it out",
    "workload.start_s": "the busiest stretch is found, leave it out",
    "workload.num_requests": "give requests=",
}
"""Settings that advice makes itself, with what to do instead."""

BOUNDS = ("ttft_ms", "tpot_ms", "normalised_ms")


@dataclass(frozen=True, slots=True)
class Question:
    """slo: bound in ms by name (ttft_ms, tpot_ms, normalised_ms). attainment: share of requests
    that must keep all of them. load: the trace's times are divided by it. requests: to simulate;
    None for as many as a minute allows. error: file of the simulator's measured errors.
    overrides: further settings of every run, by key; a knob among them is not searched.
    """

    trace: Path
    format: str
    model: str
    gpu: str
    slo: Mapping[str, float]
    load: float = 1.0
    attainment: float = 0.9
    requests: int | None = None
    host_us: float = TYPICAL_HOST_US
    error: Path | None = None
    results_dir: Path = Path("results")
    overrides: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Tells apart what is asked of the same trace, in a folder's name."""
        parts = [self.trace.stem, self.model, self.gpu]
        parts += [f"{bound.removesuffix('_ms')}{value:g}" for bound, value in self.slo.items()]
        plain = Question(self.trace, self.format, self.model, self.gpu, self.slo)
        for key in ("load", "attainment", "requests", "host_us"):
            value = getattr(self, key)
            if value != getattr(plain, key):
                parts.append(f"{key.replace('_', '')}{value:g}")
        for key, text in self.overrides.items():
            parts.append(re.sub(r"[^A-Za-z0-9.]", "", key.rpartition(".")[2] + text))
        return "_".join(parts)

    @property
    def slo_in_words(self) -> str:
        names = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "normalised_ms": "normalised latency"}
        bounds = [f"{names[name]} <= {value:g} ms" for name, value in self.slo.items()]
        return " and ".join(bounds)


def parse_question(words: Sequence[str]) -> Question:
    """The question in `key=value` words. Raises ConfigError for a key, a name or a value that is
    wrong, a file that is not there, and for what is missing."""
    given: dict[str, str] = {}
    overrides: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"{word!r}: give key=value, as in {USAGE}")
        if key in given or key in overrides:
            raise ConfigError(f"{word}: {key} is given twice; leave one out")
        if key in OWN_KEYS:
            raise ConfigError(f"{key}: {OWN_KEYS[key]}")
        if "." in key:
            overrides[key] = value
        elif key in NEEDED + OPTIONAL:
            given[key] = value
        else:
            raise ConfigError(unknown_name(key, NEEDED + OPTIONAL, "key"))
    if missing := [key for key in NEEDED if not given.get(key)]:
        raise ConfigError(f"{', '.join(missing)} is missing: {USAGE}")
    if not is_file(given["format"]):
        _check_name("format", given["format"], readers())
    _check_name("model", given["model"], set(model_presets()) - {"hub"})
    _check_name("gpu", given["gpu"], GPUS)
    requests = _number("requests", given["requests"], 10, None) if "requests" in given else None
    return Question(
        trace=_file("trace", given["trace"]),
        format=given["format"],
        model=given["model"],
        gpu=given["gpu"],
        slo=_slo(given["slo"]),
        load=_number("load", given.get("load", "1"), 1e-3, None),
        attainment=_number("attainment", given.get("attainment", "0.9"), 0.01, 1.0),
        requests=None if requests is None else int(requests),
        host_us=_number("host_us", given.get("host_us", f"{TYPICAL_HOST_US}"), 0.0, None),
        error=_file("error", given["error"]) if "error" in given else None,
        results_dir=Path(given.get("results_dir", "results")).expanduser(),
        overrides=overrides,
    )


USAGE = (
    "python -m experiments advise trace=FILE format=azure model=opt_13b gpu=a100_40gb "
    "slo=ttft_ms:2000,tpot_ms:100"
)


def _check_name(key: str, name: str, known: Mapping[str, object] | set[str]) -> None:
    if name not in known:
        raise ConfigError(f"{key}: {unknown_name(name, known, 'value')}")


def _file(key: str, text: str) -> Path:
    path = Path(text).expanduser()
    if not path.exists():
        raise ConfigError(f"{key}={text}: no such file or folder")
    return path


def _slo(text: str) -> dict[str, float]:
    bounds: dict[str, float] = {}
    for part in text.strip("{}").split(","):
        name, _, value = re.sub(r"\s", "", part).partition(":")
        if name not in BOUNDS:
            raise ConfigError(f"slo: {unknown_name(name, BOUNDS, 'bound')}")
        if name in bounds:
            raise ConfigError(f"slo={text}: {name} is given twice; leave one out")
        bounds[name] = _number(f"slo={name}", value, 1e-3, None)
    return bounds


def _number(key: str, text: str, low: float, high: float | None) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"{key}={text}: expected a number") from None
    if not low <= value < float("inf") or (high is not None and value > high):
        limit = f"at least {low:g}" if high is None else f"from {low:g} to {high:g}"
        raise ConfigError(f"{key}={text}: must be {limit}")
    return value
