"""A launcher is the command line's affair: it is given what was typed, and runs are not."""

from __future__ import annotations

import io
import tomllib
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from rich.console import Console

from harness.command_help import LAUNCHERS
from harness.compose import Command, compose_study, hydra_session, parse_command
from harness.config import ConfigError
from harness.launching import chosen as module
from harness.launching.chosen import choose_launcher
from harness.launching.kinds import kind_of
from harness.launching.runner import make_runner
from harness.runs.planning import Plan, plan_study

QUICK = ("executor=simulated", "model=tiny", "workload.num_requests=4", "kv.page_size=8,16")


def planned(*arguments: str) -> Plan:
    command = parse_command(arguments)
    with hydra_session():
        return plan_study(
            compose_study(command), command, Path("nowhere"), Console(file=io.StringIO())
        )


def test_a_launcher_has_no_part_in_addresses():
    bare = planned(*QUICK)
    launched = planned(
        *QUICK, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "+hydra.launcher.x=[1,2]"
    )
    assert [job.run_id for job in bare.jobs] == [job.run_id for job in launched.jobs]
    assert bare.study_id == launched.study_id


def test_arguments_are_told_apart():
    command = parse_command([*QUICK, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"])
    assert command == Command(
        command.fixed,
        command.swept,
        (),
        QUICK,
        ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    )
    assert "hydra/launcher" not in command.fixed


def launcher_of(*arguments: str, folder: Path = Path("somewhere")):
    with hydra_session():
        chosen = choose_launcher(arguments, folder)
        return chosen, chosen.plugin(print)


def test_submitit_is_given_what_was_typed(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    chosen, plugin = launcher_of(
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.partition=gpu",
        "hydra.launcher.gpus_per_node=4",
        "hydra.launcher.timeout_min=90",
        "hydra.launcher.setup=['module load cuda','ulimit -n 4096']",
        "+hydra.launcher.additional_parameters.mail-type=END",
        folder=tmp_path / "a folder",
    )
    assert type(plugin).__name__ == "SlurmLauncher"
    given = {
        "partition": "gpu",
        "gpus_per_node": 4,
        "timeout_min": 90,
        "setup": ["module load cuda", "ulimit -n 4096"],
        "additional_parameters": {"mail-type": "END"},
        "submitit_folder": f"{tmp_path}/a folder/%j",
        "max_num_timeout": 0,  # the plugin's own
    }
    assert {key: plugin.params[key] for key in given} == given
    assert {key: chosen.settings[key] for key in given} == given
    assert not (tmp_path / "a folder").exists()


def test_joblib_is_given_what_was_typed():
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    chosen, plugin = launcher_of(
        "hydra/launcher=joblib", "hydra.launcher.n_jobs=3", "hydra.launcher.verbose=5"
    )
    assert (plugin.joblib["n_jobs"], plugin.joblib["verbose"]) == (3, 5)
    kind = kind_of(chosen, Path("nowhere"))
    assert [kind.num_jobs(num_runs) for num_runs in (1, 2, 100)] == [1, 2, 3]


def test_as_many_jobs_as_run_at_one_time():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    for parallelism, expected in (("4", 4), ("256", 100)):
        chosen, _ = launcher_of(
            "hydra/launcher=submitit_slurm", f"hydra.launcher.array_parallelism={parallelism}"
        )
        assert kind_of(chosen, Path("nowhere")).num_jobs(100) == expected


@pytest.mark.parametrize("arguments", [(), ("hydra/launcher=basic",)])
def test_without_one_this_process_does_the_runs(arguments):
    with hydra_session():
        assert make_runner(arguments, Path("nowhere")).words == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("hydra.launcher.n_jobs=2",), "none is chosen: add hydra/launcher=joblib or"),
        (("hydra/launcher=basic", "hydra.launcher.n_jobs=2"), "hydra/launcher=basic has none"),
        (("hydra/launcher=joblob",), "did you mean joblib?"),
        (("hydra/launcher=joblib", "hydra.launcher.njobs=2"), "hydra.launcher has"),
        (("hydra/launcher=joblib", "hydra.launcher.n_jobs=many"), "many"),
        (("hydra.launcher=joblib",), "a launcher is chosen with hydra/launcher=joblib"),
        (("+hydra/launcher=joblib",), "a launcher is chosen with hydra/launcher=joblib"),
    ],
    ids=["no launcher", "basic", "launcher", "key", "value", "dot", "plus"],
)
def test_a_mistake_is_one_line_with_the_way_out(arguments, said):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    with hydra_session(), pytest.raises(ConfigError) as told:
        choose_launcher(arguments, Path("nowhere"))
    assert said in str(told.value)
    assert "\n" not in str(told.value)


def test_workers_of_joblib_are_a_number_that_there_can_be():
    with hydra_session():
        chosen = choose_launcher(
            ("hydra/launcher=joblib", "hydra.launcher.n_jobs=0"), Path("nowhere")
        )
        assert chosen is not None
        with pytest.raises(ConfigError, match="n_jobs=0: must be 1 or more"):
            kind_of(chosen, Path("nowhere"))


@pytest.mark.parametrize(
    ("name", "extra"), [("joblib", "joblib"), ("submitit_slurm", "slurm"), ("ray", "ray")]
)
def test_one_that_is_not_installed_names_its_extra(name, extra, monkeypatch):
    Plugins.instance()  # whatever is installed has told Hydra of itself by now
    options = ConfigStore.instance().repo["hydra"]["launcher"]
    monkeypatch.delitem(options, f"{name}.yaml", raising=False)
    with hydra_session(), pytest.raises(ConfigError) as told:
        choose_launcher([f"hydra/launcher={name}"], Path("nowhere"))
    assert f"pip install 'kvarena[{extra}]'" in str(told.value)


def test_every_known_launcher_has_an_extra_and_is_in_the_help():
    assert LAUNCHERS.keys() == {*module.EXTRAS, module.BASIC}
    assert all(f"extra {extra}" in LAUNCHERS[name] for name, extra in module.EXTRAS.items())
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(module.EXTRAS.values()) <= project["optional-dependencies"].keys()
