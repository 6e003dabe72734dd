"""Stands in for Slurm's commands on one machine: each is this file, called by that name.

Jobs are started at once, detached, with Slurm's variables set. $FAKE_SLURM holds what was
submitted (ID.sh), the processes (ID.pid, ID_TASK.pid) and the calls of scancel.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

STATE = Path(os.environ["FAKE_SLURM"])


def sbatch(script: str) -> None:
    job_id = str(100 + len(list(STATE.glob("*.sh"))))
    text = Path(script).read_text()
    (STATE / f"{job_id}.sh").write_text(text)
    array = re.search(r"--array=0-(\d+)", text)
    for task in range(int(array[1]) + 1) if array else [None]:
        own = {
            "SLURM_JOB_ID": job_id if task is None else str(int(job_id) * 10 + task),
            "SLURM_NTASKS": "1",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_NODEID": "0",
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
            "SLURM_JOB_NODELIST": "localhost",
        }
        if task is not None:
            own |= {"SLURM_ARRAY_JOB_ID": job_id, "SLURM_ARRAY_TASK_ID": str(task)}
        name = job_id if task is None else f"{job_id}_{task}"
        log = (STATE / f"{name}.log").open("w")
        process = subprocess.Popen(
            ["bash", str(STATE / f"{job_id}.sh")],
            env={**os.environ, **own},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        (STATE / f"{name}.pid").write_text(str(process.pid))
    print(f"Submitted batch job {job_id}")


def srun(*arguments: str) -> None:
    rest = list(arguments)
    while rest[0].startswith("--"):
        del rest[: 1 if rest[0] == "--unbuffered" else 2]
    os.execvp(rest[0], rest)


def sacct(*arguments: str) -> None:
    print("JobID|State|NodeList")
    for path in STATE.glob("*.pid"):
        print(f"{path.stem}|{'RUNNING' if is_alive(path) else 'COMPLETED'}|localhost")


def scancel(*arguments: str) -> None:
    with (STATE / "scancel.txt").open("a") as file:
        file.write(" ".join(arguments) + "\n")
    number = signal.SIGINT if "--signal=INT" in arguments else signal.SIGTERM
    if "--state=PENDING" in arguments:  # none here ever waits
        return
    for job_id in [argument for argument in arguments if not argument.startswith("-")]:
        for path in STATE.glob(f"{job_id}*.pid"):
            if is_alive(path):
                os.killpg(int(path.read_text()), number)


def is_alive(path: Path) -> bool:
    try:
        return "Z" not in Path(f"/proc/{path.read_text()}/stat").read_text().split(")")[1][:3]
    except FileNotFoundError:
        return False


if __name__ == "__main__":
    globals()[Path(sys.argv[0]).name](*sys.argv[1:])
