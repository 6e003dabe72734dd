"""What is said of timed repetitions that others disturbed."""

from __future__ import annotations

import pandas as pd

from harness.measure.interference import DISTURBED_SHARE
from harness.measure.statistics import MIN_REPETITIONS_FOR_INTERVAL

LIMIT = f"{100 * DISTURBED_SHARE:.0f} % of the cores"


def count_disturbed(rows: pd.DataFrame) -> int:
    """Repetitions in which others had too much of the processor, as far as that was measured."""
    return int((rows["others_share"] > DISTURBED_SHARE).sum()) if "others_share" in rows else 0


def interference_notes(rows: pd.DataFrame) -> list[str]:
    """A line for the disturbed ones of timed repetitions, one for those of which it is unknown."""
    notes = []
    if disturbed := count_disturbed(rows):
        notes.append(
            f"§ disturbed: others had more than {LIMIT} in {disturbed} of {len(rows)} repetitions "
            f"(up to {100 * rows['others_share'].max():.0f} %): their times say little."
        )
    known = int(rows["others_share"].notna().sum()) if "others_share" in rows else 0
    if known < len(rows):
        which = "" if not known else f" in {len(rows) - known} of {len(rows)} repetitions"
        notes.append(f"Interference not measured{which}: what others had of the cores is unknown.")
    return notes


def measured_notes(rows: pd.DataFrame, points: pd.DataFrame) -> list[str]:
    """For below a figure of `points`, as from `experiments.plotting.means`, that shows times of
    `rows`; none where these are simulated."""
    timed = rows[rows["executor"] != "simulated"]
    if timed.empty:
        return []
    fewest, most = int(points["repetitions"].min()), int(points["repetitions"].max())
    n = f"n = {fewest}" if fewest == most else f"n = {fewest} to {most}"
    is_sampled = fewest >= MIN_REPETITIONS_FOR_INTERVAL
    said = "bars and bands are 95 % intervals" if is_sampled else "too few for an interval"
    return [f"{n} repetitions; {said}", *interference_notes(timed)]
