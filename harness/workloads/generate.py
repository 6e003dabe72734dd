"""From a config to the requests of a run."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

import harness.workloads as package
from harness.engine.request import Workload
from harness.workloads.choices import unknown
from harness.workloads.config import WorkloadConfig
from harness.workloads.context import Context, TextTokenizer
from harness.workloads.streams import TokenSource

Generator = Callable[[WorkloadConfig, Context], Workload]


def generate(
    config: WorkloadConfig,
    *,
    seed: int,
    vocab_size: int,
    tokenizer: TextTokenizer | None = None,
    eos_ids: frozenset[int] = frozenset(),
    longest_len: int | None = None,
) -> Workload:
    """The workload of `config`: a function of these arguments alone.

    tokenizer: for traces of text, the built-in byte tokenizer without one. eos_ids: end free
    outputs, and are never drawn as random tokens. longest_len: tokens that a trace without
    `length_scale` or `max_len` is fitted to. Raises ValueError with the key to change
    where the config, the trace or the vocabulary does not do.
    """
    known = generators()
    if config.generator not in known:
        raise unknown("workload.generator", config.generator, known)
    tokens = TokenSource(seed, vocab_size, config.first_regular_id, eos_ids)
    return known[config.generator](config, Context(seed, tokens, tokenizer, eos_ids, longest_len))


def generators() -> dict[str, Generator]:
    """Every module of this package with a NAME and `generate(config, context)`."""
    found: dict[str, Generator] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        name = getattr(module, "NAME", None)
        if name is not None:
            found[name] = module.generate
    return found
