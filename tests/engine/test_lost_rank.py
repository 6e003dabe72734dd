"""A rank that is killed ends the run at once, with a row that names it, and leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import psutil
import pytest
from model_driver import drive

from harness.engine.device.model_shape import model_preset
from harness.engine.device.models import load_model
from harness.engine.device.parallel.commands import BuildPool
from harness.engine.device.parallel.followers import Followers
from harness.engine.device.parallel.spawned import Spawned
from harness.engine.device.pooled_model import PoolSpec
from harness.engine.device.torch_executor import TorchExecutor
from harness.engine.executor import RankLostError

KILLER = '''
"""Paged, until its hundredth grant: then it kills a rank of the model."""

import os
import signal

import psutil

from allocators.paged import Paged

GRANTS = 0


class Killer(Paged):
    def append(self, *arguments, **named):
        global GRANTS
        GRANTS += 1
        if GRANTS == 100:
            ranks = [psutil.Process(), *psutil.Process().children()]
            os.kill(ranks[int(os.environ["VICTIM"])].pid, signal.SIGKILL)
        return super().append(*arguments, **named)
'''


def test_who_was_lost_is_said_and_nobody_stays() -> None:
    starter = Spawned()
    model = model_preset("tiny")
    followers = Followers(4, model, "cpu", 1, starter)
    pids = starter.pids
    assert sorted(pids) == [1, 2, 3]
    loaded = load_model(model, "cpu", followers.ranks)
    size = {"num_pages": 16, "page_size": 4, "max_seqs": 2, "max_len": 32}
    executor = TorchExecutor(loaded, followers=followers, **size)
    os.kill(pids[2], signal.SIGKILL)
    with pytest.raises(RankLostError, match=r"rank 2 of 4 was killed by signal 9 \(SIGKILL\)"):
        drive(executor, [[1, 2, 3]], 4, num_pages=16, page_size=4)
    with pytest.raises(RankLostError, match="4 ranks have ended"):
        drive(executor, [[1, 2, 3]], 4, num_pages=16, page_size=4)
    executor.close()
    assert not any(map(psutil.pid_exists, pids.values()))


def test_a_follower_says_what_it_failed_of() -> None:
    starter = Spawned()
    model = model_preset("tiny")
    followers = Followers(2, model, "cpu", 1, starter)
    load_model(model, "cpu", followers.ranks)
    spec = PoolSpec(num_pages=4, page_size=4, max_seqs=2, max_len=8, kernels="nonsense")
    failed = pytest.raises(RankLostError, match=r"rank 1 of 2 failed .*nonsense")
    with failed, followers.ended_on_error():
        followers.tell(BuildPool(spec))
        followers.ranks.agree(True)
    assert not any(map(psutil.pid_exists, starter.pids.values()))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_run_becomes_a_row(victim: int, tmp_path: Path) -> None:
    (tmp_path / "killer.py").write_text(KILLER)
    command = [sys.executable, "-m", "harness", "model=tiny", "workload.num_requests=12"]
    command += ["engine.tensor_parallel=2", f"allocator={tmp_path}/killer.py:Killer"]
    command += [f"results_dir={tmp_path}/results", "tracking=none"]
    done = subprocess.run(
        command,
        env={**os.environ, "VICTIM": str(victim), "MARK": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    rows = pd.read_csv(tmp_path / "results" / "single" / "summary.csv")
    assert rows["status"].tolist() == ["failed"]
    assert rows["error"].tolist() == [f"rank {victim} of 2 was killed by signal 9 (SIGKILL)"]
    if victim == 0:
        assert "rank 1 of 2 ends: another rank is gone" in done.stderr
    assert not [each for each in psutil.process_iter() if _is_marked(each, str(tmp_path))]


def _is_marked(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get("MARK") == mark
    except psutil.Error:
        return False
