"""The GPU and the packages that decide what may be reused, told by a process of its own: asking
torch would leave a CUDA context behind in the one that only waits."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from typing import NamedTuple

_PACKAGES = ("torch", "triton", "transformers")


class Found(NamedTuple):
    """name: of the GPU, or `cpu`. versions: of what compiles and runs kernels and models."""

    name: str
    has_cuda: bool
    versions: tuple[str, ...]


def find(python: str = sys.executable) -> Found:
    """Ask the interpreter `python`."""
    command = [python, "-m", "experiments.gpu.device"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    name, has_cuda, versions = json.loads(done.stdout.strip().splitlines()[-1])
    return Found(name, has_cuda, tuple(versions))


def _main() -> None:
    import torch

    has_cuda = torch.cuda.is_available()
    name = torch.cuda.get_device_name(0) if has_cuda else "cpu"
    versions = [f"{package} {_version(package)}" for package in _PACKAGES]
    print(json.dumps([name, has_cuda, versions]))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


if __name__ == "__main__":
    _main()
