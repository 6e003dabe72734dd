"""Allocators that say no at random, to see whether an engine copes."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import wraps
from typing import Any

from allocators.base import KVCacheAllocator

REQUESTS = ("allocate", "append", "fork", "rebranch", "swap_in")
"""Methods that may say that there is no room."""


def faulty(
    cls: type[KVCacheAllocator], probability: float, seed: int = 0
) -> type[KVCacheAllocator]:
    """A subclass of the same name and options that refuses each request for room with this
    probability, whatever room there is. Nothing has changed then, as the contract wants; what
    the base class makes of several requests (its `swap_in`) may be refused half-way.

    ValueError for a probability outside 0 .. 1. At 1 nothing is ever granted.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"probability={probability} is not between 0 and 1")

    def construct(self: Any, *arguments: Any, **options: Any) -> None:
        cls.__init__(self, *arguments, **options)
        self._fault_rng = random.Random(seed)

    def refusable(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def request(self: Any, *arguments: Any, **named: Any) -> Any:
            if self._fault_rng.random() < probability:
                return None
            return method(self, *arguments, **named)

        return request

    namespace: dict[str, Any] = {name: refusable(getattr(cls, name)) for name in REQUESTS}
    namespace["__init__"] = wraps(cls.__init__)(construct)
    namespace["__module__"] = cls.__module__
    return type(f"Faulty{cls.__name__}", (cls,), namespace)
