"""Another engine on the requests of benchmarks/engine.py, in a process of its own: one line.

    python -m benchmarks.gpu_peers PEER MODEL BATCH CONTEXT SHORT LONG

Serves BATCH prompts of CONTEXT tokens twice, with outputs of SHORT and of LONG tokens: the tokens
between, over the difference of the times, are its decode speed. The line is JSON; a peer that is
not installed says so with status `absent`.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.peer_process import Job, Serve, serve_continuously, serve_vllm
from harness.engine.device.model_shape import model_preset
from harness.engine.device.models import load_model


def main() -> None:
    peer, model, *numbers = sys.argv[1:]
    batch, context, short, long = map(int, numbers)
    package = {"generate_batch": "transformers", "vllm": "vllm"}[peer]
    if importlib.util.find_spec(package) is None:
        print(json.dumps({"status": "absent", "error": f"{package} cannot be imported"}))
        return
    make = {"generate_batch": generate_batch, "vllm": vllm}[peer]
    serve, facts = make(model, batch, context + long)
    vocab = model_preset(model).config["vocab_size"]
    timed(serve, jobs(batch, context, 1, vocab))  # to warm up
    short_s, long_s = (timed(serve, jobs(batch, context, n, vocab)) for n in (short, long))
    seconds, tokens = long_s - short_s, batch * (long - short)
    if not torch.cuda.is_available():  # a dry run measures nothing, and such differences are noise
        seconds, tokens = long_s, batch * long
    if seconds <= 0:
        raise SystemExit(f"{long} tokens took {long_s:.3f} s, {short} took {short_s:.3f} s")
    speed = tokens / seconds
    figures = {"decode_tokens_per_s": speed, "short_s": short_s, "long_s": long_s}
    print(json.dumps({"status": "ok", **figures, **facts()}))


def timed(serve: Serve, work: list[Job]) -> float:
    """Seconds to serve `work`, all of whose tokens must come."""
    begin_s = time.perf_counter()
    outputs = serve(work)
    seconds = time.perf_counter() - begin_s
    for output, job in zip(outputs, work, strict=True):
        if len(output) != job.num_output:
            raise SystemExit(f"{len(output)} tokens where {job.num_output} were asked")
    return seconds


def jobs(batch: int, context: int, output: int, vocab: int) -> list[Job]:
    """As benchmarks/engine.py draws them."""
    rng = np.random.default_rng(0)
    return [Job(rng.integers(3, vocab, context).tolist(), output) for _ in range(batch)]


def generate_batch(
    model: str, batch: int, longest: int
) -> tuple[Serve, Callable[[], dict[str, Any]]]:
    """transformers' continuous batching, on a GPU with all that it chooses itself; what attention
    it took stands in its row."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = load_model(model_preset(model), device).model
    flash = importlib.util.find_spec("flash_attn") is not None
    loaded.set_attn_implementation("flash_attention_2" if flash else "sdpa")
    loaded.generation_config.eos_token_id = None
    loaded.generation_config.pad_token_id = 0
    taken: set[str] = set()
    serve = serve_continuously(
        loaded,
        max_output=longest,
        max_batch_tokens=None if device == "cuda" else 512,
        note_attention=taken.add,
    )
    return serve, lambda: {"attention": ", ".join(sorted(taken))}


def vllm(model: str, batch: int, longest: int) -> tuple[Serve, Callable[[], dict[str, Any]]]:
    """vLLM with random weights of the same shape, and everything as it chooses itself."""
    import vllm as package
    from vllm import LLM

    config = model_preset(model)
    folder = tempfile.mkdtemp()
    with torch.device("meta"):
        from transformers import AutoConfig

        AutoConfig.for_model(config.family, **config.config).save_pretrained(folder)
    llm = LLM(
        folder,
        skip_tokenizer_init=True,
        load_format="dummy",
        dtype=config.dtype,
        max_num_seqs=batch,
        max_model_len=longest + 16,
        enable_prefix_caching=False,
    )

    return serve_vllm(llm), lambda: {"version": package.__version__}


if __name__ == "__main__":
    main()
