"""Jobs go to Slurm as they were asked for, and what they store is the sweep; with its commands
played by `fake_slurm.py`."""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from launched import SIZES, SWEEP, done, finish, hidden, start, statuses, until

pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
pytestmark = pytest.mark.slow

SLURM = ("hydra/launcher=submitit_slurm", "hydra.launcher.array_parallelism=2")


@pytest.fixture
def slurm(tmp_path: Path) -> Mapping[str, str]:
    """The environment of a machine that has Slurm."""
    programs, state = tmp_path / "bin", tmp_path / "slurm"
    programs.mkdir()
    state.mkdir()
    text = (Path(__file__).parent / "fake_slurm.py").read_text()
    for name in ("sbatch", "srun", "sacct", "scancel"):
        (programs / name).write_text(f"#!{sys.executable}\n{text}")
        (programs / name).chmod(stat.S_IRWXU)
    return {"PATH": f"{programs}:{os.environ['PATH']}", "FAKE_SLURM": str(state)}


def test_a_job_array_does_the_sweep_with_what_was_typed(slurm, tmp_path):
    typed = (
        "hydra.launcher.partition=long",
        "hydra.launcher.timeout_min=7",
        "hydra.launcher.gpus_per_node=1",
        "hydra.launcher.setup=['export OF_SETUP=1']",
        "+hydra.launcher.additional_parameters.reservation=mine",
    )
    status, out, err = finish(start(tmp_path, *SWEEP, *SLURM, *typed, environment=slurm))
    assert (status, err) == (0, ""), (out, err)
    assert set(statuses(tmp_path).values()) == {"complete"}
    assert done(tmp_path) == dict.fromkeys(SIZES, 1)
    (script,) = (tmp_path / "slurm").glob("*.sh")
    for line in (
        "#SBATCH --partition=long",
        "#SBATCH --time=7",
        "#SBATCH --gpus-per-node=1",
        "#SBATCH --reservation=mine",
        "#SBATCH --array=0-1%2",
        "export OF_SETUP=1",
    ):
        assert line in script.read_text().splitlines()
    assert f"logs: {tmp_path}/results/single/launches/" in out
    assert {path.name for path in tmp_path.iterdir()} >= {"results", "done.txt"}
    assert not {"outputs", "multirun", ".submitit"} & {path.name for path in tmp_path.iterdir()}


def test_ctrl_c_cancels_its_jobs_and_they_release_their_runs(slurm, tmp_path):
    (tmp_path / "hold").touch()
    process = start(tmp_path, *SWEEP, *SLURM, environment=slurm)
    until(lambda: done(tmp_path).total() == 2, process)
    process.send_signal(signal.SIGINT)
    status, out, err = finish(process)
    assert status == 130, (out, err)
    until(lambda: not hidden(tmp_path))
    calls = (tmp_path / "slurm" / "scancel.txt").read_text().splitlines()
    assert calls == ["--signal=INT 100", "--state=PENDING 100", "100"]


def test_a_timed_run_is_addressed_with_the_device_of_the_jobs(slurm, tmp_path):
    """The node where the command is given may have another, or a GPU that jobs have not."""
    timed = ("device=cpu", "model=tiny", "workload.num_requests=2", "allocator=paged")
    threads = {**slurm, "OMP_NUM_THREADS": "1"}
    status, out, err = finish(start(tmp_path, *timed, *SLURM, environment=threads))
    assert status == 0, (out, err)
    assert "device: cpu (1 threads)" in out
    assert len(list((tmp_path / "slurm").glob("*.sh"))) == 2  # who was asked, and who did it
    asked = ("device=cuda", *timed[1:])
    status, out, err = finish(start(tmp_path, *asked, *SLURM, environment=threads))
    assert status == 2
    assert "a job of it says: device=cuda: torch sees no CUDA GPU" in err
    assert "hydra.launcher.gpus_per_node=1" in err
    status, out, err = finish(start(tmp_path, *asked, *SLURM, "dry_run=true", environment=threads))
    assert (status, err) == (0, "")
    assert "not asked in a dry run" in out


def test_what_slurm_refuses_is_said(slurm, tmp_path):
    program = tmp_path / "bin" / "sbatch"
    said = "sbatch: error: invalid partition specified: nope"
    program.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    status, out, err = finish(start(tmp_path, *SWEEP, *SLURM, environment=slurm))
    own = [line for line in err.strip().splitlines() if line != said]  # sbatch itself, too
    assert (status, len(own)) == (2, 1), (out, err)
    assert own[0].startswith("error: hydra/launcher=submitit_slurm: ")
    assert said in own[0]
