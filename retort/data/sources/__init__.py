"""Where rows come from: files of any format and place, folders, globs, datasets.

Rows are read one at a time. The extension of a file decides its format, or its first bytes if it
has no known one; its first bytes always decide whether it is compressed. A bad row is yielded with
a reason, and reading goes on after it. Logged traffic, of which a record may hold many calls, is
recognised in each of them.
"""

import hashlib
from collections.abc import Iterator
from itertools import chain, takewhile

from retort.data.sources import hub, traffic
from retort.data.sources.compressed import BLOCK_BYTES, decompressed
from retort.data.sources.csv_tables import table_rows
from retort.data.sources.json_documents import document_rows
from retort.data.sources.json_lines import line_rows
from retort.data.sources.source_row import SourceRow
from retort.errors import SpecError
from retort.records import sha256_of
from retort.spec.prepare import HubDataset, Source, Traffic
from retort.store import find_urls, is_glob, open_url

__all__ = ["SourceRow", "describe", "digest", "read"]

FORMATS = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "document",
    ".csv": "table",
    ".tsv": "tabs",
    ".tab": "tabs",
    ".parquet": "parquet",
}
# What files begin with that hold no rows, whatever their names say, and what they are.
NO_ROWS = {
    b"PK\x03\x04": "neither text nor Parquet, but a ZIP archive or an Excel workbook; extract it, "
    "or save it as CSV",
    b"\xd0\xcf\x11\xe0": "neither text nor Parquet, but an old Excel workbook; save it as CSV",
    b"version https://git-lfs": "a pointer of Git LFS, not the data; run `git lfs pull`",
    b"<!doctype html": "a web page, not the data; download the file itself",
    b"<html": "a web page, not the data; download the file itself",
}
COMPRESSED = (".gz", ".zst")
PARQUET = b"PAR1"
ALLOWED = (
    f"allowed are {', '.join(FORMATS)}, the texts also with {' or '.join(COMPRESSED)}; anything "
    "else is read as JSON lines"
)
# A name for messages, and the dataset under it where it is none of a file.
Part = tuple[str, HubDataset | None]


def read(source: Source, where: str, max_row_bytes: int) -> Iterator[SourceRow]:
    """Returns the rows of a source, good and bad, in the order of its files and their rows.

    Raises `SpecError` at once for a missing file, and when its rows are due for a file that holds
    no data; `StoreError` for a place that cannot be read.
    """
    parts = [part for item in _items(source) for part in _parts(item, where)]
    chosen = source if isinstance(source, Traffic) else None
    return chain.from_iterable(_rows(part, where, max_row_bytes, chosen) for part in parts)


def digest(source: Source, where: str) -> str:
    """Returns the sha256 of the content of a source; moving it does not change it.

    For one file it is the sha256 of its bytes; for several, that of their names and sha256s, the
    names relative to the folder that the files of an item share. For a dataset of the hub the
    commit is hashed; of traffic, what chooses among it too. Raises as `read`.
    """
    if isinstance(source, HubDataset):
        return _dataset_digest(source, where)
    if isinstance(source, Traffic):
        choice = source.model_dump(mode="json", exclude={"traffic"}, exclude_defaults=True)
        return sha256_of([choice, digest(source.traffic, where)])
    digests: list[list[str]] = []
    for item in _items(source):
        parts = _parts(item, where)
        names = _relative([name for name, _ in parts])
        digests += [
            [name, _dataset_digest(dataset, where) if dataset else _file_digest(url, where)]
            for name, (url, dataset) in zip(names, parts, strict=True)
        ]
    return digests[0][1] if len(digests) == 1 else sha256_of(digests)


def describe(source: Source) -> str:
    """Returns a short description of a source, for messages."""
    if isinstance(source, HubDataset):
        return hub.name_of(source)
    items = _items(source)
    if not items:
        return "an empty list"
    return str(items[0]) if len(items) == 1 else f"{len(items)} files: {items[0]} ..."


def _items(source: Source) -> list[str | HubDataset]:
    if isinstance(source, Traffic):
        return _items(source.traffic)
    return list(source) if isinstance(source, tuple) else [source]


def _parts(item: str | HubDataset, where: str) -> list[Part]:
    """Returns the files, or the dataset, that an item of a source names.

    Of a folder these are the files with a known extension, or all files if none has one.
    """
    if isinstance(item, HubDataset):
        return [(hub.name_of(item), item)]
    if not (is_glob(item) or _format_by_name(item)) and hub.is_saved(item):
        return [(item, HubDataset(dataset=item))]
    try:
        urls = find_urls(item)
    except FileNotFoundError:
        raise _missing(item, where) from None
    if urls != [item] and not is_glob(item):
        urls = [url for url in urls if _format_by_name(url)] or urls
    return [(url, None) for url in urls]


def _missing(path: str, where: str) -> SpecError:
    return SpecError(f"{where}: no file {path}; paths are relative to the job file")


def _rows(part: Part, where: str, most: int, chosen: Traffic | None) -> Iterator[SourceRow]:
    name, dataset = part
    if dataset:
        yield from traffic.calls(hub.dataset_rows(dataset, name, where, most), most, chosen)
        return
    try:
        yield from _file_rows(name, most, chosen)
    except SpecError as error:
        raise SpecError(f"{where}: {name}: {error}") from error
    except FileNotFoundError:
        raise _missing(name, where) from None


def _file_rows(url: str, most: int, chosen: Traffic | None) -> Iterator[SourceRow]:
    with open_url(url) as stream:
        head, blocks = decompressed(stream)
        if traffic.is_log(head):
            yield from traffic.log_rows(url, blocks, most, chosen)
            return
        format_name = _format_by_content(head, _format_by_name(url))
        largest = max(most, traffic.RECORD_BYTES) if traffic.holds_many(head) else most
        if format_name == "parquet":
            from retort.data.sources.parquet_rows import parquet_rows

            stream.seek(0)
            rows = parquet_rows(url, stream, most)
        elif format_name == "document":
            rows = document_rows(url, blocks, largest)
        elif format_name == "lines":
            rows = line_rows(url, blocks, largest)
        else:
            rows = table_rows(url, blocks, largest, format_name == "tabs")
        yield from traffic.calls(rows, most, chosen)


def _format_by_name(url: str) -> str | None:
    """Returns the format that belongs to a name's extension, if any."""
    name = url.partition("?")[0] if url.startswith(("http://", "https://")) else url
    name = name.rsplit("/", 1)[-1].lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return FORMATS.get("." + name.rpartition(".")[2]) if "." in name else None


def _format_by_content(head: bytes, by_name: str | None) -> str:
    """Returns the format of a file by its first bytes, or by its name if they allow that.

    Raises `SpecError` for a file that cannot hold rows.
    """
    if head.startswith(PARQUET):
        return "parquet"
    start = head[:64].lstrip().lower()
    for signature, what in NO_ROWS.items():
        if start.startswith(signature.lower()):
            raise SpecError(f"{what}; {ALLOWED}")
    if by_name:
        return by_name
    if start[:1] in (b"{", b"["):
        return "document"
    start = head[:4096].rpartition(b"\n")[0] or head[:4096]
    if b"\0" in start or "\ufffd" in start[:-4].decode(errors="replace"):
        raise SpecError(f"neither text nor Parquet; {ALLOWED}")
    return "lines"


def _dataset_digest(source: HubDataset, where: str) -> str:
    if hub.is_saved(source.dataset):
        urls, choice = hub.saved_files(source, where), []
    else:
        choice = [source.config, source.split]
        hub.check_folder(source, where)
        try:
            urls = find_urls(source.dataset)
        except FileNotFoundError:
            return hub.commit_digest(source, where)
    names = _relative(urls)
    files = [[name, _file_digest(url, where)] for name, url in zip(names, urls, strict=True)]
    return sha256_of([*choice, *files])


def _relative(urls: list[str]) -> list[str]:
    """Returns paths without the folders that all of them share."""
    parts = [url.split("/") for url in urls]
    folders = zip(*(one[:-1] for one in parts), strict=False)
    common = sum(1 for _ in takewhile(lambda same: len(set(same)) == 1, folders))
    return ["/".join(one[common:]) for one in parts]


def _file_digest(url: str, where: str) -> str:
    digest = hashlib.sha256()
    try:
        with open_url(url) as stream:
            while block := stream.read(BLOCK_BYTES):
                digest.update(block)
    except FileNotFoundError:
        raise _missing(url, where) from None
    return digest.hexdigest()
