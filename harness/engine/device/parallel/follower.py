"""A rank other than 0: carries out what rank 0 says, until it says that nothing more comes."""

from __future__ import annotations

import gc
import sys
import traceback

import torch
from torch._C._distributed_c10d import Store

from harness.engine import process_end
from harness.engine.device.models import LoadedModel, load_model
from harness.engine.device.parallel.address import Address
from harness.engine.device.parallel.commands import (
    BuildPool,
    Command,
    LoadModel,
    ReleasePool,
    Reserve,
)
from harness.engine.device.parallel.rendezvous import (
    Met,
    device_of,
    join_store,
    leave_last_words,
    meet,
    part,
    take_device,
    what_failed,
)
from harness.engine.device.parallel.step_message import StepMessage, StepReader
from harness.engine.device.pooled_model import PooledModel, PoolSpec
from harness.engine.executor import RankLostError


def follow(address: Address, rank: int, size: int, local_rank: int) -> int:
    """Serve one group of ranks; the exit status of a process that does no more than that.
    local_rank: its number among those on its machine."""
    store = join_store(address)
    me = f"rank {rank} of {size}"
    try:
        device = device_of(store)
        take_device(device, local_rank)
        met = meet(store, rank, size, device, _diagnosed)
        with torch.inference_mode():
            _Follower(met).serve()
    except RankLostError as error:
        print(f"{me} ends: {error}", file=sys.stderr, flush=True)
        return process_end.EXIT_RANK_LOST
    except Exception as error:  # whatever it is, rank 0 is to tell
        if not isinstance(error, ValueError):
            traceback.print_exc(file=sys.stderr)
        words = " ".join(f"{type(error).__name__}: {error}".split())
        _try_to_say(store, rank, f"{me} failed ({words})")
        return 1
    finally:
        part()
        gc.collect()  # of torchrun's processes each lives on, and its GPU is to be empty
        torch.cuda.empty_cache()
    return 0


class _Follower:
    def __init__(self, met: Met) -> None:
        self._met = met
        self._loaded: LoadedModel | None = None
        self._pooled: PooledModel | None = None
        self._reader: StepReader | None = None

    def serve(self) -> None:
        """Everything that comes, in order."""
        while True:
            received = self._met.channel.receive()
            if received is None:
                return
            if isinstance(received, Command):
                self._obey(received)
            else:
                assert self._reader is not None  # no step comes before a pool
                self._step(self._reader.decode(received))

    def _obey(self, command: Command) -> None:
        match command:
            case LoadModel(config, device, threads):
                torch.set_num_threads(threads)
                torch.backends.cuda.matmul.allow_tf32 = False
                self._loaded = load_model(config, device, self._met.ranks)
            case BuildPool(spec):
                self._build(spec)
            case Reserve(max_tokens, max_samples):
                assert self._pooled is not None  # rank 0 has built its own, too
                self._pooled.reserve(max_tokens, max_samples)
            case ReleasePool():
                self._pooled = self._reader = None
                gc.collect()
                torch.cuda.empty_cache()

    def _build(self, spec: PoolSpec) -> None:
        assert self._loaded is not None  # the model comes first
        self._pooled = PooledModel(self._loaded, spec)
        num_groups = len(self._pooled.pool.groups)
        self._reader = StepReader(spec.max_seqs, spec.max_len, spec.page_size, num_groups)

    def _step(self, message: StepMessage) -> None:
        assert self._pooled is not None  # as there is a reader
        self._pooled.move_pages(message.saves, message.copies, message.restores)
        if message.batch is not None:
            self._pooled.runner.forward(message.batch)


def _diagnosed(error: RuntimeError) -> RankLostError:
    """A follower is connected to all, and need not know whose end it saw first."""
    return RankLostError(f"another rank is gone ({what_failed(error)})")


def _try_to_say(store: Store, rank: int, words: str) -> None:
    process_end.leave_last_words(words)
    try:
        leave_last_words(store, rank, words)
    except RuntimeError:
        print(f"{words}; rank 0 is gone, too", file=sys.stderr, flush=True)
