"""From a study's parts to its runs: composed, checked and addressed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from rich.console import Console

from allocators import discovery
from harness.compose import Command, Composer, Study
from harness.config import AllocatorConfig, ConfigError, DeviceConfig, RunConfig
from harness.conversion import unknown_name
from harness.runs.code_hash import CodeHashes
from harness.runs.fitted_alike import fitted_alike
from harness.runs.grid import Cell, chosen_allocators, expand
from harness.runs.jobs import (
    Job,
    allocator_keys,
    jobs_told_apart,
    make_job,
    strategy_label,
    told_apart,
)
from harness.runs.key_effects import check_effects
from harness.runs.preflight import Preflight
from harness.runs.searching import CellSearch, search_of
from harness.runs.seeds_once import seeds_once
from harness.runs.study_record import study_id
from harness.runs.varied_settings import short_name, varied_settings
from harness.schema import allocator_spec


class Plan:
    """What a study runs. study_id: address of its record. searches: those that add jobs as they
    go on."""

    def __init__(self, study_id: str, jobs: Sequence[Job], searches: Sequence[CellSearch]) -> None:
        self.study_id = study_id
        self.searches = tuple(searches)
        self._planned = {job.run_id: job for job in jobs}
        self._known = set(self._planned)
        for search in self.searches:
            self._advance(search)

    @property
    def jobs(self) -> list[Job]:
        """All that is known of: of a search, the probes that are stored, and the next one. Their
        order does not depend on which of them was done first."""
        jobs = dict(self._planned)
        for search in self.searches:
            for job in search.jobs:
                jobs.setdefault(job.run_id, job)
        return sorted(jobs.values(), key=lambda job: (job.is_timed, job.config.seed))

    def follow(self, finished: Job) -> list[Job]:
        """The jobs that are to be done now that `finished` is."""
        waiting = [search for search in self.searches if search.waits_for(finished.run_id)]
        return [job for search in waiting for job in self._advance(search)]

    def _advance(self, search: CellSearch) -> list[Job]:
        """Jobs that are new; what a part of the study or another search does is waited for."""
        missing = [job for job in search.advance() if job.run_id not in self._known]
        self._known.update(job.run_id for job in search.jobs)
        return missing


class _Planned(NamedTuple):
    """A cell with its runs; where it is searched, those at the low end, which stand for it."""

    cell: Cell
    jobs: list[Job]


class Devices(Protocol):
    """What timed runs are done on. are_here: whether this process can try them."""

    are_here: bool

    def names(self, configs: Sequence[DeviceConfig]) -> Mapping[DeviceConfig, str]:
        """As they stand beside every number."""
        ...


class LocalDevices:
    """Those of this machine."""

    are_here = True

    def names(self, configs: Sequence[DeviceConfig]) -> Mapping[DeviceConfig, str]:
        if not configs:
            return {}
        from harness.runs.torch_device import describe_device

        return {config: describe_device(config) for config in configs}


def plan_study(
    study: Study,
    command: Command,
    folder: Path,
    console: Console,
    devices: Devices | None = None,
) -> Plan:
    """Every run of the study, composed, checked and addressed; the same run is planned once.
    devices: if they are not this machine's; what only they can tell of a config is left to its
    run, and a dry run does not ask them."""
    _check_allocator_keys(study, command)
    planner = _Planner(command, folder, study.timeout_s)
    cells = expand(study.parts, command.fixed, command.swept, _takes)
    configs = [
        planner.compose(cell, None if cell.search is None else cell.search.low) for cell in cells
    ]
    check_effects({*command.fixed, *command.swept}, configs)
    asked_devices = LocalDevices() if devices is None else devices
    preflight = Preflight(device_is_here=asked_devices.are_here)
    preflight.check_own_code(configs)
    configs = fitted_alike([cell.part for cell in cells], configs, preflight.shape)
    for config in configs:
        preflight.check(config)
    if study.dry_run and not asked_devices.are_here:
        asked_devices = _UnknownDevices()
    for device_name in planner.device_names(configs, asked_devices):
        console.print(f"device: {device_name}", highlight=False)
    # a search's probes are its own, with all of their seeds
    parts = [f"{c.part} {n if c.search else ''}" for n, c in enumerate(cells)]
    left = seeds_once(list(zip(parts, configs, strict=True)))
    planned = [
        _Planned(cell, [job for each in own for job in planner.jobs(cell, each)])
        for cell, own in zip(cells, left, strict=True)
        if own
    ]
    suffixes = _suffixes(planned)
    jobs: dict[str, Job] = {}
    searches = []
    for index, (cell, own) in enumerate(planned):
        if cell.search is None:
            for job in own:
                label = job.label + suffixes[index]
                jobs.setdefault(job.run_id, dataclasses.replace(job, label=label))
        else:
            search = search_of(cell.search, own[0].config)
            make_jobs = functools.partial(planner.probe, cell, own[0].config.workload.fit_len)
            searches.append(CellSearch(search, make_jobs, suffixes[index]))
    asked = [job for cell in planned for job in cell.jobs]
    return Plan(study_id(command.arguments, asked), list(jobs.values()), searches)


class _Planner:
    """Makes the jobs of cells."""

    def __init__(self, command: Command, folder: Path, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._verbatim = command.verbatim
        self._folder = folder
        self._composer = Composer()
        self._hashes = CodeHashes()
        self._device_names: dict[DeviceConfig, str] = {}
        self._allocators: list[AllocatorConfig] = []

    def compose(self, cell: Cell, value: float | None) -> RunConfig:
        """The config of a cell; value: of the key that is searched in it."""
        probed = [] if cell.search is None else [f"{cell.search.key}={value!r}"]
        config = self._composer.run([*cell.overrides, *probed, *self._verbatim])
        if config.allocator not in self._allocators:
            self._allocators.append(config.allocator)
        return config

    def probe(self, cell: Cell, fit_len: int | None, value: float) -> list[Job]:
        """The runs that try a value; fit_len: as all runs of the cell have it."""
        config = self.compose(cell, value)
        workload = dataclasses.replace(config.workload, fit_len=fit_len)
        return self.jobs(cell, dataclasses.replace(config, workload=workload))

    def jobs(self, cell: Cell, config: RunConfig) -> list[Job]:
        """The runs of a config in a cell: one, or one a repetition."""
        name = self._device_names.get(config.device, "simulated")
        label = strategy_label(told_apart([config.allocator, *self._allocators])[0])
        jobs = [
            make_job(each, cell.part, self._folder, name, self._hashes, label)
            for each in _interleave(config)
        ]
        return [dataclasses.replace(job, timeout_s=self._timeout_s) for job in jobs]

    def device_names(self, configs: Sequence[RunConfig], devices: Devices) -> list[str]:
        """What the runs that need a device will be done on, found out once for each."""
        needed = [config.device for config in configs if config.executor.kind != "simulated"]
        if needed:
            self._device_names = dict(devices.names(list(dict.fromkeys(needed))))
        return list(self._device_names.values())


def _suffixes(planned: Sequence[_Planned]) -> list[str]:
    """What labels say of each cell beside those of `run_label`: the settings that differ within
    its table, without the one that is searched."""
    tables: dict[tuple[str, str, str], list[int]] = {}
    for index, (cell, jobs) in enumerate(planned):
        config = jobs[0].config
        key = cell.part, config.workload.name, config.executor.kind
        tables.setdefault(key, []).append(index)
    suffixes = [""] * len(planned)
    for indices in tables.values():
        own = [job for index in indices for job in planned[index].jobs]
        varied = varied_settings(jobs_told_apart(own))
        for index in indices:
            cell, jobs = planned[index]
            searched = None if cell.search is None else cell.search.key
            chosen = [
                (short_name(key), values[jobs[0].run_id])
                for key, values in varied.items()
                if key != searched
            ]
            words = [f"{name} {value}" for name, value in chosen if value != "-"]
            suffixes[index] = "".join(f" · {word}" for word in words)
    return suffixes


def _check_allocator_keys(study: Study, command: Command) -> None:
    """Raise ConfigError for an allocator's option that none of the chosen ones has. What is wrong
    with one that cannot be loaded is told where it is composed."""
    chosen = chosen_allocators(study.parts, command.fixed, command.swept)
    known: set[str] = set()
    for allocator in chosen:
        keys = allocator_keys(allocator_spec(allocator))
        if keys is None:
            return
        known |= keys
    for key in (*command.fixed, *command.swept):
        if key.startswith("allocator.") and key not in known:
            raise ConfigError(_unknown_allocator_key(key, known, sorted(chosen)))


def _unknown_allocator_key(key: str, known: Iterable[str], chosen: Sequence[str]) -> str:
    """known: keys of the `chosen` allocators."""
    others = [name for name in discovery.available() if key in (allocator_keys(name) or ())]
    if not others:
        return unknown_name(key, known, "key")
    names = ", ".join(allocator_spec(name) for name in chosen)
    return (
        f"{key}: is an option of allocator={' or '.join(others)}, not of {names}: choose that, or "
        "leave it out"
    )


def _takes(allocator: str, key: str) -> bool:
    """Whether an allocator takes a key; one that cannot be loaded takes any, so that the error
    is about what is wrong with it."""
    keys = allocator_keys(allocator_spec(allocator))
    return keys is None or key in keys


def _interleave(config: RunConfig) -> list[RunConfig]:
    """Timed repetitions become runs of their own, so that strategies take turns on the machine."""
    if config.executor.kind == "simulated" or config.repetitions == 1:
        return [config]
    return [
        dataclasses.replace(config, seed=config.seed + k, repetitions=1)
        for k in range(config.repetitions)
    ]


class _UnknownDevices:
    """Those of machines that a dry run takes no job of."""

    are_here = False

    def names(self, configs: Sequence[DeviceConfig]) -> Mapping[DeviceConfig, str]:
        return dict.fromkeys(configs, "of the launcher's jobs, not asked in a dry run")
