"""Rank 0's hold on the other ranks: starts them, tells them what to do, sees when one is gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

from harness.engine.device.model_shape import ModelConfig
from harness.engine.device.parallel.commands import Command, LoadModel
from harness.engine.device.parallel.ranks import RankGroup
from harness.engine.device.parallel.rendezvous import (
    last_words,
    meet,
    open_store,
    part,
    take_device,
    what_failed,
)
from harness.engine.device.parallel.spawned import Starter
from harness.engine.device.parallel.step_message import StepMessage, encode
from harness.engine.executor import RankLostError


class Followers:
    """All ranks but 0, with a model that is split over them and this process.

    size: ranks, this one included. starter: brings them here.
    Raises RankLostError as soon as one is met that is gone; then all of them are.
    """

    def __init__(
        self,
        size: int,
        model: ModelConfig,
        device: Literal["cpu", "cuda"],
        threads: int,
        starter: Starter,
    ) -> None:
        self._size = size
        self._starter = starter
        self._store, address = open_store(device, self._starter.host)
        self.is_open = True
        with self.ended_on_error():
            take_device(device, 0)
            self._starter.start(address, size)
            met = meet(self._store, 0, size, device, self._diagnosed)
            self.ranks: RankGroup = met.ranks
            self._channel = met.channel
            self.tell(LoadModel(model, device, threads))

    def tell(self, command: Command) -> None:
        """Every rank does `command`; this one goes on meanwhile."""
        self._check_open()
        self._channel.send_command(command)

    def step(self, message: StepMessage) -> int:
        """Every rank carries out `message`; bytes that each was sent."""
        self._check_open()
        return self._channel.send_step(encode(message))

    @contextmanager
    def ended_on_error(self) -> Iterator[None]:
        """What is done together within it is done by all or ends them: a rank that waits for one
        that has failed would wait for ever."""
        self._starter.is_awaited = True
        try:
            yield
        except BaseException:
            self.close()
            raise
        finally:
            self._starter.is_awaited = False

    def close(self) -> None:
        """End them, whatever they are doing."""
        if not self.is_open:
            return
        if not self._starter.is_awaited:
            with suppress(RankLostError):
                self._channel.send_end()
        self.is_open = False
        self._starter.end()
        part()

    def abandon(self) -> None:
        """End them from a signal's handler: in the middle of a message, maybe."""
        self.is_open = False
        self._starter.end()

    def _check_open(self) -> None:
        if not self.is_open:
            raise RankLostError(f"the {self._size} ranks have ended: build the device anew")

    def _diagnosed(self, error: RuntimeError) -> RankLostError:
        """What to say of a collective that failed: what a rank said last, else how it ended."""
        how_it_ended = self._starter.reason_lost()
        reason = last_words(self._store, range(1, self._size)) or how_it_ended
        if reason is None:
            who = "rank 1 of 2" if self._size == 2 else f"one of {self._size} ranks"
            reason = f"{who} is gone ({what_failed(error)})"
        return RankLostError(reason)
