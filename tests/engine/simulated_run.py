"""Runs an engine on the simulated executor, with everything it is made of in reach."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from allocators import discovery
from allocators.base import KVCacheAllocator
from allocators.page_pool import PagePool
from harness.engine.arrivals import RequestSource
from harness.engine.checked_allocator import checked
from harness.engine.clock import VirtualClock
from harness.engine.engine import Engine, Limits
from harness.engine.executor import Executor
from harness.engine.page_book import PageBook
from harness.engine.plan import StepOutcome, StepPlan
from harness.engine.request import Request, SamplingParams, Workload
from harness.engine.scheduling.beam_search import BeamParams
from harness.engine.scheduling.length_estimate import LengthEstimator
from harness.engine.scheduling.scheduler import Scheduler, SchedulerConfig
from harness.engine.scheduling.speculation import SpeculationConfig
from harness.engine.simulated_executor import SimulatedExecutor
from harness.measure.ledger import Ledger
from harness.measure.record_files import KeptRecords
from harness.measure.recorder import RunRecorder
from harness.measure.records import RequestRecord


@dataclass(frozen=True)
class Setup:
    """What a run is made of."""

    allocator: str | type[KVCacheAllocator] = "paged"
    options: Mapping[str, Any] = field(default_factory=dict)
    num_pages: int = 64
    page_size: int = 4
    schedule: Any = "mixed_chunked"
    token_budget: int = 64
    max_num_seqs: int = 256
    watermark: float = 0.0
    expected: Any = "none"
    bias: float = 1.0
    spread: float = 0.0
    max_positions: int = 10**6
    preemption: Any = "recompute"
    host_pages: int = 0
    victim: Any = "latest"
    batch_size: int | None = None
    batch_order: Any = "arrival"
    windows: tuple[int | None, ...] = (None,)
    speculation: SpeculationConfig = field(default_factory=SpeculationConfig)
    deferred: bool = False
    step_s: float = 1.0


ALLOCATORS: list[tuple[str, dict[str, Any]]] = [
    (name, choices)
    for name, cls in discovery.available().items()
    for choices in (
        [{"fit": fit} for fit in discovery.option_choices(cls)["fit"]]
        if "fit" in discovery.option_choices(cls)
        else [{}]
    )
]
"""Every strategy, with each of its fits."""


class SimulatedRun:
    """An engine ready to run; afterwards the records are in `recorder`."""

    def __init__(self, setup: Setup, executor: Executor | None = None) -> None:
        self.setup = setup
        pool = PagePool(setup.num_pages, setup.page_size)
        groups = [discovery.build(setup.allocator, pool, **setup.options) for _ in setup.windows]
        self.page_book = PageBook(setup.num_pages, setup.page_size)
        self.allocator = checked(groups, self.page_book)
        self.inner = groups[0] if len(groups) == 1 else self.allocator
        self.estimator = LengthEstimator(setup.expected, setup.bias, setup.spread)
        config = SchedulerConfig(
            setup.schedule,
            setup.token_budget,
            setup.max_num_seqs,
            setup.watermark,
            setup.preemption,
            setup.host_pages,
            setup.victim,
            setup.batch_size,
            setup.batch_order,
            setup.windows,
            setup.speculation,
            vocab_size=50,
        )
        self.scheduler = Scheduler(self.allocator, config, self.estimator)
        self.recorder = RunRecorder(
            Ledger(setup.num_pages, setup.page_size, setup.windows),
            self.page_book,
            KeptRecords(),
            deferred=setup.deferred,
        )
        self.executor = executor or SimulatedExecutor(setup.step_s, vocab_size=50)
        self.clock = VirtualClock()
        self.limits = Limits(
            setup.num_pages // len(setup.windows) * setup.page_size,
            setup.page_size,
            setup.max_positions,
            setup.max_num_seqs,
            setup.token_budget,
        )

    def run(
        self, requests: Sequence[Request], closed_loop: int | None = None, recorder: Any = None
    ) -> SimulatedRun:
        """Serve `requests` to the end; `recorder` may wrap this run's own."""
        engine = Engine(
            self.scheduler,
            self.executor,
            self.clock,
            recorder or self.recorder,
            self.limits,
            self.allocator,
        )
        engine.run(RequestSource(Workload("test", tuple(requests), "test", closed_loop)))
        self.recorder.close()
        return self

    @property
    def records(self) -> dict[int, RequestRecord]:
        """Request records by id."""
        return {record.request_id: record for record in self.recorder.sink.requests}


class RecordingExecutor:
    """Keeps every plan; durations and chosen tokens come from a seed."""

    def __init__(self, seed: int, vocab_size: int = 50) -> None:
        self._random = random.Random(seed)
        self._vocab_size = vocab_size
        self.plans: list[StepPlan] = []

    def execute(self, plan: StepPlan) -> StepOutcome:
        self.plans.append(plan)
        num_sampled = sum(len(chunk.draws) for chunk in plan.chunks)
        tokens = [self._random.randrange(self._vocab_size) for _ in range(num_sampled)]
        return StepOutcome(tokens, (), self._random.uniform(1e-3, 1.0))

    def close(self) -> None:
        return None


def request(
    request_id: int, prompt: int | Sequence[int] = 8, output: int = 4, **fields: Any
) -> Request:
    """A request with forced ids; a prompt given by its length has tokens of its own."""
    if isinstance(prompt, int):
        prompt = range(1000 * request_id, 1000 * request_id + prompt)
    defaults: dict[str, Any] = {
        "arrival_s": 0.0,
        "max_tokens": output,
        "forced_ids": [10**6 + 1000 * request_id + i for i in range(output)],
    }
    return Request(request_id, prompt_ids=tuple(prompt), **(defaults | fields))


def branching(requests: Sequence[Request], seed: int) -> list[Request]:
    """The same requests, some with samples, some with beams: lengths forced, tokens not."""
    rng = random.Random(seed)
    return [
        replace(
            each,
            forced_ids=None,
            forced_len=each.true_output_len,
            after_request=None,
            num_samples=(count := rng.randint(1, 4)) if (kind := rng.random()) < 0.4 else 1,
            beam=BeamParams(rng.randint(1, 4)) if kind > 0.6 else None,
            sampling=SamplingParams(1.0, seed=count if kind < 0.4 else 0),
        )
        for each in requests
    ]


def random_requests(
    seed: int,
    *,
    num_requests: int = 20,
    max_prompt: int = 30,
    max_output: int = 20,
    shared_len: int = 0,
    chat: bool = False,
    spread_s: float = 0.0,
    slack: float = 2.0,
) -> list[Request]:
    """A workload from a seed. shared_len: two system prompts of that length, one of them before
    most prompts, declared. chat: every third request begins with the whole of the one before, and
    follows it. slack: max_tokens is up to this many times the true output."""
    rng = random.Random(seed)
    systems = [[10**7 * (k + 1) + i for i in range(shared_len)] for k in range(2)]
    requests: list[Request] = []
    for request_id in range(num_requests):
        prompt = [rng.randrange(3) for _ in range(rng.randint(1, max_prompt))]
        output = rng.randint(1, max_output)
        fields: dict[str, Any] = {"arrival_s": rng.uniform(0.0, spread_s)}
        if shared_len and rng.random() < 0.8:
            which = rng.randrange(2)
            prompt = systems[which] + prompt
            fields |= {"shared_prefix_id": which, "shared_prefix_len": shared_len}
        if chat and request_id % 3:
            before = requests[-1]
            assert before.forced_ids is not None
            prompt = [*before.prompt_ids, *before.forced_ids, *prompt[:5]]
            fields |= {
                "after_request": request_id - 1,
                "shared_prefix_id": before.shared_prefix_id,
                "shared_prefix_len": before.shared_prefix_len,
            }
        fields |= {
            "max_tokens": rng.randint(output, max(output, int(slack * output))),
            "forced_ids": [rng.randrange(3) for _ in range(output)],
        }
        requests.append(request(request_id, prompt, **fields))
    return requests
