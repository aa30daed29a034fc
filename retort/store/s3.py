"""What is special about S3: patience, files in parts, a file that only one writer can make, and
what its errors mean. Endpoint, region and keys come from the usual environment or profile (AWS_*).

The surprise: an answer may get lost after the store did what it was asked, so each file that is
made once, or in parts, carries a token of its writer, by which that one knows its own again.
"""

import contextlib
import math
import os
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

SCHEMES = ("s3", "s3a")
# Requests that are throttled (SlowDown), fail with 5xx or lose their connection are sent so often,
# with pauses that double from a second to twenty; AWS_MAX_ATTEMPTS says otherwise.
ATTEMPTS, QUICK_ATTEMPTS = 6, 2
# s3fs starts over after those: for what it calls SlowDown, and for an answer that broke off.
ROUNDS, QUICK_ROUNDS = 2, 1
CONNECT_SECONDS, READ_SECONDS, QUICK_SECONDS = 10, 30, 5
# A file of two parts or more goes, and comes, in parts; S3 takes parts from 5 MiB and 10,000.
PART_BYTES, MAX_PARTS, PARTS_AT_ONCE = 50 << 20, 10_000, 8
WRITER = "retort-writer"
CONFLICT_ATTEMPTS = 6
WHO = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
NO_KEYS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")
UNREACHED = ("EndpointConnectionError", "ConnectTimeoutError")
OLD = "an older one may need AWS_REQUEST_CHECKSUM_CALCULATION=when_required"
OTHER_REGION = ("301", "PermanentRedirect", "AuthorizationHeaderMalformed")
# By endpoint and bucket: whether it refuses to replace a file where it is asked to.
_refuses: dict[tuple[str, str], bool] = {}


def options(is_patient: bool) -> dict[str, Any]:
    """Returns the arguments of the filesystem: its patience, and the region where only AWS_REGION
    says it."""
    attempts = os.environ.get("AWS_MAX_ATTEMPTS", str(ATTEMPTS))
    found: dict[str, Any] = {
        "config_kwargs": {
            "retries": {
                "mode": os.environ.get("AWS_RETRY_MODE", "standard"),
                "total_max_attempts": int(attempts) if is_patient else QUICK_ATTEMPTS,
            },
            "connect_timeout": CONNECT_SECONDS if is_patient else QUICK_SECONDS,
            "read_timeout": READ_SECONDS if is_patient else QUICK_SECONDS,
        }
    }
    region = os.environ.get("AWS_REGION")
    if region and "AWS_DEFAULT_REGION" not in os.environ:
        found["client_kwargs"] = {"region_name": region}
    return found


def endpoint(files: Any) -> str:
    """Returns the address that a filesystem talks to; nothing before it talked."""
    return str(files._s3.meta.endpoint_url) if files._s3 is not None else ""


def exists(files: Any, path: str) -> bool:
    """Whether a file stands, with one request; a folder is none."""
    with contextlib.suppress(FileNotFoundError):
        files.call_s3("head_object", **_place(files, path))
        return True
    return False


def put(files: Any, path: str, size: int, read: Callable[[int, int], bytes]) -> None:
    """Writes a file of `read(start, length)` in parts; where that fails it leaves no part.

    A process that is killed leaves an unfinished upload; nobody can read it, see `unfinished`.
    """
    place, token = _place(files, path), uuid.uuid4().hex
    made = files.call_s3("create_multipart_upload", **place, Metadata={WRITER: token})
    upload = {**place, "UploadId": made["UploadId"]}

    def send(number: int, start: int, length: int) -> dict[str, Any]:
        body = read(start, length)
        done = files.call_s3("upload_part", **upload, PartNumber=number, Body=body)
        return {"PartNumber": number, "ETag": done["ETag"]}

    try:
        parts = _in_parts(size, send)
        try:
            files.call_s3("complete_multipart_upload", **upload, MultipartUpload={"Parts": parts})
        except FileNotFoundError:  # it was complete, and the answer that said so got lost
            if not _is_mine(files, path, token):
                raise
    except BaseException:
        with contextlib.suppress(Exception):
            files.call_s3("abort_multipart_upload", **upload)
        raise


def get(files: Any, path: str, size: int, target: str) -> None:
    """Fetches a file to this machine, a large one in parts, each of which may be tried again."""
    if size < 2 * PART_BYTES:
        files.get_file(path, target)
        return
    with open(target, "wb") as stream:

        def fetch(_: int, start: int, length: int) -> None:
            data = files.cat_file(path, start=start, end=start + length)
            os.pwrite(stream.fileno(), data, start)

        _in_parts(size, fetch)


def unfinished(files: Any, path: str, before: float) -> list[tuple[str, str]]:
    """Returns the keys and ids of uploads below a path that were begun before a time, in seconds
    since 1970, and neither finished nor given up."""
    bucket, prefix, _ = files.split_path(path)
    asked, found = {"Bucket": bucket, "Prefix": prefix}, list[tuple[str, str]]()
    while True:
        page = files.call_s3("list_multipart_uploads", **asked)
        for each in page.get("Uploads", []):
            if each["Initiated"].timestamp() < before:
                found.append((each["Key"], each["UploadId"]))
        if not page.get("IsTruncated"):
            return found
        asked["KeyMarker"] = page["NextKeyMarker"]
        asked["UploadIdMarker"] = page["NextUploadIdMarker"]


def refuses_to_replace(files: Any, path: str, probe: str) -> bool:
    """Whether the bucket of a path keeps the first file of two writers that both ask for that.

    Tried once a process and bucket, with a file named `probe` that is removed again.
    """
    place = str(files.s3.meta.endpoint_url), str(files.split_path(path)[0])
    if place not in _refuses:
        try:
            _refuses[place] = create(files, probe, b"") and not create(files, probe, b"")
        except OSError as error:
            if isinstance(error, PermissionError) or status(error) not in (400, 501):
                raise
            _refuses[place] = False
        with contextlib.suppress(FileNotFoundError):
            files.rm_file(probe)
    return _refuses[place]


def create(files: Any, path: str, data: bytes) -> bool:
    """Writes a file if none stands; returns whether this call made the one that stands."""
    token = uuid.uuid4().hex
    asked = {**_place(files, path), "IfNoneMatch": "*", "Metadata": {WRITER: token}}
    for attempt in range(CONFLICT_ATTEMPTS):
        try:
            files.call_s3("put_object", **asked, Body=data)
            return True
        except OSError as error:
            if status(error) == 412:
                return _is_mine(files, path, token)
            # Others write or remove it in this very moment.
            if status(error) != 409 or attempt == CONFLICT_ATTEMPTS - 1:
                raise
        time.sleep(0.1 * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


def status(error: BaseException) -> int:
    """Returns the HTTP status behind an error; 0 where the store did not answer."""
    return int(_answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code(error: BaseException) -> str:
    """Returns what S3 calls an error, such as NoSuchBucket; nothing where it did not answer."""
    return str(_answer(error).get("Error", {}).get("Code", ""))


def cause(error: BaseException, path: str) -> str:
    """Returns what is wrong and what to do, where that is known of S3; otherwise nothing."""
    kind, said = type(error).__name__, _said(error)
    if code(error) == "NoSuchBucket":
        bucket = path.partition("://")[2].partition("/")[0]
        found = f"not found: there is no bucket {bucket} there; make it, or correct its name"
    elif isinstance(error, PermissionError) or kind in NO_KEYS:
        found = f"access denied ({said}); check the credentials ({WHO}) and what they may do there"
    elif isinstance(error, ValueError) or kind in UNREACHED:
        found = f"cannot be reached ({said}); check AWS_ENDPOINT_URL, and that the store runs"
    elif isinstance(error, RecursionError):
        found = "sends every request elsewhere; check AWS_ENDPOINT_URL, also whether it is https"
    elif code(error) in OTHER_REGION:
        found = f"another region's ({said}); set AWS_DEFAULT_REGION to the bucket's"
    elif status(error) == 501:
        found = f"not known to this store ({said}); {OLD}"
    elif isinstance(error, FileNotFoundError):
        found = ""
    else:
        found = f"{status(error)} {said}" if status(error) else ""
    return found


def _said(error: BaseException) -> str:
    text = _answer(error).get("Error", {}).get("Message", error)
    return f"{code(error)}: {text}" if code(error) else str(text)


def _answer(error: BaseException) -> dict[str, Any]:
    """Returns what botocore read of the store's answer to what failed."""
    for each in (error, error.__cause__):
        if isinstance(found := getattr(each, "response", None), dict):
            return found
    return {}


def _is_mine(files: Any, path: str, token: str) -> bool:
    try:
        answer = files.call_s3("head_object", **_place(files, path))
    except FileNotFoundError:
        return False
    return bool(answer.get("Metadata", {}).get(WRITER) == token)


def _place(files: Any, path: str) -> dict[str, str]:
    bucket, key, _ = files.split_path(path)
    return {"Bucket": bucket, "Key": key}


def _in_parts(size: int, move: Callable[[int, int, int], Any]) -> list[Any]:
    """Calls `move(number, start, length)` for each part of a file, several at a time."""
    length = max(PART_BYTES, math.ceil(size / MAX_PARTS))
    starts = range(0, size, length)
    with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
        parts: Iterable[Any] = pool.map(
            lambda number: move(number + 1, starts[number], min(length, size - starts[number])),
            range(len(starts)),
        )
        return list(parts)
