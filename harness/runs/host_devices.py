"""This host's CPU and GPUs, lent to timed runs: two of them must not share what they are timed on.

A device is a file that is locked while a run has it. The lock is the kernel's: it is gone with the
process that holds it, however that ends. It is known on this host alone, and to every command here,
whatever it sweeps and wherever its results go.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.config import ConfigError
from harness.runs.jobs import Job

LOCKS_VARIABLE = "KVARENA_LOCKS"
"""Names the folder of the locks, where it is not to be the host's own."""

_CPU = "cpu"


@dataclass(slots=True)
class Lease:
    """Devices that are held until `release`. environment: what a process must be started with so
    that it sees these GPUs and no others."""

    environment: Mapping[str, str] = field(default_factory=dict)
    _descriptors: Sequence[int] = ()

    def release(self) -> None:
        """Give them back."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = ()


class HostDevices:
    """gpus: names of those that may be used, as CUDA_VISIBLE_DEVICES takes them. folder: of the
    locks; one that all users of the host share unless given."""

    def __init__(
        self, gpus: Callable[[], Sequence[str]] | None = None, folder: Path | None = None
    ) -> None:
        self._list_gpus = visible_gpus if gpus is None else gpus
        self._gpus: Sequence[str] | None = None
        self._folder = _locks_folder() if folder is None else folder
        self._last: frozenset[str] = frozenset()

    def lease(self, job: Job) -> Lease | None:
        """What `job` is timed on: one GPU, as many as its model is split over, or the CPU; nothing
        for a simulated run. None while others hold too much of it. Raises ConfigError where there
        are too few GPUs in all."""
        if not job.is_timed:
            return Lease()
        if not job.device.startswith("cuda"):
            descriptor = self._lock(_CPU)
            return None if descriptor is None else Lease({}, (descriptor,))
        return self._lease_gpus(job)

    def _lease_gpus(self, job: Job) -> Lease | None:
        wanted = job.config.engine.tensor_parallel
        if self._gpus is None:
            self._gpus = tuple(self._list_gpus())
        ranks = os.environ.get("LOCAL_WORLD_SIZE")
        if ranks is not None and wanted > 1:  # torchrun's ranks take the first GPUs, each its own
            self._gpus = self._gpus[: int(ranks)]
            wanted = int(ranks)
        if wanted > len(self._gpus):
            raise ConfigError(
                f"engine.tensor_parallel={wanted} needs {wanted} GPU{'s' * (wanted > 1)}, this "
                f"process sees {len(self._gpus)} (CUDA_VISIBLE_DEVICES="
                f"{os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')}): ask for more, as with "
                "hydra.launcher.gpus_per_node, or lower it"
            )
        held: dict[str, int] = {}
        # the one used last has the model, if nobody took it meanwhile
        for gpu in sorted(self._gpus, key=lambda gpu: gpu not in self._last):
            descriptor = self._lock(f"gpu-{gpu}")
            if descriptor is not None:
                held[gpu] = descriptor
            if len(held) == wanted:
                self._last = frozenset(held)
                chosen = [gpu for gpu in self._gpus if gpu in held]
                is_all = len(chosen) == len(self._gpus)
                environment = {} if is_all else {"CUDA_VISIBLE_DEVICES": ",".join(chosen)}
                return Lease(environment, tuple(held.values()))
        for descriptor in held.values():  # not to be kept while waiting: others may need these
            os.close(descriptor)
        return None

    def _lock(self, name: str) -> int | None:
        """An open file with the lock, or None if another has it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(PermissionError):
            self._folder.chmod(0o1777)
        path = self._folder / f"{name.replace('/', '_')}.lock"
        try:
            descriptor = os.open(path, os.O_RDONLY)  # another user's may not be opened for more
        except FileNotFoundError:
            descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
            os.fchmod(descriptor, 0o644)  # whatever this user's umask keeps from others
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, each by a name that is its own on this host where the
    driver tells it: numbers mean others where CUDA_VISIBLE_DEVICES or a scheduler has chosen."""
    installed = _installed_gpus()
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return installed
    names = []
    for entry in (text.strip() for text in chosen.split(",")):
        if not entry or entry.startswith("-"):  # CUDA stops here
            break
        is_index = entry.isdigit() and int(entry) < len(installed)
        names.append(installed[int(entry)] if is_index else entry)
    return tuple(dict.fromkeys(names))


def _installed_gpus() -> tuple[str, ...]:
    tool = shutil.which("nvidia-smi")
    if tool is not None:
        command = [tool, "--query-gpu=uuid", "--format=csv,noheader"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode == 0 and answer.stdout.strip():
            return tuple(line.strip() for line in answer.stdout.splitlines() if line.strip())
    import torch

    return tuple(str(index) for index in range(torch.cuda.device_count()))


def _locks_folder() -> Path:
    if LOCKS_VARIABLE in os.environ:
        return Path(os.environ[LOCKS_VARIABLE])
    # not TMPDIR, which schedulers and users set apart for each job
    temporary = Path("/tmp")
    is_usable = temporary.is_dir() and os.access(temporary, os.W_OK)
    return (temporary if is_usable else Path(tempfile.gettempdir())) / "kvarena-locks"
