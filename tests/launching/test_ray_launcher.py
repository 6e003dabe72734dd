"""A sweep that Ray's workers do."""

from __future__ import annotations

import pandas as pd
import pytest
from launched import SIZES, SWEEP, done, finish, start

pytest.importorskip("ray")
pytest.importorskip("hydra_plugins.hydra_ray_launcher.ray_launcher")
pytestmark = pytest.mark.slow


def test_rows_are_those_of_the_local_sweep(tmp_path):
    frames = []
    for name, launcher in (("here", ()), ("ray", ("hydra/launcher=ray",))):
        (tmp_path / name).mkdir()
        typed = ("+hydra.launcher.ray.init.num_cpus=2",) if launcher else ()
        status, out, err = finish(start(tmp_path / name, *SWEEP, *launcher, *typed))
        assert status == 0, (out, err)
        assert done(tmp_path / name) == dict.fromkeys(SIZES, 1)
        frame = pd.read_parquet(tmp_path / name / "results" / "single" / "summary.parquet")
        frames.append(frame.drop(columns=["wall_s", "allocator_us_per_step"]))
    pd.testing.assert_frame_equal(*frames)
