"""The smallest pool and the best settings for a trace under an SLO, without a GPU:
`python -m experiments advise trace=FILE format=azure model=opt_13b gpu=a100_40gb
slo=ttft_ms:2000,tpot_ms:100`.

The busiest stretch of the trace is served by the simulator (executor=simulated, cost=roofline),
some fifty times with other settings: memory fraction, page size, token budget, preemption,
allocator. docs/advise.md says how it searches and what to believe. Runs are stored, so that the
same command answers at once the next time.

  trace=FILE        the trace, or its folder
  format=NAME       what wrote it: azure, mooncake, ... (a wrong name lists them)
  model=NAME        conf/model, without weights
  gpu=NAME          published figures of a GPU: a100_40gb, a100_80gb, h100, h200, l4
  slo=BOUNDS        ttft_ms:2000,tpot_ms:100,normalised_ms:500, or some of these
  load=1            the trace's times are divided by it
  attainment=0.9    share of the requests that must keep the SLO
  requests=N        simulated in a run (default: as many as a minute allows)
  host_us=4000      the host's time a step
  error=FILE        the simulator's measured errors, to stand beside the answer
  results_dir=DIR   results
  GROUP.KEY=VALUE   any setting of `python -m harness`; a knob given so is not searched

examples:
  python -m experiments advise trace=AzureLLMInferenceTrace_conv.csv format=azure \\
      model=llama_3_1_8b gpu=h100 slo=ttft_ms:2000,tpot_ms:100
  python -m experiments advise trace=conversations.csv format=azure model=opt_13b gpu=a100_40gb \\
      slo=normalised_ms:500 load=0.25 attainment=0.99 kv.page_size=16

Exit status: 0, 3 if no pool will do, 1 if it could not be done, 2 for a wrong command line.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace

from rich.console import Console

from experiments.advice import report
from experiments.advice.figure import draw_front
from experiments.advice.points import points
from experiments.advice.question import Question, parse_question
from experiments.advice.runs import AdviceRuns, drive
from experiments.advice.search import HIGHEST_FRACTION, Advice, Problem, advise, confirm
from experiments.advice.setting import KNOBS, Setting
from experiments.advice.window import Window, busiest_window, read_rows
from harness.compose import hydra_session
from harness.config import ConfigError
from harness.engine.device.model_shape import model_preset, model_shape
from harness.runs.half_written import write_whole
from harness.runs.store import RunStore

WIDTH = 118

NO_POOL_WILL_DO = 3


def main(arguments: Sequence[str]) -> int:
    """Answer the question in `arguments`. 0 where a pool will do, 3 where none does."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    question = parse_question(arguments)
    error = report.error_in_words(question)  # a file that cannot be read ends it here
    console = Console(markup=False) if sys.stdout.isatty() else Console(width=WIDTH, markup=False)
    shape = model_shape(model_preset(question.model))
    window = busiest_window(read_rows(question), shape, question)
    report.say(console, report.trace_in_words(question, window))
    root = question.results_dir / "advise"
    RunStore(root).remove_partial()
    with hydra_session():
        runs = AdviceRuns(question, window, shape, root)
        problem = pose(question, window, runs)
        advice = drive(_search(problem, window), runs, console, arguments)
        return conclude(question, window, problem, advice, runs, error, console)


def _search(
    problem: Problem, window: Window
) -> Generator[Sequence[Setting], Mapping[Setting, float], Advice]:
    """The advice for the busiest stretch, which a replay of the whole trace has confirmed."""
    advice = yield from advise(problem)
    return (yield from confirm(problem, advice)) if window.is_part else advice


def pose(question: Question, window: Window, runs: AdviceRuns) -> Problem:
    """The search for an answer: where it begins, and what bounds it. Raises ConfigError where not
    even the whole GPU has room for the longest request."""
    start = Setting(
        allocator="paged_prefix" if window.has_prefixes else "paged",
        page_size=16,
        token_budget=2048,
        preemption="recompute",
        memory_fraction=HIGHEST_FRACTION,
        host_us=question.host_us,
        load=question.load,
    )
    fixed = [name for name, (key, _) in KNOBS.items() if key in question.overrides]
    if not window.has_prefixes and "allocator" not in fixed:
        fixed.append("allocator")  # a prefix index has nothing to find: it would win by chance
    config = runs.config(start)
    start = replace(  # as far as the user chose otherwise
        start,
        allocator=config.allocator.name,
        page_size=config.kv.page_size,
        token_budget=config.engine.token_budget,
        preemption=config.engine.preemption,
    )
    runs.check(start)
    lowest_pool = window.max_len + LARGEST_PAGE
    if runs.fraction_of(start, lowest_pool) > HIGHEST_FRACTION:
        raise ConfigError(
            f"gpu={question.gpu} has room for {runs.pool_tokens(start):,} tokens beside "
            f"model={question.model}, the trace's longest request {window.longest:,}: choose a "
            "larger gpu, or one fewer with workload.max_len"
        )
    chance = math.sqrt(question.attainment * (1 - question.attainment) / window.num_requests)
    return Problem(
        start,
        question.attainment,
        max(SMALLEST_GAIN, STANDARD_ERRORS * chance),
        lowest_pool,
        runs.fraction_of,
        runs.pool_tokens,
        fixed,
    )


SMALLEST_GAIN = 0.01
STANDARD_ERRORS = 2.0
"""More attainment than by so many of a share's standard errors is not chance."""

LIVES_IN_WINDOW = 3
"""A stretch that lasts as long as fewer lives of a request does not show a system at work."""

LARGEST_PAGE = max(KNOBS["page_size"][1])


def conclude(
    question: Question,
    window: Window,
    problem: Problem,
    advice: Advice,
    runs: AdviceRuns,
    error: str,
    console: Console,
) -> int:
    """Print the answer and write its tables and figure; the exit status."""
    answer = advice.answer
    if runs.row(answer) is None:
        run = runs.stored(answer)
        raise ConfigError(f"none of the runs could be done: {run.error if run else 'not stored'}")
    table = points(advice.tried, runs)
    is_alike = (table["load"] == answer.load) & (table["host_us"] == answer.host_us)
    comparable = table[is_alike & ~table["whole"]]
    point = comparable[comparable["run_id"] == runs.job(answer).run_id].iloc[0]
    console.print()
    report.say(console, report.answer_in_words(question, advice, point, problem), "bold")
    if advice.is_whole_met is not None:
        report.say(console, report.whole_in_words(question, window, advice, runs), "bold")
    report.say(console, report.waste_in_words(point))
    lowest = problem.lowest_fraction(advice.answer)
    report.print_sensitivity(console, advice, table, problem.fixed, lowest)
    report.print_front(console, comparable)
    console.print()
    report.say(console, report.folk_in_words(window, advice, table))
    report.say(console, error)
    if point["e2e_ms"] / 1e3 > point["last_arrival_s"] / LIVES_IN_WINDOW:
        report.say(console, report.too_short_in_words(point))
    if point["queue_grows"]:
        report.say(console, "The queue grows to the end of this stretch: a longer one fares worse.")
    folder = question.results_dir / "advise" / question.name
    arriving = question.load * window.requests_per_s
    everything = folder / "tried.csv"
    write_whole(everything, table.to_csv(index=False))
    ids = set(comparable["run_id"])
    jobs = [job for job in runs.jobs.values() if job.run_id in ids]
    paths = [
        everything,
        *draw_front(comparable, point, question.attainment, arriving, advice.is_met, jobs, folder),
    ]
    console.print()
    report.say(console, "To repeat the answer's run:")
    console.print(report.command_in_words(answer, runs), soft_wrap=True, highlight=False)
    names = ", ".join(path.name for path in paths)
    console.print(f"results: {folder}/  ({names})", highlight=False)
    return 0 if advice.is_met and advice.is_whole_met is not False else NO_POOL_WILL_DO
