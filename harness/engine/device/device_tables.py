"""The block tables' copy on the device, kept up to date by what changed."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from harness.engine.device.batch import TableChange
from harness.engine.device.staging import Field, StagedInputs

_MOST_AT_ONCE = 8192
"""Changed entries in one copy: prompts of 128 thousand tokens in pages of 16."""


class DeviceTables:
    """tensor: (G, rows, pages) int32 at a fixed address, as the tables of a `BatchBuilder`; rows
    that no sequence has hold what the last one left."""

    def __init__(self, tables: npt.NDArray[np.int32], device: torch.device) -> None:
        self._tables = tables
        self.tensor: Tensor = torch.zeros(tables.shape, dtype=torch.int32, device=device)
        fields = [Field("changes", torch.int64, (_MOST_AT_ONCE, 2))]
        self._staged = StagedInputs(fields, device, depth=4)

    def update(self, changes: Iterable[TableChange]) -> None:
        """Bring the device's entries up to the host's, in as many launches as one copy and one
        write (or several, where more than fits in one copy is new)."""
        _, num_rows, width = self._tables.shape
        spans = []
        for group, row, first, end in changes:
            begin = (group * num_rows + row) * width
            spans.append(np.arange(begin + first, begin + end))
        if not spans:
            return
        places = np.concatenate(spans)
        page_ids = self._tables.reshape(-1)[places]  # as they are now, so order does not matter
        for begin in range(0, len(places), _MOST_AT_ONCE):
            part = slice(begin, begin + _MOST_AT_ONCE)
            self._send(places[part], page_ids[part])

    def _send(self, places: npt.NDArray[np.int64], page_ids: npt.NDArray[np.int32]) -> None:
        count = len(places)
        array = self._staged.begin()["changes"]
        array[:count, 0], array[:count, 1] = places, page_ids
        self._staged.send(array[:count].nbytes)
        there = self._staged.device["changes"][:count]
        self.tensor.view(-1).index_put_((there[:, 0],), there[:, 1].int())
