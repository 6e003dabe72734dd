"""Figures again from stored rows: which study has what is asked for, and where it goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments import figures
from experiments.figure_style import FigureStyle
from experiments.stored import StoredStudy, available, find_study, no_study
from harness.config import ConfigError
from harness.conversion import unknown_name
from harness.runs.study_record import StudyRecord, read_studies

FOLDER = "figures"


class Asked(NamedTuple):
    """study: by a name that `find_study` knows. modules: of `experiments.figures`."""

    study: str
    modules: tuple[str, ...]


class Drawn(NamedTuple):
    """paths: files written, all of them in `folder`, or beside it where it is the study's."""

    study: StoredStudy
    folder: Path
    paths: list[Path]


def latest_studies(results_dir: Path) -> dict[str, StudyRecord]:
    """The last command of each experiment in `results_dir`, by its name."""
    found = {name: read_studies(results_dir / name) for name in available(results_dir)}
    return {name: records[0] for name, records in found.items() if records}


def asked_for(names: Sequence[str], results_dir: Path, study: str = "") -> list[Asked]:
    """What `names` mean, each study once. A figure's name is that figure of all studies that draw
    it, a study's all of its figures, no name every figure of every study.

    study: whose rows the named figures are drawn from instead, whether its experiment lists them
    or not. Raises ConfigError for a name that is neither, or that no study draws.
    """
    latest = latest_studies(results_dir)
    if study:
        unknown = [name for name in names if name not in figures.available()]
        if unknown or not names:
            wanted = unknown[0] if unknown else ""
            raise ConfigError(unknown_name(wanted, figures.available(), "figure"))
        return [Asked(study, tuple(dict.fromkeys(names)))]
    if not names and not latest:
        raise ConfigError(no_study(results_dir))
    modules: dict[str, dict[str, None]] = {}
    for name in names or latest:
        for asked in _meaning(name, latest, results_dir):
            modules.setdefault(asked.study, {}).update(dict.fromkeys(asked.modules))
    return [Asked(study, tuple(chosen)) for study, chosen in modules.items() if chosen]


def draw_again(
    asked: Asked, results_dir: Path, style: FigureStyle, folder_name: str, output: Path | None
) -> Drawn:
    """Draw what was asked for, into `output`, or `folder_name` in the study's own folder.

    Raises ConfigError as `find_study` does.
    """
    study = find_study(asked.study, results_dir)
    folder = output or study.folder / folder_name
    if study.complete.empty:
        return Drawn(study, folder, [])
    paths = figures.draw_figures(asked.modules, study.complete, study.jobs, folder, style)
    return Drawn(study, folder, paths)


def _meaning(name: str, latest: dict[str, StudyRecord], results_dir: Path) -> list[Asked]:
    if name in latest:
        return [Asked(name, latest[name].figures)]
    if name in figures.available():
        drawing = [study for study, record in latest.items() if name in record.figures]
        if not drawing:
            raise ConfigError(
                f"{name}: no study in {results_dir}/ draws it: run one, or say whose rows it is "
                "to be drawn from: --of STUDY"
            )
        return [Asked(study, (name,)) for study in drawing]
    if "/" not in name and "@" not in name:
        known = (*latest, *figures.available())
        raise ConfigError(unknown_name(name, known, "study or figure"))
    record = find_study(name, results_dir).record
    if not record.figures:
        raise ConfigError(f"{name}: has no figures of its own: name one and give --of {name}")
    return [Asked(name, record.figures)]
