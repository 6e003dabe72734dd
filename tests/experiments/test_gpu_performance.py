"""README's section on GPUs: from committed results alone, never from a dry run."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from experiments.gpu.figures import draw
from experiments.gpu.goals import goals
from experiments.gpu.rows import DryRowsError, Row

ROOT = Path(__file__).resolve().parents[2]
UNMEASURED = ("No such run's results are committed yet", "- Not yet run on a GPU")


@pytest.fixture(scope="module")
def performance() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "make_performance", ROOT / "docs/make_performance.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def readme(performance: ModuleType) -> str:
    """A short one, as it is without results."""
    text = "# kvarena\n\n## Is the engine fast enough to be believed?\n\n## Limits\n\n- Some.\n"
    made: str = performance.with_performance(text, None)
    return made


def made_up_rows(dry: bool = False) -> dict[str, list[Row]]:
    """Two shapes by three contenders, page sizes, and two engines; no machine measured these."""
    base = {"status": "ok", "dry": dry, "key": "k"}
    kernels = [
        {
            **base, "case": f"decode {batch} {contender} {page}", "bench": "decode",
            "contender": contender, "batch": batch, "context": context, "page_size": page,
            "kv_bytes": 4096 * batch * context, "median_us": 100.0 + page, "read_share": 0.5,
        }
        for batch in (1, 64)
        for context in (512, 4096)
        for contender, page in (("paged", 16), ("contiguous", 0), ("flashinfer", 16))
    ]  # fmt: skip
    kernels += [
        {
            **base, "case": f"pages {page}", "bench": "pages", "batch": 64, "context": 4096,
            "contender": "paged" if page else "contiguous", "page_size": page,
            "median_us": 100.0 + page, "read_share": 0.5,
        }
        for page in (0, 1, 16)
    ]  # fmt: skip
    kernels.append({**base, "case": "absent", "status": "absent", "bench": "decode"})
    steps = {**base, "bench": "decode_steps", "batch": 64, "context": 1024}
    engine = [
        {
            **steps, "case": "ours", "contender": "engine", "decode_tokens_per_s": 4321.0,
            "step_ms": 12.5, "roofline_share": 0.41,
        },
        {
            **steps, "case": "theirs", "contender": "generate_batch", "attention": "sdpa",
            "decode_tokens_per_s": 234.0,
        },
    ]  # fmt: skip
    rate = {**base, "case": "read bandwidth", "value": 1234.5, "unit": "GB/s"}
    return {"kernels": kernels, "engine": engine, "environment": [rate]}


def store(folder: Path, rows: dict[str, list[Row]], **run: Any) -> Path:
    """As `make gpu` leaves its results."""
    for name, own in rows.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in own))
    reached = [goal._asdict() for goal in goals(rows["kernels"], rows["engine"])]
    dry = run.get("dry", False)
    (folder / "goals.json").write_text(json.dumps({"dry": dry, "goals": reached}))
    facts = {"dry": dry, "device": "Imagined GPU", "versions": ["torch 9"], "stages": {}}
    (folder / "run.json").write_text(json.dumps(facts | run))
    return folder


def test_nothing_committed_is_no_section(
    tmp_path: Path, performance: ModuleType, readme: str
) -> None:
    assert performance.section(tmp_path / "gpu", tmp_path, tmp_path) is None
    assert performance.with_performance(readme, None) == readme


def test_the_section_comes_and_goes_with_the_results(
    tmp_path: Path, performance: ModuleType, readme: str
) -> None:
    results = store(tmp_path / "gpu", made_up_rows())
    content = performance.section(results, tmp_path / "images", tmp_path)
    for figure in ("Imagined GPU", "1,234 GB/s", "4,321", "12.50", "41%", "generate_batch (sdpa)"):
        assert figure in content
    for goal in goals([], []):
        assert goal.name in content
    pictures = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert pictures == ["gpu_bandwidth.png", "gpu_page_size.png"]
    assert all(f"images/{name}" in content for name in pictures)
    filled = performance.with_performance(readme, content)
    assert filled.index(performance.HEADING) < filled.index("## Limits")
    assert performance.with_performance(filled, content) == filled
    assert performance.with_performance(filled, None) == readme


def test_a_dry_run_is_refused_wherever_it_says_so(tmp_path: Path, performance: ModuleType) -> None:
    whole = store(tmp_path / "whole", made_up_rows(dry=True), dry=True)
    hidden = store(tmp_path / "hidden", made_up_rows(dry=True))
    for results in (whole, hidden):
        with pytest.raises(DryRowsError, match="dry run"):
            performance.section(results, tmp_path / "images", tmp_path)
    assert not (tmp_path / "images").exists()
    with pytest.raises(DryRowsError):
        draw(made_up_rows(dry=True)["kernels"], tmp_path)


def test_drawn_points_are_the_rows(tmp_path: Path) -> None:
    rows = made_up_rows()["kernels"]
    paths = draw(rows, tmp_path)
    assert {path.suffix for path in paths} == {".pdf", ".png", ".csv"}
    points = pd.read_csv(tmp_path / "gpu_bandwidth.csv")
    assert len(points) == 12 and set(points["contender"]) == {"paged", "contiguous", "flashinfer"}
    assert list(pd.read_csv(tmp_path / "gpu_page_size.csv")["page_size"]) == [0, 1, 16]
    assert draw([rows[-1]], tmp_path / "none") == []


def test_the_readme_has_a_place_for_it(performance: ModuleType) -> None:
    text = (ROOT / "README.md").read_text()
    assert performance.with_performance(text, "x").count(performance.HEADING) == 1
    committed = (ROOT / "results/reference/gpu/run.json").is_file()
    assert (performance.HEADING in text) == committed


def test_what_says_that_nothing_was_measured_and_the_section_exclude_each_other(
    performance: ModuleType, readme: str
) -> None:
    for text in (readme, (ROOT / "README.md").read_text()):
        filled = performance.with_performance(text, "x")
        assert performance.HEADING in filled
        assert not any(words in filled for words in UNMEASURED)
        bare = performance.with_performance(text, None)
        assert performance.HEADING not in bare
        assert all(bare.count(words) == 1 for words in UNMEASURED)
    assert (ROOT / "results/reference/gpu/run.json").is_file() or text == bare
    with pytest.raises(ValueError, match="Limits"):
        performance.with_performance("# none", "x")
