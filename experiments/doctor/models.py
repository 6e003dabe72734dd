"""The largest model presets that fit into a memory."""

from __future__ import annotations

import functools

from experiments.doctor.checks import Check
from harness.engine.device.model_shape import model_preset, model_presets, model_shape

_GROUP = "models"
_GIB = 2**30

_LEFT_FOR_KV = 1.1
"""Weights times this: a tenth as much again for activations and a pool."""


def model_check(where: str, free_bytes: int) -> Check:
    """Which presets fit into `free_bytes`. where: of the memory, in words."""
    weights = _weights()
    fit = {name: size for name, size in weights.items() if _LEFT_FOR_KV * size <= free_bytes}
    others = {name: size for name, size in weights.items() if name not in fit}
    if not fit:
        found = f"none fits into {free_bytes / _GIB:.1f} GiB"
        return Check(_GROUP, where, "failed", found, "free memory", is_needed=False)
    largest = max(fit, key=fit.__getitem__)
    found = f"up to model={largest} ({fit[largest] / _GIB:.1f} GiB of weights)"
    if not others:
        return Check(_GROUP, where, "ok", found)
    next_one = min(others, key=others.__getitem__)
    needed = _LEFT_FOR_KV * others[next_one] / _GIB
    way_out = f"model={next_one} takes {needed:.0f} GiB; executor=simulated runs them all"
    return Check(_GROUP, where, "note", found, way_out)


@functools.cache
def _weights() -> dict[str, int]:
    """Bytes of the weights of each preset."""
    names = [name for name in model_presets() if name != "hub"]
    return {name: model_shape(model_preset(name)).weight_bytes for name in names}
