"""The same rows in every form of a file, and what is read of a source, for its tests."""

import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from retort.data.sources import read
from retort.spec.prepare import HubDataset

ROWS = [{"question": f"Was ist {n} + {n}?\n“ü”", "answer": str(2 * n)} for n in range(600)]
MOST = 1_000_000


def rows_of(source, most=MOST):
    return list(read(source if isinstance(source, tuple | HubDataset) else str(source), "x", most))


def values(source, most=MOST):
    found = rows_of(source, most)
    assert [row.error for row in found if row.error] == []
    return [row.value for row in found]


def jsonl(rows) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def as_csv(rows, delimiter=",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, row_group_size=250)
    return buffer.getvalue()


FORMS = {
    "a.jsonl": jsonl(ROWS),
    "a.ndjson": jsonl(ROWS).replace(b"}\n", b"}\r\n\r\n \t\n"),
    "one-a-line.json": jsonl(ROWS),
    "list.json": json.dumps(ROWS).encode(),
    "pretty.json": json.dumps(ROWS, indent=2).encode(),
    "object.json": json.dumps({"version": 1, "data": ROWS}).encode(),
    "pretty-object.json": json.dumps({"data": ROWS}, indent=1).encode(),
    "a.csv": as_csv(ROWS),
    "semicolon.csv": as_csv(ROWS, ";"),
    "bar.csv": as_csv(ROWS, "|"),
    "a.tsv": as_csv(ROWS, "\t"),
    "lines": jsonl(ROWS),
    "list": json.dumps(ROWS).encode(),
}
PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}
