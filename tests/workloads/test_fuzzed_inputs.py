"""Whatever a file or a key holds: valid requests, or an error of one line."""

from __future__ import annotations

import dataclasses
import gzip
import math
import re
import tempfile
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from harness.config import ConfigError, RunConfig
from harness.conversion import from_mapping, to_mapping
from harness.engine.device.model_shape import model_preset
from harness.engine.request import Workload
from harness.runs.one_run import make_workload, simulated_device
from harness.runs.pool_size import pool_pages
from harness.runs.preflight import Preflight
from harness.workloads import traces
from harness.workloads.config import WorkloadConfig
from harness.workloads.generate import generate
from harness.workloads.trace_row import TraceRow

SERVEGEN = {
    "chunk-0-trace.csv": "0,0.05,1.4,Gamma,0.5,1.0\n60,0.05,1,Weibull,1,1\n120,0.1,1,,0,0\n",
    "chunk-0-dataset.json": '{"0": {"input_tokens": "{9: 0.7, 3: 1}", "output_tokens": "{5: 1}"}}',
}
TEXTS = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
    "2023-11-16 18:15:50+01:00,396,109\n",
    "prompt_tokens,output_tokens\n21,518\n8,66\n",
    '{"timestamp": 0, "input_length": 600, "output_length": 6, "hash_ids": [0, 1]}\n'
    '{"timestamp": 2.5, "input_length": 512, "output_length": 4, "hash_ids": [0]}\n',
    '{"timestamp": 1, "input": "a", "output": "b", "session_id": "s"}\n'
    '{"timestamp": 2, "input": "abc", "output": "", "session_id": "s"}\n',
)
"""Every format is given all of them: one that is new is read from what others have."""

ODD_TEXTS = (
    "NaN", "nan", "Infinity", "-inf", "1e400", "-1", "0", "-0.0", "1e30", "1.5", "9" * 400,
    "9" * 5000, "true", "null", "[]", "{}", '""', '"x"', "[" * 5000, '{"a":' * 3000, '"\\ud800"',
    "\x00", "\n", "é", ",", '"', "2023-99-99 18:15:46", "9999-12-31 23:59:59-14:00", "1_0", "٣",
    "2147483648", "1e-320",
)  # fmt: skip
MOST_SHOWN = 1_000


@st.composite
def damaged(draw: st.DrawFn, text: str) -> bytes:
    """`text` with a few values, bytes or lines that are not what they were."""
    for _ in range(draw(st.integers(1, 3))):
        values = list(re.finditer(r"[-\w.:]+", text)) or [re.match("", text)]
        match draw(st.sampled_from(("value", "insert", "cut", "repeat"))):
            case "value":
                found = draw(st.sampled_from(values))
                assert found is not None
                odd = draw(st.sampled_from(ODD_TEXTS))
                text = text[: found.start()] + odd + text[found.end() :]
            case "insert":
                at = draw(st.integers(0, len(text)))
                text = text[:at] + draw(st.sampled_from(ODD_TEXTS)) + text[at:]
            case "cut":
                start, end = sorted(draw(st.tuples(*[st.integers(0, len(text))] * 2)))
                text = text[:start] + text[end:]
            case _:
                text += text
    encoding = draw(st.sampled_from(("utf-8", "utf-8", "utf-8-sig", "utf-16")))
    raw = bytearray(text.encode(encoding, "surrogatepass"))
    if raw and draw(st.integers(0, 3)) == 0:
        raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    return bytes(raw)


def check_trace(format_name: str, path: Path) -> None:
    """Replays it, or is told why not in a line."""
    config = WorkloadConfig(
        name="trace", generator="trace", format=format_name, path=str(path), max_len=None,
        arrivals="all_at_once" if format_name == "lengths_csv" else "trace", num_requests=50,
    )  # fmt: skip
    try:
        workload = generate(config, seed=0, vocab_size=4096, longest_len=512)
    except ValueError as error:
        check_line(error)
    else:
        check_requests(workload)


def check_line(error: ValueError) -> None:
    text = str(error)
    assert text.isprintable() or "\n" not in text, text
    assert len(text.splitlines()) == 1, text
    assert len(text) < MOST_SHOWN, text


def check_requests(workload: Workload) -> None:
    assert len(workload.requests) > 0
    for outline in workload.outlines():
        assert math.isfinite(outline.arrival_s)
        assert outline.arrival_s >= 0
        assert outline.num_prompt_tokens >= 1
        assert outline.max_tokens >= (outline.true_output_len or 1) >= 1
    first = workload.requests[0]
    assert len(list(first.prompt_ids)) == len(first.prompt_ids)
    assert set(map(type, first.prompt_ids)) == {int}


def fuzz(format_name: str, num_examples: int) -> None:
    @settings(
        max_examples=num_examples, deadline=None, database=None, derandomize=True,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data())
    def one(data: st.DataObject) -> None:
        with tempfile.TemporaryDirectory() as folder:
            if format_name == "servegen":
                for name, text in SERVEGEN.items():
                    (Path(folder) / name).write_text(text)
                name = data.draw(st.sampled_from(sorted(SERVEGEN)))
                (Path(folder) / name).write_bytes(data.draw(damaged(SERVEGEN[name])))
                check_trace(format_name, Path(folder))
                return
            raw = data.draw(st.sampled_from(TEXTS).flatmap(damaged))
            path = Path(folder) / "t.txt"
            if data.draw(st.integers(0, 9)) == 0:
                path = Path(folder) / "t.txt.gz"
                raw = gzip.compress(raw)[: data.draw(st.sampled_from((-9, None)))]
            path.write_bytes(raw)
            check_trace(format_name, path)

    one()


@pytest.mark.parametrize("format_name", sorted(traces.readers()))
def test_a_damaged_trace_is_replayed_or_refused_in_a_line(format_name: str) -> None:
    fuzz(format_name, 60)


@pytest.mark.slow
@pytest.mark.parametrize("format_name", sorted(traces.readers()))
def test_many_damaged_traces(format_name: str) -> None:
    fuzz(format_name, 3_000)


def careless(path: Path, context: object) -> Iterator[TraceRow]:
    for line in path.read_text().splitlines()[1:]:
        cells = line.split(",")
        yield TraceRow(int(cells[0]), int(cells[1]))


def test_a_careless_reader_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "readers", lambda: {"careless": careless})
    monkeypatch.setattr(traces, "note", lambda _: "")
    with pytest.raises(BaseException, match=r"IndexError|list index|digits") as found:
        fuzz("careless", 100)
    assert not isinstance(found.value, ConfigError)


ODD_VALUES: tuple[Any, ...] = (
    math.nan, math.inf, -math.inf, -1, 0, 1, 2, 1.5, -1e300, 1e300, 1e-300, 1e9, 2**31, 2**62,
    10**400, True, None, "abc", "", "a\nb", [1, 2], [], {"a": 1}, {"a": math.nan}, [[math.inf]],
)  # fmt: skip
BASE = {
    "executor": {"kind": "simulated"},
    "model": to_mapping(model_preset("tiny")),
    "workload": {"lengths": "uniform", "num_requests": 20, "name": "uniform"},
}
ASKS_TRANSFORMERS = ("model.family", "model.path", "engine.speculation.draft")


def keys(cls: Any = RunConfig, prefix: str = "") -> Iterator[str]:
    """Every key of a run's configuration, and sizes of its model."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        key = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(hints[field.name]):
            yield from keys(hints[field.name], f"{key}.")
        else:
            yield key
    if cls is RunConfig:
        yield from (f"model.config.{name}" for name in BASE["model"]["config"])


def check_key(key: str, value: Any) -> None:
    """A run of it could be made, or is told why not in a line."""
    try:
        config = from_mapping(RunConfig, _with(BASE, key.split("."), value))
        if config.executor.kind != "simulated":
            return
        Preflight().check(config)
    except ConfigError as error:
        assert len(str(error)) < 2 * MOST_SHOWN
        return
    device = simulated_device(config)
    try:
        workload = make_workload(config, device)
        pool_pages(config, device.shape, workload, device.memory_bytes)
    except ConfigError:
        return
    check_requests(workload)


def _with(values: Any, path: list[str], value: Any) -> dict[str, Any]:
    key, *rest = path
    inner = _with(values.get(key) or {}, rest, value) if rest else value
    return {**values, key: inner}


PAIRS = [(key, value) for key in keys() for value in ODD_VALUES]


def test_an_odd_value_of_a_key_is_used_or_refused_in_a_line() -> None:
    for key, value in PAIRS[::7]:
        if key not in ASKS_TRANSFORMERS:
            check_key(key, value)


@pytest.mark.slow
def test_every_odd_value_of_every_key() -> None:
    for key, value in PAIRS:
        check_key(key, value)


def test_a_key_that_is_not_checked_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.conversion._convert_scalar", lambda kind, value, key: value)
    with pytest.raises((AssertionError, TypeError, ValueError)) as found:
        for value in ODD_VALUES:
            check_key("workload.rate", value)
    assert not isinstance(found.value, ConfigError)
