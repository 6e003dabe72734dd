"""Bad input, end to end: one line that names the value, the limit and the way out."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from harness.config import ConfigError, ExecutorConfig, RunConfig
from harness.runs.store import RunStore
from harness.workloads.config import WorkloadConfig


def only_run(folder: Path = Path("results/single")):
    store = RunStore(folder)
    (run,) = [store.find(path.name) for path in folder.glob("[0-9a-f]*") if path.is_dir()]
    return run


def assert_ended_at_once(answer, *said: str) -> None:
    assert answer.status == 2
    (line,) = answer.err.strip().splitlines()
    assert line.startswith("error: ")
    for part in said:
        assert part in line
    assert not Path("results").exists()


_SCALED = ("workload.length_scale=1", "workload.max_len=99")
LENGTHS = "prompt_tokens,output_tokens\n8,4\n200,50\n8,4\n"


def test_a_prompt_that_can_never_fit_is_refused_and_the_others_finish(command, tmp_path):
    (tmp_path / "lengths.csv").write_text(LENGTHS)
    answer = command(
        "workload=trace",
        "workload.format=lengths_csv",
        "workload.path=lengths.csv",
        "workload.arrivals=all_at_once",
        "workload.length_scale=1",
        "workload.max_len=300",
        "workload.max_output_len=50",
        "kv.pool_tokens=128",
    )
    assert answer.status == 0, answer
    requests = only_run().frame("requests")
    assert requests["status"].tolist() == ["finished", "refused", "finished"]
    reason = requests["reason"].iloc[1]
    assert "needs up to 256 token slots (prompt 200 + output 50), the pool has 128" in reason
    assert "raise kv.pool_tokens" in reason
    assert only_run().summary[0]["num_refused"] == 1


def test_a_pool_smaller_than_every_sequence_is_a_failed_row_with_both_sizes(command):
    answer = command("kv.pool_tokens=32", "workload=fixed", "kv.page_size=16,64")
    assert answer.status == 1
    rows = pd.read_csv("results/single/summary.csv").set_index("page_size")
    assert rows["status"].tolist() == ["failed", "failed"]
    assert "none of 4 requests could be served" in rows.error[16]
    assert "the pool has 32: raise kv.pool_tokens" in rows.error[16]
    assert "kv.pool_tokens=32 leaves 32 token slots, less than one page of 64" in rows.error[64]


def test_a_page_size_that_the_kernels_do_not_take_is_told_before_the_run(command, monkeypatch):
    from kernels import backend

    original = backend.load

    def with_limit(device: str, name: str = "auto") -> backend.AttentionBackend:
        import dataclasses

        return dataclasses.replace(original(device, name), name="triton", max_page_size=256)

    monkeypatch.setattr(backend, "load", with_limit)
    answer = command("executor=torch", "device=cpu", "kv.page_size=16,48")
    assert_ended_at_once(answer, "page size 48", "powers of two from 1 to 256", "reference")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["attention.backend=tritn"], ["attention.backend=tritn", "triton"]),
        (["kv.page_size=-1"], ["kv.page_size=-1", "at least 1"]),
        (["model=hub"], ["model=hub needs a checkpoint: add model.path"]),
        (["model=hub", "model.path=abc"], ["model.path=abc", "no such folder", "OWNER/NAME"]),
        (["model=hub", "model.path=/no/such"], ["model.path=/no/such", "no such folder"]),
        (["model.path=./no/such"], ["model.path=./no/such", "no such folder", "OWNER/NAME"]),
        (["model.config.num_hidden_layers=0"], ["num_hidden_layers=0", "from 1 to 10,000"]),
        (["model.config.hidden_size=wide"], ["hidden_size='wide' is not an integer"]),
        (["model.config.head_dim=nan"], ["model.config.head_dim=nan", "finite"]),
        (["model.config.num_hidden_layers=1e9"], ["num_hidden_layers=1000000000.0", "10,000"]),
        (["model.config.vocab_size='3'"], ["vocab_size='3' is not an integer"]),
        (["preset=[1,2]"], ["preset=[1, 2]", "expected text"]),
        (["workload.max_len=1"], ["raise workload.max_len"]),
        (["workload.num_requests=1e18"], ["workload.num_requests=", "must be at most 10000000"]),
        (
            ["engine.tensor_parallel=2", "device=cuda", "engine.cuda_graph=false"],
            ["engine.cuda_graph=false has no effect", "engine.tensor_parallel=1"],
        ),
        (
            ["engine.tensor_parallel=2", "device=cuda", "engine.overlap=false"],
            ["engine.overlap=false has no effect", "engine.tensor_parallel=1"],
        ),
        (["kv.memory_fraction=0.5"], ["kv.memory_fraction=0.5", "device.imagined_memory_gib"]),
        (["attention=contiguous"], ["attention=contiguous", "allocator=contiguous"]),
    ],
)
def test_what_cannot_work_is_told_before_any_run(command, arguments, said):
    device = [] if "device=cuda" in arguments else ["device=cpu"]
    assert_ended_at_once(command("executor=torch", *device, *arguments), *said)


@pytest.mark.parametrize(
    ("draft", "said"),
    [
        ("smal", "did you mean small"),
        ("hub", "A checkpoint is given as ./DIR or OWNER/NAME"),
        ("nonesuch", "A checkpoint is given as ./DIR or OWNER/NAME"),
        ("./nonesuch", "cannot be used: no such folder"),
        ("nobody/nonesuch", "cannot be used"),
    ],
)
def test_a_draft_model_that_is_not_there_is_told_by_its_key(command, draft, said, monkeypatch):
    def ask_hub(*_: object, **__: object) -> None:
        raise OSError("the hub was asked")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", ask_hub)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: [])
    method = "engine.speculation.method=draft_model"
    answer = command(method, f"engine.speculation.draft={draft}")
    assert_ended_at_once(answer, f"engine.speculation.draft={draft}", said)
    assert "model.path" not in answer.err
    assert ("the hub was asked" in answer.err) == (draft == "nobody/nonesuch")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_device_cuda_without_a_gpu_does_not_fall_back(command):
    answer = command("executor=torch", "device=cuda")
    assert_ended_at_once(answer, "device=cuda", "use device=cpu or device=auto")


def test_a_memory_fraction_of_an_imagined_device_works(command):
    answer = command("kv.memory_fraction=0.5", "device.imagined_memory_gib=0.02")
    assert answer.status == 0
    # tiny: 256 B of KV a token; weights are taken off first
    pool = only_run().summary[0]
    assert 0 < pool["pool_bytes"] < 0.5 * 0.02 * 2**30


def test_kv_dtype_decides_what_a_token_weighs(command):
    assert command("kv.dtype=bfloat16", "kv.pool_tokens=1024").status == 0
    assert only_run().summary[0]["pool_bytes"] == 1024 * 2 * 2 * 2 * 16 * 2


def test_a_kv_dtype_is_what_the_pool_really_holds(command):
    arguments = ("executor=torch", "device=cpu", "kv.dtype=bfloat16", "kv.pool_tokens=512")
    answer = command(*arguments, "workload=fixed", "workload.length_scale=0.1")
    assert answer.status == 0, answer
    from harness.compose import compose_run, hydra_session
    from harness.runs.torch_device import TorchDevice

    with hydra_session():
        config = compose_run(["model=tiny", *arguments])
    device = TorchDevice(config.model, config.device)
    executor = device.executor(config, 32, 64)
    try:
        measured = executor.pool.storage.nbytes
    finally:
        executor.close()
    assert measured == only_run().summary[0]["pool_bytes"]


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.97,30,4\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("yesterday,3,4", "TIMESTAMP='yesterday' is not a time"),
        ("2023-11-16 18:17:04.00,many,4", "ContextTokens='many' is not an integer"),
        ("2023-11-16 18:17:04.00,3,-1", "GeneratedTokens='-1' must be from 0"),
    ],
)
def test_a_malformed_trace_line_is_named_with_file_and_number(command, tmp_path, line, said):
    (tmp_path / "trace.csv").write_text(AZURE + line + "\n")
    answer = command("workload=trace", "workload.format=azure", "workload.path=trace.csv")
    assert_ended_at_once(answer, f"trace.csv:3: {said}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["workload.format=azure", "workload.path=nowhere.csv"], "no such file"),
        (["workload.format=azur", "workload.path=trace.csv"], "did you mean azure"),
        (["workload.format=azure"], "needs workload.path"),
        ([], "workload=trace needs a trace: add workload.path=FILE_OR_FOLDER and workload.format="),
    ],
)
def test_a_trace_that_cannot_be_read_is_told_before_any_run(command, tmp_path, arguments, said):
    (tmp_path / "trace.csv").write_text(AZURE)
    assert_ended_at_once(command("workload=trace", *arguments), said)


BROKEN_FILES = {
    "missing": (None, "no allocator file"),
    "syntax": ("x = (\n", "line 1: '(' was never closed"),
    "import": ("import os\nimport nonesuch\n", "line 2: ModuleNotFoundError"),
    "raises": ("def f():\n    raise KeyError('k')\nf()\n", "line 2: KeyError: 'k'"),
    "no_class": ("x = 1\n", "no allocator 'Mine'"),
    "no_allocator": ("class Mine:\n    pass\n", "subclass of allocators.base.KVCacheAllocator"),
    "other_name": (
        "from allocators.paged import Paged\nclass Main(Paged):\n    name = 'm'\n",
        "did you mean Main",
    ),
    "abstract": (
        "from allocators.base import KVCacheAllocator\nclass Mine(KVCacheAllocator):\n    pass\n",
        "abstract methods filled in",
    ),
    "needs_option": (
        "from allocators.paged import Paged\nclass Mine(Paged):\n    name = 'm'\n"
        "    def __init__(self, pool, depth):\n        super().__init__(pool)\n",
        "option 'depth' needs a default value",
    ),
    "taken_option": (
        "from allocators.paged import Paged\nclass Mine(Paged):\n    name = 'm'\n"
        "    def __init__(self, pool, expected=1):\n        super().__init__(pool)\n",
        "option 'expected' has the name of a key",
    ),
}


@pytest.mark.parametrize("kind", BROKEN_FILES)
def test_an_allocator_file_that_does_not_do_is_told_in_one_line(command, tmp_path, kind):
    text, said = BROKEN_FILES[kind]
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    assert_ended_at_once(command("allocator=paged,./mine.py:Mine"), "mine.py", said)


def test_options_of_an_own_allocator_are_typed_and_swept(command, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from allocators.paged import Paged\nclass Mine(Paged):\n    name = 'mine'\n"
        "    def __init__(self, pool, depth: int = 1):\n        super().__init__(pool)\n"
    )
    own = "allocator=./mine.py:Mine"
    assert_ended_at_once(command(own, "allocator.depth=deep"), "allocator.depth='deep'", "whole")
    assert_ended_at_once(command(own, "allocator.dept=2"), "did you mean allocator.depth")
    answer = command(own, "allocator.depth=1,2")
    assert answer.status == 0
    rows = pd.read_csv("results/single/summary.csv")
    assert rows["strategy"].tolist() == ["mine depth=1", "mine depth=2"]


def test_an_own_allocator_runs_beside_the_built_in_ones(command, own_allocator):
    (own_allocator.parent / "sub").mkdir()
    other = own_allocator.parent / "sub" / "mine.py"
    other.write_text(own_allocator.read_text())
    answer = command("allocator=paged,./mine.py:Mine,sub/mine.py", "kv.page_size=8")
    assert answer.status == 0, answer
    rows = pd.read_csv("results/single/summary.csv").set_index("strategy")
    assert sorted(rows.index) == ["mine (mine.py:Mine)", "mine (sub/mine.py)", "paged"]
    assert rows["utilisation"].nunique() == 1


def test_an_option_is_of_those_allocators_that_have_it(command, own_allocator):
    answer = command(
        "allocator=./mine.py:Mine,contiguous", "allocator.fit=first_fit", "dry_run=true"
    )
    assert answer.status == 0, answer
    runs = [line for line in answer.out.splitlines() if "· page" in line]
    assert len(runs) == 2 and " mine · " in runs[0] and " contiguous first_fit " in runs[1]


@pytest.mark.parametrize("allocators", ["paged,paged_prefix", "paged_prefix,paged"])
def test_an_option_that_no_allocator_has_is_told_with_the_nearest_of_all(command, allocators):
    answer = command(f"allocator={allocators}", "allocator.evictoin=lfu")
    assert_ended_at_once(answer, "'allocator.evictoin'", "did you mean allocator.eviction")
    answer = command(f"allocator={allocators}", "allocator.evictoin=lfu,fifo")
    assert_ended_at_once(answer, "'allocator.evictoin'", "did you mean allocator.eviction")


def test_an_own_allocator_goes_into_an_experiment(command, own_allocator):
    answer = command(
        "experiment=sweep_page_size", "allocator=./mine.py:Mine", "dry_run=true", quick=False
    )
    assert answer.status == 0
    runs = [line for line in answer.out.splitlines() if "· page" in line]
    assert runs
    assert all(" mine · " in line for line in runs)


@pytest.mark.parametrize(
    ("key", "way_out"),
    [
        ("engine.swap_tokens=100", "engine.preemption=swap"),
        ("workload.rate=5", "workload.arrivals=poisson"),
        ("workload.burstiness=0.5", "workload.arrivals=gamma"),
        ("workload.concurrency=3", "workload.arrivals=closed_loop"),
        ("workload.prompt_len=7", "workload.lengths=fixed"),
        ("workload.output_max=700", "workload.lengths=uniform"),
        ("workload.prompt_cv=2.0", "workload.lengths=lognormal"),
        ("workload.shared_len=9", "workload.sharing=system_prompt"),
        ("workload.turns=2", "workload.sharing=chat"),
        ("workload.top_k=5", "workload.temperature=1"),
        ("workload.length_penalty=2.0", "workload.beam_width=4"),
        ("workload.early_stopping=never", "workload.beam_width=4"),
        ("allocator.expected_spread=0.5", "allocator.expected=predicted"),
        ("allocator.expected_bias=2.0", "allocator.expected=predicted"),
        ("engine.speculation.acceptance=0.5", "engine.speculation.method=injected"),
        ("engine.speculation.num_tokens=2", "engine.speculation.method=ngram"),
        ("engine.speculation.ngram_max=5", "engine.speculation.method=ngram"),
        ("workload.think_s=3.0", "workload.sharing=chat"),
        ("engine.fused=false", "executor=torch"),
        ("attention.backend=reference", "executor=torch"),
        ("device.threads=2", "executor=torch"),
        ("measure.memory_map_period_s=0.5", "measure.memory_map=true"),
    ],
)
def test_a_key_without_effect_is_refused_with_what_gives_it_one(command, key, way_out):
    assert_ended_at_once(command(key, "dry_run=true"), key, "has no effect", f"add {way_out}")
    assert command(key, way_out, "dry_run=true").status == 0


def test_a_traces_key_without_a_trace_is_refused(command, tmp_path):
    (tmp_path / "lengths.csv").write_text(LENGTHS)
    trace = ("workload.path=lengths.csv", "workload.format=lengths_csv")
    for key in trace:
        assert_ended_at_once(command(key, "dry_run=true"), key, "add workload=trace")
    rest = ("workload.arrivals=all_at_once", "dry_run=true")
    assert command("workload=trace", *trace, *rest).status == 0


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (("kv.pool_tokens=512", "kv.memory_fraction=0.5,0.9"), "kv.memory_fraction=0.5"),
        (("kv.pool_tokens=512", "kv.pool_demand=4"), "kv.pool_demand=4.0"),
        (
            ("experiment=compare_allocators", "kv.memory_fraction=0.5,0.9"),
            "kv.pool_tokens=15728 beside kv.memory_fraction=0.5",
        ),
        (("kv.pool_tokens=512", "device.imagined_memory_gib=2"), "device.imagined_memory_gib=2"),
        (("workload=trace", "workload.block_len=32", "workload.length_scale=0.5"), "block_len=32"),
        (("workload=trace", "workload.arrivals=poisson", "workload.speed_up=2"), "speed_up=2"),
        (("workload=trace", "workload.lengths=fixed"), "workload.lengths=fixed"),
        (("workload=trace", *_SCALED, "workload.fit_len=64"), "workload.fit_len=64"),
    ],
)  # fmt: skip
def test_two_keys_for_one_thing_are_refused(command, tmp_path, keys, named):
    (tmp_path / "lengths.csv").write_text(LENGTHS)
    trace = ("workload.path=lengths.csv", "workload.format=lengths_csv")
    rest = trace if "workload=trace" in keys else ()
    quick = "experiment" not in keys[0]
    assert_ended_at_once(command(*keys, *rest, "dry_run=true", quick=quick), named)


def test_an_experiments_key_gives_way_to_the_users_by_null(command):
    sweep = ("experiment=compare_allocators", "kv.memory_fraction=0.5,0.9", "kv.pool_tokens=null")
    told = command(*sweep, "device.imagined_memory_gib=80", "dry_run=true", quick=False)
    assert told.status == 0, told


def test_a_swept_key_that_no_run_reads_is_told(command):
    """A key that another overrides, which nothing knew of beforehand."""
    answer = command("engine.watermark=0.0,0.5", "workload.num_requests=1", "allocator=paged")
    assert "runs, sharegpt: engine.watermark=0, 0.5 changes no figure of any run" in answer.out
    answer = command("engine.token_budget=64,512", "workload=fixed")
    assert "changes no figure" not in answer.out


def test_a_key_is_not_refused_where_some_run_reads_it_or_it_changes_nothing(command):
    sweep = ("engine.preemption=recompute,swap", "engine.swap_tokens=100")
    assert command(*sweep, "dry_run=true").status == 0
    assert (
        command("workload.length_penalty=1", "engine.swap_tokens=null", "dry_run=true").status == 0
    )


@pytest.mark.parametrize("branches", [("samples", "workload.temperature=1"), ("beam_width",)])
def test_more_branches_than_can_run_are_refused_at_once(command, branches):
    key, *others = branches
    told = command(f"workload.{key}=300", *others)
    assert_ended_at_once(told, f"workload.{key}=300", "engine.max_num_seqs=256")


def test_a_free_output_cannot_be_simulated() -> None:
    with pytest.raises(ConfigError, match=r"workload\.output=forced_ids"):
        RunConfig(executor=ExecutorConfig("simulated"), workload=WorkloadConfig(output="free"))
