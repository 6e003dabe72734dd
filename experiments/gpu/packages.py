"""Makes a Python that has CUDA torch able to run this project, without a network and without
touching what it has installed: `python -m experiments.gpu.packages --target FOLDER`.

What it lacks is unpacked out of ./wheelhouse (`make wheelhouse` fills it beforehand, where there
is a network) into FOLDER, which then goes on PYTHONPATH. Standard library only.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

CARRIED = {
    "hydra": "hydra_core",
    "omegaconf": "omegaconf",
    "antlr4": "antlr4_python3_runtime",
}
"""Packages a GPU machine's Python mostly lacks, by the module they bring: pure Python wheels."""

NEEDED = (
    "torch", "triton", "transformers", "numpy", "pandas", "pyarrow", "matplotlib", "rich",
    "scipy", "psutil", "yaml",
)  # fmt: skip
"""Modules that have to be there."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Unpack what is missing. 0 where everything is there then, 1 where not, with what to do."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--wheelhouse", type=Path, default=Path("wheelhouse"))
    given = parser.parse_args(arguments)
    lacking = missing(NEEDED)
    if lacking:
        print(
            f"error: {sys.executable} cannot import {', '.join(lacking)}: install them into it, or "
            "name a Python that has them (make gpu GPU_PYTHON=/path/to/python3)",
            file=sys.stderr,
        )
        return 1
    shutil.rmtree(given.target, ignore_errors=True)
    given.target.mkdir(parents=True)
    for module in missing(CARRIED):
        wheel = find_wheel(CARRIED[module], given.wheelhouse)
        if wheel is None:
            print(
                f"error: {sys.executable} cannot import {module}, and {given.wheelhouse}/ has no "
                f"wheel {CARRIED[module]}-*.whl: run `make wheelhouse` where there is a network "
                "and bring the folder along",
                file=sys.stderr,
            )
            return 1
        with zipfile.ZipFile(wheel) as archive:  # pure Python: unpacked is installed
            archive.extractall(given.target)
        print(f"{module}: from {wheel}")
    return 0


def missing(modules: Iterable[str]) -> list[str]:
    """Those that this Python cannot import."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


def find_wheel(package: str, wheelhouse: Path) -> Path | None:
    """The newest-named pure wheel of `package` there."""
    found = sorted(wheelhouse.glob(f"{package}-*-none-any.whl"))
    return found[-1] if found else None


if __name__ == "__main__":
    sys.exit(main())
