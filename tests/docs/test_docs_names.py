"""What the documentation names exists, and what must be documented is."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
from page_commands import DOCS, PageFile, pages, read_page

from allocators.base import KVCacheAllocator
from allocators.discovery import available
from experiments import commands
from experiments.completion import choices

ROOT = DOCS.parent
FOLDERS = ("allocators", "kernels", "harness", "experiments", "conf", "tests", "benchmarks", "docs")


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_files_of_the_project_that_a_page_names_exist(page):
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`", page.read_text())
    names = [name for name in named if not re.search(r"[A-Z]{4}", name)]  # NAME.py stands for any
    own = {step.name for step in read_page(page) if isinstance(step, PageFile)}
    assert [name for name in names if name not in own and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_keys_values_and_commands_in_prose_exist(page):
    prose = "\n".join(re.findall(r"`([^`\n]+)`", page.read_text()))
    keys = choices()
    typed = re.findall(r"(?<!\S)([a-z_]+\.[a-z_.]+)=", prose)
    wrong = [key for key in typed if key not in keys and key not in launcher_keys()]
    for group in ("experiment", "executor", "allocator", "attention", "tracking"):
        named = re.findall(rf"(?<![\w.]){group}=(\w+)(?!\.py)\b", prose)
        wrong += [f"{group}={name}" for name in named if name.islower() and name not in keys[group]]
    named = re.findall(r"python -m experiments ([a-z_]+)", prose)
    wrong += [name for name in named if name not in commands.available()]
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    wrong += [
        f"make {name}" for name in re.findall(r"(?<!\S)make (\w+)", prose) if name not in targets
    ]
    assert wrong == []


def launcher_keys() -> set[str]:
    """Keys of joblib's launcher and of Slurm's."""
    joblib = pytest.importorskip("hydra_plugins.hydra_joblib_launcher.config").JobLibLauncherConf
    slurm = pytest.importorskip("hydra_plugins.hydra_submitit_launcher.config").SlurmQueueConf
    return {f"hydra.launcher.{field.name}" for each in (joblib, slurm) for field in fields(each)}


def test_every_method_of_the_contract_is_documented():
    text = (DOCS / "allocators.md").read_text()
    named = set(re.findall(r"`(\w+)(?=[(`])", text))
    public = {name for name in vars(KVCacheAllocator) if not name.startswith("_")}
    public |= set(KVCacheAllocator.__annotations__)
    assert public - named == set()


def test_every_strategy_is_on_the_ladder():
    text = (DOCS / "allocators.md").read_text()
    assert [name for name in available() if f"| `{name}` | [" not in text] == []
