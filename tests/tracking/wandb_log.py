"""Reads what W&B wrote offline, with W&B's own reader."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd


class OfflineRun(NamedTuple):
    """A `.wandb` file, and its records in order."""

    path: Path
    records: list[dict[str, Any]]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The records of one kind."""
        return [record[kind] for record in self.records if record["type"] == kind]

    @property
    def header(self) -> dict[str, Any]:
        return self.of("run")[0]

    @property
    def config(self) -> dict[str, Any]:
        return self.header["config"]["update"]

    @property
    def history(self) -> pd.DataFrame:
        return pd.DataFrame(record["item"] for record in self.of("history"))

    @property
    def summary(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for record in self.of("summary"):
            values |= record.get("update", {})
        return values

    @property
    def artifacts(self) -> dict[str, dict[str, Any]]:
        """By type, which each test has one of."""
        return {record["type"]: record for record in self.of("artifact")}

    def table(self, key: str) -> pd.DataFrame:
        """A logged table, from the file that would be uploaded."""
        (file,) = (self.path.parent / "files/media/table").glob(f"{key}_*.table.json")
        content = json.loads(file.read_text())
        return pd.DataFrame(content["data"], columns=content["columns"])


def offline_runs(folder: Path) -> Iterator[OfflineRun]:
    """All that lie in an experiment's folder."""
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        yield OfflineRun(path, [json.loads(line) for line in _inspect(path).splitlines() if line])


def _inspect(path: Path) -> str:
    """What `wandb leet inspect --json PATH` prints, without starting Python for it."""
    spec = importlib.util.find_spec("wandb")
    assert spec is not None and spec.origin is not None
    core = Path(spec.origin).parent / "bin" / "wandb-core"
    command = [core, "leet", "inspect", "--no-observability", "--json", "--run-file", path]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
