"""The way in which a command's runs are done: by this process, or by a launcher's jobs."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from harness.config import DeviceConfig
from harness.launching.chosen import BASIC, choose_launcher, chosen_name
from harness.launching.job import make_private
from harness.launching.kinds import kind_of
from harness.launching.rounds import launch_jobs
from harness.launching.survey import survey_devices
from harness.measure.environment import Environment
from harness.runs.jobs import Job
from harness.runs.planning import Devices, LocalDevices
from harness.runs.sweep import OnFinished, OnStarted, OnWaiting, run_jobs

FOLDER = "launches"
"""Of an experiment's folder: what launchers leave, a folder a command."""


class Runner(Protocol):
    """words: of where runs are done and where their logs are, for the reader; empty for here.
    devices: that timed runs are done on."""

    words: str
    devices: Devices

    def run(
        self,
        jobs: Sequence[Job],
        environment: Environment,
        on_finished: OnFinished,
        on_started: OnStarted,
        on_waiting: OnWaiting,
    ) -> None:
        """As `harness.runs.sweep.run_jobs`."""


class _Here:
    def __init__(self) -> None:
        self.words = ""
        self.devices: Devices = LocalDevices()

    def run(
        self,
        jobs: Sequence[Job],
        environment: Environment,
        on_finished: OnFinished,
        on_started: OnStarted,
        on_waiting: OnWaiting,
    ) -> None:
        run_jobs(jobs, environment, on_finished, on_started, on_waiting)


class _Launched:
    are_here = False

    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        own = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        self._folder = folder / FOLDER / own
        chosen = choose_launcher(arguments, self._folder)
        assert chosen is not None
        self._chosen = chosen
        self._kind = kind_of(chosen, self._folder)
        self.devices: Devices = LocalDevices() if self._kind.is_here else self
        self.words = f"launcher: {chosen.name}; logs: {self._kind.where()}"

    def names(self, configs: Sequence[DeviceConfig]) -> Mapping[DeviceConfig, str]:
        """Of the machines that jobs are on; it takes one of them."""
        make_private(self._folder)  # before the launcher's plugin makes it
        return survey_devices(configs, self._chosen, self._kind)

    def run(
        self,
        jobs: Sequence[Job],
        environment: Environment,
        on_finished: OnFinished,
        on_started: OnStarted,
        on_waiting: OnWaiting,
    ) -> None:
        make_private(self._folder)
        try:
            launch_jobs(jobs, environment, on_finished, self._chosen, self._kind)
        finally:
            with contextlib.suppress(OSError):  # not empty: logs
                self._folder.rmdir()
                self._folder.parent.rmdir()


def make_runner(arguments: Sequence[str], folder: Path) -> Runner:
    """arguments: of the launcher, as in `Command.launcher`. folder: the experiment's. Within
    `harness.compose.hydra_session`. Raises ConfigError for a launcher or key that is not there."""
    return _Here() if chosen_name(arguments) == BASIC else _Launched(arguments, folder)
