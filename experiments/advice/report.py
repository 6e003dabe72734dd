"""The answer in words and tables."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.advice.points import SHARES, pareto
from experiments.advice.question import Question
from experiments.advice.runs import AdviceRuns, attainment
from experiments.advice.search import FOLK_FRACTIONS, Advice, Problem, around
from experiments.advice.setting import KNOBS, Setting
from experiments.advice.window import Window
from experiments.calibration.error import GOALS
from harness.config import ConfigError

NOT_MEASURED = (
    "The simulator's error: roofline, not measured on this machine; see docs/simulator.md "
    "(error=FILE shows a measured one)."
)


def say(console: Console, text: str, style: str | None = None) -> None:
    """A paragraph, wrapped at words."""
    console.print(Text(text, style=style or ""))


def trace_in_words(question: Question, window: Window) -> str:
    """What is simulated, and what was left out."""
    too_long = (
        f" {window.num_too_long:,} of its {window.num_rows:,} requests are left out: "
        f"model={question.model} cannot read them."
        if window.num_too_long
        else ""
    )
    load = f", at {question.load:g} times the trace's rate" if question.load != 1 else ""
    return (
        f"{question.trace.name}: the busiest {window.num_requests:,} consecutive requests, from "
        f"{window.start_s:,.0f} s on, {window.requests_per_s:.3g}/s and "
        f"{window.tokens_per_s:,.0f} tokens/s (the whole trace: {window.trace_requests_per_s:.3g}/s"
        f" and {window.trace_tokens_per_s:,.0f}){load}. {_burstiness_in_words(window)}{too_long}"
    )


def _burstiness_in_words(window: Window) -> str:
    if math.isnan(window.dispersion):
        return "The clock of its times is too coarse to tell steady load from bursty."
    kind = "bursty" if window.is_bursty else "steady"
    return (
        f"The number of arrivals in equal spans of time has {window.dispersion:.2f} times the "
        f"variance of a Poisson process's: {kind}."
    )


def whole_in_words(question: Question, window: Window, advice: Advice, runs: AdviceRuns) -> str:
    """What a replay of the whole trace with the answer gave."""
    whole = replace(advice.answer, whole=True)
    row = runs.row(whole)
    if row is None:
        run = runs.stored(whole)
        return f"The whole trace could not be replayed: {run.error if run else 'not stored'}"
    share, start_s = runs.worst_stretch(whole)
    said = (
        f"Replayed with it, the whole trace ({row['num_requests']:,} requests) has "
        f"{attainment(row):.1%} of them within the SLO; its worst {window.num_requests:,} in a "
        f"row, from {start_s:,.0f} s on, {share:.1%}."
    )
    if advice.of_stretch is not None:
        said += (
            f" The pool is larger for that: {runs.pool_tokens(advice.of_stretch):,} tokens do for "
            "the busiest stretch, and not for the whole."
        )
    if not advice.is_whole_met:
        said += (
            f" The goal of {question.attainment:.0%} is NOT MET for the whole trace"
            f"{', by the largest pool' if advice.of_stretch is not None else ''}."
        )
    return said


def answer_in_words(question: Question, advice: Advice, point: pd.Series, problem: Problem) -> str:
    """The answer, in a sentence or two."""
    answer = advice.answer
    at = (
        f"{point['pool_gib']:.3g} GiB of KV ({point['pool_tokens']:,.0f} tokens, "
        f"kv.memory_fraction={answer.memory_fraction:g} of {question.gpu})"
    )
    knobs = " ".join(f"{key}={getattr(answer, name)}" for name, (key, _) in KNOBS.items())
    if advice.is_met:
        least = (
            " A smaller one does not hold the trace's longest request."
            if answer.memory_fraction <= problem.lowest_fraction(answer)
            else ""
        )
        found = "is the smallest pool found that serves"
        if advice.is_whole_met is False:
            found = "is the largest pool, and does not serve, over the whole trace,"
        return (
            f"{at} with {knobs} {found} "
            f"{question.attainment:.0%} of the requests with {question.slo_in_words}: of the "
            f"busiest stretch {point['attainment']:.1%}, {point['goodput_per_s']:.3g}/s.{least}"
        )
    reached = advice.reached_load or 0.0
    way_out = (
        f"At {reached / question.load:.0%} of this load enough are served in time: give a replica "
        f"so much of the requests (load={reached:g})."
        if reached
        else "At a twentieth of this load it is no better: allow more time, or choose another gpu."
    )
    waited = f"{point['saturated_share']:.0%} of the time"
    if point["saturated_share"] < _SELDOM:
        short = f"The queue waits for memory {waited}: it is the GPU's time that is short."
    else:
        short = f"The queue waits for memory {waited}."
    return (
        f"No pool of {question.gpu} serves {question.attainment:.0%} of the requests with "
        f"{question.slo_in_words}. The best found is {point['attainment']:.1%} of them, "
        f"{point['goodput_per_s']:.3g}/s, with {at}, {knobs}. {short} {way_out}"
    )


_SELDOM = 0.05


def waste_in_words(point: pd.Series) -> str:
    """Where the pool's slots are, at the answer."""
    shares = [(name.removesuffix("_share").replace("_", "-"), point[name]) for name in SHARES]
    shown = [f"{name} {share:.1%}" for name, share in shares if share >= 5e-4]
    return "The pool's slots over time: " + ", ".join(shown) + "."


def too_short_in_words(point: pd.Series) -> str:
    """That the stretch is over before the system is filled."""
    return (
        f"A request lives {point['e2e_ms'] / 1e3:.0f} s on average, and the stretch brings "
        f"requests for {point['last_arrival_s']:.0f} s: too short to show a system at work. Give "
        "requests=N for a longer one, which takes more time."
    )


def folk_in_words(window: Window, advice: Advice, table: pd.DataFrame) -> str:
    """What the rule of thumb for such a load gives here."""
    advised = 0.8 if window.is_bursty else 0.95
    by_fraction = {
        fraction: _find(table, advice.answer.at(fraction), "attainment")
        for fraction in FOLK_FRACTIONS
    }
    known = {fraction: share for fraction, share in by_fraction.items() if share is not None}
    shown = ", ".join(f"{share:.1%} at {fraction:g}" for fraction, share in known.items())
    kind = "bursty" if window.is_bursty else "steady"
    if math.isnan(window.dispersion):
        kind = "taken for steady"
    if advised not in known:
        verdict = f"at the advised {advised:g} the longest request does not fit"
    elif 0.9 in known:
        change = 100 * (known[advised] - known[0.9])
        verdict = f"the advised {advised:g} changes attainment by {change:+.1f} points against 0.9"
    else:
        verdict = "at 0.9 the longest request does not fit"
    return (
        f"Folk advice is a memory fraction of 0.9, 0.95 for steady and 0.8 for bursty load. This "
        f"load is {kind}: {verdict} ({shown}). What a lower fraction leaves free (room for the "
        "spikes of activations) is not simulated."
    )


def error_in_words(question: Question) -> str:
    """The simulator's error as measured, or that it was not."""
    if question.error is None:
        return NOT_MEASURED
    try:
        found = pd.read_csv(question.error)
    except (OSError, ValueError) as error:
        raise ConfigError(f"error={question.error}: cannot be read as CSV: {error}") from error
    worst = {
        goal.label: found[f"{goal.metric}_error"].abs().max()
        for goal in GOALS
        if f"{goal.metric}_error" in found
    }
    if not worst:
        raise ConfigError(
            f"error={question.error}: no column METRIC_error: give the simulator_error.csv that "
            "`python -m experiments calibrate` writes"
        )
    shown = ", ".join(f"{label} {percent:.1f} %" for label, percent in worst.items())
    return f"The simulator's error, the largest of those measured ({question.error}): {shown}."


def command_in_words(setting: Setting, runs: AdviceRuns) -> str:
    """The command that repeats a setting's run."""
    return shlex.join(["python", "-m", "harness", *runs.words(setting)])


def print_sensitivity(
    console: Console, advice: Advice, table: pd.DataFrame, fixed: Sequence[str], lowest: float
) -> None:
    """The answer, and each of its settings one step away."""
    title = "How sensitive the answer is: one setting changed at a time"
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for head in ("changed", "KV pool\nGiB", "within\nSLO %", "goodput\nrequests/s", "change\n%",
                 "TTFT\np99 ms", "TPOT\np99 ms", "pre-\nempt.", "hit\n%"):  # fmt: skip
        shown.add_column(head, justify="left" if head == "changed" else "right", no_wrap=True)
    base = _find(table, advice.answer, "goodput_per_s")
    for words, setting in changes(advice.answer, fixed, lowest):
        found = table[_same(table, setting)]
        if len(found):
            point = found.iloc[0]
            goodput = float(point["goodput_per_s"])
            change = "" if setting == advice.answer or not base else f"{goodput / base - 1:+.1%}"
            shown.add_row(
                Text(words), f"{point['pool_gib']:.3g}", f"{100 * point['attainment']:.1f}",
                f"{goodput:.3g}", change.removesuffix("%"), f"{point['ttft_p99_ms']:,.0f}",
                f"{point['tpot_p99_ms']:,.0f}", f"{point['preemptions']:,.0f}",
                f"{100 * point['prefix_hit_rate']:.1f}",
                style="bold" if setting == advice.answer else None,
            )  # fmt: skip
    console.print()
    console.print(Text(title, style="bold"))
    console.print(shown)


def changes(answer: Setting, fixed: Sequence[str], lowest: float) -> list[tuple[str, Setting]]:
    """The answer and its neighbours, with what was changed in words."""
    found = [("(the answer)", answer)]
    for setting in around(answer, fixed, lowest):
        if setting != answer:
            names = ("memory_fraction", "host_us", *KNOBS)
            name = next(n for n in names if getattr(setting, n) != getattr(answer, n))
            key = {"memory_fraction": "kv.memory_fraction", "host_us": "executor.host_us"}.get(
                name
            ) or KNOBS[name][0]
            value = getattr(setting, name)
            found.append(
                (f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}", setting)
            )
    return found


def print_front(console: Console, table: pd.DataFrame) -> None:
    """The Pareto front as a table, by pool."""
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    heads = ("KV pool\nGiB", "memory\nfraction", "within\nSLO %", "goodput\nrequests/s", *KNOBS)
    for head in heads:
        shown.add_column(head.replace("_", "\n"), justify="right", no_wrap=True)
    for _, point in _thinned(pareto(table)).iterrows():
        shown.add_row(
            f"{point['pool_gib']:.3g}",
            f"{point['memory_fraction']:g}",
            f"{100 * point['attainment']:.1f}",
            f"{point['goodput_per_s']:.3g}",
            *(str(point[name]) for name in KNOBS),
        )
    console.print()
    console.print(Text("Memory against goodput: what nothing smaller reaches", style="bold"))
    console.print(shown)


def _thinned(front: pd.DataFrame) -> pd.DataFrame:
    """Without points that serve hardly more than the one before."""
    step = _FRONT_STEP * front["goodput_per_s"].max()
    kept, last = [], 0.0
    for index, goodput in front["goodput_per_s"].items():
        if goodput >= last + step or index == front.index[-1]:
            kept.append(index)
            last = goodput
    return front.loc[kept]


_FRONT_STEP = 0.05


def _same(table: pd.DataFrame, setting: Setting) -> pd.Series:
    same = pd.Series(True, index=table.index)
    for name in Setting.__dataclass_fields__:
        same &= table[name] == getattr(setting, name)
    return same


def _find(table: pd.DataFrame, setting: Setting, column: str) -> float | None:
    found = table[_same(table, setting)]
    return float(found.iloc[0][column]) if len(found) else None
