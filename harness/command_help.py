"""What `python -m harness --help` says."""

from __future__ import annotations

import importlib.resources
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf


class Example(NamedTuple):
    """arguments: what follows `python -m harness`. words: what it is for."""

    arguments: str
    words: str


EXAMPLES: Sequence[Example] = (
    Example("model=tiny", "one run of a model, one summary"),
    Example("executor=simulated allocator=contiguous,paged", "commas sweep; no model is run"),
    Example("experiment=sweep_page_size", "an experiment: a sweep with its table and figures"),
    Example("experiment=compare_allocators preset=full dry_run=true", "what a command would do"),
    Example("allocator=./mine.py:Mine,paged kv.page_size=8,16,32", "a strategy of your own"),
    Example("workload=chat workload.arrivals=poisson workload.rate=2", "another workload"),
    Example(
        "executor=simulated executor.cost=roofline executor.gpu=h100 model=llama_3_1_8b "
        "workload=sharegpt kv.memory_fraction=0.9",
        "a GPU that is not here",
    ),
    Example("workload.samples=4 workload.temperature=1 allocator=paged_cow", "parallel samples"),
)

COMMON_KEYS: Mapping[str, str] = {
    "experiment=NAME": "a sweep that has a question, parts and figures; see below",
    "preset=quick|full": "how long an experiment takes",
    "dry_run=true": "list the runs and the time they take, and do nothing",
    "repetitions=N": "repeat at seeds seed, seed + 1, ...; intervals from 5, verdicts from 6 on",
    "seed=N": "of the first repetition",
    "timeout_s=N": "seconds that a run may take before it is ended as failed (3600)",
    "results_dir=DIR": "where runs go, and stored ones are looked for (results)",
    "allocator=NAME|FILE.py:CLASS": "the strategy; its options are allocator.OPTION=",
    "allocator.expected=KIND": "what it is told of lengths: none, max, pow2, oracle, predicted",
    "kv.page_size=N": "token slots of a page",
    "kv.pool_tokens=N": "slots of the pool",
    "kv.memory_fraction=X": "the pool as a share of the device's memory",
    "model=NAME": "a preset, or hub with model.path=DIR_OR_ID",
    "executor=simulated": "a virtual clock in place of the model; executor.cost= says whose",
    "device=auto|cpu|cuda": "where a model runs",
    "workload=NAME": "the requests; workload.num_requests=, workload.rate=, workload.path=",
    "workload.format=NAME|FILE.py:NAME": "what wrote the trace; workload.generator= likewise",
    "engine.schedule=NAME": "mixed_chunked, mixed_unchunked, prefill_first, static",
    "engine.preemption=KIND": "recompute or swap; engine.victim= says whom",
    "cluster.replicas=N": "a simulated fleet; cluster.router= says who gets a request",
    "measure.memory_map=true": "keep the pool's history page by page",
    "tracking=none|jsonl|wandb": "where finished runs are reported to",
    "hydra/launcher=NAME": "who does a sweep's runs, on one machine or many; see below",
}

LAUNCHERS: Mapping[str, str] = {
    "basic": "this process, as without the key",
    "joblib": "processes of this machine, hydra.launcher.n_jobs=N; extra joblib",
    "submitit_local": "processes of this machine, each with a log; extra slurm",
    "submitit_slurm": "a Slurm job array: hydra.launcher.partition=, timeout_min=, gpus_per_node=, "
    "array_parallelism=, ...; extra slurm",
    "ray": "a Ray cluster: +hydra.launcher.ray.init.address=, "
    "+hydra.launcher.ray.remote.num_gpus=; extra ray",
}

FLAGS: Mapping[str, str] = {
    "--help": "this; with keys before it, their values below",
    "--cfg job": "the configuration that the keys make, as YAML",
}

_HEADER = """\
kvarena: KV-cache allocation strategies compete under one decode engine.

usage: python -m harness [KEY=VALUE ...]        where installed: kvarena [KEY=VALUE ...]

Every setting is a key; KEY=A,B,C sweeps it. Finished runs are stored, and not done again; what they
say is asked by python -m experiments. Keys are completed in a shell that was told to:
python -m experiments completion.
"""
_WIDTH = 110


def help_text(overrides: Sequence[str]) -> str:
    """The help page, with the values that keys have under `overrides`. Within
    `harness.compose.hydra_session`."""
    config = compose("config", overrides=list(overrides))
    shown = OmegaConf.masked_copy(config, [str(key) for key in config if key != "sweep"])
    sections = {
        "examples": _examples(),
        "common keys": _aligned(COMMON_KEYS),
        "choices (GROUP=NAME)": _choices(),
        "experiments (experiment=NAME)": _aligned(_questions()),
        "launchers (hydra/launcher=NAME)": _aligned(LAUNCHERS),
        "flags": _aligned(FLAGS),
        "all keys and their values": textwrap.indent(OmegaConf.to_yaml(shown).rstrip(), "  "),
    }
    return "\n".join([_HEADER, *(f"{title}:\n{text}\n" for title, text in sections.items())])


def _examples() -> str:
    lines = []
    for example in EXAMPLES:
        command = f"python -m harness {example.arguments}"
        wrapped = textwrap.wrap(command, _WIDTH - 8, break_long_words=False, break_on_hyphens=False)
        lines += [f"  # {example.words}", "  " + " \\\n      ".join(wrapped)]
    return "\n".join(lines)


def _aligned(entries: Mapping[str, str]) -> str:
    width = max(map(len, entries)) + 2
    lines = []
    for name, words in entries.items():
        first, *rest = textwrap.wrap(words, _WIDTH - width - 2) or [""]
        lines.append(f"  {name:<{width}}{first}".rstrip())
        lines += [" " * (width + 2) + line for line in rest]
    return "\n".join(lines)


def _choices() -> str:
    loader = GlobalHydra.instance().config_loader()
    groups = {
        group: ", ".join(sorted(loader.get_group_options(group)))
        for group in sorted(loader.list_groups(""))
        if group not in ("experiment", "hydra")
    }
    return _aligned(groups)


def _questions() -> dict[str, str]:
    """What each experiment asks."""
    questions: dict[str, str] = {}
    folder = importlib.resources.files("conf") / "experiment"
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".yaml"):
            values: dict[str, Any] = yaml.safe_load(file.read_text())
            questions[file.name.removesuffix(".yaml")] = values["sweep"].get("question", "")
    return questions
