"""Small arrays on their way between host and device, without waiting for either."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_ALIGNMENT = 16
"""Bytes; what kernels may assume of a tensor's address."""

Array = npt.NDArray[Any]


class Field(NamedTuple):
    """A tensor among others in one buffer."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class _Staged:
    """The same tensors in one buffer on the device and in several, pinned, on the host."""

    def __init__(self, fields: Sequence[Field], device: torch.device, depth: int) -> None:
        num_bytes = _num_bytes(fields)
        self._on_device = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
        self.device = _views(self._on_device, fields)
        on_gpu = device.type == "cuda"
        self._host = [
            torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=on_gpu) for _ in range(depth)
        ]
        self._arrays = [
            {name: view.numpy() for name, view in _views(buffer, fields).items()}
            for buffer in self._host
        ]
        self._turn = 0


class StagedInputs(_Staged):
    """Tensors at fixed addresses on the device, written by the host in one copy.

    device: the tensors, by name. depth: host buffers, used in turn: the host waits in `begin`
    only where it is so many copies ahead of the device.
    """

    def __init__(self, fields: Sequence[Field], device: torch.device, depth: int = 2) -> None:
        super().__init__(fields, device, depth)
        self._taken: list[Any] | None = None
        if device.type == "cuda":
            self._taken = [torch.cuda.Event() for _ in range(depth)]  # type: ignore[no-untyped-call]

    def begin(self) -> dict[str, Array]:
        """Arrays to be filled by the host, with what they held some copies ago."""
        self._turn = (self._turn + 1) % len(self._host)
        if self._taken is not None:
            self._taken[self._turn].synchronize()
        return self._arrays[self._turn]

    def send(self, num_bytes: int | None = None) -> None:
        """Copy what `begin` gave, or so many first bytes of it, behind all work so far."""
        source = self._host[self._turn]
        self._on_device[:num_bytes].copy_(source[:num_bytes], non_blocking=True)
        if self._taken is not None:
            self._taken[self._turn].record()


class StagedOutputs(_Staged):
    """Tensors at fixed addresses on the device, read by the host in one copy, some steps late.

    device: the tensors, by name. depth: copies that may be under way or unread at one time.
    """

    def __init__(self, fields: Sequence[Field], device: torch.device, depth: int = 3) -> None:
        super().__init__(fields, device, depth)

    def fetch(self) -> dict[str, Array]:
        """Copy to the host, behind all work so far; the arrays hold it once that is done, and
        until as many more fetches as there are buffers."""
        self._turn = (self._turn + 1) % len(self._host)
        self._host[self._turn].copy_(self._on_device, non_blocking=True)
        return self._arrays[self._turn]


def upload(arrays: Sequence[Array], device: torch.device) -> list[Tensor]:
    """`arrays` on the device, in one copy that the host does not wait for; on a CPU they are
    not copied at all."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    fields = [
        Field(str(index), torch.from_numpy(array).dtype, array.shape)
        for index, array in enumerate(arrays)
    ]
    packed = torch.empty(_num_bytes(fields), dtype=torch.uint8, pin_memory=device.type == "cuda")
    for view, array in zip(_views(packed, fields).values(), arrays, strict=True):
        np.copyto(view.numpy(), array)
    return list(_views(packed.to(device, non_blocking=True), fields).values())


def _num_bytes(fields: Sequence[Field]) -> int:
    return sum(_padded(field) for field in fields)


def _padded(field: Field) -> int:
    size = math.prod(field.shape) * field.dtype.itemsize
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _views(buffer: Tensor, fields: Sequence[Field]) -> dict[str, Tensor]:
    views, offset = {}, 0
    for field in fields:
        size = math.prod(field.shape) * field.dtype.itemsize
        views[field.name] = buffer[offset : offset + size].view(field.dtype).view(field.shape)
        offset += _padded(field)
    return views
