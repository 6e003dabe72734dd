"""From what was typed to typed configs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from harness.compose import Composer, compose_run, compose_study, hydra_session, parse_command
from harness.config import ConfigError, RunConfig
from harness.conversion import from_mapping, to_mapping
from harness.runs.grid import expand
from harness.schema import admit_files

EXPERIMENTS = sorted(
    path.stem for path in (Path(__file__).parents[2] / "conf" / "experiment").glob("*.yaml")
)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("preset", ["quick", "full"])
def test_cells_composed_from_a_shared_base_equal_those_composed_alone(experiment, preset):
    command = parse_command([f"experiment={experiment}", f"preset={preset}", "seed=3"])
    with hydra_session():
        composer = Composer()
        cells = expand(compose_study(command).parts, command.fixed, command.swept)
        assert len(cells) > 1
        composed = [composer.run(cell.overrides) for cell in cells]
        for cell, config in list(zip(cells, composed, strict=True))[:: max(1, len(cells) // 4)]:
            assert config == compose_run(cell.overrides)
    assert {config.seed for config in composed} == {3}


@pytest.mark.parametrize(
    "overrides",
    [
        ["kv.page_size=4", "allocator=contiguous", "allocator.fit=first_fit"],
        ["model=tiny", "model.config.hidden_size=32", "+model.config.attention_bias=true"],
        ["workload=chat", "workload.max_output_len=null", "workload.rate=2"],
        ["workload.path='a b/c.csv'", "workload=trace", "~kv.page_size"],
        ["++workload.options.depth=3", "executor.step_ms=5"],
        [
            "model=tiny",
            "model.config={hidden_size: 32, num_hidden_layers: 1}",
            "kv.pool_tokens=null",
        ],
        ["workload=trace", "workload.path='${model.name}.csv'", "workload.format='a\\\\b'"],
    ],
)
def test_shared_bases_take_every_kind_of_override(overrides):
    with hydra_session():
        composer = Composer()
        assert composer.run(overrides) == compose_run(overrides)
        assert composer.run(overrides) == compose_run(overrides)


def test_a_cell_leaves_no_trace_in_the_next():
    with hydra_session():
        composer = Composer()
        assert (
            composer.run(["model=tiny", "model.config.hidden_size=32"]).model.config["hidden_size"]
            == 32
        )
        assert composer.run(["model=tiny"]) == compose_run(["model=tiny"])


def test_a_composed_config_survives_its_plain_mapping():
    with hydra_session():
        config = compose_run(["allocator=contiguous", "workload=alpaca_shared"])
    assert from_mapping(RunConfig, to_mapping(config)) == config


def test_lists_and_ranges_sweep():
    command = parse_command(["kv.page_size=1,2", "seed=range(0,3)", "allocator=paged", "+x=1"])
    assert command.swept == {"kv.page_size": ["1", "2"], "seed": ["0", "1", "2"]}
    assert command.fixed == {"allocator": "paged"}
    assert command.verbatim == ("+x=1",)


def test_user_keys_win_over_the_experiment():
    with hydra_session():
        command = parse_command(["experiment=compare_allocators", "kv.page_size=8"])
        study = compose_study(command)
        cells = expand(study.parts, command.fixed, command.swept)
        assert {Composer().run(cell.overrides).kv.page_size for cell in cells[:3]} == {8}


def nested_keys() -> list[str]:
    """One misspelt key for every group and nested key that a run has."""
    keys = []
    for field in dataclasses.fields(RunConfig):
        keys.append(f"{field.name}x")
        value = getattr(RunConfig(), field.name)
        if dataclasses.is_dataclass(value) and field.name != "allocator":
            inner = dataclasses.fields(value)[0].name
            keys.append(f"{field.name}.{inner}x")
    return [*keys, "allocator.expectd", "model.config.hidden_siz", "tracking.kindx", "dry_rn"]


@pytest.mark.parametrize("key", nested_keys())
@pytest.mark.parametrize("experiment", [None, "sweep_page_size"])
def test_an_unknown_key_gets_the_nearest_names(key, experiment):
    arguments = [f"{key}=1"] + ([f"experiment={experiment}"] if experiment else [])
    with hydra_session(), pytest.raises(ConfigError) as told:
        command = parse_command(arguments)
        compose_study(command)
        Composer().run(command.base_overrides())
    message = str(told.value)
    assert f"unknown key {key!r}" in message
    assert "did you mean" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("allocator=pagd", "did you mean paged"),
        ("model=tny", "did you mean tiny"),
        ("workload=sharegtp", "did you mean sharegpt"),
        ("experiment=sweep_page", "did you mean sweep_page_size"),
        ("executor=simulatd", "did you mean simulated"),
        ("tracking=wndb", "did you mean wandb"),
        ("device=gpu", "choose one of auto, cpu, cuda"),
        ("allocator.expected=orcale", "did you mean oracle"),
        ("engine.schedule=mixed", "mixed_chunked"),
        ("engine.preemption=swp", "choose one of recompute"),
        ("attention.kind=pagd", "did you mean paged"),
        ("kv.dtype=fp16", "float16"),
        ("workload.lengths=fixd", "did you mean fixed"),
        ("workload.arrivals=poison", "did you mean poisson"),
        ("preset=ful", "did you mean full"),
        ("tracking.kind=wndb", "did you mean wandb"),
        ("kv.page_size=abc", "expected a whole number"),
        ("kv.page_size=0", "at least 1"),
        ("kv.page_size=1.5", "expected a whole number"),
        ("kv.page_size=true", "expected a whole number"),
        ("kv.pool_demand=-1", "above 0"),
        ("kv.memory_fraction=1.5", "(0, 1]"),
        ("seed=first", "expected a whole number"),
        ("repetitions=0", "at least 1"),
        ("dry_run=maybe", "expected true or false"),
        ("kv=3", "is a group of keys, give one of kv.page_size"),
        ("model.config=3", "expected a group of keys"),
        ("executor.step_ms=-1", "above 0"),
        ("engine.watermark=1", "[0, 1)"),
        ("measure.slo_ttft_ms=0", "above 0"),
        ("device.threads=0", "at least 1"),
        ("+nonsense=3", "unknown key 'nonsense'"),
        ("kv.page_size=[1", "cannot read"),
        ("paged", "cannot read 'paged'"),
        ("workload.length_scale=1e300", "at most 1000"),
        ("engine=3", "engine: unknown value '3': choose one of default, paper"),
        ("model=null", "model: unknown value 'null'"),
        ("experiment=true", "experiment: unknown value 'true'"),
        ("workload=[sharegpt,shargpt]", "workload: unknown value 'shargpt': did you mean"),
        ("kv={page_size: 4, page_szie: 3}", "'kv.page_szie': did you mean kv.page_size"),
        ("model.config={rope_theta: 5}", "To add it: +model.config.rope_theta=VALUE"),
        ("workload.options.dept=5", "To add it: +workload.options.dept=VALUE"),
        ("allocator=glob(*)", "a,b,c"),
        ("kv.memory_fraction=interval(0,1)", "a,b,c"),
    ],
)
def test_a_wrong_value_is_named_with_the_way_out(argument, said):
    with hydra_session(), pytest.raises(ConfigError) as told:
        command = parse_command([argument])
        compose_study(command)
        Composer().run(command.base_overrides())
    assert said in str(told.value)
    assert "\n" not in str(told.value)


def test_an_experiments_own_typing_errors_are_found():
    with pytest.raises(ConfigError, match=r"presets.quick\[0\].axess.*did you mean.*axes"):
        from harness.config import PartConfig

        from_mapping(PartConfig, {"axess": {}}, "sweep.presets.quick[0].")
    with pytest.raises(ConfigError, match=r"axes\.kv\.page_size=3: expected a list"):
        from_mapping(PartConfig, {"axes": {"kv.page_size": 3}})


def test_files_of_like_names_are_different_choices(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "from allocators.paged import Paged\nclass Mine(Paged):\n    name = 'mine'\n"
    for name in ("a_b.py", "a-b.py"):
        Path(name).write_text(text)
    chosen = admit_files("allocator=./a_b.py:Mine,paged,./a-b.py:Mine").split("=")[1].split(",")
    assert chosen[1] == "paged"
    assert chosen[0] != chosen[2]
    with hydra_session():
        for choice, spec in ((chosen[0], "./a_b.py:Mine"), (chosen[2], "./a-b.py:Mine")):
            assert compose_run([f"allocator={choice}"]).allocator.name == spec


def test_a_file_may_have_any_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["./a,b.csv", "./x=y.csv", "./p (1).csv", "./it's.csv", "./c,d=e'f [g].csv", "./h.csv"]
    for name in names:
        Path(name).write_text("")
    key = "executor.calibration"
    with hydra_session():
        base = ("executor=simulated", "executor.cost=calibrated")
        swept = parse_command([f"{key}={','.join([*names, 'not,there'])}"]).swept[key]
        found = [compose_run([*base, f"{key}={value}"]).executor.calibration for value in swept]
        assert found == [*names, "not", "there"]
        for name in names:
            value = parse_command([f"{key}={name}"]).fixed[key]
            assert compose_run([*base, f"{key}={value}"]).executor.calibration == name
