"""What the machines of launched jobs have: asked of one, where the command's own says nothing.

A run's address holds the device that it is timed on, and the node that a command is given on may
have no GPU at all.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from omegaconf import DictConfig

from harness.config import ConfigError, DeviceConfig
from harness.launching.chosen import ChosenLauncher
from harness.launching.kinds import LauncherKind


@dataclass(frozen=True, slots=True)
class DeviceSurvey:
    """The function of the job that is asked. variables: as in `harness.launching.job.Batch`."""

    configs: tuple[DeviceConfig, ...]
    variables: Mapping[str, str | None]

    def __call__(self, config: DictConfig) -> list[str]:
        """The devices' names; one that is not there is what is said of it, after `error: `."""
        for name, value in self.variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        multiprocessing.set_start_method("spawn", force=True)
        context = multiprocessing.get_context("spawn")
        # in a process as fresh as a run's: this one may have its threads and GPUs chosen already
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return list(pool.map(_describe, self.configs))


def survey_devices(
    configs: Sequence[DeviceConfig], chosen: ChosenLauncher, kind: LauncherKind
) -> dict[DeviceConfig, str]:
    """Names of the devices that the launcher's jobs find. Raises ConfigError where the job cannot
    be launched, or has not the device that is asked for."""
    plugin = chosen.plugin(DeviceSurvey(tuple(configs), kind.variables()))
    try:
        kind.begin()
        answers = plugin.launch([["job=0"]], initial_job_idx=0)[0].return_value
    except Exception as error:  # of whatever kind a plugin's are
        raise ConfigError(
            f"{chosen.label}: no job could be asked for its device ({kind.why(error)})"
        ) from error
    except KeyboardInterrupt:
        kind.stop()
        raise
    for answer in answers:
        if answer.startswith(_ERROR):
            raise ConfigError(
                f"{chosen.label}: a job of it says: {answer.removeprefix(_ERROR)}. GPUs are asked "
                "for by hydra.launcher.gpus_per_node=1 (Slurm), or "
                "+hydra.launcher.ray.remote.num_gpus=1 (Ray)"
            )
    return dict(zip(configs, answers, strict=True))


_ERROR = "error: "


def _describe(config: DeviceConfig) -> str:
    from harness.runs.torch_device import describe_device

    try:
        return describe_device(config)
    except ConfigError as error:
        return f"{_ERROR}{error}"
