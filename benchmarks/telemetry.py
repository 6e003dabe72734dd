"""Clocks, power and temperature of the GPU while something is measured."""

from __future__ import annotations

from typing import Any

import torch


class Telemetry:
    """Samples torch's current GPU through NVML where its Python package is there; nothing
    otherwise. It only reads."""

    def __init__(self) -> None:
        self._nvml: Any = None
        try:
            import pynvml

            pynvml.nvmlInit()
            self._handle = _handle(pynvml)
        except Exception:  # the package, the library or the driver is not there
            return
        self._nvml = pynvml

    def sample(self) -> dict[str, float]:
        """sm_mhz, memory_mhz, power_w, temperature_c and throttle (NVML's reasons), as known."""
        nvml = self._nvml
        if nvml is None:
            return {}
        read = {
            "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(self._handle, nvml.NVML_CLOCK_SM),
            "memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(self._handle, nvml.NVML_CLOCK_MEM),
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(self._handle) / 1e3,
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(
                self._handle, nvml.NVML_TEMPERATURE_GPU
            ),
            "throttle": lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle),
        }
        found: dict[str, float] = {}
        for name, ask in read.items():
            try:
                found[name] = float(ask())
            except nvml.NVMLError:
                continue
        return found


def _handle(nvml: Any) -> Any:
    """By UUID: NVML knows nothing of CUDA_VISIBLE_DEVICES and may count GPUs in another order."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        uuid = getattr(properties, "uuid", None)
        if uuid is not None:
            return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{str(uuid).removeprefix('GPU-')}")
    return nvml.nvmlDeviceGetHandleByIndex(0)
