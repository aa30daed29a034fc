"""Rows of Parquet, and of other sources of Arrow columns, as plain JSON values.

Of an image or a sound only its path is kept: a text model cannot be asked about it, and the formats
of rows refuse it by the name of its column.
"""

import base64
import math
from collections.abc import Iterable, Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from retort.data.sources.source_row import SourceRow, bad, dumped, not_utf8, too_long
from retort.errors import SpecError
from retort.records import JsonObject

BATCH_ROWS = 1024


def parquet_rows(file: str, stream: IO[bytes], most: int) -> Iterator[SourceRow]:
    """Yields the rows of a Parquet file, a batch in memory at a time; `line` is the row's number.

    A group of rows that cannot be read is one bad row, and reading goes on after it. Raises
    `SpecError` for a file that is not Parquet or whose columns cannot be told apart.
    """
    try:
        table = pq.ParquetFile(stream)
        schema = table.schema_arrow
        _check_names(schema.names)
    except pa.ArrowInvalid as error:
        raise SpecError(f"not a Parquet file: {error}") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"the name of a column is not UTF-8: {error.reason}") from None
    media = _media(schema)
    wanted = _without_media_bytes(table.schema, media) if media else None
    start = 1
    for group in range(table.num_row_groups):
        done = start
        try:
            for batch in table.iter_batches(BATCH_ROWS, row_groups=[group], columns=wanted):
                yield from batch_rows(file, batch, done, most, media)
                done += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and (type(error) is not OSError or error.errno):
                raise  # the file's place cannot be read, not the file
            yield bad(file, done, b"", f"the file's compressed data is broken: {error}")
        start += table.metadata.row_group(group).num_rows


def table_rows(file: str, tables: Iterable[pa.Table], most: int) -> Iterator[SourceRow]:
    """Yields the rows of Arrow tables that follow each other. Raises `SpecError`."""
    start = 1
    for table in tables:
        _check_names(table.schema.names)
        yield from batch_rows(file, table, start, most, _media(table.schema))
        start += table.num_rows


def _check_names(names: list[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SpecError(f"the file has the column {', '.join(twice)} twice; rename one")


def _media(schema: pa.Schema) -> frozenset[str]:
    """Returns the names of the columns that hold images, sounds or videos."""
    return frozenset(field.name for field in schema if _is_media(field.type))


def _without_media_bytes(schema: pq.ParquetSchema, media: frozenset[str]) -> list[str]:
    """Returns the paths of all parts of a file's columns but the bytes of images and the like."""
    paths = [schema.column(number).path for number in range(len(schema))]
    return [p for p in paths if p.split(".")[0] not in media or p.split(".")[-1] != "bytes"]


def batch_rows(
    file: str,
    batch: pa.RecordBatch | pa.Table,
    start: int,
    most: int,
    media: frozenset[str] = frozenset(),
) -> Iterator[SourceRow]:
    """Yields the rows of columns; `start` is the number of the first.

    Of the columns `media` only the paths are kept.
    """
    names = batch.schema.names
    try:
        columns = [
            _values(column, name in media)
            for name, column in zip(names, batch.columns, strict=True)
        ]
    except Exception:  # whatever Arrow or Python raises for a value that Python cannot hold
        for at in range(batch.num_rows):
            yield _checked_row(file, start + at, batch.slice(at, 1), most, media)
        return
    for line, values in enumerate(zip(*columns, strict=True), start):
        yield _row(file, line, dict(zip(names, values, strict=True)), most)


def _checked_row(
    file: str, line: int, batch: pa.RecordBatch | pa.Table, most: int, media: frozenset[str]
) -> SourceRow:
    """Returns the only row of columns, a bad one with the column if a value cannot be read."""
    value = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            (value[name],) = _values(column, name in media)
        except UnicodeDecodeError as error:
            return bad(file, line, _bytes_of(batch), f"{not_utf8(error)}, in column {name}")
        except Exception as error:  # as above
            raw = str(column).encode(errors="surrogateescape")
            return bad(file, line, raw, f"a value that cannot be read: column {name}: {error}")
    return _row(file, line, value, most)


def _row(file: str, line: int, value: JsonObject, most: int) -> SourceRow:
    raw = dumped(value)
    if len(raw) > most:
        return bad(file, line, raw, too_long(most))
    return SourceRow(file, line, raw, value, None)


def _values(column: Any, is_media: bool) -> list[Any]:
    if is_media:
        return [_without_bytes(value) for value in column.to_pylist()]
    values: list[Any] = column.to_pylist(maps_as_pydicts="lossy")
    return values if _is_plain(column.type) else [_plain(value) for value in values]


def _bytes_of(batch: pa.RecordBatch | pa.Table) -> bytes:
    """Returns the texts of a row's own columns unchanged, whatever their bytes are."""
    is_text = (pa.types.is_string, pa.types.is_large_string)
    texts = [column for column in batch.columns if any(test(column.type) for test in is_text)]
    return b"\n".join(column.cast(pa.large_binary()).to_pylist()[0] or b"" for column in texts)


def _is_plain(kind: pa.DataType) -> bool:
    """Whether Arrow gives the values of a type as JSON has them."""
    simple = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer)
    if any(is_it(kind) for is_it in (*simple, pa.types.is_boolean, pa.types.is_null)):
        return True
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_plain(kind.value_type)
    return pa.types.is_struct(kind) and all(_is_plain(field.type) for field in kind)


def _is_media(kind: pa.DataType) -> bool:
    """Whether `datasets` stores an image, a sound or a video as this type, or a list of such."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_media(kind.value_type)
    if not pa.types.is_struct(kind):
        return False
    types = {field.name: field.type for field in kind}
    return set(types) == {"bytes", "path"} and pa.types.is_binary(types["bytes"])


def _without_bytes(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_bytes(item) for item in value]
    return None if value is None else {"path": value.get("path"), "bytes": None}


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
