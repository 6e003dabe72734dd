"""The device that a worker keeps warm between runs."""

from __future__ import annotations

import gc
import sys
from typing import Any

from harness.config import ConfigError, DeviceConfig, RunConfig
from harness.runs.jobs import Job
from harness.runs.one_run import simulated_device
from harness.runs.surroundings import MOST_BYTES_LEFT, Device


class DeviceCache:
    """The last device used: a worker stays warm for one model at a time."""

    def __init__(self) -> None:
        self._key: Any = None
        self._device: Device | None = None

    def get(self, config: RunConfig) -> Device:
        """The device for `config`, loading its model if it is another than the last run's."""
        parallel = config.engine.tensor_parallel
        key = (config.model, config.device, config.executor, parallel)
        if self._device is None or key != self._key:
            self.drop()
            self._device = self._make(config)
            self._key = key
            gc.collect()
            gc.freeze()  # a run's collections need not look at the model and what was imported
        return self._device

    def check(self, job: Job) -> None:
        """Raise ConfigError if this process has not the device that `job` was planned for."""

    def recover(self, keep: bool) -> bool:
        """After a run: whether nothing of it is left on the device. keep: stay warm if so; the
        model is dropped where it is not wanted or where dropping it may help."""
        device = self._device
        try:
            if keep and (device is None or device.is_clean()):
                return True
            memory = None if device is None else device.memory
            del device
            self.drop()
            if memory is None:
                return True
            memory.give_back()
            return memory.allocated_bytes() <= MOST_BYTES_LEFT
        except RuntimeError as failure:  # a device that failed does nothing more in this process
            print(f"the device cannot be used again: {failure}", file=sys.stderr)
            return False

    def drop(self) -> None:
        """Forget the model, end what it is split over, and give its memory back."""
        if self._device is not None:
            self._device.close()
        self._device = None
        self._key = None
        gc.unfreeze()
        gc.collect()

    def abandon(self) -> None:
        """End the processes that a model is split over without a word to them, as this one ends."""
        if self._device is not None:
            self._device.abandon()

    def _make(self, config: RunConfig) -> Device:
        if config.executor.kind == "simulated":
            return simulated_device(config)
        from harness.runs.torch_device import TorchDevice

        ranks = config.engine.tensor_parallel
        return TorchDevice(config.model, config.device, tensor_parallel=ranks)


class CheckedDevices(DeviceCache):
    """The cache of a process that another machine, or a scheduler's environment, may have started:
    it does no run that was planned for another device."""

    def __init__(self) -> None:
        super().__init__()
        self._found: dict[DeviceConfig, str] = {}

    def check(self, job: Job) -> None:
        if not job.is_timed:
            return
        from harness.runs.torch_device import describe_device

        device = job.config.device
        if device not in self._found:
            self._found[device] = describe_device(device)
        if self._found[device] != job.device:
            raise ConfigError(
                f"planned for {job.device}, but where it was launched there is "
                f"{self._found[device]}: its numbers would be taken for the other's. Have the "
                "launcher give all jobs the same (hydra.launcher.constraint, gpus_per_node, "
                "cpus_per_task, Ray's ray.remote.num_gpus; device.threads for a CPU)"
            )
