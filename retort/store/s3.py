"""What is special about S3: retries, files in parts, files that only one writer can create, and
the meaning of errors. Endpoint, region and keys come from the usual environment or profile (AWS_*).

Note: an answer may get lost after the store did what was requested. So each file that is created
once, or in parts, carries a token of its writer, by which the writer knows its own file again.
"""

import contextlib
import math
import os
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from retort.errors import SpecError

SCHEMES = ("s3", "s3a")
# How often a request is sent that is throttled (SlowDown), fails with 5xx or loses its connection,
# with pauses that double from one second to twenty. AWS_MAX_ATTEMPTS overrides the first.
ATTEMPTS, QUICK_ATTEMPTS = 6, 2
# How often s3fs starts over after those: for SlowDown, and for an answer that broke off.
ROUNDS, QUICK_ROUNDS = 2, 1
CONNECT_SECONDS, READ_SECONDS, QUICK_SECONDS = 10, 30, 5
# A file of two parts or more is sent and fetched in parts. S3 takes 10,000, each of 5 MiB or more.
PART_BYTES, MAX_PARTS, PARTS_AT_ONCE = 50 << 20, 10_000, 8
WRITER = "retort-writer"
CONFLICT_ATTEMPTS = 6
KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
NO_KEYS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")
UNREACHED = ("EndpointConnectionError", "ConnectTimeoutError")
CHECKSUMS = "an older one may need AWS_REQUEST_CHECKSUM_CALCULATION=when_required"
OTHER_REGION = ("301", "PermanentRedirect", "AuthorizationHeaderMalformed")
# By endpoint and bucket: whether it honours If-None-Match.
_is_conditional: dict[tuple[str, str], bool] = {}


def options(is_patient: bool) -> dict[str, Any]:
    """Returns the arguments of the filesystem: retries and time limits, and the region where only
    AWS_REGION names it. Raises `SpecError` for a variable that is no number."""
    attempts = os.environ.get("AWS_MAX_ATTEMPTS") or str(ATTEMPTS)
    if not attempts.isdecimal() or int(attempts) < 1:
        raise SpecError(f"AWS_MAX_ATTEMPTS: '{attempts}'; give a whole number, 1 or more")
    arguments: dict[str, Any] = {
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
        arguments["client_kwargs"] = {"region_name": region}
    return arguments


def endpoint(files: Any) -> str:
    """Returns the address that a filesystem talks to; empty before its first request."""
    return str(files._s3.meta.endpoint_url) if files._s3 is not None else ""


def exists(files: Any, path: str) -> bool:
    """Whether there is a file, by one request; a folder is none."""
    with contextlib.suppress(FileNotFoundError):
        files.call_s3("head_object", **_location(files, path))
        return True
    return False


def put(files: Any, path: str, size: int, read: Callable[[int, int], bytes]) -> None:
    """Writes a file of `read(start, length)` in parts; removes the parts when that fails.

    A process that is killed leaves an unfinished upload, which nobody can read; see `unfinished`.
    """
    location, token = _location(files, path), uuid.uuid4().hex
    begun = files.call_s3("create_multipart_upload", **location, Metadata={WRITER: token})
    upload = {**location, "UploadId": begun["UploadId"]}

    def send(number: int, start: int, length: int) -> dict[str, Any]:
        body = read(start, length)
        sent = files.call_s3("upload_part", **upload, PartNumber=number, Body=body)
        return {"PartNumber": number, "ETag": sent["ETag"]}

    try:
        parts = _in_parts(size, send)
        try:
            files.call_s3("complete_multipart_upload", **upload, MultipartUpload={"Parts": parts})
        except FileNotFoundError:  # it was complete, and the answer got lost
            if not _is_written_by(files, path, token):
                raise
    except BaseException:
        with contextlib.suppress(Exception):
            files.call_s3("abort_multipart_upload", **upload)
        raise


def get(files: Any, path: str, size: int, target: str) -> None:
    """Fetches a file to this machine, a large one in parts, each retried by itself."""
    if size < 2 * PART_BYTES:
        files.get_file(path, target)
        return
    with open(target, "wb") as stream:

        def fetch(_: int, start: int, length: int) -> None:
            data = files.cat_file(path, start=start, end=start + length)
            os.pwrite(stream.fileno(), data, start)

        _in_parts(size, fetch)


def unfinished(files: Any, path: str, before: float) -> list[tuple[str, str]]:
    """Returns the keys and ids of uploads below a path that began before a time, in seconds since
    1970, and were neither completed nor aborted."""
    bucket, prefix, _ = files.split_path(path)
    query, found = {"Bucket": bucket, "Prefix": prefix}, list[tuple[str, str]]()
    while True:
        page = files.call_s3("list_multipart_uploads", **query)
        for upload in page.get("Uploads", []):
            if upload["Initiated"].timestamp() < before:
                found.append((upload["Key"], upload["UploadId"]))
        if not page.get("IsTruncated"):
            return found
        query["KeyMarker"] = page["NextKeyMarker"]
        query["UploadIdMarker"] = page["NextUploadIdMarker"]


def is_conditional(files: Any, path: str, probe: str) -> bool:
    """Whether the bucket of a path honours If-None-Match: of two writers it keeps the first file.

    Tried once a process and bucket, with a file named `probe` that is removed again.
    """
    bucket = str(files.s3.meta.endpoint_url), str(files.split_path(path)[0])
    if bucket not in _is_conditional:
        try:
            _is_conditional[bucket] = create(files, probe, b"") and not create(files, probe, b"")
        except OSError as error:
            if isinstance(error, PermissionError) or status(error) not in (400, 501):
                raise
            _is_conditional[bucket] = False
        with contextlib.suppress(FileNotFoundError):
            files.rm_file(probe)
    return _is_conditional[bucket]


def create(files: Any, path: str, data: bytes) -> bool:
    """Writes a file if there is none; returns whether the file there is the one of this call."""
    token = uuid.uuid4().hex
    for attempt in range(CONFLICT_ATTEMPTS):
        try:
            files.pipe_file(path, data, mode="create", Metadata={WRITER: token})
            return True
        except OSError as error:
            if status(error) == 412:
                return _is_written_by(files, path, token)
            # 409: another writer creates or removes it at this moment.
            if status(error) != 409 or attempt == CONFLICT_ATTEMPTS - 1:
                raise
        time.sleep(0.1 * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


def status(error: BaseException) -> int:
    """Returns the HTTP status behind an error; 0 where the store did not answer."""
    return int(_answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code(error: BaseException) -> str:
    """Returns S3's name of an error, such as NoSuchBucket; empty where it did not answer."""
    return str(_answer(error).get("Error", {}).get("Code", ""))


def cause(error: BaseException, path: str) -> str:
    """Returns what is wrong and what to do, where that is known of S3; otherwise nothing."""
    kind, message = type(error).__name__, _message(error)
    if code(error) == "NoSuchBucket":
        bucket = path.partition("://")[2].partition("/")[0]
        text = f"not found: there is no bucket {bucket} there; make it, or correct its name"
    elif code(error) == "RequestTimeTooSkewed":
        text = f"refused ({message}); set the clock of this machine"
    elif isinstance(error, PermissionError) or kind in NO_KEYS:
        text = f"access denied ({message}); check the credentials ({KEYS}) and their permissions"
    elif isinstance(error, ValueError) or kind in UNREACHED:
        text = f"cannot be reached ({message}); check AWS_ENDPOINT_URL, and that the store runs"
    elif isinstance(error, RecursionError):
        text = "redirects every request; check AWS_ENDPOINT_URL, also whether it must be https"
    elif code(error) in OTHER_REGION:
        text = f"of another region ({message}); set AWS_DEFAULT_REGION to the bucket's"
    elif status(error) == 501:
        text = f"not supported by this store ({message}); {CHECKSUMS}"
    elif isinstance(error, FileNotFoundError):
        text = ""
    else:
        text = f"{status(error)} {message}" if status(error) else ""
    return text


def _message(error: BaseException) -> str:
    text = _answer(error).get("Error", {}).get("Message", error)
    return f"{code(error)}: {text}" if code(error) else str(text)


def _answer(error: BaseException) -> dict[str, Any]:
    """Returns what botocore read of the store's answer to a request that failed."""
    for each in (error, error.__cause__):
        if isinstance(answer := getattr(each, "response", None), dict):
            return answer
    return {}


def _is_written_by(files: Any, path: str, token: str) -> bool:
    try:
        answer = files.call_s3("head_object", **_location(files, path))
    except FileNotFoundError:
        return False
    return bool(answer.get("Metadata", {}).get(WRITER) == token)


def _location(files: Any, path: str) -> dict[str, str]:
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
