"""Logged traffic: every tool's own form read as the same chat, chosen, split and counted."""

import csv
import json

import pytest

from retort.data.formats import read_row
from retort.data.sources import digest
from retort.errors import DataError, SpecError
from retort.records import SPLITS
from retort.spec import Traffic, build, load
from retort.stages.prepare.rows import Reader, new_counts
from tests.support import traffic as logs
from tests.support.source_rows import jsonl, rows_of


def chats(path, most=1_000_000):
    """The good rows of a file as their formats read them, and the reasons of the others."""
    found = rows_of(path, most)
    good = [read_row(row.value, "auto", {})[1] for row in found if row.value is not None]
    return good, [row.error for row in found if row.value is None]


def spec_of(folder, train, **prepare):
    section = {"task_type": "conversation", "train": train, **prepare}
    rest = {"generate": {"teacher": "none"}, "train": {"student": "none"}}
    return build({"name": "t", "prepare": section, **rest})


@pytest.mark.parametrize("form", logs.FORMS)
@pytest.mark.parametrize("name", ["a.jsonl", "list.json", "pretty.json"])
def test_a_logged_call_is_the_same_chat_whatever_tool_logged_it(tmp_path, form, name):
    records = logs.FORMS[form]
    pretty = records[0] if len(records) == 1 else records
    data = {"a.jsonl": jsonl(records), "list.json": json.dumps(records).encode()}
    (tmp_path / name).write_bytes(data.get(name, json.dumps(pretty, indent=2).encode()))
    (row,), left_out = chats(tmp_path / name)
    assert row.messages == logs.CHAT
    known = {key: row.metadata.get(key) for key in logs.KNOWN}
    assert known == logs.KNOWN | ({"model": None} if form == "Langfuse, trace alone" else {})
    assert row.metadata["customer.tier"] == "gold" and row.metadata["environment"] == "prod"
    assert "user.id" not in row.metadata and "host.name" not in row.metadata
    assert set(left_out) <= {"a span that is no call of a chat model"}


def test_the_table_that_langfuse_exports_is_read_too(tmp_path):
    cells = {k: v if isinstance(v, str) else json.dumps(v) for k, v in logs.OBSERVATION.items()}
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(cells))
        writer.writeheader()
        writer.writerow(cells)
    (row,), _ = chats(tmp_path / "a.csv")
    assert row.messages == logs.CHAT and row.metadata["customer.tier"] == "gold"


@pytest.mark.parametrize("old", [False, True])
def test_a_log_of_vllm_joins_requests_and_their_answers_by_their_ids(tmp_path, old):
    first, second = (logs.vllm_lines(name, None, old) for name in "ab")
    mixed = [first[0], second[0], "INFO 11-29 10:00:01 [loggers.py:1] Engine 000: x", *first[1:]]
    (tmp_path / "server.log").write_text("\n".join(mixed) + "\n")
    (answered, waiting), left_out = chats(tmp_path / "server.log")
    assert (answered.messages, left_out) == (logs.CHAT, [])
    assert waiting.messages == logs.ASKED  # the server was killed before it answered
    assert answered.metadata.get("model") == (None if old else "gpt-4o")


def test_vllm_logging_json_has_times_and_a_cut_body_is_left_out(tmp_path):
    lines = [
        {"asctime": "2026-11-29 10:00:00,250", "name": "vllm.entrypoints.logger", "message": text}
        for line in logs.vllm_lines("a", None)
        if "] " in line
        for text in [line.partition("] ")[2]]
    ]
    cut = {**lines[0], "message": "Request b JSON body: " + logs.BODY[:20]}
    answer = {**lines[-1], "message": lines[-1]["message"].replace("chatcmpl-a", "chatcmpl-b")}
    (tmp_path / "a.jsonl").write_bytes(jsonl([*lines, cut, answer]))
    (row,), left_out = chats(tmp_path / "a.jsonl")
    assert (row.messages, row.metadata["time"]) == (logs.CHAT, logs.TIME)
    assert left_out == ["a call whose messages were not recorded"]


def test_a_chat_about_logs_is_no_log(tmp_path):
    said = "vllm says: Received request a: prompt: 'x', params"
    rows = [{"messages": [{"role": "user", "content": said}]}]
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows))
    assert [row.value for row in rows_of(tmp_path / "a.jsonl")] == rows


def test_calls_of_tools_come_as_openai_writes_them(tmp_path):
    parts = [
        {"role": "user", "parts": [{"type": "text", "content": "Weather in Oslo?"}]},
        {
            "role": "assistant",
            "parts": [
                {"type": "reasoning", "content": "hm"},
                {"type": "tool_call", "id": "c1", "name": "w", "arguments": {"at": "Oslo"}},
            ],
        },
        {
            "role": "tool",
            "parts": [{"type": "tool_call_response", "id": "c1", "response": {"t": 3}}],
        },
    ]
    reply = [{"role": "assistant", "parts": [{"type": "text", "content": "3 degrees"}]}]
    tool = [{"type": "function", "name": "w", "parameters": {"type": "object"}}]
    made = logs.span(
        {
            **logs.CALL,
            "gen_ai.input.messages": parts,
            "gen_ai.output.messages": reply,
            "gen_ai.tool.definitions": json.dumps(tool),
        }
    )
    (tmp_path / "a.jsonl").write_bytes(jsonl([logs.export(made)]))
    (row,), left_out = chats(tmp_path / "a.jsonl")
    assert [turn["role"] for turn in row.messages] == ["user", "assistant", "tool", "assistant"]
    assert row.messages[1]["tool_calls"][0]["function"] == {
        "name": "w",
        "arguments": {"at": "Oslo"},
    }
    assert row.messages[2] == {"role": "tool", "content": '{"t":3}', "tool_call_id": "c1"}
    assert row.tools == [{"type": "function", "function": tool[0]}] and left_out == []


LEFT_OUT = {
    "a call that failed": [
        logs.export(logs.span(logs.STRUCTURED, status={"code": 2, "message": "429"})),
        {**logs.OBSERVATION, "level": "ERROR"},
        {**logs.LITELLM, "status": "failure"},
    ],
    "an embeddings call": [
        logs.export(logs.span({"gen_ai.operation.name": "embeddings"})),
        {**logs.OBSERVATION, "type": "EMBEDDING"},
        {**logs.LITELLM, "call_type": "aembedding"},
    ],
    "a span that is no call of a chat model": [
        logs.export(logs.span({"http.request.method": "GET"})),
        logs.export(logs.span({**logs.STRUCTURED, "gen_ai.operation.name": "invoke_agent"})),
    ],
    "a call whose messages were not recorded": [
        logs.export(logs.span(logs.CALL)),
        {**logs.OBSERVATION, "input": None},
        {**logs.LITELLM, "messages": [{"role": "user", "content": "redacted-by-litellm"}]},
        {**logs.SPEND_LOG, "proxy_server_request": "{}"},
    ],
    "a call with a part of kind image_url": [
        {
            **logs.LITELLM,
            "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
        }
    ],
    "a call of another kind than a chat": [{**logs.LITELLM, "call_type": "atranscription"}],
}


@pytest.mark.parametrize("reason", LEFT_OUT)
def test_what_is_no_answered_chat_is_left_out_with_its_reason(tmp_path, reason):
    (tmp_path / "a.jsonl").write_bytes(jsonl(LEFT_OUT[reason]))
    assert chats(tmp_path / "a.jsonl") == ([], [reason] * len(LEFT_OUT[reason]))


def test_no_bad_span_or_line_ends_a_job_and_each_is_counted(tmp_path):
    good = [logs.span(logs.STRUCTURED, number) for number in range(1, 40)]
    odd = [
        {**logs.span(logs.STRUCTURED, 50), "attributes": [{"value": {"stringValue": "x"}}]},
        logs.span({**logs.CALL, "gen_ai.input.messages": "not json"}, 51),
        logs.span({**logs.STRUCTURED, "gen_ai.input.messages": [logs.parts(logs.REPLY)]}, 52),
        None,
    ]
    lines = [
        jsonl([logs.export(*good, *odd)]),
        b'{"resourceSpans": [{"scopeSp\n',
        jsonl([{}, {"resourceSpans": 7}]),
    ]
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines))
    counts = new_counts()
    for read in Reader(spec_of(tmp_path, str(tmp_path / "a.jsonl"))).rows():
        counts.add(read)
    assert (counts.examples["train"], counts.num_bad) == (39, 3)
    assert sum(counts.left_out.values()) == 4
    assert counts.left_out["a broken span"] == 2 and counts.left_out["roles out of order"] == 1
    assert "left out of logged traffic: 2 a broken span" in counts.of_traffic(True)[0]
    assert "prepare.scrub is empty" in counts.of_traffic(False)[1]


def test_a_record_may_be_longer_than_a_row_and_a_span_may_not(tmp_path):
    long = {
        **logs.STRUCTURED,
        "gen_ai.input.messages": [logs.parts({"role": "user", "content": "x" * 4000})],
    }
    spans = [logs.span(logs.STRUCTURED, 1), logs.span(long, 2), logs.span(logs.STRUCTURED, 3)]
    (tmp_path / "a.jsonl").write_bytes(jsonl([logs.export(*spans), {"messages": "y" * 4000}]))
    good, bad = chats(tmp_path / "a.jsonl", 3000)
    assert len(good) == 2 and bad == ["longer than prepare.max_row_bytes=3000"] * 2


def at(hour, number, **attributes):
    start = str(logs.NANOSECONDS + (hour - 10) * 3600 * 10**9)
    own = {**logs.STRUCTURED, "gen_ai.conversation.id": f"c{number}", **attributes}
    return logs.span(own, number + 1, startTimeUnixNano=start)


def test_traffic_is_chosen_by_time_and_by_metadata(tmp_path):
    path = tmp_path / "a.jsonl"
    spans = [at(8, 0), at(9, 1), at(10, 2), at(11, 3, **{"customer.tier": "free"})]
    other = {"messages": logs.CHAT, "created_at": "2026-11-29T09:30:00Z", "customer.tier": "gold"}
    timeless = {"messages": logs.CHAT}
    records = [logs.export(*spans), logs.export(at(10, 4), service="shop"), other, timeless]
    path.write_bytes(jsonl(records))

    def chosen(**how):
        rows = rows_of_traffic(Traffic(traffic=str(path), **how))
        return [row.value["metadata"]["conversation"] for row in rows if row.group and row.value]

    def rows_of_traffic(source):
        from retort.data.sources import read

        return list(read(source, "x", 1_000_000))

    assert chosen() == ["c0", "c1", "c2", "c3", "c4"]
    window = {"since": "2026-11-29T09:00:00", "until": "2026-11-29T12:00:00+01:00"}
    assert chosen(**window) == ["c1", "c2", "c4"]
    assert chosen(where={"service": "support", "customer.tier": ("gold", "silver")}) == [
        *("c0", "c1", "c2"),
    ]
    found = rows_of_traffic(Traffic(traffic=str(path), **window))
    assert [row.error for row in found if row.value is None] == [
        *("outside since and until", "outside since and until", "a call without a time"),
    ]
    plain = [row for row in found if row.value == other]
    assert len(plain) == 1  # rows of any other form have times of their own
    digests = {digest(Traffic(traffic=str(path), **how), "x") for how in ({}, window)}
    assert len(digests) == 2


def test_all_turns_of_a_conversation_are_on_one_side_of_a_split(tmp_path):
    spans = []
    for number in range(240):
        asked = [logs.parts({"role": "user", "content": f"Question {number} of many?"})]
        own = {"gen_ai.conversation.id": f"c{number // 4}", "gen_ai.input.messages": asked}
        spans.append(logs.span({**logs.STRUCTURED, **own}, number + 1))
    (tmp_path / "a.jsonl").write_bytes(jsonl([logs.export(*spans)]))
    spec = spec_of(tmp_path, str(tmp_path / "a.jsonl"), validation_ratio=0.2, test_ratio=0.3)
    sides: dict[str, set[str]] = {}
    for read in Reader(spec).rows():
        sides.setdefault(read.example.metadata["conversation"], set()).add(read.split)
    assert len(sides) == 60 and all(len(side) == 1 for side in sides.values())
    assert {side for one in sides.values() for side in one} == set(SPLITS)


def test_a_conversation_that_a_window_cuts_stays_where_it_is_held_out(tmp_path):
    path = str(tmp_path / "a.jsonl")
    spans = [at(8, 0), at(9, 1), at(11, 0), at(12, 2)]
    (tmp_path / "a.jsonl").write_bytes(jsonl([logs.export(*spans)]))
    noon = "2026-11-29T10:00:00"
    source = {"traffic": path, "until": noon}
    spec = spec_of(tmp_path, source, test={"traffic": path, "since": noon})
    found = {
        (r.example.metadata["conversation"], r.split) for r in Reader(spec).rows() if r.example
    }
    assert found == {("c0", "test"), ("c2", "test"), ("c1", "train")}
    left = [r.reason for r in Reader(spec).rows() if r.is_left_out]
    assert left.count("of a conversation in test") == 1


def test_scrubbers_reach_the_calls_of_tools(tmp_path):
    call = {
        "id": "c",
        "type": "function",
        "function": {"name": "f", "arguments": '{"to": "a@b.org"}'},
    }
    turns = [
        {"role": "user", "content": "Write to a@b.org"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "sent"},
        {"role": "user", "content": "Thanks"},
    ]
    (tmp_path / "a.jsonl").write_bytes(jsonl([{**logs.LITELLM, "messages": turns}]))
    spec = spec_of(tmp_path, str(tmp_path / "a.jsonl"), scrub=["emails"])
    (read,) = Reader(spec).rows()
    assert b"a@b.org" not in read.line and b"[EMAIL]" in read.line


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"traffic": "a.jsonl", "since": "yesterday"}, "prepare.train.since: "),
        ({"traffic": "a.jsonl", "untl": "2026-01-01"}, "prepare.train.untl: unknown key"),
        ({"since": "2026-01-01"}, "prepare.train.since: unknown key"),
    ],
)
def test_a_wrong_choice_of_traffic_says_what_is_wrong(tmp_path, source, message):
    import yaml

    job = {
        "name": "t",
        "prepare": {"task_type": "conversation", "train": source, "test": "t.jsonl"},
        "generate": {"teacher": "none"},
        "train": {"student": "none"},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    with pytest.raises(SpecError, match=message.replace(".", r"\.")):
        load(tmp_path / "job.yaml")


def test_a_log_without_any_chat_says_why_it_is_of_no_use(tmp_path):
    from retort.stages.prepare.rows import preview

    (tmp_path / "a.jsonl").write_bytes(jsonl([logs.export(logs.span(logs.CALL))]))
    spec = spec_of(tmp_path, str(tmp_path / "a.jsonl"), test_ratio=0.5)
    with pytest.raises(DataError, match="1 a call whose messages were not recorded"):
        preview(spec, 100)
