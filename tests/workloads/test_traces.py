"""Trace readers and their replay, on small files in the formats' own schemas."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from itertools import combinations, pairwise

import numpy as np
import pytest

from harness.engine.arrivals import RequestSource
from harness.engine.scheduling.sequence import SequenceGroup
from harness.workloads.byte_tokenizer import ByteTokenizer
from harness.workloads.config import WorkloadConfig
from harness.workloads.generate import generate
from harness.workloads.ideal import ideal_prefix_hits
from harness.workloads.traces import readers

VOCAB = 4096


def replay(format_, path, *, tokenizer=None, vocab_size=VOCAB, seed=0, **values):
    defaults = {"arrivals": "trace", "num_requests": None, "max_len": None}
    config = WorkloadConfig(
        name="trace", generator="trace", format=format_, path=str(path), **(defaults | values)
    )
    return generate(config, seed=seed, vocab_size=vocab_size, tokenizer=tokenizer)


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def sizes(workload):
    return [(len(r.prompt_ids), len(r.forced_ids)) for r in workload.requests]


AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens",
    "2023-11-16 18:15:46.6805900,374,44",
    "2023-11-16 18:15:50.9951690,396,109",
    "2023-11-16 18:15:48.0000001,40,8",
)


def test_azure_rows_come_in_order_with_seven_digits(tmp_path):
    workload = replay("azure", write(tmp_path / "a.csv", *AZURE))
    assert sizes(workload) == [(374, 44), (40, 8), (396, 109)]
    times = [request.arrival_s for request in workload.requests]
    assert times == pytest.approx([0, 1.3194101, 4.3145790], abs=1e-9)


def test_azure_with_a_time_zone(tmp_path):
    lines = [AZURE[0], "2024-05-10 00:00:00.009930+00:00,2162,5", "2024-05-10 00:00:01+00:00,9,5"]
    workload = replay("azure", write(tmp_path / "a.csv", *lines))
    assert workload.requests[1].arrival_s == pytest.approx(0.99007)


@pytest.mark.parametrize(
    ("second", "gap_s"),
    [
        ("2024-05-10 00:00:01.5", 1.5),
        ("2024-05-10T00:00:01.5Z", 1.5),
        ("2024-05-10 02:00:01.5000000+02:00", 1.5),
        ("2024-05-09 22:00:01.5-02:00", 1.5),
        ("2024-05-09 22:00:01-0200", 1.0),
    ],
)
def test_azure_rows_with_and_without_zones_stand_in_one_file(tmp_path, second, gap_s):
    lines = [AZURE[0], "2024-05-10 00:00:00,2162,5", f"{second},9,5"]
    requests = replay("azure", write(tmp_path / "a.csv", *lines)).requests
    assert requests[1].arrival_s == pytest.approx(gap_s)


@pytest.mark.parametrize("format_", ["azure", "mooncake", "sessions_jsonl"])
def test_packed_files_and_byte_order_marks_are_read(tmp_path, format_):
    text = "\n".join(SMALL[format_]) + "\n"
    plain, packed = tmp_path / "t.txt", tmp_path / "t.txt.gz"
    plain.write_text(text, encoding="utf-8-sig")
    packed.write_bytes(gzip.compress(text.encode()))
    assert replay(format_, plain).requests == replay(format_, packed).requests
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(ValueError, match=rf"gz: cannot be read as {format_}: .*end-of-stream"):
        replay(format_, packed)


def test_rows_without_an_output_are_left_out_and_counted(tmp_path):
    lines = [*AZURE, "2023-11-16 18:15:50,3,0", "2023-11-16 18:15:51,0,3"]
    workload = replay("azure", write(tmp_path / "a.csv", *lines))
    assert len(workload.requests) == 3
    assert "2 of 5 have no prompt or no output and are left out" in workload.description
    texts = [("a", ""), ("ab", "x"), ("abc", ""), ("abcd", "yz")]
    path = jsonl(tmp_path / "s.jsonl", [*session("s", 9, texts), *session("t", 10, [("o", "p")])])
    requests = replay("sessions_jsonl", path).requests
    assert [(len(r.prompt_ids), r.session_id, r.after_request) for r in requests] == [
        (2, 0, None), (4, 0, 0), (1, 1, None),
    ]  # fmt: skip
    assert min(r.arrival_s for r in requests) == 0


def test_a_wrong_unit_shows_in_the_description(tmp_path):
    path = mooncake(tmp_path / "m.jsonl", MOONCAKE)
    said = replay("mooncake", path).description
    assert "arriving over 2.5 s, 2.8 requests/s on average" in said
    assert "ideal prefix hit rate" in said
    azure = replay("azure", write(tmp_path / "a.csv", *AZURE)).description
    assert "shared prefixes not recorded" in azure
    assert "arriving over" not in replay("mooncake", path, arrivals="all_at_once").description


def test_what_is_no_regular_file_is_refused_unread(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/zero"):
        for format_ in set(readers()) - {"servegen"}:
            with pytest.raises(ValueError, match="no regular file"):
                replay(format_, path)


def test_speed_up_start_number_and_length_scale(tmp_path):
    path = write(tmp_path / "a.csv", *AZURE)
    fast = replay("azure", path, speed_up=2, start_s=1, length_scale=1 / 16)
    assert sizes(fast) == [(2, 1), (25, 7)]
    assert [r.arrival_s for r in fast.requests] == pytest.approx([0, (4.314579 - 1.3194101) / 2])
    assert len(replay("azure", path, num_requests=2).requests) == 2


def test_the_longest_request_is_the_bound_unless_one_is_given(tmp_path):
    path = write(tmp_path / "a.csv", *AZURE)
    assert {len(r.prompt_ids) + r.max_tokens for r in replay("azure", path).requests} == {505}
    bounded = replay("azure", path, max_len=500, max_output_len=20)
    assert sizes(bounded) == [(374, 20), (40, 8)]
    assert {r.max_tokens for r in bounded.requests} == {20}
    assert "1 of 3 too long" in bounded.description


def test_other_arrivals_replace_the_times(tmp_path):
    workload = replay("azure", write(tmp_path / "a.csv", *AZURE), arrivals="constant", rate=4)
    assert [r.arrival_s for r in workload.requests] == [0, 0.25, 0.5]


@pytest.mark.parametrize(
    "header", ["prompt_tokens,output_tokens", "num_prefill_tokens,num_decode_tokens,pd_ratio"]
)
def test_lengths_csv_knows_both_headers(tmp_path, header):
    tail = ",0.5" if "pd_ratio" in header else ""
    path = write(tmp_path / "l.csv", header, f"21,518{tail}", f"8,66{tail}")
    assert sizes(replay("lengths_csv", path, arrivals="all_at_once")) == [(21, 518), (8, 66)]
    with pytest.raises(ValueError, match="lengths_csv has no times"):
        replay("lengths_csv", path)


def mooncake(path, rows):
    lines = [
        json.dumps({"timestamp": t, "input_length": n, "output_length": out, "hash_ids": list(ids)})
        for t, n, out, ids in rows
    ]
    return write(path, *lines)


MOONCAKE = [
    (0, 1300, 6, (0, 1, 2)),
    (500, 1024, 4, (0, 1)),
    (1000, 1536, 90, (0, 1, 3)),
    (1000, 700, 2, (0, 4)),
    (2000, 3000, 1, (5, 6, 7, 8, 9, 10)),
    (2500, 1300, 6, (0, 1, 2)),
    (2500, 1, 1, (11,)),
]


def common(left, right):
    differ = [i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b]
    return differ[0] if differ else min(len(left), len(right))


@pytest.mark.parametrize(("scale", "block"), [(1, 512), (1 / 32, 16), (1 / 20, 32), (1 / 999, 16)])
@pytest.mark.parametrize("vocab_size", [40, VOCAB])
def test_mooncake_prompts_share_exactly_what_their_ids_share(tmp_path, scale, block, vocab_size):
    path = mooncake(tmp_path / "m.jsonl", MOONCAKE)
    requests = replay("mooncake", path, length_scale=scale, vocab_size=vocab_size).requests
    assert [request.arrival_s for request in requests] == [0, 0.5, 1, 1, 2, 2.5, 2.5]
    for (_, length, _, _), request in zip(MOONCAKE, requests, strict=True):
        full, rest = divmod(length, 512)
        scaled_rest = max(1, round(rest * block / 512)) if rest else 0
        assert len(request.prompt_ids) == full * block + scaled_rest
    for a, b in combinations(range(len(MOONCAKE)), 2):
        left, right = requests[a].prompt_ids, requests[b].prompt_ids
        shared = common(MOONCAKE[a][3], MOONCAKE[b][3]) * block
        assert common(left, right) == min(shared, len(left), len(right))


def test_mooncake_block_tokens_do_not_depend_on_the_rows_around_them(tmp_path):
    path = mooncake(tmp_path / "m.jsonl", MOONCAKE)
    few = replay("mooncake", path, num_requests=3, max_len=4000)
    assert few.requests == replay("mooncake", path, max_len=4000).requests[:3]
    assert few.requests != replay("mooncake", path, num_requests=3, max_len=4000, seed=1).requests


def test_mooncake_ideal_hits_follow_from_the_ids(tmp_path):
    path = mooncake(tmp_path / "m.jsonl", MOONCAKE)
    workload = replay("mooncake", path, block_len=64)
    partial = round((1300 - 1024) / 512 * 64)
    assert ideal_prefix_hits(workload) == [0, 127, 128, 64, 0, 128 + partial - 1, 0]
    assert "x 0.125" in workload.description


@pytest.mark.parametrize("scale", [1, 1 / 32])
def test_the_ideal_hit_rate_of_a_block_trace_is_that_of_its_tokens(tmp_path, scale):
    workload = replay("mooncake", mooncake(tmp_path / "m.jsonl", MOONCAKE), length_scale=scale)
    num_tokens = sum(len(request.prompt_ids) for request in workload.requests)
    share = sum(ideal_prefix_hits(workload)) / num_tokens
    assert f"ideal prefix hit rate {share:.1%}" in workload.description


def test_prompts_that_wait_take_no_memory_for_their_tokens(tmp_path):
    count, length = 100, 16 * 512
    rows = [(0, length, 1, range(16 * i, 16 * i + 16)) for i in range(count)]
    path = mooncake(tmp_path / "m.jsonl", rows)
    tracemalloc.start()
    try:
        arrived = RequestSource(replay("mooncake", path)).take_arrived(0.0)
        groups = [SequenceGroup(i, a.request, a.scheduled_s) for i, a in enumerate(arrived)]
        num_bytes, _ = tracemalloc.get_traced_memory()
        assert len(groups) == count
        assert num_bytes < 2 * count * length  # a list of ints has 36 bytes a token
        assert len(groups[7].sequences[0].token_ids) == length
    finally:
        tracemalloc.stop()


def session(name, start_us, texts):
    return [
        {"timestamp": start_us + i, "input": prompt, "output": output, "session_id": name}
        for i, (prompt, output) in enumerate(texts)
    ]


SESSIONS = [
    *session("b", 5_000_000, [("tree", "go"), ("tree and more é", "stop")]),
    *session("a", 2_000_000, [("first", "one"), ("first, then", "two"), ("first, then x", "end")]),
]


def jsonl(path, rows):
    return write(path, *(json.dumps(row) for row in rows))


def test_sessions_are_chained_in_order_of_time(tmp_path):
    jsonl(tmp_path / "one.jsonl", [SESSIONS[1], SESSIONS[0], SESSIONS[4]])
    jsonl(tmp_path / "two.jsonl", [SESSIONS[3], SESSIONS[2]])
    requests = replay("sessions_jsonl", tmp_path, think_s=0.5).requests
    tokenizer = ByteTokenizer(3)
    texts = [tokenizer.decode(request.prompt_ids) for request in requests]
    assert texts == ["first", "first, then", "first, then x", "tree", "tree and more é"]
    assert tokenizer.decode(requests[4].forced_ids) == "stop"
    assert [r.after_request for r in requests] == [None, 0, 1, None, 3]
    assert [r.session_id for r in requests] == [0, 0, 0, 1, 1]
    assert [r.arrival_s for r in requests] == [0, 0.5, 0.5, 3, 0.5]


def test_scaled_sessions_still_extend(tmp_path):
    texts = [("x" * 40, "yes" * 9), ("x" * 40 + "ab" * 30, "no"), ("x" * 40 + "ab" * 30 + "c", "o")]
    path = jsonl(tmp_path / "s.jsonl", session("s", 0, texts))
    requests = replay("sessions_jsonl", path, length_scale=0.1).requests
    assert [len(r.prompt_ids) for r in requests] == [4, 10, 11]
    for before, turn in pairwise(requests):
        assert turn.prompt_ids[: len(before.prompt_ids)] == before.prompt_ids
    with pytest.raises(ValueError, match="not stretched"):
        replay("sessions_jsonl", path, length_scale=2)


def test_a_session_ends_at_its_first_turn_that_is_too_long(tmp_path):
    texts = [("x" * 10, "y"), ("x" * 60, "y"), ("x" * 61, "y")]
    rows = [*session("s", 0, texts), *session("t", 9, [("z", "z")])]
    workload = replay("sessions_jsonl", jsonl(tmp_path / "s.jsonl", rows), max_len=50)
    assert [r.session_id for r in workload.requests] == [0, 1]


def test_text_goes_through_the_given_tokenizer_and_must_fit_the_vocabulary(tmp_path):
    class Words:
        def encode(self, text, *, add_special_tokens=True):
            assert not add_special_tokens
            return [len(word) for word in text.split()]

    path = jsonl(tmp_path / "s.jsonl", SESSIONS)
    requests = replay("sessions_jsonl", path, tokenizer=Words()).requests
    assert requests[1].prompt_ids == (5, 1, 4)
    with pytest.raises(ValueError, match="beyond the model's vocabulary of 100"):
        replay("sessions_jsonl", path, vocab_size=100)


def servegen(folder, rate=2.0, family="Gamma", shape=0.5):
    """Two clients over three windows of 600 s; a third one has no lengths."""
    dataset = {"input_tokens": "{10: 0.75, 30: 0.25}", "output_tokens": "{5: 1.0}"}
    empty = {"input_tokens": "{}", "output_tokens": "{}"}
    later = {"input_tokens": "{99: 1.0}", "output_tokens": "{7: 1.0}"}
    windows = [f"{start},{rate},1.4,{family},{shape},1.0" for start in (0, 600, 1200)]
    for number in (0, 1, 2):
        write(folder / f"chunk-{number}-trace.csv", *windows)
    for number, entries in ((0, {"0": dataset}), (2, {"0": empty, "21600": later})):
        (folder / f"chunk-{number}-dataset.json").write_text(json.dumps(entries))
    return folder


@pytest.mark.parametrize(("family", "shape"), [("Gamma", 0.5), ("Weibull", 0.7), ("", 0)])
def test_servegen_samples_the_rate_and_the_lengths_of_its_clients(tmp_path, family, shape):
    folder = servegen(tmp_path, family=family, shape=shape)
    workload = replay("servegen", folder)
    assert "synthetic" in workload.description
    assert len(workload.requests) == pytest.approx(2 * 3 * 600 * 2.0, abs=6)
    times = np.array([request.arrival_s for request in workload.requests])
    assert np.all(np.diff(times) >= 0)
    assert 1780 < times[-1] <= 1800
    rows = sizes(workload)
    assert set(rows) == {(10, 5), (30, 5), (99, 7)}
    assert rows.count((30, 5)) / 3600 == pytest.approx(0.25, abs=0.03)
    assert rows.count((99, 7)) == pytest.approx(3600, abs=3)
    assert (
        replay("servegen", folder, num_requests=50, max_len=200).requests
        == (replay("servegen", folder, max_len=200).requests[:50])
    )
    assert replay("servegen", folder, seed=1).requests != workload.requests


def test_servegen_bursts_follow_the_shape(tmp_path):
    def spread(shape):
        folder = tmp_path / str(shape)
        folder.mkdir()
        requests = replay("servegen", servegen(folder, shape=shape)).requests
        gaps = np.diff([r.arrival_s for r in requests if len(r.prompt_ids) == 99])
        return gaps.std() / gaps.mean()

    assert spread(0.25) == pytest.approx(2, rel=0.1)
    assert spread(4) == pytest.approx(0.5, rel=0.1)


SMALL = {
    "azure": AZURE,
    "mooncake": [
        '{"timestamp": 5, "input_length": 513, "output_length": 2, "hash_ids": [4, 5]}',
        '{"timestamp": 7, "input_length": 9, "output_length": 2, "hash_ids": [4]}',
    ],
    "sessions_jsonl": [json.dumps(row) for row in SESSIONS],
}


def mooncake_line(timestamp="0", input_length="5", hash_ids="[1]"):
    return (
        f'{{"timestamp": {timestamp}, "input_length": {input_length}, "output_length": 1, '
        f'"hash_ids": {hash_ids}}}'
    )


GOOD_SESSION = json.dumps(SESSIONS[0])


@pytest.mark.parametrize(
    ("format_", "lines", "line", "what"),
    [
        ("azure", ["a,b,c"], 1, "header"),
        ("azure", [*AZURE, "2023-11-16 18:15:50,3"], 5, "2 fields instead of 3"),
        ("azure", [*AZURE, "yesterday,3,4"], 5, "'yesterday' is not a time"),
        ("azure", [*AZURE, "2023-11-16 18:15:50,3.5,4"], 5, "ContextTokens='3.5'"),
        ("azure", [*AZURE, "2023-11-16 18:15:50,3,-1"], 5, "GeneratedTokens=.-1."),
        ("lengths_csv", ["prompt,output", "1,2"], 1, "num_prefill_tokens,num_decode_tokens"),
        ("lengths_csv", ["prompt_tokens,output_tokens", "1,2", "1,"], 3, "output_tokens=''"),
        ("lengths_csv", ["prompt_tokens,output_tokens", "1"], 2, "output_tokens=None"),
        ("mooncake", ["{}"], 1, "no timestamp, input_length, output_length, hash_ids"),
        ("mooncake", ["[1]"], 1, "JSON object"),
        ("mooncake", ['{"timestamp": '], 1, "not JSON"),
        (
            "mooncake",
            ['{"timestamp": 0, "input_length": 513, "output_length": 1, "hash_ids": [4]}'],
            1,
            "2 blocks of 512",
        ),
        (
            "mooncake",
            ['{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": [-4]}'],
            1,
            "hash_ids=-4 must be at least 0",
        ),
        ("mooncake", [mooncake_line("1e400")], 1, "timestamp=inf must be a finite number"),
        ("mooncake", [mooncake_line("NaN")], 1, "timestamp=nan must be a finite number"),
        ("mooncake", [mooncake_line("-Infinity")], 1, "timestamp=-inf must be a finite number"),
        ("mooncake", [mooncake_line("9" * 400)], 1, "timestamp=.* must be a finite number"),
        ("mooncake", [mooncake_line("true")], 1, "timestamp=True is not a number"),
        ("mooncake", [mooncake_line("0", "9" * 5000)], 1, "input_length=inf must be from 0"),
        ("mooncake", [mooncake_line("0", "1e30")], 1, r"input_length=1e\+30 must be from 0"),
        ("mooncake", [mooncake_line("0", "5.5")], 1, "input_length=5.5 is not an integer"),
        ("mooncake", [mooncake_line("0", "5", "[true]")], 1, "hash_ids=True is not an integer"),
        ("mooncake", ["[" * 100_000], 1, "nested too deeply"),
        ("azure", [*AZURE, "2023-11-16 18:15:50,1_0,4"], 5, "ContextTokens='1_0' is not an"),
        (
            "sessions_jsonl",
            ['{"timestamp": 1e400, "input": "a", "output": "b", "session_id": 1}'],
            1,
            "timestamp=inf",
        ),
        (
            "sessions_jsonl",
            ['{"timestamp": 1, "input": "\\ud800", "output": "b", "session_id": 1}'],
            1,
            "half of a surrogate pair",
        ),
        ("sessions_jsonl", [GOOD_SESSION, GOOD_SESSION], 2, "does not extend session 'b'"),
        ("sessions_jsonl", [GOOD_SESSION, "", '{"input": 3}'], 3, "no timestamp, output"),
    ],
)
def test_malformed_lines_are_named_with_file_and_number(tmp_path, format_, lines, line, what):
    path = write(tmp_path / "bad", *lines)
    with pytest.raises(ValueError, match=what) as error:
        replay(format_, path)
    assert str(error.value).startswith(f"{path}:{line}: ")


@pytest.mark.parametrize(
    "dataset",
    ["[]", "3", '{"0": 3}', '{"0": {"input_tokens": [1], "output_tokens": "{1: 1}"}}', '{"0": {}}',
     '{"nan": {"input_tokens": "{1: 1}", "output_tokens": "{1: 1}"}}',
     *(json.dumps({"0": {"input_tokens": table, "output_tokens": "{1: 1}"}}) for table in
       ("{-5: 1}", "{5: NaN}", "{5: -1}", "{5: 0}", "{1e30: 1}", "[5]", "[" * 100_000))],
)  # fmt: skip
def test_servegen_lengths_are_positive_finite_numbers(tmp_path, dataset):
    path = servegen(tmp_path) / "chunk-0-dataset.json"
    path.write_text(dataset)
    with pytest.raises(ValueError) as error:
        replay("servegen", tmp_path)
    assert str(error.value).startswith(f"{path}: ")
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("1800,nan,1,Gamma,1,1", "rate='nan' is not a number"),
        ("1e999,1,1,Gamma,1,1", "window start=.* finite"),
        ("1800,1,1", "3 fields instead of 6"),
        ("1800,1,1,Pareto,1,1", "Pareto"),
        ("1800,x,1,Gamma,1,1", "rate=.x. is not a number"),
        ("1800,1,1,Gamma,0,1", "shape=.0. must be from"),
    ],
)
def test_malformed_servegen_windows(tmp_path, line, what):
    path = servegen(tmp_path) / "chunk-2-trace.csv"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=what) as error:
        replay("servegen", tmp_path)
    assert str(error.value).startswith(f"{path}:4: ")


def test_malformed_servegen_lengths(tmp_path):
    path = servegen(tmp_path) / "chunk-0-dataset.json"
    path.write_text('{"0": {"input_tokens": "{3: oh}", "output_tokens": "{}"}}')
    with pytest.raises(ValueError, match=r"chunk-0-dataset\.json: entry '0'"):
        replay("servegen", tmp_path)


@pytest.mark.parametrize(
    ("format_", "name", "values", "message"),
    [
        ("azur", "a.csv", {}, "did you mean azure"),
        ("azure", "missing.csv", {}, "no such file"),
        ("azure", "", {}, "is a folder"),
        ("azure", "header.csv", {}, r"header\.csv: has no rows"),
        ("servegen", "a.csv", {}, "needs a folder"),
        ("servegen", "", {}, "no chunk-N-trace"),
        ("sessions_jsonl", "", {}, r"no \.jsonl files"),
        ("azure", "a.csv", {"max_len": 3}, r"3 have prompt \+ output >= workload\.max_len=3"),
        ("azure", "a.csv", {"start_s": 99}, r"lower workload\.start_s=99"),
        ("azure", "a.csv", {"sharing": "chat"}, r"set workload\.sharing=none"),
    ],
)
def test_what_cannot_be_replayed_is_refused(tmp_path, format_, name, values, message):
    write(tmp_path / "a.csv", *AZURE)
    write(tmp_path / "header.csv", AZURE[0])
    with pytest.raises(ValueError, match=message):
        replay(format_, tmp_path / name, **values)


def test_a_trace_needs_a_path():
    config = WorkloadConfig(generator="trace", format="azure", arrivals="trace")
    with pytest.raises(ValueError, match=r"needs workload\.path"):
        generate(config, seed=0, vocab_size=VOCAB)


def test_formats_are_discovered():
    assert {"azure", "mooncake", "lengths_csv", "sessions_jsonl", "servegen"} <= set(readers())


OWN_READER = """
from harness.workloads.trace_row import TraceRow

def read(path, context):
    for line in path.read_text().splitlines():
        prompt, output = line.split()
        yield TraceRow(int(prompt), int(output), 0.5 * float(prompt))

def careless(path, context):
    yield TraceRow(3, 4, float("nan"))
"""
OWN_GENERATOR = """
from harness.engine.request import Request, Workload

def generate(config, context):
    return Workload("mine", [Request(0, 0.0, (5, 6), 3, forced_ids=(7,))], "one request")

def strays(config, context):
    return Workload("mine", [Request(0, 0.0, (5, 60_000), 3, forced_ids=(7,))], "one request")
"""


@pytest.mark.parametrize("suffix", ["", ":read"])
def test_a_reader_of_ones_own_is_a_file(tmp_path, suffix):
    write(tmp_path / "mine.py", OWN_READER)
    path = write(tmp_path / "t.txt", "4 5", "6 7")
    workload = replay(f"{tmp_path}/mine.py{suffix}", path)
    assert sizes(workload) == [(4, 5), (6, 7)]
    assert [r.arrival_s for r in workload.requests] == [0, 1]


@pytest.mark.parametrize(
    ("spec", "lines", "message"),
    [
        ("mine.py:rea", ["1 2"], "defines no 'rea'.*did you mean read"),
        ("mine.py", ["1"], r"workload\.format=.*mine\.py: not enough values to unpack"),
        ("mine.py:careless", ["1 2"], "row 1 of .*arrival_s=nan must be finite"),
        ("none.py", ["1 2"], "no read file"),
    ],
)
def test_what_is_wrong_with_a_reader_of_ones_own_is_a_line(tmp_path, spec, lines, message):
    write(tmp_path / "mine.py", OWN_READER)
    with pytest.raises(ValueError, match=message) as error:
        replay(f"{tmp_path}/{spec}", write(tmp_path / "t.txt", *lines))
    assert "\n" not in str(error.value)


def test_a_generator_of_ones_own_is_a_file(tmp_path):
    path = write(tmp_path / "own.py", OWN_GENERATOR)
    (request,) = generate(WorkloadConfig(generator=str(path)), seed=0, vocab_size=99).requests
    assert (request.prompt_ids, request.forced_ids) == ((5, 6), (7,))
    with pytest.raises(ValueError, match="prompt_ids holds 60000: must be ints from 0 to 98"):
        generate(WorkloadConfig(generator=f"{path}:strays"), seed=0, vocab_size=99)
