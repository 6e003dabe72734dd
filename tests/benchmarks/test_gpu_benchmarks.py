"""The benchmarks for GPUs count, time and compare rightly; no figure of theirs is tested."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from benchmarks import other_kernels
from benchmarks.attention_peers import (
    AbsentError,
    arguments_for,
    flash_attention_3,
    flashinfer,
    sdpa,
)
from benchmarks.decode_cases import Case, Shape, Store, cost_of, error_of, make_inputs, our_calls
from benchmarks.engine import roofline_s, summarise, workload
from benchmarks.kernels import _too_large
from benchmarks.read_kernel import num_programs, read_all
from benchmarks.telemetry import Telemetry
from benchmarks.timing import EventTimer, WallTimer
from harness.engine.device.model_shape import model_preset, model_shape
from kernels import backend

CPU = torch.device("cpu")
SHAPE = Shape(4, 2, 16, torch.float32)
RATES = {"read bandwidth": 4000.0, "matrix product": 800.0}


@pytest.fixture(scope="module")
def store() -> Store:
    return Store.filled(SHAPE, 256, CPU, l2_bytes=0)


@pytest.mark.parametrize("page_size", [0, 1, 16])
def test_what_is_timed_is_checked_and_a_wrong_page_shows(store: Store, page_size: int) -> None:
    inputs = make_inputs(store, Case(3, 32, page_size))
    calls = our_calls(backend.load("cpu", "reference"), inputs)
    assert error_of(calls[0](), inputs) < 1e-5
    places = inputs.tables[0] if page_size else inputs.starts[0]
    places[0] = places[1]
    assert error_of(inputs.outs[0], inputs) > 0.1


def test_sets_of_inputs_share_no_slot_and_exceed_the_cache() -> None:
    store = Store.filled(SHAPE, 256, CPU, l2_bytes=4096)
    case = Case(2, 16, 4)
    inputs = make_inputs(store, case)
    assert len(inputs.tables) == 2  # of 32 tokens of 256 bytes, for three caches of 4096
    pages = torch.cat([table.flatten() for table in inputs.tables])
    assert len(pages.unique()) == len(pages)
    assert len(make_inputs(store, Case(8, 32, 0)).starts) == 1  # no more fit


def test_least_bytes_are_keys_values_queries_outputs_and_the_table() -> None:
    cost = cost_of(Case(3, 32, 16), SHAPE)
    assert cost.read_bytes == 3 * (32 * SHAPE.token_bytes + 4 * 16 * 4 + 2 * 4)
    assert cost_of(Case(3, 32, 0), SHAPE).read_bytes == cost.read_bytes - 3 * 2 * 4
    assert cost.flops == 3 * 4 * 32 * 4 * 16


def test_torch_is_a_peer_on_contiguous_keys_only(store: Store) -> None:
    inputs = make_inputs(store, Case(2, 32, 0))
    (peer,) = sdpa(inputs)
    assert error_of(peer.calls[0](), inputs) < 1e-5
    with pytest.raises(AbsentError, match="no pages"):
        sdpa(make_inputs(store, Case(2, 32, 16)))


@pytest.mark.parametrize("peer", [flash_attention_3, flashinfer])
def test_a_peer_that_is_not_there_says_so(peer, store: Store) -> None:
    with pytest.raises(AbsentError):
        peer(make_inputs(store, Case(2, 32, 16)))


class Parameter(NamedTuple):
    name: str
    type: str
    default: bool = False

    def has_default_value(self) -> bool:
        return self.default


def test_a_library_is_called_by_the_names_in_its_schema() -> None:
    parameters = [
        Parameter("k", "Tensor"), Parameter("q", "Tensor"), Parameter("k_new", "Optional[Tensor]"),
        Parameter("is_rotary_interleaved", "bool"), Parameter("sm_margin", "int"),
        Parameter("pack_gqa", "Optional[bool]", default=True),
    ]  # fmt: skip
    found = arguments_for(parameters, {"q": 1, "k": 2, "unknown": 3})
    assert found == {
        "k": 2, "q": 1, "k_new": None, "is_rotary_interleaved": False, "sm_margin": 0,
    }  # fmt: skip


def test_the_read_kernel_reads_every_word_once() -> None:
    source = torch.arange(5000, dtype=torch.int32)
    sums = torch.zeros(num_programs(5000, 256, 3), dtype=torch.int32)
    read_all(source, sums, 256, 3)
    assert int(sums.sum()) == 5000 * 4999 // 2
    assert (sums > 0).all()


def test_calls_take_turns_and_the_first_round_is_not_counted() -> None:
    seen: list[int] = []
    calls = [lambda i=i: seen.append(i) for i in range(3)]  # type: ignore[misc]
    timing = WallTimer(least_rounds=7).time(calls, limit_s=0.0)
    assert seen == [0, 0, 1, 2, 0, 1, 2, 0]
    assert timing.rounds == 7 and timing.method == "wall"
    assert timing.low_us <= timing.median_us <= timing.high_us


class FakeCuda:
    """torch.cuda with a clock that only calls move: 3 us each, 1 us inside of a graph."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, captures: bool) -> None:
        self.now_us, self.captures, self.in_graph = 0.0, captures, False
        self.launched = self.slept = 0
        fake = self

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                self.at_us = 0.0

            def record(self) -> None:
                self.at_us = fake.now_us

            def synchronize(self) -> None: ...

            def elapsed_time(self, other: Event) -> float:
                return (other.at_us - self.at_us) / 1e3

        class Graph:
            def replay(self) -> None:
                fake.now_us += fake.launched_in_graph

        class Stream:
            def wait_stream(self, other: object) -> None: ...

        @contextmanager
        def capturing(graph: Graph) -> Iterator[None]:
            if not fake.captures:
                raise RuntimeError("operation not permitted when stream is capturing")
            fake.in_graph, fake.launched_in_graph = True, 0
            yield
            fake.in_graph = False

        for name, value in (
            ("Event", Event), ("CUDAGraph", Graph), ("Stream", Stream), ("graph", capturing),
            ("stream", lambda _: nullcontext()), ("current_stream", Stream),
            ("synchronize", lambda: None), ("_sleep", self._sleep),
            ("set_stream", lambda _: None),
        ):  # fmt: skip
            monkeypatch.setattr(f"torch.cuda.{name}", value, raising=False)

    def _sleep(self, cycles: int) -> None:
        self.slept += 1

    def call(self) -> None:
        if self.in_graph:
            self.launched_in_graph += 1
            return
        self.launched += 1
        self.now_us += 3.0


@pytest.mark.parametrize(
    ("captures", "capture", "method", "expected_us"),
    [(True, True, "graph", 1.0), (False, True, "events", 3.0), (True, False, "events", 3.0)],
)
def test_device_events_time_replays_or_else_launches_behind_a_wait(
    monkeypatch: pytest.MonkeyPatch,
    captures: bool,
    capture: bool,
    method: str,
    expected_us: float,
) -> None:
    cuda = FakeCuda(monkeypatch, captures=captures)
    timing = EventTimer(least_rounds=5, most_rounds=8).time([cuda.call] * 4, capture=capture)
    assert timing.method == method and timing.rounds == 8
    assert timing.median_us == pytest.approx(expected_us)
    assert timing.low_us == pytest.approx(timing.high_us)
    if method == "graph":
        assert cuda.slept == 0 and cuda.launched == 3  # to warm up, and before the capture
    else:
        assert cuda.slept == 1 + 8


def test_a_step_of_the_large_model_reads_its_weights_and_keys_once() -> None:
    """By hand: every weight but the input embedding, the KV, and logits of 4 bytes twice."""
    shape = model_shape(model_preset("llama_3_1_8b"))
    weights = shape.num_parameters - shape.vocab_size * shape.hidden_size
    least = 2 * weights / 4e12 + 64 * 1024 * 131072 / 4e12
    assert roofline_s(shape, 64, 64 * 1024, RATES) == pytest.approx(least, rel=0.02)
    compute_bound = roofline_s(shape, 1024, 0, RATES)
    assert compute_bound == pytest.approx(2 * 1024 * weights / 800e12, rel=0.02)


def step(end_s: float, prefill: int, decode: int) -> SimpleNamespace:
    return SimpleNamespace(
        start_s=end_s - 0.004, duration_s=0.004, num_prefill_tokens=prefill,
        num_decode_tokens=decode, device_us=9500.0, host_us=float("nan"),
    )  # fmt: skip


def test_only_steps_in_which_all_decode_are_counted() -> None:
    """Four prefill; of ten that decode, one has no such step before it and four settle: five at 10
    ms count, then a sequence has ended."""
    slow = [0.0, 1.0, 2.0, 3.0] + [4 + 0.5 * k for k in range(5)]
    ends = slow + [6.01 + 0.01 * k for k in range(5)]
    kinds = [(8, 0)] * 4 + [(0, 2)] * 10
    steps = [step(end, *kind) for end, kind in zip(ends, kinds, strict=True)]
    steps += [step(6.06, 0, 1), step(9.0, 0, 1)]
    entries = [SimpleNamespace(token=100)] * len(steps)
    shape = model_shape(model_preset("tiny"))
    records = SimpleNamespace(steps=steps, entries=entries)
    found = summarise(records, 2, 4, shape, RATES)  # type: ignore[arg-type]
    assert found["num_steps"] == 5
    assert found["step_ms"] == pytest.approx(10.0)
    assert found["decode_tokens_per_s"] == pytest.approx(200.0)
    assert found["roofline_share"] == pytest.approx(found["roofline_ms"] / 10.0)
    assert found["device_ms"] == pytest.approx(9.5) and "host_ms" not in found
    with pytest.raises(RuntimeError, match="all 3"):
        summarise(records, 3, 4, shape, RATES)  # type: ignore[arg-type]


def test_requests_are_as_long_as_asked_and_forced() -> None:
    requests = workload(3, 20, 5, 512).requests
    assert [len(request.prompt_ids) for request in requests] == [20] * 3
    assert all(request.true_output_len == 5 for request in requests)
    assert len({tuple(request.prompt_ids) for request in requests}) == 3


@pytest.mark.parametrize("num_staged", [0, 2])
def test_copies_and_stores_take_turns_over_slots_beyond_the_cache(num_staged: int) -> None:
    bench = SimpleNamespace(device=CPU, backend=backend.load("cpu", "reference"))
    sizes = other_kernels.Sizes((), (), (), num_pages=32, num_layers=1)
    page_bytes = 16 * SHAPE.token_bytes
    # of two pages read and two written a call, for three caches of four pages
    copies = other_kernels.copies(bench, SHAPE, sizes, 2, num_staged, 4 * page_bytes)  # type: ignore[arg-type]
    pages = torch.cat([call.args[2].flatten() for call in copies.calls])  # type: ignore[attr-defined]
    assert len(copies.calls) == copies.facts["sets"] == 3
    assert len(pages.unique()) == len(pages) == 3 * 2 * 2
    stores = other_kernels.store(bench, SHAPE, 4, 4 * page_bytes)  # type: ignore[arg-type]
    places = torch.cat([call.args[4] for call in stores.calls])  # type: ignore[attr-defined]
    assert stores.cost.moved_bytes * len(stores.calls) >= 3 * 4 * page_bytes
    assert len(places.unique()) == len(places) == 4 * len(stores.calls)
    for call in (*copies.calls, *stores.calls):
        call()


def test_every_prefill_call_has_inputs_of_its_own() -> None:
    bench = SimpleNamespace(device=CPU, backend=backend.load("cpu", "reference"))
    for make in (other_kernels.prefill, other_kernels.causal_sdpa):
        made = make(bench, SHAPE, 2, 8, 8, 8192)  # type: ignore[arg-type]
        keys = {call.args[1].data_ptr() for call in made.calls}  # type: ignore[attr-defined]
        assert len(keys) == len(made.calls) == -(-3 * 8192 // made.cost.moved_bytes)
        made.calls[-1]()


def test_telemetry_asks_for_the_card_that_torch_computes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """NVML counts all cards; torch those that CUDA_VISIBLE_DEVICES leaves it."""
    asked: list[object] = []
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=asked.append,
        nvmlDeviceGetHandleByIndex=asked.append,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    for cards in ({1: SimpleNamespace(uuid="12-ab")}, {1: SimpleNamespace()}):
        monkeypatch.setattr(torch.cuda, "get_device_properties", cards.__getitem__)
        Telemetry()
    assert asked == ["GPU-12-ab", 0]


def test_a_case_that_is_too_large_names_its_size_the_limit_and_the_way_out(store: Store) -> None:
    """256 slots of 256 bytes; 2^20 tokens are a quarter of a GiB."""
    text = _too_large(store, Case(32, 2**15, 16))
    assert "32 sequences of 32768 tokens take 0.25 GiB" in text
    assert "the store holds 0.00 GiB" in text and "end what else is on the GPU" in text
