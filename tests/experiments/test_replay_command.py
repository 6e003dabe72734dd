"""python -m experiments replay: a stored run decides the same again, or says where it did not."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from tiny_study import rewrite

from experiments.__main__ import main
from harness.__main__ import _run

SETTINGS = (
    "executor=simulated", "executor.cost=roofline", "model=opt_13b", "kv.pool_tokens=2048",
    "workload=chat", "workload.num_requests=24", "allocator=paged_prefix", "repetitions=2",
    "tracking=none",
)  # fmt: skip


def stored_run(folder: Path, *more: str) -> Path:
    assert _run([*SETTINGS, *more, f"results_dir={folder}"]) == 0
    (run,) = {path.parent for path in folder.glob("*/*/status.json")}
    return run


def test_a_stored_run_decides_the_same_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stored_run(tmp_path, "measure.outcome_log=true")
    capsys.readouterr()
    assert main(["replay", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["seed 0", "seed 1"]
    assert all("identical decisions" in line for line in lines)
    path = run / "outcome_log.parquet"
    log = pd.read_parquet(path)
    tenth = log.index[log["digest"] != ""][10]
    log.loc[tenth, "digest"] = "0" * 16
    rewrite(path, log)
    assert main(["replay", str(run)]) == 1
    told = capsys.readouterr()
    assert "seed 0: step 10: decided otherwise" in told.err
    assert "seed 1: identical" in told.out


def test_a_run_without_a_log_names_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stored_run(tmp_path)
    assert main(["replay", str(run)]) == 2
    assert "measure.outcome_log=true" in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "nothing")]) == 2
    assert "no complete run" in capsys.readouterr().err
