"""A search's next probe follows from its last: launched in rounds, it comes to the same answer."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest
from hydra.core.config_store import ConfigStore
from rich.console import Console

from harness.compose import hydra_session, parse_command
from harness.runs.study import run_study

pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
pytestmark = pytest.mark.slow

PART = {
    "name": "capacity",
    "set": {
        "executor": "simulated",
        "model": "tiny",
        "executor.step_ms": 10,
        "workload": "steady",
        "workload.num_requests": 30,
        "workload.length_scale": 0.25,
        "kv.pool_tokens": 4096,
    },
    "axes": {"engine.max_num_seqs": [4, 8]},
    "search": {"low": 2, "high": 32, "tolerance": 0.2, "normalised_latency_ms": 40},
}


@pytest.fixture
def searched():
    """An experiment of this part, as if it were in conf/."""
    node = {"sweep": {"name": "searched", "presets": {"quick": [PART]}}}
    ConfigStore.instance().store(group="experiment", name="searched", node=node, package="_global_")
    yield
    ConfigStore.instance().repo["experiment"].pop("searched.yaml")


def answer(folder: Path, *launcher: str) -> pd.DataFrame:
    arguments = ["experiment=searched", f"results_dir={folder}", "tracking=none", *launcher]
    with hydra_session():
        assert run_study(parse_command(arguments), Console(file=io.StringIO(), width=200)) == 0
    frame = pd.read_parquet(folder / "searched" / "summary.parquet")
    return frame.drop(columns=["wall_s", "allocator_us_per_step"])


def test_a_search_comes_to_the_same_answer(searched, tmp_path):
    here = answer(tmp_path / "here")
    launched = answer(tmp_path / "joblib", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert here.rate.nunique() > 4  # probes of several rounds
    pd.testing.assert_frame_equal(here, launched)
