"""Latency of the paged attention kernel beside the same kernel without a table, on the machine at
hand (PagedAttention, Fig. 18 a)."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.figure_layout import PanelSize, arrange, subplots
from experiments.figure_style import DEFAULT, FigureStyle, note_size
from experiments.line_panels import published
from experiments.plotting import STRATEGY_COLOURS, save_pictures, write_points
from harness.config import ConfigError
from harness.measure.environment import Environment, capture_environment
from harness.measure.statistics import Interval, t_interval
from harness.runs.half_written import write_whole

BATCHES = (8, 32)
CONTEXTS = (64, 128, 256)
PAGE_SIZE = 16
NUM_HEADS, HEAD_DIM = 40, 128
"""Of OPT-13B."""

KERNELS = ("contiguous", "paged")
FOLDER = "attention_latency"
_EVICTING_BYTES = 64 * 2**20


def measure(device: str, rounds: int) -> pd.DataFrame:
    """Microseconds of each call: a line a round, batch, context and kernel, which take turns.

    Every call finds cold caches, as it does where a model's other layers lie between two calls.
    Pages lie in random order. The first call of each kernel is not counted.
    """
    lines = []
    for batch, context in itertools.product(BATCHES, CONTEXTS):
        calls, wait = _calls(device, batch, context)
        for turn in range(rounds + 1):
            for kernel in KERNELS:
                took_s = _time(calls[kernel], wait)
                if turn > 0:
                    lines.append(
                        {"batch": batch, "context": context, "kernel": kernel, "round": turn,
                         "latency_us": 1e6 * took_s}
                    )  # fmt: skip
    return pd.DataFrame(lines)


def store(measured: pd.DataFrame, results_dir: Path, environment: Environment) -> Path:
    """`attention_latency/latency.csv` below `results_dir`, with its environment beside it."""
    folder = results_dir / FOLDER
    write_whole(folder / "latency.csv", measured.to_csv(index=False))
    text = json.dumps(dataclasses.asdict(environment), indent=1, default=str)
    write_whole(folder / "environment.json", text + "\n")
    return folder / "latency.csv"


def load(study_folder: Path) -> pd.DataFrame | None:
    """What was stored last beside an experiment's folder; None if nothing was. Raises ConfigError
    for a file that is damaged."""
    path = study_folder.parent / FOLDER / "latency.csv"
    try:
        return pd.read_csv(path) if path.is_file() else None
    except ValueError as error:
        raise ConfigError(f"{path}: cannot be read ({error}): measure it again") from error


def overheads(measured: pd.DataFrame) -> dict[tuple[int, int], Interval]:
    """By batch and context: percent that the paged kernel takes longer, round by round."""
    found: dict[tuple[int, int], Interval] = {}
    for (batch, context), group in measured.groupby(["batch", "context"]):
        by_round = group.pivot(index="round", columns="kernel", values="latency_us")
        ratio = _middle_half((by_round["paged"] / by_round["contiguous"]).to_numpy(dtype=float))
        found[int(batch), int(context)] = t_interval(100 * (ratio - 1))
    return found


def draw(
    measured: pd.DataFrame, folder: Path, name: str, style: FigureStyle = DEFAULT
) -> list[Path]:
    """Bars of both kernels' latency in the form of Fig. 18 (a), with the paged one's overhead."""
    medians = measured.groupby(["batch", "context", "kernel"])["latency_us"].median()
    percent = overheads(measured)
    with style.context():
        figure, grid = subplots(style, 1, len(BATCHES), PanelSize(3.6, 2.6))
        for axes, batch in zip(grid[0], BATCHES, strict=True):
            for place, (offset, kernel) in itertools.product(
                range(len(CONTEXTS)), zip((-0.2, 0.2), KERNELS, strict=True)
            ):
                key = "paged" if kernel == "paged" else "contiguous"
                height = medians[batch, CONTEXTS[place], kernel]
                axes.bar(place + offset, height, 0.38, color=STRATEGY_COLOURS[key], zorder=2,
                         label=kernel if place == 0 else None)  # fmt: skip
                if kernel == "paged":
                    axes.annotate(
                        f"{percent[batch, CONTEXTS[place]].mean:+.0f} %", (place + offset, height),
                        xytext=(0, 1.5), textcoords="offset points", ha="center", va="bottom",
                        fontsize=note_size(),
                    )  # fmt: skip
            axes.set_xticks(range(len(CONTEXTS)), [str(context) for context in CONTEXTS])
            axes.set_xlabel("context, tokens")
            axes.set_ylabel("kernel latency, µs")
            axes.set_title(f"{batch} sequences")
        low, high = published("pagedattention")["fig18a_kernel_overhead_percent"]
        title = (
            f"Fig. 18 (a): this machine; the paper's paged kernel took {low:g} to {high:g} % more"
        )
        arrange(figure, style, title=title, handles=grid[0][0].get_legend_handles_labels()[0])
        paths = save_pictures(figure, name, folder)
    csv = folder / f"{name}.csv"
    write_points(medians.reset_index(), csv)
    return [*paths, csv]


def environment(device: str) -> Environment:
    """The machine that `measure` ran on."""
    import torch

    name = torch.cuda.get_device_name(0) if device == "cuda" else "cpu"
    return capture_environment(name, torch.get_num_threads())


def _middle_half(values: np.ndarray) -> np.ndarray:
    """Without the lowest and highest quarter: a call that waited for a processor tells nothing."""
    cut = len(values) // 4
    return np.sort(values)[cut : len(values) - cut]


def _calls(
    device: str, batch: int, context: int
) -> tuple[dict[str, Callable[[], object]], Callable[[], None]]:
    import torch

    from kernels.backend import load as load_kernels

    kernels = load_kernels(device)
    dtype = torch.float16 if device == "cuda" else torch.float32
    slots = batch * context
    keys, values = torch.randn(2, slots, NUM_HEADS, HEAD_DIM, device=device, dtype=dtype).unbind()
    query, out = torch.randn(2, batch, NUM_HEADS, HEAD_DIM, device=device, dtype=dtype).unbind()
    bounds = torch.arange(batch + 1, dtype=torch.int32, device=device)
    lens = torch.full((batch,), context, dtype=torch.int32, device=device)
    starts = torch.arange(0, slots, context, dtype=torch.int32, device=device)
    table = torch.randperm(slots // PAGE_SIZE).int().view(batch, -1).to(device)
    evicting = torch.zeros(_EVICTING_BYTES // 4, device=device)
    scale = HEAD_DIM**-0.5

    def wait() -> None:
        evicting.add_(1.0)
        if device == "cuda":
            torch.cuda.synchronize()

    def paged() -> object:
        result = kernels.paged_attention(
            query, keys, values, table, PAGE_SIZE, bounds, lens, scale=scale, out=out
        )
        return torch.cuda.synchronize() if device == "cuda" else result

    def contiguous() -> object:
        result = kernels.contiguous_attention(
            query, keys, values, starts, bounds, lens, scale=scale, out=out
        )
        return torch.cuda.synchronize() if device == "cuda" else result

    return {"paged": paged, "contiguous": contiguous}, wait


def _time(call: Callable[[], object], wait: Callable[[], None]) -> float:
    wait()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
