"""Paths and URLs of files, local or under any fsspec scheme: found, opened, read.

A listing is never cached. A missing file is the one error that keeps its own class.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.utils import glob_translate

from retort.errors import SpecError, StoreError, disk_cause
from retort.store import s3

URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)(\S+)")
GLOB_CHARACTERS = frozenset("*?[")
MOST_FILES = 50_000  # below a folder that a job names
# Read ahead at a time from a file that is not on this machine.
BLOCK_BYTES = 8 << 20
# The modules whose errors are the store's, and their transient errors: the connection failed,
# broke off or timed out.
STORE_MODULES = ("botocore", "aiobotocore", "aiohttp", "s3fs")
TRANSIENT = {"ConnectionError", "HTTPClientError", "ResponseParserError", "ClientError"}


def filesystem(url: str, is_patient: bool = True) -> Any:
    """Returns the fsspec filesystem of a path or URL, which never caches listings.

    On S3 a patient one retries transient errors; the other reports within seconds that a store
    cannot be reached. Raises ValueError or ImportError for a scheme that is unknown or not
    installed.
    """
    scheme = _scheme(url) or "file"
    if scheme in ("file", "memory"):
        return fsspec.filesystem(scheme)
    options = {"use_listings_cache": False}  # other processes write to the same store
    if scheme not in s3.SCHEMES:
        return fsspec.filesystem(scheme, **options)
    files = fsspec.filesystem(scheme, **options, **s3.options(is_patient))
    files.retries = s3.ROUNDS if is_patient else s3.QUICK_ROUNDS
    return files


def is_s3(url: str) -> bool:
    """Whether a path or URL is on S3."""
    return _scheme(url) in s3.SCHEMES


def read_url(url: str) -> bytes:
    """Returns the bytes of a local file or of any fsspec URL.

    Raises `FileNotFoundError`, `StoreError`, or `SpecError` for an unknown scheme.
    """
    with open_url(url) as stream:
        return stream.read()


@contextlib.contextmanager
def open_url(url: str) -> Iterator[IO[bytes]]:
    """Opens a file as a stream of bytes that is fetched while it is read.

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
    raise FileNotFoundError(public(url))


def find_urls(url: str) -> list[str]:
    """Returns the files that a path or URL stands for, sorted.

    A file stands for itself, a folder for every file below it, a glob for what it matches. Names
    that begin with a dot or an underscore are left out, and everything in folders of such names,
    unless the last part of the glob begins so. Raises `FileNotFoundError` when there is no file,
    `StoreError`, or `SpecError` for an unknown scheme.
    """
    files = _known(url)
    path = _path(files, url)
    if is_s3(url) and not path.split("/")[0].strip("*"):
        raise SpecError(f"{public(url)} names no bucket; write s3://BUCKET/PATH")
    with store_errors(url):
        if files.isfile(path):
            return [url]
        root, allowed = path.rstrip("/"), ""
        if _has_magic(url) and not files.exists(path):
            root, allowed = _fixed_part(files, path), path.rsplit("/", 1)[-1][:1]
            found = _matches(files, root, path)
        else:
            found = _below(files, root, url) if files.exists(root) else []
    shown = sorted(name for name in found if _is_shown(name.removeprefix(root), allowed))
    if not shown:
        raise FileNotFoundError(public(url))
    return [str(files.unstrip_protocol(name)) if "://" in url else name for name in shown]


def _below(files: Any, root: str, url: str) -> list[str]:
    """Returns the files below a folder. Raises `SpecError` for one of this machine with too many to
    be the rows of a job, such as the root of a disk."""
    if "://" in url:
        return list(files.find(root))
    found: list[str] = []
    for folder, _, names in files.walk(root):
        found += [f"{folder.rstrip('/')}/{name}" for name in names]
        if len(found) > MOST_FILES:
            raise SpecError(
                f"{public(url)} holds more than {MOST_FILES:,} files; name the folder of the rows, "
                "or a pattern such as rows/*.jsonl"
            )
    return found


def is_glob(url: str) -> bool:
    """Whether a path or URL stands for others: a name with a bracket in it may be a name only."""
    if not _has_magic(url):
        return False
    files = _known(url)
    with store_errors(url):
        return not files.exists(_path(files, url))


def _has_magic(path: str) -> bool:
    return not GLOB_CHARACTERS.isdisjoint(path)


def _known(url: str) -> Any:
    try:
        return filesystem(url)
    except Exception as error:  # an unknown scheme, or whatever the one of an odd URL raises
        raise SpecError(f"{public(url)}: {error}; use a local path or s3://bucket/key") from None


def _path(files: Any, url: str) -> str:
    """Returns a URL as its filesystem names it."""
    return str(files._strip_protocol(url if "://" in url else str(Path(url).expanduser())))


def _matches(files: Any, root: str, pattern: str) -> list[str]:
    """Returns the files that a glob matches, below a folder whose name is no part of it."""
    if not _has_magic(root):
        found = files.glob(pattern, detail=True).items()
        return [name for name, facts in found if facts.get("type") != "directory"]
    inner = pattern.removeprefix(root).lstrip("/")
    depth = None if "**" in inner else inner.count("/") + 1
    matches = re.compile(glob_translate(inner)).match
    names = files.find(root, maxdepth=depth)
    return [name for name in names if matches(name.removeprefix(root).lstrip("/"))]


def _fixed_part(files: Any, pattern: str) -> str:
    """Returns the folder before the first part of a glob that stands for others.

    A part with a bracket that is the name of a folder stands for itself.
    """
    parts = pattern.split("/")
    for index, part in enumerate(parts):
        if _has_magic(part) and not files.exists("/".join(parts[: index + 1])):
            return "/".join(parts[:index])
    return pattern


def _is_shown(name: str, allowed: str) -> bool:
    return not any(part[0] in "._" and part[0] != allowed for part in name.split("/") if part)


def _scheme(url: str) -> str:
    return url.split("://", 1)[0] if "://" in url else ""


@contextlib.contextmanager
def store_errors(path: str, files: Any = None) -> Iterator[None]:
    """Turns whatever a filesystem raises into a `StoreError` that names the path and the cause.

    `files` is the filesystem where it is not the path's patient one; its endpoint is named.
    """
    try:
        yield
    except StoreError:
        raise
    except Exception as error:  # botocore's errors have no common base in the standard library
        if not _is_store_error(error, path):
            raise
        endpoint = s3.endpoint(files or filesystem(path)) if is_s3(path) else ""
        where = f"{path} at {endpoint}" if endpoint else path
        text = public(f"store: {where}: {_cause(error, path)}")
        raise StoreError(text, transient=_is_transient(error)) from error


def is_missing(error: StoreError) -> bool:
    """Whether the store answered that it has no such file."""
    missing = isinstance(error.__cause__, FileNotFoundError | NotADirectoryError)
    return missing and s3.code(error.__cause__ or error) != "NoSuchBucket"


def _is_store_error(error: Exception, path: str) -> bool:
    if isinstance(error, OSError) or type(error).__module__.startswith(STORE_MODULES):
        return True
    if _scheme(path) not in ("", "file", "memory", *s3.SCHEMES):
        return True  # each scheme's library has errors of its own, a ValueError for an odd URL
    # What botocore raises for an endpoint that is no URL, or that only redirects.
    is_no_url = isinstance(error, ValueError) and "endpoint" in str(error).lower()
    return is_s3(path) and (is_no_url or isinstance(error, RecursionError))


def _cause(error: Exception, path: str) -> str:
    if is_s3(path) and (known := s3.cause(error, path)):
        return known
    if full := disk_cause(error, "--store"):
        return full
    if isinstance(error, PermissionError):
        return f"access denied ({error}); check the credentials and the permissions of the store"
    if isinstance(error, FileNotFoundError):
        return f"not found ({error}); check the bucket or folder and the prefix"
    return f"{type(error).__name__}: {error}"


def _is_transient(error: Exception) -> bool:
    """Whether the same call may succeed later."""
    if status := s3.status(error):
        return status in (408, 409, 429) or (status >= 500 and status != 501)
    if not isinstance(error, OSError):
        return bool({kind.__name__ for kind in type(error).__mro__} & TRANSIENT)
    lasting = (FileNotFoundError, PermissionError, FileExistsError, NotADirectoryError)
    return not isinstance(error, lasting) and disk_cause(error, "") is None


def public(text: str) -> str:
    """Returns a text with user, password, query and fragment taken out of every URL in it."""
    return URL.sub(_without_secrets, text) if "://" in text else text


def public_json(value: Any) -> Any:
    """Returns a JSON value with `public` applied to every text in it."""
    if isinstance(value, dict):
        return {key: public_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [public_json(item) for item in value]
    return public(value) if isinstance(value, str) else value


def _without_secrets(match: re.Match[str]) -> str:
    scheme, rest = match.groups()
    host = re.split("[/?#]", rest, maxsplit=1)[0]
    if "@" not in host and re.fullmatch(r"[^\[:]*:.*\D.*", host):
        rest = rest.rpartition("@")[2]  # a password that holds one of these characters
    host, slash, path = re.split("[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}{host.rpartition('@')[2]}{slash}{path}"
