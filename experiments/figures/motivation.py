"""What KV memory takes, what reservations waste and how many requests fit: formulas and runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from rich.console import Group
from rich.table import Table
from rich.text import Text

from experiments.figure_layout import PanelSize, arrange, subplots
from experiments.figure_style import DEFAULT, FigureStyle, note_size
from experiments.kv_arithmetic import (
    STRATEGIES,
    KVShape,
    Lengths,
    Strategy,
    common_models,
    gpus_needed,
    model_users,
)
from experiments.kv_check import PAGE_SIZE, formulas_beside_runs
from experiments.line_panels import PALETTE, power_ticks
from experiments.paired import in_words
from experiments.plotting import EXPECTED_COLOURS, STRATEGY_COLOURS, jobs_of, save, write_points
from harness.engine.cost.gpu import GPUS
from harness.measure.statistics import Interval
from harness.runs.jobs import Job

LIMITS = (2048, 8192, 32768, 131072)
LENGTH_SCALES = (0.125, 1.0, 8.0)
"""Of ShareGPT: short questions, chats, documents."""

GPU, MEMORY_FRACTION = "h100", 0.9
"""Of the table of models, which has no runs."""

STRATEGY_LABELS: Mapping[Strategy, str] = {
    "max": "reserve the bound (max)",
    "oracle": "reserve the true length (oracle)",
    "paged": "pages on demand (paged)",
}


def draw(
    rows: pd.DataFrame, jobs: Sequence[Job], folder: Path, style: FigureStyle = DEFAULT
) -> list[Path]:
    """`motivation`, and the table of models as `motivation_models.csv`."""
    check = formulas_beside_runs(rows, jobs)
    if check.empty:
        return []
    models = _models()
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "motivation_models.csv"
    write_points(models, table)
    with style.context():
        figure, ((left, middle, right),) = subplots(
            style, 1, 3, PanelSize(4.0, 3.5), narrowest=2.6, width_ratios=(1.25, 1, 1)
        )
        _draw_models(left, models)
        waste = _draw_waste(middle, check)
        users = _draw_users(right, check)
        title = (
            "A request's KV is large, reserving for the longest wastes nearly all of it, and so "
            "few requests fit"
        )
        arrange(figure, style, title=title)
        points = pd.concat([waste, users, check.assign(panel="check")])
        return [*save(figure, "motivation", folder, points, jobs_of(rows, jobs)), table]


def answer(rows: pd.DataFrame, jobs: Sequence[Job]) -> Group | None:
    """The table of models, and formulas beside runs; None where no run is one to check by."""
    check = formulas_beside_runs(rows, jobs)
    if check.empty:
        return None
    findings = Text("\n".join(_findings(check)))
    return Group(_models_table(), Text(), _check_table(check), Text(), findings)


def _findings(check: pd.DataFrame) -> list[str]:
    """How many fewer requests run where the longest bound is reserved, a line a model."""
    lines = []
    for (model, pool), own in check.groupby(["model", "pool_tokens"], sort=False):
        bounds = own[own["strategy"] == "max"].sort_values("limit")
        paged = own[own["strategy"] == "paged"]
        if len(bounds) and len(paged):
            last, most = bounds.iloc[-1], paged["users"].iloc[0]
            lines.append(
                f"{model}, pool of {pool:,} tokens: paging runs {most:.0f} requests at once, "
                f"reserving a bound of {_tokens(last['limit'])} {last['users']:.0f}, and "
                f"{100 * last['waste']:.1f} % of what it reserves holds no token"
            )
    return lines


def _models_table() -> Table:
    head = ("model", "KiB a\ntoken", "bound", "GiB a\nrequest", f"GPUs\n({GPU})", "KV\nGiB")
    users = [f"users,\n{strategy}" for strategy in STRATEGIES]
    table = _plain_table(
        "KV of common models, and requests of ShareGPT lengths that run at once beside the "
        f"weights on {100 * MEMORY_FRACTION:g} % of the memory (activations aside)",
        [*head, *users],
    )
    for _, row in _models().iterrows():
        table.add_row(
            row["model"], f"{row['token_kib']:.0f}", _tokens(row["limit"]),
            f"{row['request_gib']:.2f}", f"{row['gpus']}", f"{row['kv_gib']:.0f}",
            *(f"{row[f'users_{strategy}']:,.0f}" for strategy in STRATEGIES),
        )  # fmt: skip
    return table


def _check_table(check: pd.DataFrame) -> Table:
    """Runs have what formulas leave out: holes between reservations, and a watermark."""
    head = ("model", "strategy", "bound", "users by\nformula", "simulated", "deviation")
    waste = ("waste % by\nformula", "simulated", "deviation\npoints")
    table = _plain_table("Formulas against simulated runs", [*head, *waste])
    for _, row in check.iterrows():
        table.add_row(
            row["model"], row["strategy"], _tokens(row["limit"]),
            f"{row['users_formula']:.1f}", in_words(_interval(row, "users"), 1),
            f"{_signed(100 * (row['users'] / row['users_formula'] - 1))} %",
            f"{100 * row['waste_formula']:.1f}", f"{100 * row['waste']:.1f}",
            _signed(100 * (row["waste"] - row["waste_formula"])),
        )  # fmt: skip
    return table


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"  # no -0.0


def _interval(row: pd.Series, metric: str) -> Interval:
    return Interval(row[metric], row[f"{metric}_ci"], row["repetitions"])


def _plain_table(title: str, heads: Sequence[str]) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False,
        padding=(0, 2, 0, 0),
    )  # fmt: skip
    for index, head in enumerate(heads):
        table.add_column(head, justify="right" if index else "left", no_wrap=True)
    return table


def _models() -> pd.DataFrame:
    """A row a model and bound that it can read: KV, GPUs and users at ShareGPT lengths."""
    lengths = Lengths.sharegpt()
    lines = []
    for model in common_models():
        gpus = gpus_needed(model, GPUS[GPU].memory_bytes, MEMORY_FRACTION)
        kv_bytes = gpus * GPUS[GPU].memory_bytes * MEMORY_FRACTION - model.weight_bytes
        for limit in sorted({*LIMITS, model.context}):
            if limit <= model.context:
                lines.append(_model_line(model, lengths, gpus, kv_bytes, limit))
    return pd.DataFrame(lines)


def _model_line(
    model: KVShape, lengths: Lengths, gpus: int, kv_bytes: float, limit: int
) -> dict[str, object]:
    users = {
        f"users_{strategy}": model_users(model, lengths, strategy, limit, kv_bytes)
        for strategy in STRATEGIES
    }
    return {
        "model": model.name,
        "token_kib": model.token_bytes / 2**10,
        "context": model.context,
        "limit": limit,
        "request_gib": model.request_bytes(limit) / 2**30,
        "gpus": gpus,
        "kv_gib": kv_bytes / 2**30,
        **users,
    }


def _draw_models(axes: Axes, models: pd.DataFrame) -> None:
    full = models[models["limit"] == models["context"]].iloc[::-1]
    axes.barh(full["model"], full["token_kib"], color="#0072B2", zorder=2)
    for y, (_, row) in enumerate(full.iterrows()):
        axes.annotate(
            f"{row['token_kib']:.0f} KiB;  {row['request_gib']:.2g} GiB at {_tokens(row['limit'])}",
            (row["token_kib"], y), xytext=(3, 0), textcoords="offset points", va="center",
            fontsize=note_size(),
        )  # fmt: skip
    axes.set_xlim(0, 1.6 * full["token_kib"].max())
    axes.set_xlabel("KV of a token, KiB (beside it: a request of the whole context)")
    axes.grid(visible=False)
    axes.tick_params(axis="y", length=0)


def _draw_waste(axes: Axes, check: pd.DataFrame) -> pd.DataFrame:
    lines = []
    for scale, colour in zip(LENGTH_SCALES, PALETTE, strict=False):
        lengths = Lengths.sharegpt(scale)
        longest = int((lengths.prompts + lengths.outputs).max())
        limits = [limit for limit in LIMITS if limit > longest]
        waste = [lengths.waste("max", limit, PAGE_SIZE) for limit in limits]
        label = f"mean request {lengths.mean_total:,.0f} tokens"
        axes.plot(limits, [100 * w for w in waste], color=colour, label=label)
        lines += [
            {"panel": "waste", "scale": scale, "limit": limit, "waste_formula": value}
            for limit, value in zip(limits, waste, strict=True)
        ]
    runs = check[(check["strategy"] == "max") & (check["part"] != "paper")]
    axes.errorbar(
        runs["limit"], 100 * runs["waste"], yerr=100 * runs["waste_ci"].fillna(0),
        color=PALETTE[LENGTH_SCALES.index(1.0)], marker="o", linestyle="none", capsize=2,
        label="simulated",
    )  # fmt: skip
    axes.set_ylim(0, 104)
    _limit_axis(axes)
    axes.set_ylabel("reserved memory that holds no token, %")
    axes.legend(loc="lower right")
    return pd.DataFrame(lines)


def _draw_users(axes: Axes, check: pd.DataFrame) -> pd.DataFrame:
    lengths = Lengths.sharegpt()
    runs = check[check["part"] != "paper"]
    pool = int(runs["pool_tokens"].iloc[0]) if len(runs) else 0
    runs = runs[runs["pool_tokens"] == pool]  # the formula's, and what the axis says
    lines = []
    for strategy in STRATEGIES:
        colour = STRATEGY_COLOURS["paged"] if strategy == "paged" else EXPECTED_COLOURS[strategy]
        users = [lengths.users(strategy, limit, PAGE_SIZE, pool) for limit in LIMITS]
        axes.plot(LIMITS, users, color=colour, label=STRATEGY_LABELS[strategy])
        own = runs[runs["strategy"] == strategy]
        axes.plot(own["limit"], own["users"], color=colour, marker="o", linestyle="none")
        lines += [
            {"panel": "users", "strategy": strategy, "limit": limit, "users_formula": value}
            for limit, value in zip(LIMITS, users, strict=True)
        ]
    for limit in LIMITS:
        most, fewest = (lengths.users(each, limit, PAGE_SIZE, pool) for each in ("paged", "max"))
        if fewest:
            axes.annotate(
                f"{most / fewest:.0f} x fewer", (limit, fewest), xytext=(3, 1), ha="left",
                va="bottom", textcoords="offset points", fontsize=note_size(),
                color=EXPECTED_COLOURS["max"],
            )  # fmt: skip
    axes.set_xlim(1400, 500_000)  # room for what is beside the last
    axes.plot([], [], color="black", marker="o", linestyle="none", label="simulated")
    axes.set_yscale("log")
    axes.set_ylim(0.4, 6000)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    _limit_axis(axes)
    model = ", ".join(runs["model"].unique())
    axes.set_ylabel(f"requests that run at once\n({model}, pool of {pool:,} tokens)")
    axes.legend(loc="upper right")
    return pd.DataFrame(lines)


def _limit_axis(axes: Axes) -> None:
    power_ticks(axes, LIMITS)
    axes.set_xticklabels([_tokens(limit) for limit in LIMITS])
    axes.set_xlabel("bound on prompt + output, tokens")


def _tokens(count: float) -> str:
    return f"{count / 1024:.0f}k"
