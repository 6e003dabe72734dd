"""A sweep in processes that submitit starts, with a folder of logs each."""

from __future__ import annotations

import signal

import pytest
from launched import SIZES, SWEEP, are_gone, below, done, finish, hidden, start, statuses, until

pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
pytestmark = pytest.mark.slow

LOCAL = ("hydra/launcher=submitit_local",)


def test_its_logs_lie_beside_the_results_and_nowhere_else(tmp_path):
    status, out, err = finish(start(tmp_path, *SWEEP, *LOCAL))
    assert (status, err) == (0, ""), out
    assert set(statuses(tmp_path).values()) == {"complete"}
    assert done(tmp_path) == dict.fromkeys(SIZES, 1)
    assert {path.name for path in tmp_path.iterdir()} <= {
        "results",
        "done.txt",
        "mine.py",
        "__pycache__",
    }
    (launch,) = (tmp_path / "results" / "single" / "launches").iterdir()
    assert f"logs: {launch.relative_to(tmp_path)}" in out
    logs = "".join(path.read_text() for path in launch.glob("*/*_log.out"))
    assert logs.count("complete: mine · page") == len(SIZES)


def test_ctrl_c_leaves_nothing_running(tmp_path):
    (tmp_path / "hold").touch()
    process = start(tmp_path, *SWEEP, *LOCAL)
    until(lambda: done(tmp_path).total() >= 1, process)
    children = below(process)
    process.send_signal(signal.SIGINT)
    status, out, err = finish(process)
    assert status == 130, (out, err)
    assert err.strip().startswith("interrupted: 0 runs stored"), err
    until(lambda: are_gone(children))
    assert hidden(tmp_path) == []
