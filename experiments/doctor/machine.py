"""System, processor, memory, disk, compiler and GPU driver."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from experiments.doctor.checks import Check
from harness.measure.environment import cpu_name
from harness.runs.estimate import usable_cores

_GROUP = "machine"
_GIB = 2**30

_NEEDED_DISK_GIB = 0.2
_NEEDED_MEMORY_GIB = 2.0
_COMPILERS = ("cc", "gcc", "clang")
_DRIVER_TIMEOUT_S = 5.0


def machine_checks(results_dir: Path, environment: Mapping[str, str]) -> Iterator[Check]:
    """environment: variables of the process."""
    yield Check(_GROUP, "system", "note", platform.platform())
    yield _processor(environment)
    yield _memory()
    yield disk_check(results_dir)
    yield _compiler(environment)
    yield driver_check()


def _processor(environment: Mapping[str, str]) -> Check:
    cores, load = usable_cores(), psutil.getloadavg()[0]
    asked = [f"{name}={environment[name]}" for name in _THREAD_KEYS if name in environment]
    found = f"{cpu_name()}; {cores} of {psutil.cpu_count() or 1} cores usable"
    if asked:
        found += f"; {', '.join(asked)}"
    if load > cores:
        way_out = "wait until it is idle before timed runs"
        return Check(_GROUP, "processor", "note", f"{found}; load average {load:.1f}", way_out)
    return Check(_GROUP, "processor", "ok", found)


_THREAD_KEYS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "OMP_PROC_BIND")


def _memory() -> Check:
    memory = psutil.virtual_memory()
    found = f"{memory.available / _GIB:.1f} GiB available of {memory.total / _GIB:.1f}"
    if memory.available < _NEEDED_MEMORY_GIB * _GIB:
        way_out = f"free memory: model=small takes {_NEEDED_MEMORY_GIB:g} GiB with torch"
        return Check(_GROUP, "memory", "failed", found, way_out, is_needed=True)
    return Check(_GROUP, "memory", "ok", found, is_needed=True)


def disk_check(results_dir: Path) -> Check:
    """Room for results, in a folder that can be written or made."""
    there = next(path for path in (results_dir.absolute(), *results_dir.absolute().parents)
                 if path.exists())  # fmt: skip
    name = "disk"
    if not os.access(there, os.W_OK) or not there.is_dir():
        found = f"{there} cannot be written"
        way_out = "choose another results_dir"
        return Check(_GROUP, name, "failed", found, way_out, is_needed=True)
    free = shutil.disk_usage(there).free / _GIB
    found = f"{free:.1f} GiB free at {results_dir}/"
    if free < _NEEDED_DISK_GIB:
        way_out = "free space, or choose another results_dir"
        return Check(_GROUP, name, "failed", found, way_out, is_needed=True)
    return Check(_GROUP, name, "ok", found, is_needed=True)


def _compiler(environment: Mapping[str, str]) -> Check:
    names = (environment["CC"], *_COMPILERS) if environment.get("CC") else _COMPILERS
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is not None:
        return Check(_GROUP, "C compiler", "ok", path)
    way_out = "apt install gcc, or set CC: engine.compile=true and Triton on a GPU need one"
    return Check(_GROUP, "C compiler", "absent", "absent", way_out)


def driver_check() -> Check:
    """NVIDIA's driver, as its own tool tells it."""
    tool = shutil.which("nvidia-smi")
    name = "GPU driver"
    if tool is None:
        way_out = "everything but `make gpu` and device=cuda runs without one"
        return Check(_GROUP, name, "note", "no nvidia-smi", way_out)
    query = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            query, capture_output=True, text=True, timeout=_DRIVER_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        way_out = "reinstall NVIDIA's driver, or load its kernel module"
        return Check(_GROUP, name, "failed", f"nvidia-smi does not answer: {error}", way_out)
    return Check(_GROUP, name, "ok", "; ".join(done.stdout.strip().splitlines()))
