"""Rows of a dataset of the Hugging Face hub, or of a folder that `datasets` saved.

`datasets` is imported here only, and only when such a source is read: it takes seconds. Rows are
read as Arrow columns: no image is decoded, no image library is needed.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from retort.data.sources.source_row import SourceRow
from retort.errors import SpecError, did_you_mean
from retort.records import sha256_of
from retort.spec.prepare import HubDataset
from retort.store import find_urls, read_url

DICT, ONE = "dataset_dict.json", "state.json"
BATCH_ROWS = 1024
MOST_FILES = 10_000


def dataset_rows(source: HubDataset, name: str, where: str, most: int) -> Iterator[SourceRow]:
    """Returns the rows of a dataset. Raises `SpecError` when it cannot be opened or read."""
    from retort.data.sources.parquet_rows import table_rows

    return table_rows(name, _tables(_opened(source, where), source, where), most)


def name_of(source: HubDataset) -> str:
    """Returns the name of a dataset in messages: hub:ID/config/split."""
    return "/".join(["hub:" + source.dataset, *filter(None, [source.config]), source.split])


def is_saved(url: str) -> bool:
    """Whether a path or URL is a folder that `datasets` saved."""
    return _has(url, DICT) or _has(url, ONE)


def saved_files(source: HubDataset, where: str) -> list[str]:
    """Returns the files that hold the rows of a split of a saved folder."""
    return [url for url in find_urls(_saved_split(source, where)) if url.endswith(".arrow")]


def commit_digest(source: HubDataset, where: str) -> str:
    """Returns a digest of a dataset of the hub made from its commit; its rows are not read.

    Without a network, it is the commit of the copy on this machine.
    """
    with _loading(source, where) as datasets:
        builder = datasets.load_dataset_builder(
            source.dataset, source.config, revision=source.revision
        )
    return sha256_of([source.dataset, builder.config.name, source.split, builder.hash])


def _opened(source: HubDataset, where: str) -> Any:
    saved = _saved_split(source, where) if is_saved(source.dataset) else None
    if not saved:
        check_folder(source, where)
    with _loading(source, where) as datasets:
        if saved:
            return datasets.load_from_disk(saved)
        return datasets.load_dataset(
            source.dataset,
            source.config,
            split=source.split,
            revision=source.revision,
            streaming=source.streaming,
        )


def check_folder(source: HubDataset, where: str) -> None:
    """Raises `SpecError` for a folder of so many files that it can hardly be one dataset: the
    library would look at each of them, a dozen times."""
    below = (name for _, _, names in os.walk(source.dataset) for name in names)
    if sum(1 for _ in islice(below, MOST_FILES + 1)) > MOST_FILES:
        raise SpecError(
            f"{where}: {name_of(source)}: more than {MOST_FILES:,} files are in this folder; name "
            "the folder of the dataset itself"
        )


def _tables(dataset: Any, source: HubDataset, where: str) -> Iterator[Any]:
    with _loading(source, where):
        yield from dataset.with_format("arrow").iter(batch_size=BATCH_ROWS)


@contextmanager
def _loading(source: HubDataset, where: str) -> Iterator[Any]:
    """Yields the library; turns its errors into a `SpecError`."""
    import datasets

    datasets.disable_progress_bars()
    try:
        yield datasets
    except datasets.exceptions.DatasetGenerationError as error:
        raise SpecError(
            f"{where}: {name_of(source)}: its files cannot be read: {error.__cause__ or error}; "
            "if they are on this machine, give their folder as the source: a bad row is then "
            "quarantined and the others are read"
        ) from error
    except (ValueError, OSError, RuntimeError, ImportError, LookupError) as error:
        raise SpecError(f"{where}: {name_of(source)} cannot be loaded: {error}") from error


def _saved_split(source: HubDataset, where: str) -> str:
    """Returns the folder of a split below a saved one. Raises `SpecError` that lists the splits."""
    root, split = source.dataset.rstrip("/"), source.split
    if _has(root, DICT):
        splits = json.loads(read_url(f"{root}/{DICT}"))["splits"]
        if split in splits:
            return f"{root}/{split}"
    else:
        splits = [json.loads(read_url(f"{root}/{ONE}")).get("_split") or "train"]
        if split in (*splits, "train"):
            return root
    hint = did_you_mean(split, splits)
    raise SpecError(
        f"{where}: {root} has no split '{split}'{hint}; it has: {', '.join(splits)}; write "
        f"{{dataset: {root}, split: {splits[0]}}}"
    )


def _has(folder: str, name: str) -> bool:
    try:
        return bool(find_urls(f"{folder.rstrip('/')}/{name}"))
    except FileNotFoundError:
        return False
