"""The environment of a run that did not come to say its own."""

from __future__ import annotations

import dataclasses
import re

from harness.measure.environment import Environment
from harness.runs.jobs import Job

CPU_NAME = "cpu ({threads} threads)"
"""What a CPU is called in a run's address, where its threads must be."""

_CPU = re.compile(re.escape(CPU_NAME).replace(r"\{threads\}", r"(\d+)"))


def planned_environment(job: Job, machine: Environment) -> Environment:
    """`machine`'s, on the device that `job` was planned for, in the words of a run that went well:
    what a run was tried on must not depend on what became of it."""
    device, threads = job.device or "unknown", machine.threads
    num_ranks = job.config.engine.tensor_parallel
    if not job.is_timed:
        device, threads = "simulated", 1
    elif found := _CPU.fullmatch(device):
        wanted = job.config.device.threads
        device, threads = "cpu", wanted or max(1, int(found.group(1)) // num_ranks)
    elif device.startswith("cuda") and num_ranks > 1:
        device += f" x {num_ranks}"
    return dataclasses.replace(machine, device=device, threads=threads)
