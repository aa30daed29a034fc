"""prepare: JSONL rows to examples. A bad row is kept in quarantine with file, line and reason.

Nothing after a bad row is lost, and an example's id is the user's own or its content's hash.
"""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from retort import task_types
from retort.context import Stage
from retort.errors import DataError, SpecError
from retort.records import SPLITS, Example, Quarantined, Split, content_id, write_lines
from retort.registry import find_file
from retort.spec import JobSpec, Prepare
from retort.storage import read_url

Parsed = tuple[dict[Split, list[Example]], list[Quarantined], Counter[str]]


def prepare(stage: Stage) -> dict[str, Any]:
    """Writes the examples of each split and the quarantine; returns the counts of each."""
    examples, quarantined, read = read_rows(stage.spec)
    check_counts(stage.spec, examples, quarantined, read)
    size = stage.spec.prepare.shard_size
    for split, rows in examples.items():
        for start in range(0, len(rows), size):
            name = f"{split}-{start // size:05d}.jsonl"
            stage.out.write(name, write_lines(rows[start : start + size]))
    if quarantined:
        stage.out.write("quarantine.jsonl", write_lines(quarantined))
        stage.report.note(f"{len(quarantined)} rows in quarantine, {_first(quarantined)}")
    total = sum(read.values())
    stage.report.progress(total, total, "rows")
    return {
        "num_rows": dict(read),
        "num_quarantined": len(quarantined),
        "num_examples": {split: len(rows) for split, rows in examples.items()},
        "num_expected": {
            split: sum(row.expected is not None for row in rows) for split, rows in examples.items()
        },
    }


def read_rows(spec: JobSpec) -> Parsed:
    """Returns the examples by split, the quarantined rows, and the rows read by file.

    Raises `SpecError` for a file that cannot be read or an unknown task type.
    """
    knobs = spec.prepare
    kind = find_file("task type", knobs.task_type, task_types)
    examples: dict[Split, list[Example]] = {}
    quarantined: list[Quarantined] = []
    read: Counter[str] = Counter()
    seen: dict[str, tuple[str, int]] = {}
    for split in SPLITS:
        path = getattr(knobs, split)
        if path is None:
            continue
        rows = examples.setdefault(split, [])
        for line, raw in _lines(path, f"prepare.{split}"):
            if split == "train" and knobs.limit and len(rows) >= knobs.limit:
                break
            read[split] += 1
            text = raw.decode(errors="replace")
            try:
                example, own_id = _example(raw, split, kind, knobs)
            except ValueError as error:
                quarantined.append(Quarantined(path, line, str(error), text))
                continue
            if example.id in seen:
                file, first = seen[example.id]
                what = f"the id {example.id} was already used in" if own_id else "a copy of"
                quarantined.append(
                    Quarantined(path, line, f"{what} {file}:{first}", text, bad=own_id)
                )
                continue
            seen[example.id] = (path, line)
            rows.append(example)
    return examples, quarantined, read


def check_counts(
    spec: JobSpec,
    examples: dict[Split, list[Example]],
    quarantined: list[Quarantined],
    read: Counter[str],
) -> None:
    """Raises `DataError` when too many rows are bad or a split that is needed has none left."""
    total, bad = sum(read.values()), [row for row in quarantined if row.bad]
    if len(bad) > spec.prepare.max_bad_ratio * total:
        raise DataError(
            f"{len(bad)} of {total} rows are bad, more than prepare.max_bad_ratio="
            f"{spec.prepare.max_bad_ratio:g} allows; {_first(bad)}"
        )
    for split, rows in examples.items():
        if not rows:
            raise DataError(
                f"prepare.{split}: {getattr(spec.prepare, split)} holds no usable row; "
                "give at least one JSON object a line"
            )
    if "test" not in examples and "validation" not in examples:
        raise SpecError(
            "prepare.test: missing, and there is no prepare.validation to compare the models on; "
            "give a JSONL file that the student is not trained on"
        )


def _lines(path: str, where: str) -> Iterator[tuple[int, bytes]]:
    """Yields line numbers from 1 and lines; lines of white space only are no rows."""
    try:
        data = read_url(path)
    except FileNotFoundError:
        raise SpecError(f"{where}: no file {path}; paths are relative to the job file") from None
    except (OSError, ImportError, ValueError) as error:
        raise SpecError(f"{where}: {path} cannot be read: {error}") from error
    for number, raw in enumerate(data.splitlines(), start=1):
        if raw.strip():
            yield number, raw


def _example(raw: bytes, split: Split, kind: Any, knobs: Prepare) -> tuple[Example, bool]:
    """Returns the example of one line, and whether it came with an id of its own.

    Raises `ValueError` with the reason when there is none in it.
    """
    try:
        row = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"a row must be a JSON object, this is a {type(row).__name__}")
    messages, expected = kind.prompt(row)
    if knobs.system_prompt and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": knobs.system_prompt}, *messages]
    own_id = row.get("id", row.get("custom_id"))
    identity = str(own_id) if own_id is not None else content_id(messages)
    metadata, tools = row.get("metadata"), row.get("tools")
    example = Example(
        id=identity,
        split=split,
        messages=messages,
        expected=expected,
        reference=task_types.read_reference(row),
        tools=tools if isinstance(tools, list) and tools else None,
        metadata=metadata if isinstance(metadata, dict) else {},
    )
    try:
        write_lines([example])
    except TypeError as error:
        raise ValueError(f"cannot be stored: {error}") from None
    return example, own_id is not None


def _first(quarantined: list[Quarantined]) -> str:
    first = quarantined[0]
    return f"the first: {first.file}:{first.line}: {first.reason}"
