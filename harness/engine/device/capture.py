"""Recording a computation on fixed addresses, to be done again by one call."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Protocol

import torch

from harness.engine.executor import CaptureRefusedError, CaptureReport


class Capture(Protocol):
    """Makes a computation replayable; see `CudaCapture` and `Rehearsal`."""

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        """Do `run` once or more, and return what does it again."""
        ...

    def held_bytes(self) -> int:
        """Device memory that is in use, recordings included."""
        ...


class CudaCapture:
    """CUDA graphs that share one memory pool: of two of them never both run at one time, so the
    same temporaries serve all. To be given the largest computation first."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _capture_stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        main = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(main)
        with torch.cuda.stream(self._stream):  # whatever compiles or picks an algorithm does now
            run()
        main.wait_stream(self._stream)
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                run()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise CaptureRefusedError(
                f"a decode step cannot be captured in a CUDA graph ({error}): "
                "set engine.cuda_graph=false"
            ) from error
        finally:
            torch.cuda.set_stream(main)  # a capture that fails leaves its own stream current
        return graph.replay

    def held_bytes(self) -> int:
        torch.cuda.empty_cache()  # what is merely kept for later is nobody's
        return int(torch.cuda.memory_reserved(self._device))


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures: cuBLAS keeps a workspace for each stream that it ever worked on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def free_workspaces() -> None:
    """Give back what cuBLAS keeps for its streams; not while a captured graph is still to run."""
    torch._C._cuda_clearCublasWorkspaces()


class Rehearsal:
    """Stands in for CUDA graphs where there is no GPU: the same buffers and padding, and the
    computation done anew each time."""

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        run()
        return run

    def held_bytes(self) -> int:
        return 0


class CaptureWatch:
    """Takes the time and the memory of captures."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._start_s = time.perf_counter()
        self._held_before = capture.held_bytes()

    def report(self, sizes: tuple[int, ...]) -> CaptureReport:
        """Since this was made."""
        grown = max(0, self._capture.held_bytes() - self._held_before)
        return CaptureReport(sizes, time.perf_counter() - self._start_s, grown)


_SMALLEST = (1, 2, 4)
_FINE, _FINE_UPTO, _COARSE = 8, 256, 64


def graph_sizes(max_rows: int) -> tuple[int, ...]:
    """Numbers of rows to capture for steps of up to `max_rows`, ascending.

    1, 2, 4, then multiples of 8 up to 256, then multiples of 64, and `max_rows` itself. A padded
    row reads no KV and costs what a matrix product makes of it: nothing inside a tile, and tiles
    are 8 rows at the least and 64 or more for large batches. So padding up to 8, above 256 up to
    64, costs next to nothing; finer steps would cost time and memory at the start.
    """
    fine = math.ceil(min(max_rows, _FINE_UPTO) / _FINE) * _FINE
    sizes = {*_SMALLEST, *range(_FINE, fine + 1, _FINE)}
    sizes |= {*range(_FINE_UPTO + _COARSE, max_rows, _COARSE), max_rows}
    return tuple(sorted(size for size in sizes if size <= max_rows))
