"""A run to be done: its config, its address and where its results go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from allocators import discovery
from harness.config import ALLOCATOR_KEYS, AllocatorConfig, ConfigError, RunConfig
from harness.conversion import to_mapping
from harness.runs.bisection import Search
from harness.runs.code_hash import CodeHashes, allocator_hash, router_hash
from harness.runs.store import make_run_id


@dataclass(frozen=True, slots=True)
class Job:
    """part: the part of the experiment that the run belongs to ("waste", "times", ...).
    allocator_code: hash of the strategy as it was planned; router_code: of a router of one's own.
    search: that it is a probe of. device: that it is addressed with, by its name, or "simulated";
    unknown of a run that was only read. sources: as `own_sources` has them, when it was planned.
    """

    config: RunConfig
    run_id: str
    label: str
    part: str
    root: Path
    allocator_code: str
    search: Search | None = None
    device: str = ""
    router_code: str = ""
    sources: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def is_timed(self) -> bool:
        """Its figures are wall times, so nothing may run beside it."""
        return self.config.executor.kind != "simulated"

    @property
    def runs_own_code(self) -> bool:
        """Whether it executes code that is not the project's: what that leaves in its process
        (threads, patched modules, defaults of torch) must not meet another run."""
        return bool(self.sources)


def make_job(config: RunConfig, part: str, root: Path, device_name: str, hashes: CodeHashes) -> Job:
    """Address `config`: the same config, code, trace and device make the same run_id."""
    is_simulated = config.executor.kind == "simulated"
    name = config.allocator.name
    code = hashes.code(name, not is_simulated) + hashes.data(config.workload.path)
    code += hashes.data(config.executor.calibration)
    router_code = hashes.router(config.cluster.router)
    code += router_code
    if config.model.path is not None and Path(config.model.path).is_dir():
        code += hashes.data(config.model.path)
    draft = config.engine.speculation.draft
    if draft is not None and Path(draft).is_dir():
        code += hashes.data(draft)
    device = "simulated" if is_simulated else device_name
    run_id = make_run_id(to_mapping(config), code, device)
    return Job(
        config,
        run_id,
        run_label(config),
        part,
        root,
        hashes.allocator(name),
        device=device,
        router_code=router_code,
        sources=hashes.own_sources(name, config.cluster.router),
    )


def check_unchanged(job: Job) -> None:
    """Raise ConfigError if the strategy's or the router's code is no longer what `job` was planned
    with: its numbers would be stored under the old code's address.
    """
    allocator, router = job.config.allocator.name, job.config.cluster.router
    for key, now, planned in (
        (f"allocator={allocator}", allocator_hash(allocator), job.allocator_code),
        (f"cluster.router={router}", router_hash(router), job.router_code),
    ):
        if now != planned:
            raise ConfigError(
                f"{key} was edited while the sweep ran: repeat the command, and its runs are done "
                "with the new code"
            )


def strategy_label(config: AllocatorConfig) -> str:
    """A strategy with what distinguishes it: `contiguous buddy max`, `paged`, `mine.py:Mine`.

    Shown are the strategy's labelled options, and others where they are not the default.
    """
    defaults, labelled = _options(config.name)
    parts = [config.name.removeprefix("./")]
    for key, value in sorted(config.options.items()):
        if key in labelled or key not in defaults or value != defaults[key]:
            parts.append(value if isinstance(value, str) else f"{key}={value}")
    if config.expected != "none":
        parts.append(config.expected)
    return " ".join(parts)


def _options(name: str) -> tuple[dict[str, object], tuple[str, ...]]:
    """A strategy's options with their defaults, and those that always stand in its label."""
    try:
        cls = discovery.load(name)
    except ValueError:  # a stored run's allocator file may be gone by now
        return {}, ()
    defaults = {key: option.default for key, option in discovery.options(cls).items()}
    return defaults, cls.labelled_options


def allocator_keys(allocator: str) -> frozenset[str] | None:
    """Keys such as `allocator.fit` that an allocator takes; None for one that cannot be loaded."""
    try:
        cls = discovery.load(allocator)
    except ValueError:
        return None
    return frozenset(f"allocator.{key}" for key in (*ALLOCATOR_KEYS, *discovery.options(cls)))


def run_label(config: RunConfig) -> str:
    """One short line: strategy, page size, workload, executor, seed."""
    return (
        f"{strategy_label(config.allocator)} · page {config.kv.page_size} · "
        f"{config.workload.name} · {config.executor.kind} · seed {config.seed}"
    )
