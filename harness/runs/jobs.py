"""A run to be done: its config, its address and where its results go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.config import AllocatorConfig, RunConfig, to_mapping
from harness.runs.code_hash import code_hash
from harness.runs.store import make_run_id


@dataclass(frozen=True, slots=True)
class Job:
    """part: the part of the experiment that the run belongs to ("waste", "times", ...)."""

    config: RunConfig
    run_id: str
    label: str
    part: str
    root: Path

    @property
    def is_timed(self) -> bool:
        """Its figures are wall times, so nothing may run beside it."""
        return self.config.executor.kind != "simulated"


def make_job(config: RunConfig, part: str, root: Path, device_name: str) -> Job:
    """Address `config`: the same config, code and device make the same run_id."""
    is_simulated = config.executor.kind == "simulated"
    code = code_hash(config.allocator.name, runs_model=not is_simulated)
    device = "simulated" if is_simulated else device_name
    run_id = make_run_id(to_mapping(config), code, device)
    return Job(config, run_id, run_label(config), part, root)


def strategy_label(config: AllocatorConfig) -> str:
    """A strategy with what distinguishes it: `contiguous buddy max`, `paged`, ..."""
    name = config.name.rsplit(":", 1)[-1]
    parts = [name]
    parts += [
        str(value) if isinstance(value, str) else f"{key}={value}"
        for key, value in sorted(config.options.items())
        if isinstance(value, str)
    ]
    if config.expected != "none":
        parts.append(config.expected)
    return " ".join(parts)


def run_label(config: RunConfig) -> str:
    """One short line: strategy, page size, workload, executor, seed."""
    return (
        f"{strategy_label(config.allocator)} · page {config.kv.page_size} · "
        f"{config.workload.name} · {config.executor.kind} · seed {config.seed}"
    )
