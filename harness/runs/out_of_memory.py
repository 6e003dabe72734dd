"""A run that asks for more memory than there is ends as a row that says what would help."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from harness.config import RunConfig
from harness.runs.pool_size import BesidePool

_ASKED = re.compile(
    r"(?:tried to allocate|unable to allocate)\s+([\d.]+)\s*(bytes|[KMGT]iB)", re.IGNORECASE
)
_SAID_SO = re.compile(
    r"out of memory|can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE
)


class OutOfMemoryError(MemoryError):
    """The message is one line: what was asked for, what took the memory, and the way out."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is about memory, of the host or of a device, whoever raised it."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_SAID_SO.search(str(error)))


@contextmanager
def explained(config: RunConfig, pool_bytes: int, beside: BesidePool | None) -> Iterator[None]:
    """Turns whatever says "out of memory" inside into an OutOfMemoryError; the rest passes."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error) or isinstance(error, OutOfMemoryError):
            raise
        raise OutOfMemoryError(explanation(error, config, pool_bytes, beside)) from None


def explanation(
    error: BaseException, config: RunConfig, pool_bytes: int, beside: BesidePool | None
) -> str:
    """What `explained` says."""
    said = " ".join(str(error).split())
    found = _ASKED.search(said)
    asked = f"{found[1]} {found[2]} more were asked for" if found else "more memory was asked for"
    if said and not found:
        asked += f" ({said})"
    parts = [f"the pool holds {_gib(pool_bytes)}"]
    if beside is not None:
        parts += [
            f"weights {_gib(beside.weight_bytes)}",
            f"a step's activations {_gib(beside.activation_bytes)} ({beside.source})",
        ]
    engine, kv = config.engine, config.kv
    pool = "kv.memory_fraction"
    if beside is None:
        pool = "kv.pool_tokens" if kv.pool_tokens is not None else "kv.pool_demand"
    ways = [pool, f"engine.token_budget={engine.token_budget}"]
    ways += ["engine.swap_tokens"] if engine.preemption == "swap" else []
    return (
        f"out of memory: {asked}; {', '.join(parts)}: lower {', '.join(ways)} "
        f"or engine.max_num_seqs={engine.max_num_seqs}"
    )


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
