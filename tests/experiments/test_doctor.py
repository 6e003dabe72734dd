"""What the doctor says of a machine that lacks things."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from experiments.commands import doctor as command
from experiments.doctor import kernels, machine
from experiments.doctor.checks import Check, can_run
from experiments.doctor.kernels import kernel_checks, probe
from experiments.doctor.models import model_check
from experiments.doctor.packages import check_requirement, requirements_of_project
from experiments.doctor.services import login_check
from harness.engine.device.model_shape import model_preset, model_presets, model_shape

SECRET = "0123456789abcdef0123456789abcdef01234567"
CPU = {"device": "cpu", "torch": "2.13", "cuda": None, "threads": 2}


def test_every_kernel_of_this_machine_is_run_and_right() -> None:
    found = {check.name: check for check in kernel_checks(probe())}
    assert {"torch", "reference"} < found.keys() and len(found) >= 3
    assert all(check.status != "failed" for check in found.values()), found


@pytest.mark.parametrize(
    ("kernel", "stops"), [("reference", True), ("cpu", True), ("triton", False)]
)
def test_a_kernel_that_is_wrong_is_told_and_stops_what_needs_it(kernel: str, stops: bool) -> None:
    said = [CPU, {"kernel": kernel, "how": "", "error": "wrong: 3e-1", "seconds": 0.1}]
    found = list(kernel_checks(said))
    assert found[-1].status == "failed" and found[-1].way_out
    assert can_run(found) != stops


def test_a_kernel_that_kills_its_process_leaves_the_other_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "python"
    answer = json.dumps({"kernel": "reference", "how": "", "error": "", "relative_error": 0.0,
                         "seconds": 0.1})  # fmt: skip
    child.write_text(f"#!/bin/sh\necho '{json.dumps(CPU)}'\necho '{answer}'\nkill -SEGV $$\n")
    child.chmod(0o755)
    monkeypatch.setattr(kernels.sys, "executable", str(child))
    found = list(kernel_checks(probe()))
    assert [check.status for check in found] == ["note", "ok", "failed"]
    assert "-11" in found[-1].found
    assert not can_run(found)


@pytest.mark.parametrize(
    ("requirement", "status", "needed"),
    [
        ("numpy>=1", "ok", True),
        ("numpy>=999", "failed", True),
        ("no-such-package-of-ours>=1", "absent", True),
        ("wandb>=999", "failed", False),
    ],
)
def test_a_package_is_held_to_what_is_required(requirement: str, status: str, needed: bool) -> None:
    found = check_requirement(Requirement(requirement))
    assert (found.status, found.is_needed) == (status, needed)
    assert (requirement in found.way_out) == (status != "ok")
    assert found.stops_all == (needed and status != "ok")


def test_required_is_what_the_project_says() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    python, requirements = requirements_of_project()
    assert python == project["requires-python"]
    names = {requirement.name for requirement in requirements}
    assert {"torch", "numba", "packaging"} < names
    assert len(names) == len(project["dependencies"])


@pytest.mark.parametrize("place", ["variable", "netrc", "settings", "nowhere", "other host"])
def test_the_source_of_the_login_is_told_and_the_key_is_not(place: str, tmp_path: Path) -> None:
    environment = {"WANDB_API_KEY": SECRET} if place == "variable" else {}
    if place in ("netrc", "other host"):
        host = "api.wandb.ai" if place == "netrc" else "example.org"
        (tmp_path / ".netrc").write_text(f"machine {host} login user password {SECRET}\n")
        (tmp_path / ".netrc").chmod(0o600)
    if place == "settings":
        folder = tmp_path / ".config" / "wandb"
        folder.mkdir(parents=True)
        (folder / "settings").write_text(f"[default]\napi_key = {SECRET}\n")
    found = login_check(environment, tmp_path)
    source = {"variable": "WANDB_API_KEY", "netrc": ".netrc", "settings": "settings"}.get(place)
    assert found.status == ("ok" if source else "note")
    assert source is None or source in found.found
    assert SECRET[:8] not in str(found)
    assert found.way_out or source


def test_an_offline_mode_is_told() -> None:
    found = login_check({"WANDB_MODE": "offline", "WANDB_API_KEY": SECRET}, Path("/nowhere"))
    assert "WANDB_MODE=offline" in found.found and SECRET[:8] not in str(found)


def test_a_place_for_results_that_is_none_stops_all(tmp_path: Path) -> None:
    assert machine.disk_check(tmp_path / "a" / "b").status == "ok"
    (tmp_path / "file").touch()
    assert machine.disk_check(tmp_path / "file" / "results").stops_all


def test_the_largest_model_that_fits_is_named_at_each_size() -> None:
    presets = [name for name in model_presets() if name != "hub"]
    weights = {name: model_shape(model_preset(name)).weight_bytes for name in presets}
    for name, size in weights.items():
        found = model_check("in memory", int(size * 1.1) + 1)
        largest = max(w for w in weights.values() if w <= size)
        named = next(word for word in found.found.split() if word.startswith("model="))
        assert weights[named.removeprefix("model=")] == largest, name
    assert model_check("in memory", 1).status == "failed"


@pytest.mark.parametrize("is_whole", [True, False])
def test_the_exit_status_says_whether_the_main_experiment_can_run(
    is_whole: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = "" if is_whole else "no such instruction"
    said: list[dict[str, Any]] = [CPU]
    said += [{"kernel": "reference", "how": "", "error": error, "relative_error": 0, "seconds": 0}]
    monkeypatch.setattr(command, "probe", lambda: said)
    assert command.main([]) == (0 if is_whole else 1)
    out = capsys.readouterr().out
    assert ("experiment=sweep_page_size" in out) == is_whole
    assert command.main(["--json"]) == (0 if is_whole else 1)
    found = json.loads(capsys.readouterr().out)
    assert found["can_run"] == is_whole
    assert {"name", "status", "found", "way_out", "stops_all"} <= found["checks"][0].keys()


def test_everything_that_is_not_there_has_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "probe", lambda: [{"end": "exit status -9"}])
    monkeypatch.setattr("shutil.which", lambda name: None)
    found: list[Check] = list(command.all_checks(Path("results")))
    lacking = [check for check in found if check.status in ("absent", "failed")]
    assert {"C compiler", "torch"} <= {check.name for check in lacking}
    assert all(check.way_out for check in lacking)
