"""One peer of benchmarks/peers.py in a process of its own: warm up, one timed run, one line."""

from __future__ import annotations

import json
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

NUM_REQUESTS = 64
VOCAB = 8192
_NO_EOS = VOCAB + 1


class Job(NamedTuple):
    """One request: its prompt, and how many tokens it must yield."""

    prompt: list[int]
    num_output: int


Serve = Callable[[list[Job]], list[list[int]]]


def jobs(seed: int = 0) -> list[Job]:
    """Lengths lognormal (sigma 0.5) around means of 128 and 130, clipped to 8 .. 600."""
    rng = np.random.default_rng(seed)

    def lengths(mean: float) -> list[int]:
        drawn = rng.lognormal(np.log(mean) - 0.5 * 0.5**2, 0.5, NUM_REQUESTS)
        return [int(n) for n in np.clip(np.round(drawn), 8, 600)]

    prompts, outputs = lengths(128), lengths(130)
    return [
        Job(rng.integers(3, VOCAB, prompt).tolist(), output)
        for prompt, output in zip(prompts, outputs, strict=True)
    ]


def engine(threads: int) -> Serve:
    """The engine as `python -m harness` runs it: paged, default schedule, ledger and all."""
    from harness.config import DeviceConfig, RunConfig
    from harness.engine.device.model_shape import model_preset
    from harness.engine.request import Request, Workload
    from harness.measure.record_files import KeptRecords
    from harness.runs.build import prepare
    from harness.runs.torch_device import TorchDevice

    config = RunConfig(model=model_preset("small"))
    device = TorchDevice(config.model, DeviceConfig(kind="cpu", threads=threads))

    def serve(work: list[Job]) -> list[list[int]]:
        requests = tuple(
            Request(i, 0.0, tuple(job.prompt), job.num_output, forced_len=job.num_output)
            for i, job in enumerate(work)
        )
        tokens = sum(r.max_len for r in requests)
        num_pages = tokens // config.kv.page_size + 2 * len(requests)
        records = KeptRecords()
        run = prepare(config, Workload("peers", requests, ""), num_pages, device, records)
        run.run()
        run.executor.close()
        return [record.chosen_ids for record in sorted(records.requests)]

    return serve


def _transformers_model(threads: int) -> Any:
    import torch

    from harness.engine.device.model_shape import model_preset
    from harness.engine.device.models import load_model

    torch.set_num_threads(threads)
    model = load_model(model_preset("small")).model
    model.set_attn_implementation("sdpa")
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def static_batches(threads: int, batch_size: int) -> Serve:
    """`model.generate` on left-padded batches in order; each runs to its longest output."""
    import torch

    model = _transformers_model(threads)

    def serve(work: list[Job]) -> list[list[int]]:
        outputs = []
        for first in range(0, len(work), batch_size):
            batch = work[first : first + batch_size]
            width = max(len(job.prompt) for job in batch)
            ids = torch.zeros((len(batch), width), dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, job in enumerate(batch):
                ids[row, width - len(job.prompt) :] = torch.tensor(job.prompt)
                mask[row, width - len(job.prompt) :] = 1
            longest = max(job.num_output for job in batch)
            with torch.inference_mode():
                full = model.generate(
                    ids,
                    attention_mask=mask,
                    max_new_tokens=longest,
                    min_new_tokens=longest,
                    do_sample=False,
                )
            rows = full[:, width:].tolist()
            outputs += [row[: job.num_output] for row, job in zip(rows, batch, strict=True)]
        return outputs

    return serve


def continuous_batching(threads: int) -> Serve:
    """transformers' continuous batching, on the CPU."""
    return serve_continuously(_transformers_model(threads), max_output=600, max_batch_tokens=512)


def serve_continuously(
    model: Any,
    *,
    max_output: int,
    max_batch_tokens: int | None,
    note_attention: Callable[[str], None] = lambda name: None,
) -> Serve:
    """The manager under `model.generate_batch`, which takes an output length a request.
    max_batch_tokens: None leaves pages, pool and batch to the manager. note_attention: told which
    attention it chose for the model."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    generation = GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=max_output)

    def serve(work: list[Job]) -> list[list[int]]:
        config = ContinuousBatchingConfig(allow_block_sharing=False)
        if max_batch_tokens is not None:
            tokens = sum(len(job.prompt) + job.num_output for job in work)
            config = ContinuousBatchingConfig(
                page_size=16,
                num_blocks=tokens // 16 + 2 * len(work),
                max_batch_tokens=max_batch_tokens,
                allow_block_sharing=False,
            )
        found: dict[str, list[int]] = {}
        with model.continuous_batching_context_manager(
            generation_config=generation, continuous_batching_config=config
        ) as manager:
            note_attention(str(model.config._attn_implementation))
            names = [manager.add_request(job.prompt, max_new_tokens=job.num_output) for job in work]
            while len(found) < len(work):
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    found[result.request_id] = list(result.generated_tokens)
                elif result is None and not manager.is_running():
                    raise SystemExit("transformers' continuous batching ended before its answers")
        return [found[name] for name in names]

    return serve


def vllm(threads: int) -> Serve:
    """vLLM's CPU build, eager, on a checkpoint with the same weights."""
    import os

    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    import torch
    from vllm import LLM

    from harness.engine.device.model_shape import model_preset
    from harness.engine.device.models import load_model

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        load_model(model_preset("small")).model.save_pretrained(folder)
        llm = LLM(
            folder,
            skip_tokenizer_init=True,
            enforce_eager=True,
            dtype="float32",
            block_size=32,
            max_num_seqs=NUM_REQUESTS,
            max_model_len=2048,
            enable_prefix_caching=False,
        )

    return serve_vllm(llm)


def serve_vllm(llm: Any) -> Serve:
    """Greedy outputs of the lengths asked for, by a vLLM `LLM`."""
    from vllm import SamplingParams

    def serve(work: list[Job]) -> list[list[int]]:
        params = [
            SamplingParams(
                temperature=0.0, max_tokens=job.num_output, ignore_eos=True, detokenize=False
            )
            for job in work
        ]
        prompts = [{"prompt_token_ids": job.prompt} for job in work]
        results = llm.generate(prompts, params, use_tqdm=False)
        return [list(result.outputs[0].token_ids) for result in results]

    return serve


def main() -> None:
    """argv: the peer ("generate:16" for batches of 16) and the number of threads."""
    name, _, option = sys.argv[1].partition(":")
    threads = int(sys.argv[2])
    if name == "generate":
        serve = static_batches(threads, int(option))
    else:
        serve = {"engine": engine, "generate_batch": continuous_batching, "vllm": vllm}[name](
            threads
        )
    work = jobs()
    serve([Job(job.prompt[:40], 4) for job in work])
    begin, cpu_begin = time.perf_counter(), time.process_time()
    outputs = serve(work)
    wall_s, cpu_s = time.perf_counter() - begin, time.process_time() - cpu_begin
    for output, job in zip(outputs, work, strict=True):
        if len(output) != job.num_output:
            raise SystemExit(f"{name}: {len(output)} tokens where {job.num_output} were asked")
    tokens = sum(job.num_output for job in work)
    digest = [zlib.crc32(np.array(output, dtype=np.int32).tobytes()) for output in outputs]
    figures = {"wall_s": wall_s, "cpu_s": cpu_s, "tokens_per_s": tokens / wall_s}
    print(json.dumps({**figures, "digest": digest}))


if __name__ == "__main__":
    main()
