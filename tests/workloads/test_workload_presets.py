"""Every preset in conf/workload sets what differs from the defaults and makes a workload."""

from __future__ import annotations

from importlib.resources import files

import pytest
from omegaconf import OmegaConf

from harness.workloads.config import WorkloadConfig
from harness.workloads.generate import generate

FOLDER = files("conf") / "workload"
NAMES = sorted(entry.name.removesuffix(".yaml") for entry in FOLDER.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_preset(name):
    values = OmegaConf.to_container(OmegaConf.create((FOLDER / f"{name}.yaml").read_text()))
    config = WorkloadConfig(**values)
    assert next(iter(values)) == "name"
    assert config.name in NAMES
    defaults = WorkloadConfig()
    same = {k for k, v in values.items() if k != "name" and v == getattr(defaults, k)}
    assert not same
    if config.generator == "synthetic":
        assert len(generate(config, seed=0, vocab_size=512).requests) == config.num_requests
