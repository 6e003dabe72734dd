"""The launcher that a command names, as its plugin is given it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.config import ConfigError
from harness.conversion import unknown_name

EXTRAS = {
    "joblib": "joblib",
    "submitit_local": "slurm",
    "submitit_slurm": "slurm",
    "ray": "ray",
}
"""Launchers, and the extra of this package that installs each."""

BASIC = "basic"
_GROUP = "hydra/launcher"


def is_of_launcher(argument: str) -> bool:
    """Whether an argument chooses a launcher or sets a key of it, not of a run."""
    key = argument.split("=", 1)[0].lstrip("+~")
    return key in (_GROUP, "hydra.launcher") or key.startswith("hydra.launcher.")


@dataclass(frozen=True, slots=True)
class ChosenLauncher:
    """name: of Hydra's group. settings: of the plugin, with what the command sets; its class is
    `_target_`. config: what the plugin's jobs are composed from."""

    name: str
    settings: dict[str, Any]
    config: DictConfig

    @property
    def label(self) -> str:
        """As a user types it."""
        return f"{_GROUP}={self.name}"

    def plugin(self, task: TaskFunction) -> Launcher:
        """The plugin, with `task` for its jobs. Within `harness.compose.hydra_session`."""
        context = HydraContext(
            config_loader=GlobalHydra.instance().config_loader(), callbacks=Callbacks(self.config)
        )
        plugin = Plugins.instance().instantiate_launcher(context, task, self.config)
        assert isinstance(plugin, Launcher)
        return plugin


def chosen_name(arguments: Sequence[str]) -> str:
    """The launcher that the arguments of `is_of_launcher` name."""
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key != _GROUP and key.lstrip("+~") in (_GROUP, "hydra.launcher"):
            raise ConfigError(f"{argument}: a launcher is chosen with {_GROUP}={value or 'NAME'}")
    names = [a.split("=", 1)[1] for a in arguments if a.startswith(f"{_GROUP}=")]
    name = names[-1] if names else BASIC
    keys = [a for a in arguments if not a.startswith(f"{_GROUP}=")]
    if name == BASIC and keys:
        chosen = f"{_GROUP}={BASIC} has none" if names else "none is chosen"
        raise ConfigError(
            f"{keys[0]}: is a launcher's key, and {chosen}: add {_GROUP}={' or '.join(EXTRAS)}"
        )
    return name


def choose_launcher(arguments: Sequence[str], folder: Path) -> ChosenLauncher | None:
    """The launcher that a command's arguments of that kind name; None for Hydra's basic one, in
    whose place this process does the runs. folder: for its jobs' files. Within
    `harness.compose.hydra_session`. Raises ConfigError where it is not installed, or one of its
    keys is wrong."""
    name = chosen_name(arguments)
    if name == BASIC:
        return None
    with _explained(name, arguments):
        choice = f"{_GROUP}={name}"
        own = [f"hydra.sweep.dir={_quoted(folder.absolute())}"]
        bare = compose("launch", overrides=[choice, *own], return_hydra_config=True)
        if "submitit_folder" in bare.hydra.launcher:  # not hidden, as its own default is
            own.append("hydra.launcher.submitit_folder=${hydra.sweep.dir}/%j")
        config = compose("launch", overrides=[choice, *own, *arguments], return_hydra_config=True)
        settings = OmegaConf.to_container(config.hydra.launcher, resolve=True)
    assert isinstance(settings, dict)
    return ChosenLauncher(name, {str(key): value for key, value in settings.items()}, config)


@contextmanager
def _explained(name: str, arguments: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        known = GlobalHydra.instance().config_loader().get_group_options(_GROUP)
        if name in EXTRAS and name not in known:
            extra = EXTRAS[name]
            raise ConfigError(
                f"{_GROUP}={name} is not installed: pip install 'kvarena[{extra}]', or "
                f"'.[{extra}]' in a checkout"
            ) from error
        if name not in known:
            raise ConfigError(
                f"{_GROUP}: " + unknown_name(name, {*known, *EXTRAS}, "value")
            ) from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said, keys = " ".join(lines[:2]), ", ".join(sorted(_keys(name)))
        raise ConfigError(f"{' '.join(arguments)}: {said} (hydra.launcher has {keys})") from error


def _keys(name: str) -> list[str]:
    config = compose("launch", overrides=[f"{_GROUP}={name}"], return_hydra_config=True)
    return [str(key) for key in config.hydra.launcher if key != "_target_"]


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "\\'") + "'"
