"""The user's own files, local or under any fsspec URL: found, opened, read.

A listing is never cached, and a missing file is the one error that keeps its own class.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import fsspec

from retort.errors import SpecError, StoreError

MAGIC = frozenset("*?[")
# What is fetched ahead of the reader from a store that is not on this machine.
BLOCK_BYTES = 8 << 20


def filesystem(url: str) -> Any:
    """Returns the fsspec filesystem of a path or URL, which never caches listings.

    Raises ValueError or ImportError for a scheme that is unknown or not installed.
    """
    scheme = url.split("://", 1)[0] if "://" in url else "file"
    # Another process may have written meanwhile.
    options = {} if scheme in ("file", "memory") else {"use_listings_cache": False}
    return fsspec.filesystem(scheme, **options)


def read_url(url: str) -> bytes:
    """Returns the bytes of a local file or of any fsspec URL.

    Raises `FileNotFoundError`, `StoreError`, or `SpecError` for an unknown scheme.
    """
    with open_url(url) as stream:
        return stream.read()


@contextlib.contextmanager
def open_url(url: str) -> Iterator[IO[bytes]]:
    """Gives a file as a stream of bytes that is fetched while it is read.

    Raises `FileNotFoundError`, `StoreError`, or `SpecError` for an unknown scheme.
    """
    files = _known(url)
    options = {"block_size": BLOCK_BYTES} if "://" in url else {}
    with store_errors(url):
        try:
            stream = files.open(_path(files, url), "rb", **options)
        except FileNotFoundError:
            stream = None
        if stream is not None:
            with stream:
                yield stream
            return
    raise FileNotFoundError(url)


def find_urls(url: str) -> list[str]:
    """Returns the files that a path or URL stands for, sorted.

    A file is itself, a folder every file below it, a glob what it matches. Names that start with
    a dot or an underscore are left out, also those of folders, unless the glob's own last part
    starts so. Raises `FileNotFoundError` when there is nothing, `StoreError`, or `SpecError` for
    an unknown scheme.
    """
    files = _known(url)
    path = _path(files, url)
    with store_errors(url):
        if files.isfile(path):
            return [url]
        root, allowed = path.rstrip("/"), ""
        if is_glob(url) and not files.exists(path):
            root, allowed = _fixed_part(path), path.rsplit("/", 1)[-1][:1]
            found = [name for name, facts in files.glob(path, detail=True).items() if _file(facts)]
        else:
            found = files.find(root) if files.exists(root) else []
    shown = sorted(name for name in found if _is_shown(name.removeprefix(root), allowed))
    if not shown:
        raise FileNotFoundError(url)
    return [str(files.unstrip_protocol(name)) if "://" in url else name for name in shown]


def is_glob(url: str) -> bool:
    """Whether a path or URL holds a character that stands for others."""
    return not MAGIC.isdisjoint(url)


def _known(url: str) -> Any:
    try:
        return filesystem(url)
    except (ValueError, ImportError) as error:
        raise SpecError(f"{url}: {error}; use a local path or s3://bucket/key") from None


def _path(files: Any, url: str) -> str:
    """Returns a URL as its filesystem names it."""
    return str(files._strip_protocol(url if "://" in url else str(Path(url).expanduser())))


def _file(facts: dict[str, Any]) -> bool:
    return facts.get("type") != "directory"


def _fixed_part(pattern: str) -> str:
    """Returns the folder before the first part of a glob that holds a special character."""
    parts = pattern.split("/")
    first = next(index for index, part in enumerate(parts) if is_glob(part))
    return "/".join(parts[:first])


def _is_shown(name: str, allowed: str) -> bool:
    return not any(part[0] in "._" and part[0] != allowed for part in name.split("/") if part)


@contextlib.contextmanager
def store_errors(path: str) -> Iterator[None]:
    """Turns what a filesystem raises into one `StoreError` that names the path and the cause."""
    try:
        yield
    except StoreError:
        raise
    except (OSError, ConnectionError, TimeoutError) as error:
        raise StoreError(f"store: {path}: {_cause(error)}", transient=_passing(error)) from error
    except Exception as error:  # botocore's errors have no common base in the standard library
        if not type(error).__module__.startswith(("botocore", "aiobotocore", "aiohttp", "s3fs")):
            raise
        raise StoreError(f"store: {path}: {_cause(error)}", transient=_passing(error)) from error


def _cause(error: BaseException) -> str:
    if isinstance(error, PermissionError) or "credentials" in str(error).lower():
        return f"access denied ({error}); check the credentials and the permissions of the store"
    if isinstance(error, FileNotFoundError):
        return f"not found ({error}); check the bucket or folder and the prefix"
    if isinstance(error, OSError) and error.errno == 28:
        return "no space left on the device; free some, or use --store on another disk"
    return f"{type(error).__name__}: {error}"


def _passing(error: BaseException) -> bool:
    lasting = (FileNotFoundError, PermissionError, FileExistsError, NotADirectoryError)
    return not isinstance(error, lasting) and getattr(error, "errno", None) not in (28, 30)
