"""A run to be done: its config, its address and where its results go."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from allocators import discovery
from harness.config import ALLOCATOR_KEYS, TIMEOUT_S, AllocatorConfig, ConfigError, RunConfig
from harness.conversion import to_mapping
from harness.facts import CodeFacts, one_line
from harness.own_code import file_of, is_file
from harness.runs.apart import allocator_facts
from harness.runs.bisection import Search
from harness.runs.code_hash import (
    OWN_CODE,
    CodeHashes,
    allocator_hash,
    own_hash,
    own_sources,
    own_specs,
)
from harness.runs.store import make_run_id


@dataclass(frozen=True, slots=True)
class Job:
    """part: the part of the experiment that the run belongs to ("waste", "times", ...).
    allocator_code: hash of the strategy as it was planned; own_code: of other code of one's own, by
    its folder.
    search: that it is a probe of. device: that it is addressed with, by its name, or "simulated";
    unknown of a run that was only read. sources: as `own_sources` has them, when it was planned.
    is_redo: it takes the place of the complete run that is stored.
    timeout_s: after which it is ended, and failed.
    """

    config: RunConfig
    run_id: str
    label: str
    part: str
    root: Path
    allocator_code: str
    search: Search | None = None
    device: str = ""
    own_code: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = TIMEOUT_S
    sources: Mapping[str, bytes] = field(default_factory=dict)
    is_redo: bool = False

    @property
    def is_timed(self) -> bool:
        """Its figures are wall times, so nothing may run beside it."""
        return self.config.executor.kind != "simulated"

    @property
    def runs_own_code(self) -> bool:
        """Whether it executes code that is not the project's: what that leaves in its process
        (threads, patched modules, defaults of torch) must not meet another run."""
        return bool(self.sources)


def make_job(
    config: RunConfig,
    part: str,
    root: Path,
    device_name: str,
    hashes: CodeHashes,
    strategy: str = "",
) -> Job:
    """Address `config`: the same config, code, trace and device make the same run_id. strategy:
    its label, if not its own."""
    is_simulated = config.executor.kind == "simulated"
    name = config.allocator.name
    code = hashes.code(name, not is_simulated) + hashes.data(config.workload.path)
    code += hashes.data(config.executor.calibration)
    specs = own_specs(config)
    own_code = {key: hashes.own(spec) for key, spec in specs.items() if key != "allocator"}
    code += "".join(own_code.values())
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
        run_label(config, strategy),
        part,
        root,
        hashes.allocator(name),
        device=device,
        own_code=own_code,
        sources=own_sources(specs),
    )


def check_unchanged(job: Job) -> None:
    """Raise ConfigError if the strategy's code, or other code of one's own, is no longer what `job`
    was planned with: its numbers would be stored under the old code's address.
    """
    name, specs = job.config.allocator.name, own_specs(job.config)
    planned = {f"allocator={name}": (allocator_hash(name), job.allocator_code)}
    planned |= {
        f"{OWN_CODE[key]}={specs[key]}": (own_hash(specs[key]), code)
        for key, code in job.own_code.items()
    }
    for what, (now, then) in planned.items():
        if now != then:
            raise ConfigError(
                f"{what} was edited while the sweep ran: repeat the command, and its runs are done "
                "with the new code"
            )


def strategy_label(config: AllocatorConfig) -> str:
    """A strategy with what distinguishes it: `contiguous buddy max`, `paged`, `headroom`.

    Shown are the strategy's labelled options, and others where they are not the default.
    """
    facts = _facts_of(config)
    parts = [facts.name]
    for key, value in sorted(config.options.items()):
        known = facts.defaults
        if key in facts.labelled or key not in known or value != known[key]:
            parts.append(one_line(value) if isinstance(value, str) else f"{key}={value}")
    if config.expected != "none":
        parts.append(config.expected)
    return " ".join(parts)


def _facts_of(config: AllocatorConfig) -> CodeFacts:
    """Executes nothing but the project's code."""
    if config.facts is not None:
        return config.facts
    if config.name in discovery.available():
        return allocator_facts(config.name)
    return CodeFacts(one_line(config.name.removeprefix("./")))


def told_apart(allocators: Sequence[AllocatorConfig]) -> list[AllocatorConfig]:
    """`allocators` of one comparison with labels that tell them apart: what is another's name, or
    one that comes with kvarena, is followed by its file, and options that differ between those of
    one strategy are shown at their default too."""
    facts = [_facts_of(each) for each in allocators]
    specs: dict[str, set[str]] = {name: {name} for name in discovery.available()}
    values: dict[tuple[str, str], set[str]] = {}
    for config, own in zip(allocators, facts, strict=True):
        specs.setdefault(own.name, set()).add(config.name)
        for key, value in config.options.items():
            values.setdefault((config.name, key), set()).add(repr(value))
    shown = []
    for config, own in zip(allocators, facts, strict=True):
        swept = [key for key in config.options if len(values[config.name, key]) > 1]
        name, same = own.name, specs[own.name]
        if len(same) > 1 and name != config.name:
            name = f"{name} ({one_line(_short(config.name, same))})"
        labelled = tuple(dict.fromkeys([*own.labelled, *swept]))
        shown.append(replace(config, facts=CodeFacts(name, own.defaults, labelled)))
    return shown


def _short(spec: str, among: Iterable[str]) -> str:
    """FILE.py:CLASS from the folder on that all of `among` lie in."""
    folders = [file_of(each).absolute().parent for each in among if is_file(each)]
    path = Path(spec).expanduser().absolute()
    return str(path.relative_to(os.path.commonpath(folders)))


def jobs_told_apart(jobs: Sequence[Job]) -> list[Job]:
    """`told_apart` of the jobs of one comparison."""
    apart = told_apart([job.config.allocator for job in jobs])
    return [
        replace(job, config=replace(job.config, allocator=allocator))
        for job, allocator in zip(jobs, apart, strict=True)
    ]


def allocator_keys(allocator: str) -> frozenset[str] | None:
    """Keys such as `allocator.fit` that an allocator takes; None for one that cannot be loaded."""
    try:
        facts = allocator_facts(allocator)
    except ConfigError:
        return None
    return frozenset(f"allocator.{key}" for key in (*ALLOCATOR_KEYS, *facts.defaults))


def run_label(config: RunConfig, strategy: str = "") -> str:
    """One short line: strategy, page size, workload, executor, seed."""
    return (
        f"{strategy or strategy_label(config.allocator)} · page {config.kv.page_size} · "
        f"{config.workload.name} · {config.executor.kind} · seed {config.seed}"
    )
