"""Rows of Parquet, and of whatever else comes as Arrow's columns, as plain JSON values.

Columns of images and sound are left out: there is nothing in them to ask a text model.
"""

import base64
import math
from collections.abc import Iterable, Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from retort.data.sources.source_row import SourceRow, bad, dumped, not_utf8, too_long
from retort.errors import SpecError

BATCH_ROWS = 1024


def parquet_rows(file: str, stream: IO[bytes], most: int) -> Iterator[SourceRow]:
    """Yields the rows of a Parquet file, a batch in memory at a time; `line` is the row's number.

    A group of rows that cannot be read is one bad row, and reading goes on after it. Raises
    `SpecError` for what is no Parquet file.
    """
    try:
        table = pq.ParquetFile(stream)
    except pa.ArrowInvalid as error:
        raise SpecError(f"not a Parquet file: {error}") from None
    kept = [field.name for field in table.schema_arrow if not _is_media(field.type)]
    start = 1
    for group in range(table.num_row_groups):
        done = start
        try:
            for batch in table.iter_batches(BATCH_ROWS, row_groups=[group], columns=kept):
                yield from batch_rows(file, batch, done, most)
                done += batch.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            if isinstance(error, OSError) and (type(error) is not OSError or error.errno):
                raise  # the file's place cannot be read, not the file
            yield bad(file, done, b"", f"the file's compressed data is broken: {error}")
        start += table.metadata.row_group(group).num_rows


def table_rows(file: str, tables: Iterable[pa.Table], most: int) -> Iterator[SourceRow]:
    """Yields the rows of Arrow tables that follow each other."""
    start = 1
    for table in tables:
        kept = [field.name for field in table.schema if not _is_media(field.type)]
        yield from batch_rows(file, table.select(kept), start, most)
        start += table.num_rows


def batch_rows(
    file: str, batch: pa.RecordBatch | pa.Table, start: int, most: int
) -> Iterator[SourceRow]:
    """Yields the rows of columns; `start` is the first one's number."""
    names = batch.schema.names
    try:
        columns = [_values(column) for column in batch.columns]
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            yield bad(file, start, _bytes_of(batch), not_utf8(error))
            return
        for at in range(batch.num_rows):
            yield from batch_rows(file, batch.slice(at, 1), start + at, most)
        return
    for line, values in enumerate(zip(*columns, strict=True), start):
        value = dict(zip(names, values, strict=True))
        raw = dumped(value)
        if len(raw) > most:
            yield bad(file, line, raw, too_long(most))
        else:
            yield SourceRow(file, line, raw, value, None)


def _values(column: Any) -> list[Any]:
    values: list[Any] = column.to_pylist(maps_as_pydicts="lossy")
    return values if _is_plain(column.type) else [_plain(value) for value in values]


def _bytes_of(batch: pa.RecordBatch | pa.Table) -> bytes:
    """Returns the texts of a row's own columns as they stand, whatever their bytes are."""
    texts = [c for c in batch.columns if pa.types.is_string(c.type) or pa.types.is_large_string(c)]
    return b"\n".join(column.cast(pa.large_binary()).to_pylist()[0] or b"" for column in texts)


def _is_plain(kind: pa.DataType) -> bool:
    """Whether the values of a type are JSON's as they come."""
    simple = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer)
    if any(is_it(kind) for is_it in (*simple, pa.types.is_boolean, pa.types.is_null)):
        return True
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_plain(kind.value_type)
    return pa.types.is_struct(kind) and all(_is_plain(field.type) for field in kind)


def _is_media(kind: pa.DataType) -> bool:
    """Whether a type is what `datasets` stores an image or a sound as, or a list of such."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_media(kind.value_type)
    if not pa.types.is_struct(kind):
        return False
    types = {field.name: field.type for field in kind}
    return set(types) == {"bytes", "path"} and pa.types.is_binary(types["bytes"])


def _plain(value: Any) -> Any:
    """Returns a value as JSON has it: bytes, times and decimals as text, NaN as null."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _text(value)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    return str(value.isoformat() if hasattr(value, "isoformat") else value)
