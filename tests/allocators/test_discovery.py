"""Allocators are found by name and by file, and wrong names get the nearest ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from allocators.discovery import available, build, load, option_choices, options
from allocators.page_pool import PagePool


def test_the_ladder_is_found() -> None:
    assert list(available()) == ["contiguous", "paged", "paged_cow", "paged_prefix"]
    assert all(cls.name == name for name, cls in available().items())


def test_file_in_the_current_directory(
    tmp_path: Path, allocator_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(allocator_files / "minimal.py", tmp_path / "mine.py")
    monkeypatch.chdir(tmp_path)
    cls = load("./mine.py:Minimal")
    assert cls.name == "minimal"
    assert load("mine.py:Minimal") is load("mine.py") is cls
    assert load(f"{tmp_path}/mine.py:Minimal") is cls


def test_edited_file_is_read_again(
    tmp_path: Path, allocator_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (allocator_files / "minimal.py").read_text()
    Path("mine.py").write_text(text)
    assert load("mine.py").name == "minimal"
    Path("mine.py").write_text(text.replace('= "minimal"', '= "other"'))
    assert load("mine.py").name == "other"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("paged_cwo", "did you mean paged_cow"),
        ("nowhere.py:Mine", "no allocator file nowhere.py"),
        ("{here}/minimal.py:Minimum", "no allocator 'Minimum'.*did you mean Minimal"),
        ("{here}/broken.py", "more than one allocator or none"),
    ],
)
def test_wrong_allocator(spec: str, message: str, allocator_files: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load(spec.format(here=allocator_files))


def test_options_and_their_choices() -> None:
    names = ["partial_reuse", "min_partial_tokens", "eviction"]
    assert list(options(load("paged_prefix"))) == names
    assert options(load("paged_prefix"))["partial_reuse"].default is True
    assert option_choices(load("contiguous")) == {"fit": ("buddy", "first_fit", "best_fit")}
    assert options(load("paged")) == {}


def test_build_checks_options() -> None:
    pool = PagePool(4, 4)
    assert build("paged_prefix", pool, partial_reuse=False).name == "paged_prefix"
    with pytest.raises(ValueError, match="no option 'fitt': did you mean fit"):
        build("contiguous", pool, fitt="buddy")
    with pytest.raises(ValueError, match=r"contiguous.fit='bestfit'.*did you mean best_fit"):
        build("contiguous", pool, fit="bestfit")
