"""From a config to the requests of a run."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

import harness.workloads as package
from harness import own_code
from harness.engine.request import Request, RequestOutline, Workload
from harness.numbers import shown
from harness.workloads.choices import unknown
from harness.workloads.config import WorkloadConfig
from harness.workloads.context import Context, TextTokenizer
from harness.workloads.streams import TokenSource

Generator = Callable[[WorkloadConfig, Context], Workload]

LATEST_S = 1e9
"""30 years: a clock of 64 bits still tells microseconds apart."""

MOST_TOKENS = 2**25
"""Of a request: what a list of its tokens takes then is a gigabyte."""


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
    tokens = TokenSource(seed, vocab_size, config.first_regular_id, eos_ids)
    context = Context(seed, tokens, tokenizer, eos_ids, longest_len)
    if not own_code.is_file(config.generator):
        known = generators()
        if config.generator not in known:
            raise unknown("workload.generator", config.generator, known)
        workload = known[config.generator](config, context)
        _check(workload)
        return workload
    what = f"workload.generator={config.generator}"
    own = own_code.load_function(config.generator, "workload.generator", "generate")
    with own_code.blaming(what, config.generator):
        workload = own(config, context)
        if not isinstance(workload, Workload):
            raise ValueError(f"gave {shown(workload)} and no Workload")
        _check(workload)
        for request in workload.requests:
            _check_own(request, vocab_size)
    return workload


def generators() -> dict[str, Generator]:
    """Every module of this package with a NAME and `generate(config, context)`."""
    found: dict[str, Generator] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        name = getattr(module, "NAME", None)
        if name is not None:
            found[name] = module.generate
    return found


def _check(workload: Workload) -> None:
    """Raise ValueError for requests that no engine can serve in order."""
    count = 0
    for count, outline in enumerate(workload.outlines(), start=1):
        if (wrong := _wrong(outline, count - 1)) is not None:
            raise ValueError(f"workload={workload.name}: request {count - 1} {wrong}")
    if not count:
        raise ValueError(f"workload={workload.name} has no requests")


def _wrong(outline: RequestOutline, index: int) -> str | None:
    if not 0 <= outline.arrival_s <= LATEST_S:
        return (
            f"arrives at {outline.arrival_s:g} s: must be from 0 to {LATEST_S:g}; are the trace's "
            "times of another unit, or workload.rate or workload.speed_up too small?"
        )
    known = outline.true_output_len
    output_len = 1 if known is None else known
    lengths = outline.num_prompt_tokens, output_len, outline.max_tokens
    if min(lengths) < 1 or sum(lengths[:2]) > MOST_TOKENS:
        return (
            f"has {lengths[0]:,} prompt and {output_len:,} output tokens: must be at least 1 each, "
            f"and {MOST_TOKENS:,} together; lower workload.max_len or workload.length_scale"
        )
    if outline.after_request is not None and not 0 <= outline.after_request < index:
        return f"follows request {outline.after_request}, which is not among those before it"
    return None


def _check_own(request: Request, vocab_size: int) -> None:
    """Raise ValueError for tokens that the model has not."""
    for name, ids in (("prompt_ids", request.prompt_ids), ("forced_ids", request.forced_ids or ())):
        wrong = [each for each in ids if type(each) is not int or not 0 <= each < vocab_size]
        if wrong:
            raise ValueError(
                f"request {request.request_id}: {name} holds {shown(wrong[0])}: must be ints from "
                f"0 to {vocab_size - 1}"
            )
