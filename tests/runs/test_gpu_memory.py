"""Simulated GPUs have the memory that theirs have."""

from __future__ import annotations

import pytest

from harness.compose import Composer, hydra_session
from harness.config import ConfigError, RunConfig
from harness.engine.device.model_shape import ModelShape, model_shape
from harness.runs.gpu_memory import check_fits, simulated_memory_bytes
from harness.runs.one_run import make_workload, simulated_device
from harness.runs.pool_size import activation_bytes, pool_pages
from harness.runs.preflight import Preflight


def composed(*overrides: str) -> RunConfig:
    with hydra_session():
        return Composer().run(["executor=simulated", "executor.cost=roofline", *overrides])


def pool_tokens(config: RunConfig) -> int:
    device = simulated_device(config)
    workload = make_workload(config, device)
    return config.kv.page_size * pool_pages(config, device.shape, workload, device.memory_bytes)


def test_the_pool_is_what_weights_leave_of_the_gpu() -> None:
    config = composed("model=opt_13b", "kv.memory_fraction=0.9", "engine.token_budget=2560")
    shape = model_shape(config.model)
    left = 0.9 * 40 * 2**30 - shape.weight_bytes - activation_bytes(config, shape)
    assert pool_tokens(config) == pytest.approx(left / shape.kv_bytes_per_token, abs=16)
    assert 14_000 < pool_tokens(config) < 16_000  # the PagedAttention paper's Table 1: 15.7 K
    assert pool_tokens(composed("model=opt_13b")) > pool_tokens(config)  # a smaller token budget


def test_an_imagined_memory_is_each_gpus() -> None:
    config = composed("model=opt_13b", "device.imagined_memory_gib=64", "engine.tensor_parallel=2")
    assert simulated_memory_bytes(config) == 2 * 64 * 2**30


def test_an_imagined_memory_comes_first() -> None:
    config = composed("model=opt_13b", "device.imagined_memory_gib=64", "kv.memory_fraction=0.5")
    assert simulated_memory_bytes(config) == 64 * 2**30
    assert simulated_memory_bytes(composed("executor.cost=constant")) is None


def test_gpus_add_their_memory_and_copy_what_they_cannot_split() -> None:
    eight = ("model=llama_3_1_8b", "executor.gpu=h100", "kv.memory_fraction=0.9")
    config = composed(*eight, "engine.tensor_parallel=8")
    shape = model_shape(config.model)
    each = 0.9 * 81559 * 2**20 - shape.weight_bytes / 8 - activation_bytes(config, shape)
    assert pool_tokens(config) == pytest.approx(8 * each / shape.kv_bytes_per_token, rel=1e-4)
    # 8 KV heads on 16 GPUs: each head twice, so that a token takes twice the bytes
    more = composed(*eight, "engine.tensor_parallel=16")
    each = 0.9 * 81559 * 2**20 - shape.weight_bytes / 16 - activation_bytes(more, shape)
    assert pool_tokens(more) == pytest.approx(8 * each / shape.kv_bytes_per_token, rel=1e-4)


@pytest.mark.parametrize("model", ["opt_66b", "opt_175b"])
def test_a_model_that_does_not_fit_is_told_what_would_do(model: str) -> None:
    config = composed(f"model={model}")
    with pytest.raises(ConfigError, match=r"GiB for its weights alone.*a100_40gb has 40\.0") as e:
        Preflight().check(config)
    count = int(str(e.value).rpartition("=")[2])
    check_fits(composed(f"model={model}", f"engine.tensor_parallel={count}"), shape(model))
    with pytest.raises(ConfigError, match="tensor_parallel"):
        check_fits(composed(f"model={model}", f"engine.tensor_parallel={count // 2}"), shape(model))


def shape(model: str) -> ModelShape:
    return model_shape(composed(f"model={model}").model)


def test_a_larger_gpu_is_named_where_there_is_one() -> None:
    with pytest.raises(ConfigError, match=r"executor\.gpu=a100_40gb or .*tensor_parallel=2"):
        Preflight().check(composed("model=opt_13b", "executor.gpu=l4"))


def test_heads_that_do_not_split_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"tensor_parallel=3 does not split the 32 heads"):
        Preflight().check(composed("model=llama_3_1_8b", "engine.tensor_parallel=3"))


def test_only_the_roofline_knows_what_a_split_model_costs() -> None:
    with hydra_session(), pytest.raises(ConfigError, match=r"add executor\.cost=roofline"):
        Composer().run(["engine.tensor_parallel=2", "executor=simulated", "executor.cost=constant"])


def test_a_gpu_that_is_not_known_is_told_the_nearest() -> None:
    with hydra_session(), pytest.raises(ConfigError, match=r"executor\.gpu.*did you mean h100"):
        Composer().run(["executor=simulated", "executor.cost=roofline", "executor.gpu=h10"])
