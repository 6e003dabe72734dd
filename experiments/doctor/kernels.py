"""Attention kernels on a tiny batch against the exact result, in a process of their own:
`python -m experiments.doctor.kernels` prints a line of JSON for what torch says of the device, and
one for each kernel. A kernel that kills its process takes no other answer with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.doctor.checks import Check

_GROUP = "kernels"
_TIMEOUT_S = 120.0
_LENS = ((1, 20), (3, 9), (1, 1))
_TOLERANCE = 1e-5
_WAYS_OUT = {
    "reference": "reinstall torch: pip install --force-reinstall torch",
    "cpu": "use attention.backend=reference, or reinstall numba and llvmlite",
    "triton": "use attention.backend=reference, or reinstall the triton that fits this torch",
}


def probe() -> list[dict[str, Any]]:
    """What the child says: the device first, then kernels; with an `end` where it did not live to
    say all."""
    command = [sys.executable, "-m", "experiments.doctor.kernels"]
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S,
            env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip
        out, end = done.stdout, "" if done.returncode == 0 else f"exit status {done.returncode}"
        if end:
            end = ": ".join([end, *done.stderr.strip().splitlines()[-1:]])
    except subprocess.TimeoutExpired as error:
        text = error.stdout or b""
        out = text if isinstance(text, str) else text.decode()
        end = f"did not end within {_TIMEOUT_S:.0f} s"
    said = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return [*said, {"end": end}] if end else said


def kernel_checks(said: list[dict[str, Any]]) -> Iterator[Check]:
    """A check for what `probe` found of torch and of each kernel."""
    device = next((each for each in said if "device" in each), None)
    if device is None:
        end = next((each["end"] for each in said if "end" in each), "nothing was said")
        yield Check(_GROUP, "torch", "failed", end, _WAYS_OUT["reference"], is_needed=True)
        return
    yield _torch_check(device)
    is_cuda = device["device"] == "cuda"
    for each in said:
        if "kernel" in each:
            yield _kernel_check(each, is_cuda)
    if end := next((each["end"] for each in said if "end" in each), ""):
        way_out = "the kernel after the last one listed ended its process: reinstall its package"
        yield Check(_GROUP, "kernels", "failed", end, way_out, is_needed=True)


def _torch_check(device: Mapping[str, Any]) -> Check:
    found = f"{device['torch']}, {device['threads']} threads"
    found += f", CUDA {device['cuda']}" if device["cuda"] else ", without CUDA"
    if device["device"] == "cuda":
        free, total = device["free_bytes"] / 2**30, device["total_bytes"] / 2**30
        found += f"; {device['name']}, {free:.1f} GiB free of {total:.1f}"
        return Check(_GROUP, "torch", "ok", found, is_needed=True)
    way_out = "for a GPU install a CUDA build of torch and NVIDIA's driver"
    return Check(_GROUP, "torch", "note", found, way_out, is_needed=True)


def _kernel_check(each: Mapping[str, Any], is_cuda: bool) -> Check:
    kernel = each["kernel"]
    is_needed = kernel == "reference" or kernel == ("triton" if is_cuda else "cpu")
    how = f" ({each['how']})" if each["how"] else ""
    name = {"cpu": "numba"}.get(kernel, kernel) + how
    if each["error"]:
        way_out = _WAYS_OUT[kernel]
        return Check(_GROUP, name, "failed", each["error"], way_out, is_needed)
    found = f"right to {each['relative_error']:.0e}, {each['seconds']:.1f} s with its compilation"
    return Check(_GROUP, name, "ok", found, "", is_needed)


def _main() -> None:
    import torch

    is_cuda = torch.cuda.is_available()
    if not is_cuda:
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
    _say(_device(is_cuda))
    kind = "cuda" if is_cuda else "cpu"
    for kernel in ("reference", *(() if is_cuda else ("cpu",)), "triton"):
        how = "" if kernel != "triton" else ("compiled" if is_cuda else "interpreted")
        _say({"kernel": kernel, "how": how, **_try(kind, kernel)})


def _device(is_cuda: bool) -> dict[str, Any]:
    import torch

    facts: dict[str, Any] = {
        "device": "cuda" if is_cuda else "cpu",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
    }
    if is_cuda:
        free, total = torch.cuda.mem_get_info()
        facts |= {"name": torch.cuda.get_device_name(0), "free_bytes": free, "total_bytes": total}
    return facts


def _try(device: str, kernel: str) -> dict[str, Any]:
    """Paged attention over a ragged batch in a pool that is NaN wherever nothing may be read."""
    begin_s = time.perf_counter()
    error, relative = "", 0.0
    try:
        import torch

        from experiments.gpu.ragged import Heads, exact_attention, make_ragged, relative_error
        from kernels.backend import load

        dim, place = 16, torch.device(device)
        batch = make_ragged(_LENS, Heads(4, 2, dim), 4, torch.float32, place)
        ours = load(device, kernel).paged_attention(*batch.paged(), scale=dim**-0.5)  # type: ignore[arg-type]
        relative = relative_error(ours, exact_attention(batch, scale=dim**-0.5))
        if not relative <= _TOLERANCE:
            error = f"wrong: relative error {relative:.1e}"
    except Exception as failure:  # whatever a kernel dies of is its answer
        error = f"{type(failure).__name__}: {' '.join(str(failure).split())[:200]}"
    seconds = time.perf_counter() - begin_s
    return {"error": error, "relative_error": relative, "seconds": seconds}


def _say(values: dict[str, Any]) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    _main()
