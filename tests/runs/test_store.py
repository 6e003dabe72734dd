"""A run is on disk whole, or it is not there."""

from __future__ import annotations

import dataclasses
import errno
import multiprocessing as mp
import os
import resource
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.config import ConfigError
from harness.measure.environment import Environment
from harness.runs import store as store_module
from harness.runs.store import NotStoredError, RunRecord, RunStore

ENVIRONMENT = Environment("cpu", "a CPU", 2, 0.5, 8.0, 1, "3.11", "linux", "default", {}, "none")


def make_record(run_id: str = "abc", status: str = "complete", num_rows: int = 50) -> RunRecord:
    frame = pd.DataFrame({"repetition": 0, "x": np.random.default_rng(0).random(num_rows)})
    return RunRecord(
        run_id=run_id,
        label="a run",
        config={"seed": 1},
        environment=ENVIRONMENT,
        status=status,  # type: ignore[arg-type]
        error="" if status == "complete" else "died",
        wall_s=1.5,
        summary=({"utilisation": 0.5, "ttft_ms": float("nan")},),
        steps=frame if status == "complete" else None,
        requests=frame if status == "complete" else None,
    )


def test_a_run_comes_back_as_it_was_written(tmp_path):
    store = RunStore(tmp_path)
    store.write(make_record())
    run = store.find("abc")
    assert run is not None
    assert (run.status, run.label, run.config, run.wall_s) == (
        "complete",
        "a run",
        {"seed": 1},
        1.5,
    )
    assert run.summary[0]["utilisation"] == 0.5
    assert np.isnan(run.summary[0]["ttft_ms"])
    pd.testing.assert_frame_equal(run.frame("steps"), make_record().steps)
    assert [path.name for path in tmp_path.iterdir()] == ["abc"]


def test_a_failed_run_gives_way_and_a_complete_one_stays(tmp_path):
    store = RunStore(tmp_path)
    store.write(make_record(status="failed"))
    assert store.find("abc").status == "failed"
    store.write(make_record())
    before = (tmp_path / "abc" / "status.json").stat().st_mtime_ns
    store.write(make_record(status="failed"))
    assert store.find("abc").status == "complete"
    assert (tmp_path / "abc" / "status.json").stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == ["abc"]


FILES = ("config.json", "summary.json", "status.json", "steps.parquet", "requests.parquet")


@pytest.mark.parametrize("name", FILES)
def test_a_run_that_lacks_a_file_is_none(tmp_path, name):
    store = RunStore(tmp_path)
    store.write(make_record())
    (tmp_path / "abc" / name).unlink()
    assert store.find("abc") is None
    store.write(make_record())
    assert store.find("abc").status == "complete"


DAMAGES = {
    "emptied": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "cut short": lambda content: content[:-1],
    "longer": lambda content: content + b" ",
    "garbage": lambda content: b"\xff\xfe",
    "garbage of its length": lambda content: b"\xff" * len(content),
    "other JSON": lambda content: b"[]",
    "null": lambda content: b"null",
    "other keys": lambda content: b'{"label": 1}',
}


HARMLESS = (
    ("status.json", "cut short"),  # by its last line's end
    ("status.json", "longer"),
    ("allocator/mine.py", "garbage of its length"),  # which no command reads
)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [*FILES, "environment.json", "allocator/mine.py"])
def test_a_damaged_run_is_none_and_is_done_again(tmp_path, name, damage):
    store = RunStore(tmp_path)
    record = dataclasses.replace(make_record(), sources={"allocator/mine.py": b"x = 1\n"})
    path = store.write(record) / name
    assert store.damage("abc") == ""
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    if (name, damage) in HARMLESS:
        return
    assert store.find("abc") is None
    assert path.name in store.damage("abc") or "not as it was written" in store.damage("abc")
    store.write(record)
    assert store.find("abc").status == "complete"
    assert [path.name for path in tmp_path.iterdir()] == ["abc"]


def test_a_command_says_what_is_damaged_and_does_it_again(command):
    assert command().status == 0
    store = RunStore(Path("results/single"))
    (run,) = (store.find(path.parent.name) for path in store.root.glob("*/status.json"))
    for name in ("steps.parquet", "config.json"):
        path = run.path / name
        path.write_bytes(path.read_bytes()[:-30])
        again = command()
        assert again.status == 0 and "Traceback" not in again.err
        assert f"{run.path}: damaged ({name} has " in again.out
        assert "already stored" not in again.out
        assert store.find(run.run_id).summary[0]["utilisation"] == run.summary[0]["utilisation"]
    assert "damaged" not in command().out


def test_damage_that_only_reading_shows_is_one_line(tmp_path):
    path = RunStore(tmp_path).write(make_record()) / "steps.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(len(content) - 8) + content[-4:])
    run = RunStore(tmp_path).find("abc")
    with pytest.raises(ConfigError, match=f"{path}: cannot be read .* delete the folder") as told:
        run.frame("steps")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("failing", ["parquet", "json", "sync", "mkdir", "rename"])
def test_a_full_disk_leaves_nothing_that_looks_like_a_run(tmp_path, monkeypatch, failing):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = RunStore(tmp_path / "single")
    store.write(make_record("earlier"))
    target = {
        "parquet": (pd.DataFrame, "to_parquet"),
        "json": (store_module.json, "dump"),
        "sync": (store_module.os, "fsync"),
        "mkdir": (Path, "mkdir"),
        "rename": (Path, "rename"),
    }[failing]
    with monkeypatch.context() as patch:
        patch.setattr(*target, full)
        with pytest.raises(NotStoredError) as told:
            store.write(make_record())
    message = str(told.value)
    assert "No space left" in message
    assert "another results_dir" in message
    assert str(tmp_path) in message
    assert "\n" not in message
    assert store.find("abc") is None
    assert store.find("earlier") is not None
    assert [path.name for path in store.root.iterdir()] == ["earlier"]


def _write_within_limit(root: Path, limit: int, answers: mp.Queue) -> None:
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that a write past the limit is an error
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        RunStore(root).write(make_record(num_rows=20_000))
        answers.put("written")
    except NotStoredError as error:
        answers.put(str(error))


def test_a_real_write_that_hits_a_limit_is_told_and_cleaned_up(tmp_path):
    context = mp.get_context("spawn")
    answers = context.Queue()
    child = context.Process(target=_write_within_limit, args=(tmp_path, 4096, answers))
    child.start()
    assert "was not saved" in answers.get(timeout=120)
    child.join(timeout=30)
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_run_use_different_folders(tmp_path, monkeypatch):
    seen: list[str] = []
    original = RunStore._write_files

    def spy(self: RunStore, folder: Path, record: RunRecord) -> None:
        seen.append(folder.name)
        if len(seen) == 1:  # meanwhile another process writes the same run, whole
            monkeypatch.setattr(store_module.os, "getpid", lambda: 4_000_001)
            RunStore(tmp_path).write(record)
            monkeypatch.undo()
        original(self, folder, record)

    monkeypatch.setattr(RunStore, "_write_files", spy)
    RunStore(tmp_path).write(make_record())
    assert len(set(seen)) == 2
    assert RunStore(tmp_path).find("abc").status == "complete"
    assert [path.name for path in tmp_path.iterdir()] == ["abc"]
