"""The cases of `benchmarks.fuzz`: a row, a spec, a file or an answer, spoiled at random.

Each returns what became of it; whatever else it raises is judged there.
"""

import csv
import gzip
import io
import json
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import orjson

from benchmarks.hostile_values import BYTES, KNOB_VALUES, PHRASES, ROWS, VALUES

ROWS_A_FILE = 20
QUICKSTART = Path(__file__).resolve().parent.parent / "examples/quickstart"
TYPES: dict[str, Any] = {"integer": int, "number": (int, float), "string": str, "array": list}


def spoiled(random: Random, value: Any) -> Any:
    """Returns a JSON value with a few of its parts replaced, removed or added."""
    value = json.loads(json.dumps(value))
    for _ in range(random.choice((1, 1, 1, 2, 2, 3))):
        places = list(_places(value))
        if not places:
            return random.choice(VALUES)
        holder, key = random.choice(places)
        action = random.random()
        if action < 0.6:
            holder[key] = deepcopy(random.choice(VALUES))
        elif action < 0.75:
            del holder[key]
        elif isinstance(holder, dict):
            other = random.choice(ROWS)
            name = random.choice(list(other))
            holder[name] = deepcopy(other[name] if action < 0.85 else random.choice(VALUES))
        else:
            holder.insert(key, deepcopy(random.choice(VALUES)))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yields each part of a JSON value as what holds it, and its key or index there."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def spoiled_bytes(random: Random, data: bytes) -> bytes:
    """Returns bytes of which a few are changed, added, removed, or repeated."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 3, 8))):
        action, place = random.random(), random.randrange(len(changed) + 1)
        if action < 0.3 and changed:
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
        elif action < 0.6:
            changed[place:place] = random.choice(BYTES)
        elif action < 0.75:
            del changed[place : place + random.randrange(1, 200)]
        elif action < 0.85:
            del changed[place:]
        elif action < 0.92:
            ending = random.choice((b"\r", b"\r\n", b"\n\n", b"\n\r"))
            changed = bytearray(bytes(changed).replace(b"\n", ending))
        else:
            changed[place:place] = changed[: random.randrange(1, 400)]
    return bytes(changed)


def a_line(random: Random) -> bytes:
    """Returns a line of a file of rows: mostly JSON, nested deeply or cut short now and then."""
    row = spoiled(random, random.choice(ROWS))
    line = json.dumps(row, ensure_ascii=random.random() < 0.5).encode(errors="surrogatepass")
    action = random.random()
    if action < 0.12:
        line = spoiled_bytes(random, line)
    elif action < 0.15:
        line = line.replace(b'": "', b'": "\\ud800', 1)
    elif action < 0.17:
        depth = random.choice((100, 255, 900, 1100, 5000))
        kinds = (b'{"question": ' + b"[" * depth, b"]" * depth + b"}"), (b'{"a":' * depth, b"}")
        start, end = random.choice(kinds)
        line = start + end
    elif action < 0.18:
        line = b'{"question": "q", "answer": NaN, "n": 123456789012345678901234567890}'
    return line.replace(b"\n", b" ").replace(b"\r", b" ")


def rows_case(random: Random) -> str:
    """A file of rows, read as test and as train: each line becomes an example or is bad for a
    reason, and each example is kept or removed."""
    from retort.records import SPLITS, write_lines
    from retort.stages.prepare.rows import Reader, check_counts, new_counts, quarantined
    from retort.stages.prepare.selection import Selection

    task_type = random.choice(("math", "qa", "nli", "summarization", "conversation"))
    spec = _row_spec(task_type, random.randrange(len(ROW_KNOBS)))
    # By its first bytes a file may be of another kind: the files' cases do that.
    lines = [b'{"question": "?"}', *(a_line(random) for _ in range(ROWS_A_FILE - 1))]
    Path("rows.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    reader, selection, counts = Reader(spec), Selection(spec), new_counts()
    try:
        for read in reader.rows():
            counts.add(read)
            if read.example:
                selection.add(read)
            else:
                assert read.reason, "a bad row has no reason"
                write_lines([quarantined(read)])
        assert sum(counts.rows.values()) == 2 * sum(bool(line.strip()) for line in lines)
        selection.add_all_foreign(reader)
        check_counts(spec, counts)
        selection.choose()
        kept = sum(len(selection.kept(split)) for split in SPLITS)
        removed = len(write_lines(list(selection.reports(*SPLITS))).splitlines())
        left_out = selection.counts()["num_left_out"]
        assert kept + removed + left_out == sum(counts.examples.values()), "rows were lost"
    finally:
        selection.close()
    return "read"


ROW_KNOBS: tuple[dict[str, Any], ...] = (
    *({},) * 6,
    {"scrub": ["emails", "phone_numbers", "secrets"]},
    {"template": "{question} {answer}"},
    {"template": "{question.__class__}"},
    {"columns": {"question": "text", "answer": "label"}},
    {"labels": ["yes", "no"]},
    {"system_prompt": "Be kind."},
    {"validation_ratio": 0.2},
    {"balance": {"by": "label"}},
    {"decontaminate": {"against": "rows.jsonl"}},
    *({"format": name} for name in ("messages", "question_answer", "alpaca", "sharegpt", "nli")),
    *({"format": name} for name in ("bedrock", "openai_batch", "stored_completion", "columns")),
    *({"format": name} for name in ("preference", "prompt_completion", "text_label")),
)


@cache
def _row_spec(task_type: str, number: int) -> Any:
    from retort.spec import build

    files = {"train": "rows.jsonl", "test": "rows.jsonl", "max_bad_ratio": 1.0}
    return build(
        {
            "name": "fuzz",
            "prepare": {"task_type": task_type, **files, **ROW_KNOBS[number]},
            "generate": {"teacher": "t", "engine": "echo", "top_k": 0},
            "train": {"student": "s"},
        }
    )


@cache
def _knobs() -> dict[tuple[str, ...], list[Any]]:
    """Returns the path of every knob and section of a spec, with the odd values of its type."""
    from retort.spec import JobSpec

    schema = JobSpec.model_json_schema()
    found: dict[tuple[str, ...], list[Any]] = {}

    def walk(part: dict[str, Any], path: tuple[str, ...]) -> None:
        while "$ref" in part:
            part = schema["$defs"][part["$ref"].rsplit("/", 1)[-1]]
        for choice in part.get("anyOf", []):
            walk(choice, path)
        kind = TYPES.get(part.get("type", ""))
        found.setdefault(path, []).extend(v for v in KNOB_VALUES if kind and isinstance(v, kind))
        for name, inner in part.get("properties", {}).items():
            walk(inner, (*path, name))

    walk(schema, ())
    del found[()]
    return found


def specs_case(random: Random) -> str:
    """A job of which some knobs have odd values: it is refused, or checked to its end."""
    import yaml

    from retort.jobs.preflight import check
    from retort.jobs.source_digests import source_digests
    from retort.spec import load, recipes
    from retort.store import open_store

    job = yaml.safe_load((QUICKSTART / "job.yaml").read_text())
    for section, name in (("generate", "teacher"), ("train", "student")):
        job[section][name] = str(QUICKSTART / job[section][name])
    for split in ("train", "validation", "test"):
        rows = (QUICKSTART / job["prepare"][split]).read_text().splitlines()[:12]
        Path(f"{split}.jsonl").write_text("\n".join(rows))
        job["prepare"][split] = f"{split}.jsonl"
    overrides = []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        path, fitting = random.choice(list(_knobs().items()))
        value = random.choice(fitting if fitting and random.random() < 0.7 else KNOB_VALUES)
        if random.random() < 0.8:
            _set(job, path, value)
        else:
            overrides.append(
                f"{'.'.join(path)}={value if random.random() < 0.3 else json.dumps(value)}"
            )
    text = yaml.safe_dump(job, sort_keys=False, allow_unicode=True)
    data = text.encode(errors="surrogatepass")
    Path("job.yaml").write_bytes(spoiled_bytes(random, data) if random.random() < 0.1 else data)
    spec, _ = load(Path("job.yaml"), overrides)
    check(spec, open_store("store"))
    recipes(spec, source_digests(spec))
    return "can run"


def _set(job: Any, path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        if not isinstance(job.get(name), dict):
            needs_model = name in ("judge", "second_teacher")
            job[name] = {"model": str(QUICKSTART / "models/base")} if needs_model else {}
        job = job[name]
    job[path[-1]] = value


def files_case(random: Random) -> str:
    """A file of any format and compression, spoiled, and sometimes under another's name."""
    from retort.data import sources

    files = _files()
    name = random.choice(list(files))
    path = Path(random.choice(list(files)) if random.random() < 0.1 else name)
    path.write_bytes(spoiled_bytes(random, files[name]))
    try:
        for row in sources.read(str(path), "prepare.train", 2_000):
            assert (row.value is None) == bool(row.error), "a row is neither good nor bad"
        sources.digest(str(path), "prepare.train")
    finally:
        path.unlink()
    return "read"


@cache
def _files() -> dict[str, bytes]:
    """Returns a good file of every format by its name."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import zstandard

    rows = [
        {
            "question": f"{n} + {n} = ?",
            "answer": str(2 * n),
            "topic": 'a "b", c\n' if n % 5 else "x",
        }
        for n in range(40)
    ]
    lines = "\n".join(map(json.dumps, rows)).encode()
    texts = {
        "a.jsonl": lines,
        "no-extension": lines,
        "a.json": json.dumps(rows).encode(),
        "b.json": json.dumps({"data": rows}, indent=1).encode(),
    }
    for name, delimiter in (("a.csv", ","), ("b.csv", ";"), ("a.tsv", "\t")):
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
        texts[name] = text.getvalue().encode()
    packed = {f"{name}.gz": gzip.compress(data) for name, data in texts.items()}
    packed |= {f"{name}.zst": zstandard.compress(data) for name, data in texts.items()}
    for name, compression in (("a.parquet", "snappy"), ("b.parquet", "zstd")):
        stream = io.BytesIO()
        nested = [
            {**row, "turns": [{"role": "user", "content": "x"}], "raw": b"\xff"} for row in rows
        ]
        table = pa.Table.from_pylist(nested if compression == "zstd" else rows)
        pq.write_table(table, stream, row_group_size=10, compression=compression)
        packed[name] = stream.getvalue()
    return {**texts, **packed}


def a_text(random: Random) -> str:
    """Returns an answer: phrases that parsers, numbers and patterns stumble over."""
    parts = [random.choice(PHRASES) for _ in range(random.choice((1, 1, 2, 3, 5)))]
    text = random.choice((" ", "", "\n", ": ", "=")).join(parts)
    return (text * random.choice((2, 20, 100)) if random.random() < 0.1 else text)[:60_000]


def answers_case(random: Random) -> str:
    """An answer through all that reads one: its parts, filters, metrics, scrubbers, a judge's
    score; and an endpoint's reply of any shape through the ledger."""
    from retort import metrics
    from retort.data import filters, reasoning, scrubbers, task_types, text_stats
    from retort.data.filters.candidate import Candidate
    from retort.plugins import find_function, function_names
    from retort.records import Example, Response
    from retort.stages.judge import score_of

    name = random.choice(("math", "qa", "nli", "summarization", "conversation"))
    kind, text = task_types.load(name), a_text(random)
    expected = a_text(random) if random.random() < 0.7 else None
    options = random.choice((None, None, {"A": "x", "B": "y"}, {"yes": "yes", "no": "no"}))
    example = Example(
        "e",
        "train",
        [{"role": "user", "content": a_text(random)}],
        expected,
        a_text(random) if random.random() < 0.7 else None,
        options=options,
        answers=[expected, a_text(random)] if expected and random.random() < 0.3 else None,
    )
    answer = kind.answer(text, example)
    if answer is not None and expected is not None:
        kind.equal(answer, expected)
    response = Response("e", text, [1], "stop", 1, 1, example_id="e")
    rationale, rest = reasoning.split(text)
    candidate = Candidate(example, response, kind, rest, rationale, a_text(random), 3.0)
    candidate.peers.append(candidate)
    chosen = random.choice(function_names(filters.__name__))
    options_of = {"json_valid": {"schema": {"type": "object"}}}
    getattr(filters, chosen)(candidate, **options_of.get(chosen, {}))
    metrics.statistics(kind, [example], {"e": text}, {"e": a_text(random)})
    find_function(
        "scrubber", random.choice(function_names(scrubbers.__name__)), scrubbers.__name__
    )(text)
    score_of(text)
    text_stats.loops(text)
    _reply_case(random, text)
    return "read"


def _reply_case(random: Random, text: str) -> None:
    """A reply of any shape is stored, read and parsed as an answer or as a failure for a reason."""
    from retort.engines import find_engine
    from retort.store.ledger.checks import response_of
    from retort.store.ledger.segment import StoredAnswer, answer_of, read_segment, write_segment

    name = random.choice(("openai", "anthropic"))
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "input_tokens": 3, "output_tokens": 1}
    message = {"role": "assistant", "content": text[:200], "tool_calls": [], "reasoning": "x"}
    bodies: dict[str, dict[str, Any]] = {
        "openai": {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage},
        "anthropic": {"content": [{"type": "text", "text": text[:200]}], "stop_reason": "end_turn"},
    }
    body = spoiled(random, bodies[name] | {"usage": usage})
    try:
        raw = {"body": orjson.loads(json.dumps(body)), "seconds": 0.1}
    except ValueError:  # no reply is read that is not strict JSON
        return
    stored = StoredAnswer("ab" * 16, (8, 8), "fuzz", 0.0, raw)
    parse = find_engine(name).parse
    before = response_of(stored, parse)
    (line,) = read_segment("segment", write_segment([stored], None)).lines
    after = response_of(answer_of(line), parse)
    assert after == before, "an answer is read otherwise from the ledger"
    assert before.state == "accepted" or before.cause, "an answer failed for no reason"
