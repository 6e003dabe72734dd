"""Decode steps of the engine on a model of Llama 3.1 8B's shape, beside their roofline and beside
other engines.

    python -m benchmarks.engine --folder results/gpu/engine

Every request is there at the start with a prompt as long as the context; measured are the steps in
which all of them decode. A step's roofline is the sum over its operations of max(bytes / read
bandwidth, FLOP / rate of a matrix product), both measured in this process. Peers run the same
requests in a process of their own; their tokens/s are those of the tokens between a short and a
longer output, so that prompts cancel out.
"""

from __future__ import annotations

import gc
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks import machine
from benchmarks.telemetry import Telemetry
from benchmarks.timing import timer_for
from experiments.gpu.child import Task, conclude, guarded, parser, task
from experiments.gpu.processes import run_to_limit
from experiments.gpu.rows import RowLog
from harness.config import AttentionConfig, DeviceConfig, EngineConfig, KVConfig, RunConfig
from harness.engine.cost.gpu import Gpu
from harness.engine.cost.roofline import Efficiency, Roofline
from harness.engine.cost.step_work import StepWork
from harness.engine.device.model_shape import ModelShape, model_preset
from harness.engine.executor import CaptureReport
from harness.engine.request import Request, Workload
from harness.measure.record_files import KeptRecords
from harness.runs.build import prepare
from harness.runs.torch_device import TorchDevice

PEERS = ("generate_batch", "vllm")
_UNLIMITED = 1e30


class Sizes(NamedTuple):
    """shapes: (sequences, context). steps: measured, after `settling` ones that are not. budget:
    tokens a step may compute."""

    model: str
    shapes: Sequence[tuple[int, int]]
    steps: int
    settling: int
    budget: int
    page_size: int
    short_output: int


GPU = Sizes("llama_3_1_8b", ((64, 1024), (256, 1024), (64, 4096)), 64, 4, 8192, 16, 8)
DRY = Sizes("tiny", ((2, 12),), 2, 1, 64, 16, 2)
_SWITCHES = ("overlap", "cuda_graph")


def main() -> int:
    given = task(parser(__doc__))
    sizes = DRY if given.dry else GPU
    device = torch.device("cpu" if given.dry else "cuda")
    log, timer = given.log(), timer_for(device)
    rates = {}
    for case, measure in (
        ("read bandwidth", machine.read_row),
        ("matrix product", machine.matrix_row),
    ):
        values = measure(timer, device)
        rates[case] = float(values["value"])
        log.add(case, bench="rate", **values)
        print(f"{case}: {values['value']:,.1f} {values['unit']}", flush=True)
    ours(given, log, sizes, device, rates)
    if device.type == "cuda":  # the peers' processes need the memory
        gc.collect()
        torch.cuda.empty_cache()
    for peer in PEERS:
        for batch, context in sizes.shapes:
            beside(given, log, sizes, peer, batch, context)
    return conclude(log)


def ours(
    given: Task, log: RowLog, sizes: Sizes, device: torch.device, rates: dict[str, float]
) -> None:
    """Every shape with everything on; the first with each fast path off."""
    settings: list[tuple[tuple[int, int], str, dict[str, Any]]] = [
        (shape, "engine", {}) for shape in sizes.shapes
    ]
    for switch in _SWITCHES:
        settings.append((sizes.shapes[0], f"engine, {switch}=false", {switch: False}))
    made: list[TorchDevice] = []
    for (batch, context), contender, changes in settings:
        case = f"{batch} x {context}, {contender}"
        said = asked(contender, batch, context)
        if log.is_done(case):
            continue
        if given.budget.left_s < 0:
            log.add(case, "cut", **said)
            continue

        def measure(
            case: str = case, batch: int = batch, context: int = context,
            contender: str = contender, changes: dict[str, Any] = changes,
        ) -> None:  # fmt: skip
            config = run_config(sizes, device, batch, changes)
            if not made:
                made.append(TorchDevice(config.model, config.device))
            values = decode_steps(config, made[0], batch, context, sizes, rates)
            values |= asked(contender, batch, context)
            values |= {switch: getattr(config.engine, switch) for switch in _SWITCHES}
            log.add(case, **values, **Telemetry().sample())
            print(
                f"{case}: {values['decode_tokens_per_s']:,.0f} tokens/s, step "
                f"{values['step_ms']:.2f} ms, {values['roofline_share']:.0%} of its roofline",
                flush=True,
            )

        guarded(log, case, measure, **said)


def asked(contender: str, batch: int, context: int) -> dict[str, Any]:
    """What a row says that has no figure."""
    return {
        "bench": "decode_steps", "contender": contender, "batch": batch, "context": context,
    }  # fmt: skip


def run_config(
    sizes: Sizes, device: torch.device, batch: int, changes: dict[str, Any]
) -> RunConfig:
    """The engine as a run would have it."""
    engine = EngineConfig(token_budget=sizes.budget, max_num_seqs=batch, watermark=0.0, **changes)
    return RunConfig(
        model=model_preset(sizes.model),
        kv=KVConfig(page_size=sizes.page_size),
        engine=engine,
        device=DeviceConfig(kind="cpu" if device.type == "cpu" else "cuda"),
        attention=AttentionConfig(backend="triton"),
    )


def decode_steps(
    config: RunConfig,
    device: TorchDevice,
    batch: int,
    context: int,
    sizes: Sizes,
    rates: dict[str, float],
) -> dict[str, Any]:
    """Serve once and look at the steps in which all sequences decode."""
    prefill_steps = -(-batch * context // (sizes.budget - batch))
    output = sizes.steps + sizes.settling + prefill_steps + 1
    num_pages = batch * (-(-(context + output) // sizes.page_size) + 1)
    records = KeptRecords()
    work = workload(batch, context, output, device.shape.vocab_size)
    run = prepare(config, work, num_pages, device, records)
    try:
        run.run()
    finally:
        run.executor.close()
    captured = getattr(run.executor, "captured", CaptureReport())
    capture = {"capture_s": captured.seconds, "capture_bytes": captured.num_bytes}
    return summarise(records, batch, sizes.settling, device.shape, rates) | capture


def summarise(
    records: KeptRecords, batch: int, settling: int, shape: ModelShape, rates: dict[str, float]
) -> dict[str, Any]:
    """Medians over the steps in which `batch` sequences decode and nothing else happens, as in
    the step before, without the first `settling` ones. A step lasts from the end of the one before
    to its own."""
    steps = records.steps
    ends_s = [step.start_s + step.duration_s for step in steps]
    decodes = [s.num_prefill_tokens == 0 and s.num_decode_tokens == batch for s in steps]
    whole = [i for i in range(1, len(steps)) if decodes[i - 1] and decodes[i]][settling:]
    if not whole:
        raise RuntimeError(f"no step in which all {batch} sequences decode")
    step_s = [ends_s[i] - ends_s[i - 1] for i in whole]
    least_s = [roofline_s(shape, batch, records.entries[i].token, rates) for i in whole]
    values: dict[str, Any] = {
        "num_steps": len(whole),
        "step_ms": 1e3 * median(step_s),
        "step_p10_ms": 1e3 * float(np.percentile(step_s, 10)),
        "step_p90_ms": 1e3 * float(np.percentile(step_s, 90)),
        "kv_tokens": int(median(records.entries[i].token for i in whole)),
        "roofline_ms": 1e3 * median(least_s),
        "decode_tokens_per_s": batch / median(step_s),
    }
    values["roofline_share"] = values["roofline_ms"] / values["step_ms"]
    for name in ("device", "host"):
        found = [getattr(steps[i], f"{name}_us") for i in whole]
        if not any(map(math.isnan, found)):
            values[f"{name}_ms"] = median(found) / 1e3
    return values


def roofline_s(shape: ModelShape, batch: int, kv_tokens: int, rates: dict[str, float]) -> float:
    """The least that a step takes in which `batch` sequences read `kv_tokens` tokens of KV."""
    gpu = Gpu(
        0, 1e9 * rates["read bandwidth"], 1e12 * rates["matrix product"], _UNLIMITED, _UNLIMITED
    )
    bytes_a_token = shape.kv_bytes_per_token
    roofline = Roofline(
        gpu, shape, page_bytes=bytes_a_token, token_bytes=bytes_a_token,
        efficiency=Efficiency(gemm=1.0, attention=1.0, bandwidth=1.0),
    )  # fmt: skip
    work = StepWork(
        num_tokens=batch,
        num_sequences=batch,
        decode_pages=kv_tokens,
        decode_pairs=kv_tokens * shape.num_layers,
        num_logits=batch,
    )
    return roofline.work_s(work)


def workload(batch: int, context: int, output: int, vocab: int) -> Workload:
    """`batch` requests at once, outputs forced to `output` given tokens."""
    rng = np.random.default_rng(0)
    requests = tuple(
        Request(
            index, 0.0, tuple(rng.integers(3, vocab, context).tolist()), output,
            forced_ids=tuple(rng.integers(3, vocab, output).tolist()),
        )
        for index in range(batch)
    )  # fmt: skip
    return Workload("decode steps", requests, "")


def beside(given: Task, log: RowLog, sizes: Sizes, peer: str, batch: int, context: int) -> None:
    """One shape by another engine, in a process that ends with it."""
    case = f"{batch} x {context}, {peer}"
    facts = asked(peer, batch, context)
    if log.is_done(case):
        return
    if given.budget.left_s < 5:
        log.add(case, "cut", **facts)
        return
    command = [
        sys.executable, "-m", "benchmarks.gpu_peers", peer, sizes.model, str(batch), str(context),
        str(sizes.short_output), str(sizes.short_output + sizes.steps),
    ]  # fmt: skip
    root = Path(__file__).resolve().parents[1]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    done = run_to_limit(command, given.budget.left_s, cwd=root, **pipes)
    if done is None:
        log.add(case, "cut", **facts)
        return
    lines = done.stdout.strip().splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError):
        tail = " ".join(done.stderr.split())[-400:]
        log.add(case, "failed", error=f"exit status {done.returncode}: {tail}", **facts)
        return
    log.add(case, answer.pop("status"), **facts, **answer)
    print(f"{case}: {answer}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
