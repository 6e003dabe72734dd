"""The figure of split models, from small stored runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_study import Runner, check_files

from experiments.figures import tensor_parallel


def test_what_else_is_swept_is_a_line_of_its_own(run_tiny: Runner, tmp_path: Path) -> None:
    study = run_tiny(
        "engine.tensor_parallel=1,2", "kv.page_size=8,16", "allocator=paged,contiguous",
        "executor.cost=roofline", "repetitions=2", "workload.num_requests=10",
    )  # fmt: skip
    points = check_files(tensor_parallel.draw(study.rows, study.jobs, tmp_path), "tensor_parallel")
    lines = {
        f"{name}, page size {size}" for name in set(study.rows["strategy"]) for size in (8, 16)
    }
    assert len(lines) == 4
    assert set(points["line"]) == lines
    assert set(points["repetitions"]) == {2}
    of_line = points[points["line"] == "paged, page size 16"].set_index("ranks")
    split = {job.run_id for job in study.jobs if job.config.engine.tensor_parallel == 2}
    rows = study.rows[study.rows["run_id"].isin(split) & (study.rows["strategy"] == "paged")]
    same = rows[rows["page_size"] == 16]
    assert of_line.loc[2, "utilisation"] == pytest.approx(same["utilisation"].mean())
