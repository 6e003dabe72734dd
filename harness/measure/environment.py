"""The machine and software a run's numbers were made with."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

_PACKAGES = ("torch", "triton", "transformers", "numpy", "numba", "hydra-core", "pandas", "pyarrow")


@dataclass(frozen=True, slots=True)
class Environment:
    """device: with the GPU's name, if it is one. load_average: of the last minute, before the
    run; above the number of cores, times are not to be trusted. memory_gib: of the host.
    threads: torch's. git_revision: with `+` when files differ.
    """

    device: str
    cpu: str
    num_cores: int
    load_average: float
    memory_gib: float
    threads: int
    python: str
    platform: str
    malloc: str
    packages: dict[str, str]
    git_revision: str


def capture_environment(device: str, threads: int) -> Environment:
    """Read it off the machine, now."""
    return Environment(
        device=device,
        cpu=cpu_name(),
        num_cores=psutil.cpu_count() or 1,
        load_average=round(psutil.getloadavg()[0], 2),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        threads=threads,
        python=platform.python_version(),
        platform=platform.platform(),
        malloc=Path(os.environ["LD_PRELOAD"]).name if os.environ.get("LD_PRELOAD") else "default",
        packages={name: _version(name) for name in _PACKAGES},
        git_revision=_git_revision(),
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def cpu_name() -> str:
    """The processor as the system names it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


@functools.cache
def _git_revision() -> str:
    """Revision of the checkout this code runs from; "none" for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "none"
    try:
        revision = _git(root, "rev-parse", "HEAD")
        return revision + ("+" if _git(root, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(root: Path, *arguments: str) -> str:
    # without optional locks: a run that is killed must not leave the index locked
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
