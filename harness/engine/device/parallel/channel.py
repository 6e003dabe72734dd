"""How rank 0's commands and steps reach every other rank: a broadcast each."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist

from harness.engine.device.batch import Int32
from harness.engine.device.parallel.commands import Command
from harness.engine.executor import RankLostError

_COMMAND, _STEP, _END = 0, 1, 2


class Channel:
    """Two broadcasts a message from rank 0: what it is and how long, then itself, if it is more.

    group: of all ranks, on the host (gloo), with a timeout that outlasts every pause between
    requests. A peer that ends closes its connection, which ends whoever waits for it at once.
    diagnosed: see `RankGroup`.
    """

    def __init__(
        self, group: dist.ProcessGroup, diagnosed: Callable[[RuntimeError], RankLostError]
    ) -> None:
        self._group = group
        self._diagnosed = diagnosed

    def send_command(self, command: Command) -> None:
        """On rank 0."""
        self._send(_COMMAND, np.frombuffer(pickle.dumps(command), dtype=np.uint8))

    def send_end(self) -> None:
        """On rank 0: nothing more comes."""
        self._broadcast(torch.tensor([_END, 0]))

    def send_step(self, numbers: Int32) -> int:
        """On rank 0; bytes that every other rank receives."""
        return self._send(_STEP, numbers.view(np.uint8))

    def receive(self) -> Command | Int32 | None:
        """On any other rank: what rank 0 sends next, None where nothing more comes."""
        header = torch.empty(2, dtype=torch.int64)
        self._broadcast(header)
        kind, num_bytes = header.tolist()
        if kind == _END:
            return None
        payload = torch.empty(num_bytes, dtype=torch.uint8)
        self._broadcast(payload)
        if kind == _STEP:
            return payload.numpy().view(np.int32)
        command: Command = pickle.loads(payload.numpy().tobytes())
        return command

    def _send(self, kind: int, payload: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> int:
        header = torch.tensor([kind, len(payload)])
        self._broadcast(header)
        self._broadcast(torch.from_numpy(payload.copy()))
        return header.nbytes + len(payload)

    def _broadcast(self, tensor: torch.Tensor) -> None:
        try:
            dist.broadcast(tensor, src=0, group=self._group)
        except RuntimeError as error:
            raise self._diagnosed(error) from error
