"""The search for the smallest pool: which settings to try next, given what those before did.

A generator: it yields settings and is sent their attainments (share of requests within the SLO),
so that it can be tested on made-up systems, and runs side by side what it asks for together.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from experiments.advice.setting import Setting, moves
from harness.runs.bisection import Probe, Search, bracket, next_value

Attainments = dict[Setting, float]
Asking = Generator[Sequence[Setting], Mapping[Setting, float], None]

FOLK_FRACTIONS = (0.8, 0.9, 0.95)
HIGHEST_FRACTION = 0.95

LADDER = 6
"""Pools tried between the smallest and the largest, evenly in the logarithm."""

POOL_TOLERANCE = 0.05
SAVING = 1.1
"""A knob leaves its value for a pool smaller by this factor, or for more attainment than chance
gives: what is less is not worth leaving a common value for."""

MOST_ROUNDS = 4

_LOAD_LOW, _LOAD_TOLERANCE = 0.05, 0.1


@dataclass(frozen=True, slots=True)
class Problem:
    """target: attainment that is asked for. gain: a difference in attainment that is not chance.
    lowest_pool: tokens of one that holds the longest request. fraction_of: at which a setting's
    pool has so many tokens; pool_tokens: of a setting. fixed: knobs that are not to be moved.
    """

    start: Setting
    target: float
    gain: float
    lowest_pool: int
    fraction_of: Callable[[Setting, float], float]
    pool_tokens: Callable[[Setting], int]
    fixed: Sequence[str] = ()

    def lowest_fraction(self, setting: Setting) -> float:
        """At which a setting's pool holds the longest request."""
        return self.fraction_of(setting, self.lowest_pool)


@dataclass(frozen=True, slots=True)
class Advice:
    """answer: the setting, at the smallest pool that attains the target; where none does, the one
    that attains most. is_whole_met: it serves the whole trace so, too; None where it was not asked.
    of_stretch: the smaller setting that does for the busiest stretch alone. reached_load: the
    highest share of the load that is attained where the whole is not; 0 where even a twentieth is
    not. tried: attainments of everything.
    """

    answer: Setting
    is_met: bool
    tried: Attainments = field(default_factory=dict)
    reached_load: float | None = None
    is_whole_met: bool | None = None
    of_stretch: Setting | None = None


def advise(problem: Problem) -> Generator[Sequence[Setting], Mapping[Setting, float], Advice]:
    """Search; returns the advice. Settings that are sent no attainment count as none."""
    tried: Attainments = {}
    top = problem.start.at(HIGHEST_FRACTION)
    folk = [fraction for fraction in FOLK_FRACTIONS if fraction >= problem.lowest_fraction(top)]
    yield from _ask(tried, [top, *map(problem.start.at, folk)])
    if tried[top] < problem.target:
        top = yield from _climb(problem, tried, top)
    if tried[top] < problem.target:
        top = yield from _best_of_all(problem, tried, top)
        load = yield from _reachable_load(problem, tried, top)
        return Advice(top, False, tried, load)
    yield from _ask(tried, _ladder(problem, top))
    answer = yield from _shrink(problem, tried, top)
    for _ in range(MOST_ROUNDS):
        better = yield from _move(problem, tried, answer)
        if better is None:
            break
        answer = yield from _shrink(problem, tried, better)
    answer = yield from _polish(problem, tried, answer)
    answer = yield from _shrink(problem, tried, answer)
    answer = yield from _smallest_of_all(problem, tried, answer)
    return Advice(answer, True, tried)


def confirm(
    problem: Problem, advice: Advice
) -> Generator[Sequence[Setting], Mapping[Setting, float], Advice]:
    """The advice after a replay of the whole trace: with a larger pool where that falls short, or
    the largest where none will do."""
    tried, answer = advice.tried, advice.answer
    yield from _ask(tried, [replace(answer, whole=True)])
    if tried[replace(answer, whole=True)] >= problem.target or not advice.is_met:
        is_met = tried[replace(answer, whole=True)] >= problem.target
        return replace(advice, is_whole_met=is_met)
    enough = answer.at(HIGHEST_FRACTION)
    yield from _ask(tried, [replace(enough, whole=True)])
    is_met = tried[replace(enough, whole=True)] >= problem.target
    if is_met:
        enough = yield from _smallest_between(problem, tried, answer, enough)
    yield from _ask(
        tried, [enough, *around(enough, problem.fixed, problem.lowest_fraction(enough))]
    )
    return replace(advice, answer=enough, is_whole_met=is_met, of_stretch=answer)


def _smallest_between(
    problem: Problem, tried: Attainments, short: Setting, enough: Setting
) -> Generator[Sequence[Setting], Mapping[Setting, float], Setting]:
    """Of the pools between one that falls short of the whole trace and one that does not, the
    smallest, within the tolerance, above which all do that were tried."""
    while True:
        low, high = problem.pool_tokens(short), problem.pool_tokens(enough)
        pools = [low * (high / low) ** (k / 3) for k in (1, 2)]
        between = [enough.at(problem.fraction_of(enough, pool)) for pool in pools]
        wholes = [replace(setting, whole=True) for setting in between]
        if high <= low * (1 + POOL_TOLERANCE) or all(whole in tried for whole in wholes):
            return enough
        yield from _ask(tried, wholes)
        for setting, whole in reversed(list(zip(between, wholes, strict=True))):
            if tried[whole] < problem.target:
                short = setting
                break
            enough = setting


def around(answer: Setting, fixed: Sequence[str], lowest_fraction: float) -> list[Setting]:
    """What the sensitivity of an answer is read from: each knob not `fixed` one step away, other
    memory fractions, another host."""
    fractions = {*FOLK_FRACTIONS, *(round(answer.memory_fraction + d, 4) for d in (-0.05, 0.05))}
    inside = [f for f in sorted(fractions) if lowest_fraction <= f <= HIGHEST_FRACTION]
    hosts = [replace(answer, host_us=host_us) for host_us in host_axis(answer)]
    return [*moves(answer, fixed, 1), *map(answer.at, inside), *hosts]


def host_axis(answer: Setting) -> list[float]:
    """Host times to look at: none, and twice what was assumed."""
    return [0.0, 2 * answer.host_us] if answer.host_us else []


def _ask(tried: Attainments, settings: Sequence[Setting]) -> Asking:
    new = [setting for setting in dict.fromkeys(settings) if setting not in tried]
    if new:
        found = yield new
        tried.update({setting: found.get(setting, 0.0) for setting in new})


def _climb(
    problem: Problem, tried: Attainments, top: Setting
) -> Generator[Sequence[Setting], Mapping[Setting, float], Setting]:
    """The knobs that attain most with all the memory, one move after the other."""
    for _ in range(MOST_ROUNDS):
        others = moves(top, problem.fixed)
        yield from _ask(tried, others)
        best = max([top, *others], key=tried.__getitem__)
        if tried[best] >= problem.target or tried[best] < tried[top] + problem.gain:
            return best
        top = best
    return top


def _smallest_of_all(
    problem: Problem, tried: Attainments, answer: Setting
) -> Generator[Sequence[Setting], Mapping[Setting, float], Setting]:
    """`answer`, unless something tried at this load and host attains the target with a pool smaller
    by more than the tolerance, or with one no larger attains more than chance gives, or as much
    with more knobs at their common values; nothing around it does."""

    def num_moved(setting: Setting) -> int:
        common = problem.start.knobs()
        return sum(common[name] != value for name, value in setting.knobs().items())

    while True:
        yield from _ask(tried, around(answer, problem.fixed, problem.lowest_fraction(answer)))
        pool, reached = problem.pool_tokens(answer), tried[answer]
        better = [
            s
            for s in _alike(tried, answer)
            if tried[s] >= problem.target
            and (
                problem.pool_tokens(s) * (1 + POOL_TOLERANCE) < pool
                or (problem.pool_tokens(s) <= pool and tried[s] >= reached + problem.gain)
                or (
                    problem.pool_tokens(s) <= pool
                    and tried[s] >= reached
                    and num_moved(s) < num_moved(answer)
                )
            )
        ]
        if not better:
            return answer
        answer = min(better, key=lambda s: (problem.pool_tokens(s), num_moved(s)))


def _alike(tried: Attainments, answer: Setting) -> list[Setting]:
    """What was tried at the same load and host."""
    return [s for s in tried if (s.load, s.host_us) == (answer.load, answer.host_us)]


def _best_of_all(
    problem: Problem, tried: Attainments, top: Setting
) -> Generator[Sequence[Setting], Mapping[Setting, float], Setting]:
    """Of everything tried at this load and host, what attains most, with the least memory among
    equals; nothing around it does better."""
    while True:
        yield from _ask(tried, around(top, problem.fixed, problem.lowest_fraction(top)))
        best = max(
            _alike(tried, top), key=lambda setting: (tried[setting], -setting.memory_fraction)
        )
        if tried[best] == tried[top] or tried[best] >= problem.target:
            return best
        top = best


def _reachable_load(
    problem: Problem, tried: Attainments, top: Setting
) -> Generator[Sequence[Setting], Mapping[Setting, float], float]:
    search = Search("load", _LOAD_LOW * top.load, top.load, _LOAD_TOLERANCE, 0.0)
    probes = [Probe(top.load, False)]
    while (load := next_value(search, probes)) is not None and load >= search.low * (1 - 1e-3):
        setting = replace(top, load=load)
        yield from _ask(tried, [setting])
        probes.append(Probe(load, tried[setting] >= problem.target))
    return bracket(probes).sustained


def _ladder(problem: Problem, top: Setting) -> list[Setting]:
    """Pools from that of `top` down to the smallest, evenly in the logarithm."""
    high = problem.pool_tokens(top)
    lowest = problem.lowest_fraction(top)
    ratio = problem.pool_tokens(top.at(lowest)) / high
    pools = [high * ratio ** (step / LADDER) for step in range(1, LADDER)]
    fractions = [problem.fraction_of(top, pool) for pool in pools]
    return [top.at(fraction) for fraction in (*fractions, lowest)]


def _shrink(
    problem: Problem, tried: Attainments, top: Setting
) -> Generator[Sequence[Setting], Mapping[Setting, float], Setting]:
    """The setting with the smallest memory, but else like `top`, which attains the target, and
    above which everything that was tried does."""
    stride = SAVING
    while True:
        smallest, failing = _edge(problem, tried, top)
        pool = problem.pool_tokens(smallest)
        if failing is None:
            pools = [pool / stride, pool / stride**2]
            stride = stride**2
        else:
            short = problem.pool_tokens(failing)
            if pool <= short * (1 + POOL_TOLERANCE):
                return smallest
            pools = [short * (pool / short) ** (k / 3) for k in (1, 2)]
        fractions = [max(problem.lowest_fraction(top), problem.fraction_of(top, p)) for p in pools]
        closer = [top.at(f) for f in fractions if f < smallest.memory_fraction]
        if all(setting in tried for setting in closer):
            return smallest
        yield from _ask(tried, closer)


def _edge(problem: Problem, tried: Attainments, top: Setting) -> tuple[Setting, Setting | None]:
    """Of the settings tried that differ from `top` in memory alone, the smallest above which all
    attain the target, and the next below, which does not."""
    same = sorted(
        (s for s in tried if s.at(top.memory_fraction) == top),
        key=lambda setting: -setting.memory_fraction,
    )
    smallest = top
    for setting in (s for s in same if s.memory_fraction <= top.memory_fraction):
        if tried[setting] < problem.target:
            return smallest, setting
        smallest = setting
    return smallest, None


def _move(
    problem: Problem, tried: Attainments, answer: Setting
) -> Generator[Sequence[Setting], Mapping[Setting, float], Setting | None]:
    """Other knobs that attain the target with a pool smaller by SAVING; None without any."""
    pool = problem.pool_tokens(answer) / SAVING
    fraction = problem.fraction_of(answer, pool)
    if fraction < problem.lowest_fraction(answer):
        return None
    tighter = answer.at(fraction)
    others = moves(tighter, problem.fixed)
    yield from _ask(tried, [tighter, *others])
    joint = _joint(tried, tighter, others, problem.gain)
    if joint is not None:
        yield from _ask(tried, [joint])
        if tried[joint] >= problem.target:
            return joint
    best = max(others, key=tried.__getitem__, default=tighter)
    return best if tried[best] >= problem.target else None


def _joint(
    tried: Attainments, base: Setting, others: Sequence[Setting], gain: float
) -> Setting | None:
    """All single moves together that gain something, the best of each knob; None for fewer than
    two."""
    best: dict[str, Setting] = {}
    for other in others:
        name = next(k for k, v in other.knobs().items() if v != getattr(base, k))
        gains = tried[other] > tried[base] + gain
        if gains and (name not in best or tried[other] > tried[best[name]]):
            best[name] = other
    if len(best) < 2:
        return None
    return replace(base, **{name: getattr(other, name) for name, other in best.items()})


def _polish(
    problem: Problem, tried: Attainments, answer: Setting
) -> Generator[Sequence[Setting], Mapping[Setting, float], Setting]:
    """At the answer's own memory, the knobs one step away, while they gain attainment."""
    for _ in range(MOST_ROUNDS):
        others = moves(answer, problem.fixed, 1)
        yield from _ask(tried, others)
        best = max([answer, *others], key=tried.__getitem__)
        if tried[best] < tried[answer] + problem.gain:
            break
        answer = best
    return answer
