"""The columns of the comparison: what is shown, how, and what is best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Best = Literal["max", "min", "none"]
Hidden = Literal["never", "zero", "missing"]


@dataclass(frozen=True, slots=True)
class Column:
    """A metric as a column.

    head: heading on a terminal. title: heading with its unit, in files. scale: factor from the
    metric to what is shown. has_interval: the interval is shown on a terminal too; files
    always have it. hide_when: left out on a terminal where every row is 0, or lacks it. is_time:
    it says how long something took; it has its interval everywhere, and the repetitions beside it.
    """

    metric: str
    head: str
    title: str
    scale: float = 1.0
    digits: int = 1
    best: Best = "none"
    has_interval: bool = False
    hide_when: Hidden = "never"
    in_files_only: bool = False
    is_time: bool = False

    def shown(self, value: float) -> float:
        """The figure that a reader sees for `value` of the metric."""
        return round(value * self.scale, self.digits)


def _share(name: str, head: str, best: Best = "none", hide_when: Hidden = "never") -> Column:
    title = f"{name.removesuffix('_share').replace('_', '-')} %"
    return Column(name, head, title, 100.0, best=best, hide_when=hide_when)


def _time(
    metric: str,
    head: str,
    title: str,
    *,
    digits: int = 1,
    best: Best = "min",
    in_files_only: bool = False,
) -> Column:
    return Column(
        metric,
        head,
        title,
        digits=digits,
        best=best,
        has_interval=True,
        in_files_only=in_files_only,
        is_time=True,
    )


UTILISATION = Column("utilisation", "used %", "used %", 100.0, best="max", has_interval=True)

UTILISATION_UNDER_LOAD = Column(
    "paper_token_share", "at full\nload %", "used % while saturated", 100.0, best="max"
)

WASTE = (
    _share("reserved_share", "re-\nserved", "min"),
    _share("over_reserved_share", "over-\nres.", "min", hide_when="zero"),
    _share("size_class_share", "size\nclass", "min", hide_when="zero"),
    _share("tail_share", "tail", "min"),
    _share("cached_share", "cach-\ned", hide_when="zero"),
    _share("withheld_share", "with-\nheld", hide_when="zero"),
    _share("stranded_share", "stran-\nded", "min", hide_when="zero"),
    _share("refused_share", "re-\nfused", "min", hide_when="zero"),
    _share("misaligned_share", "mis-\naligned", hide_when="zero"),
    _share("free_share", "free"),
)

BATCHED = Column(
    "batched_requests", "batched\nrequests", "batched requests", best="max", has_interval=True
)

COUNTS = (
    Column("prefix_hit_rate", "hit\n%", "prefix hit rate %", 100.0, best="max", hide_when="zero"),
    Column(
        "sharing_saved",
        "saved\n%",
        "pages saved by sharing %",
        100.0,
        best="max",
        hide_when="zero",
    ),
    Column(
        "acceptance_rate", "acc.\n%", "accepted drafts %", 100.0, best="max", hide_when="missing"
    ),
    Column("preemptions", "pre-\nempt.", "preemptions", digits=0, best="min", hide_when="zero"),
    Column("recomputed_tokens", "recom-\nputed", "recomputed tokens", digits=0, in_files_only=True),
    Column("swapped_bytes", "swapped\nGiB", "swapped GiB", 2.0**-30, 3, hide_when="zero"),
    Column("stalled_s", "stalled\ns", "stalled by preemption s", digits=1, in_files_only=True),
    Column("copied_pages", "copies", "copied pages", digits=0, in_files_only=True),
    Column("num_refused", "re-\nfused", "refused requests", digits=0, best="min", hide_when="zero"),
)

SATURATED = Column("saturated_share", "satu-\nrated %", "saturated % of time", 100.0, digits=0)

EXTRAPOLATED = Column(
    "extrapolated_share",
    "extra-\npol. %",
    "steps beyond the calibration %",
    100.0,
    hide_when="zero",
)

STEPS = Column(
    "tokens_per_step_per_gib",
    "tok/step\n/GiB",
    "output tokens/step per GiB of KV",
    digits=2,
    best="max",
)

TIMES = (
    _time("output_tokens_per_s", "output\ntok/s", "output tokens/s", best="max"),
    _time(
        "output_tokens_per_s_per_gib",
        "tok/s\n/GiB",
        "output tokens/s per GiB of KV",
        digits=0,
        best="max",
    ),
    _time(
        "steady_output_tokens_per_s",
        "steady\ntok/s",
        "output tokens/s in the steady window",
        best="max",
        in_files_only=True,
    ),
    _time("normalised_latency_ms", "norm. lat.\nms/tok", "normalised latency ms/token"),
    _time("ttft_ms", "TTFT\nms", "TTFT ms", digits=0),
    _time("ttft_p99_ms", "TTFT\np99", "TTFT p99 ms", digits=0, in_files_only=True),
    _time("tpot_ms", "TPOT\nms", "TPOT ms"),
    _time("tpot_p99_ms", "TPOT\np99", "TPOT p99 ms", in_files_only=True),
    _time("itl_p99_ms", "ITL p99\nms", "ITL p99 ms"),
    _time("duration_s", "time\ns", "duration s", best="none", in_files_only=True),
    _time("drain_s", "drain\ns", "drain s", best="none", in_files_only=True),
    _time("allocator_us_per_step", "alloc.\nus/step", "allocator us/step", in_files_only=True),
)

MEMORY_BLOCK = (UTILISATION, UTILISATION_UNDER_LOAD, *WASTE, SATURATED)
SIMULATED_BLOCK = (
    UTILISATION,
    UTILISATION_UNDER_LOAD,
    *WASTE,
    BATCHED,
    SATURATED,
    STEPS,
    *COUNTS,
)
SERVICE_BLOCK = (BATCHED, *TIMES, *COUNTS, SATURATED, EXTRAPOLATED)

BLOCKS = (MEMORY_BLOCK, SIMULATED_BLOCK, SERVICE_BLOCK)

COLUMNS = {column.metric: column for block in BLOCKS for column in block}
"""Every column, by its metric."""
