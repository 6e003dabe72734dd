"""Kernels at the shapes of Llama 3.1 8B: time, bandwidth or rate, and their share of what this
machine reaches.

    python -m benchmarks.kernels --folder results/gpu/kernels [--device cuda|cpu] [--tune]

(a) decode attention by batch and context, beside other people's kernels; (b) one shape by page
size; prefill, page copies, swap, and the element-wise kernels. Medians by device events after a
warm-up, inputs rotated beyond the L2 cache, results checked once against the reference. A row goes
to FOLDER/rows.jsonl as soon as it is known; what is there already is not measured again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import layer_kernels, machine, other_kernels, tuning
from benchmarks.attention_peers import PEERS, AbsentError
from benchmarks.decode_cases import (
    Case,
    Inputs,
    Shape,
    Store,
    cost_of,
    error_of,
    make_inputs,
    our_calls,
)
from benchmarks.telemetry import Telemetry
from benchmarks.timing import Call, Timer, Timing, timer_for
from experiments.gpu.child import Task, conclude, guarded, parser, task
from experiments.gpu.rows import Row, RowLog
from kernels.backend import AttentionBackend, load

_ERROR_LIMIT = {torch.float32: 1e-4, torch.float16: 3e-3, torch.bfloat16: 2e-2}
_SHARE_OF_MEMORY = 0.45


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured. decode: (batch, context); pages: the shape of (b) and its page sizes."""

    shape: Shape
    decode: Sequence[tuple[int, int]]
    page_sizes: Sequence[int]
    pages_at: tuple[int, int]
    all_pages: Sequence[int]
    other: other_kernels.Sizes
    layer: layer_kernels.Sizes | None = None


_ALL_PAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
GPU = Sizes(
    Shape(32, 8, 128, torch.bfloat16),
    # large ones first: they decide most, should time run out
    (
        (64, 4096), (256, 4096), (64, 32768), (256, 32768), (8, 32768), (1, 512), (1, 4096),
        (8, 512), (64, 512), (256, 512), (8, 4096), (1, 32768),
    ),
    (16, 1),
    (64, 4096),
    _ALL_PAGES,
    other_kernels.GPU,
    layer_kernels.GPU,
)  # fmt: skip
CPU = Sizes(
    Shape(8, 4, 64, torch.float32),
    ((8, 512), (32, 2048)),
    (16, 1),
    (8, 2048),
    (1, 16, 256),
    other_kernels.CPU,
)
DRY = Sizes(
    Shape(4, 2, 16, torch.float16), ((1, 32), (2, 32)), (16, 1), (1, 32), (1, 16),
    other_kernels.DRY, layer_kernels.DRY,
)  # fmt: skip


class Bench:
    """Measures cases on one device and writes their rows."""

    def __init__(self, given: Task, device: torch.device, sizes: Sizes) -> None:
        self.log: RowLog = given.log()
        self.budget = given.budget
        self.device, self.sizes = device, sizes
        self.timer: Timer = timer_for(device)
        interpreted = "triton" if given.dry else "auto"
        self.backend: AttentionBackend = load(device.type, interpreted)
        self.telemetry = Telemetry()
        self.rates = {
            "read_gb_per_s": self._rate("read bandwidth", machine.read_row),
            "copy_gb_per_s": self._rate("copy bandwidth", machine.copy_row),
            "tflop_per_s": self._rate("matrix product", machine.matrix_row),
        }

    def _rate(self, case: str, measure: Any) -> float:
        """One of the machine's rates, measured in this process."""
        values = measure(self.timer, self.device)
        self.log.add(case, bench="rate", **values)
        print(f"{case}: {values['value']:,.1f} {values['unit']}", flush=True)
        return float(values["value"])

    def measure(
        self, case: str, bench: str, calls: Sequence[Call], *, capture: bool = True, **facts: Any
    ) -> Row:
        """Time `calls` and write the row; read_bytes, written_bytes and flops among `facts` become
        rates and shares. capture: as of `Timer.time`."""
        timing = self.timer.time(calls, capture=capture)
        values = {**timing._asdict(), **facts, **self.rated(timing, facts)}
        row = self.log.add(case, bench=bench, **values, **self.telemetry.sample())
        print(f"{case}: {timing.median_us:,.1f} us, {_brief(values)}", flush=True)
        return row

    def rated(self, timing: Timing, facts: dict[str, Any]) -> dict[str, float]:
        """Rates of what was moved and done, and shares of this machine's. Of what goes over a link,
        the link's rate alone."""
        read, written = facts.get("read_bytes", 0), facts.get("written_bytes", 0)
        if "link" in facts:
            return {"gb_per_s": read / timing.median_us / 1e3}
        moved = (read + written) / timing.median_us / 1e3
        found = {"gb_per_s": moved}
        limit = "copy_gb_per_s" if written > read / 2 else "read_gb_per_s"
        found["read_share"] = moved / self.rates["read_gb_per_s"]
        found["bandwidth_share"] = moved / self.rates[limit]
        if facts.get("flops"):
            found["tflop_per_s"] = facts["flops"] / timing.median_us / 1e6
            found["rate_share"] = found["tflop_per_s"] / self.rates["tflop_per_s"]
        return found

    def skips(self, case: str, **facts: Any) -> bool:
        """Whether `case` has its row, or no time is left for it: then its row says so, and
        `facts`."""
        if self.log.is_done(case):
            return True
        if self.budget.left_s < 0:
            self.log.add(case, "cut", **facts)
            return True
        return False


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--device", choices=("cuda", "cpu"), default=None)
    made.add_argument("--tune", action="store_true", help="sweep tiles, warps, stages and splits")
    given = task(made)
    on_cpu = given.dry or given.extra.device == "cpu" or not torch.cuda.is_available()
    sizes = DRY if given.dry else CPU if on_cpu else GPU
    bench = Bench(given, torch.device("cpu" if on_cpu else "cuda"), sizes)
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()  # what the rates were measured on
    store = make_store(bench)
    if given.extra.tune:
        tuning.run(bench, store, dry=given.dry)
        return conclude(bench.log)
    for batch, context in sizes.decode:
        for page in (*sizes.page_sizes, 0):
            case = Case(batch, context, page)
            decode(bench, store, case, "decode")
            for peer in PEERS:
                beside(bench, store, case, peer)
    for page in (0, *sizes.all_pages):
        decode(bench, store, Case(*sizes.pages_at, page), "pages")
    del store
    l2_bytes = machine.l2_bytes(bench.device)
    other_kernels.run(bench, sizes.shape, sizes.other, l2_bytes)
    if sizes.layer is not None:
        layer_kernels.run(bench, sizes.shape, sizes.layer, l2_bytes)
    return conclude(bench.log)


def make_store(bench: Bench) -> Store:
    """As many slots as the largest case needs that fits into a share of the memory, and no fewer
    than three L2 caches."""
    shape, l2_bytes = bench.sizes.shape, machine.l2_bytes(bench.device)
    wanted = max(batch * context for batch, context in (*bench.sizes.decode, bench.sizes.pages_at))
    if bench.device.type == "cuda":
        free = torch.cuda.mem_get_info(bench.device)[0]
        wanted = min(wanted, int(_SHARE_OF_MEMORY * free) // shape.token_bytes)
        wanted = max(wanted, 4 * l2_bytes // shape.token_bytes)
    return Store.filled(shape, wanted // 256 * 256 or wanted, bench.device, l2_bytes)


def _too_large(store: Store, case: Case) -> str:
    """Why there is no row: what the case needs, what there is, and what helps."""
    needed, held = (n * store.shape.token_bytes / 2**30 for n in (case.tokens, len(store.keys)))
    return (
        f"{case.batch} sequences of {case.context} tokens take {needed:.2f} GiB of keys and "
        f"values, the store holds {held:.2f} GiB ({_SHARE_OF_MEMORY:.0%} of the memory that was "
        "free): end what else is on the GPU, or take one with more memory"
    )


def decode(bench: Bench, store: Store, case: Case, group: str) -> None:
    """One case by our kernel, with pages or without."""
    contender = "paged" if case.page_size else "contiguous"
    name = _name(group, case, contender)
    said = asked(group, contender, case, store.shape)
    if bench.skips(name, **said):
        return
    if case.tokens > len(store.keys):
        bench.log.add(name, "absent", error=_too_large(store, case), **said)
        return

    def measure() -> None:
        inputs = make_inputs(store, case)
        calls = our_calls(bench.backend, inputs)
        error = _checked(calls[0](), inputs)
        bench.measure(name, group, calls, contender=contender, error_norm=error, **facts(inputs))

    guarded(bench.log, name, measure, **said)


def beside(bench: Bench, store: Store, case: Case, peer: str) -> None:
    """The same by somebody else's kernel; the quickest of its variants is the row."""
    name = _name("decode", case, peer)
    said = asked("decode", peer, case, store.shape)
    if (peer == "sdpa") != (case.page_size == 0) or bench.skips(name, **said):
        return
    if case.tokens > len(store.keys):
        bench.log.add(name, "absent", error=_too_large(store, case), **said)
        return

    def measure() -> None:
        inputs = make_inputs(store, case)
        try:
            variants = PEERS[peer](inputs)
        except AbsentError as absence:
            bench.log.add(name, "absent", error=str(absence), **said)
            return
        best = min(variants, key=lambda each: bench.timer.time(each.calls, limit_s=0.05).median_us)
        error = _checked(best.calls[0](), inputs)
        bench.measure(
            name, "decode", best.calls,
            contender=peer, variant=best.variant, error_norm=error, **facts(inputs),
        )  # fmt: skip

    guarded(bench.log, name, measure, **said)


def _checked(out: torch.Tensor, inputs: Inputs) -> float:
    error = error_of(out, inputs)
    limit = _ERROR_LIMIT[inputs.store.shape.dtype]
    if not error <= limit:
        raise RuntimeError(f"relative error {error:.2g} over {limit:g}: what is timed is wrong")
    return error


def asked(group: str, contender: str, case: Case, shape: Shape) -> dict[str, Any]:
    """What a row says that has no figure."""
    kv_bytes = case.tokens * shape.token_bytes
    return {"bench": group, "contender": contender, **case._asdict(), "kv_bytes": kv_bytes}


def facts(inputs: Inputs) -> dict[str, Any]:
    """What a row says of its case."""
    case, shape = inputs.case, inputs.store.shape
    cost = cost_of(case, shape)
    return {
        **case._asdict(),
        "sets": len(inputs.queries),
        "dtype": str(shape.dtype).removeprefix("torch."),
        "kv_bytes": case.tokens * shape.token_bytes,
        "read_bytes": cost.read_bytes,
        "written_bytes": cost.written_bytes,
        "flops": cost.flops,
    }


def _name(group: str, case: Case, contender: str) -> str:
    return f"{group}, {case.batch} x {case.context}, page {case.page_size}, {contender}"


def _brief(values: dict[str, Any]) -> str:
    words = [f"{values['gb_per_s']:,.1f} GB/s"]
    if "bandwidth_share" in values:
        words[0] += f" ({values['bandwidth_share']:.0%})"
    if "tflop_per_s" in values:
        words.append(f"{values['tflop_per_s']:,.1f} TFLOP/s ({values['rate_share']:.0%})")
    return ", ".join(words)


if __name__ == "__main__":
    sys.exit(main())
