"""The built wheel runs the same experiments, outside the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("allocators", "kernels", "harness", "experiments", "conf")
SHIPPED = (".py", ".yaml", ".csv", ".mplstyle", ".txt", ".j2", ".css", ".js")


def run(command: list[str | Path], folder: Path, *, status: int = 0) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    process = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, env=environment
    )
    assert process.returncode == status, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left behind in the repository."""
    source = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=ignored)
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", "."]
    run(build, source)
    (path,) = (source / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and, after it, the dependencies that are installed here."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    interpreter = folder / "bin" / "python"
    site = Path(
        run([interpreter, "-c", "import site; print(site.getsitepackages()[0])"], folder).strip()
    )
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # a plain path, whose own .pth files (the editable install of this repository) do not count
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return interpreter


def test_everything_that_is_read_at_run_time_is_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    missing = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in SHIPPED and "__pycache__" not in path.parts
    } - inside
    assert not missing
    assert not {name for name in inside if name.startswith(("tests/", "benchmarks/", "results/"))}


@pytest.mark.slow
def test_an_installed_wheel_runs_outside_the_repository(python, tmp_path):
    where = run([python, "-c", "import harness; print(harness.__file__)"], tmp_path)
    assert str(ROOT) not in where
    plan = run([python, "-m", "harness", "experiment=sweep_page_size", "dry_run=true"], tmp_path)
    assert "paged_prefix · page 256" in plan
    (tmp_path / "mine.py").write_text((ROOT / "docs" / "examples" / "mine.py").read_text())
    quick = ("executor=simulated", "model=tiny", "workload.num_requests=8")
    out = run(
        [python, "-m", "harness", *quick, "allocator=paged,./mine.py:Mine", "kv.page_size=8,16"],
        tmp_path,
    )
    assert "4 runs" in out
    assert "mine · page 8" in out
    assert len(list((tmp_path / "results" / "single").glob("*/status.json"))) == 4
    run([python, "-m", "harness", *quick, "experiment=sweep_page_size", "repetitions=1"], tmp_path)
    figures = list((tmp_path / "results" / "sweep_page_size").rglob("*.pdf"))
    assert figures


@pytest.mark.slow
def test_the_contract_test_works_from_an_installed_wheel(python, tmp_path):
    (tmp_path / "mine.py").write_text((ROOT / "docs" / "examples" / "mine.py").read_text())
    command = [python, "-m", "allocators.contract", "./mine.py:Mine", "--seeds", "2"]
    assert "keeps the contract" in run(command, tmp_path)
