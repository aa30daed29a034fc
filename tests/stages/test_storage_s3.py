"""A store on S3 that throttles, fails, loses connections, or is not the one that was meant."""

import _thread
import os
import subprocess
import sys
import threading
import uuid

import pytest

from retort.errors import SpecError, StoreError
from retort.store import Folder, open_store, s3
from tests.support.slow_s3 import (
    HALF,
    HANG,
    INTERNAL,
    LOST,
    RESET,
    SLOW_DOWN,
    Fault,
    forget_clients,
)
from tests.support.slow_s3 import slow_s3 as serving

SECRET = "a-secret-that-must-not-leak"
PROBED = open_store("s3://retort/jobs")


@pytest.fixture(scope="module")
def slow_s3(request):
    with serving(request.getfixturevalue("s3")) as found:
        yield found


@pytest.fixture
def proxy(slow_s3):
    slow_s3.well()
    return slow_s3


@pytest.fixture
def folder(proxy):
    return Folder(f"s3://retort/{uuid.uuid4().hex}/train/abc")


@pytest.fixture
def in_parts(monkeypatch):
    """Eleven MiB, which go in three parts."""
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    return os.urandom(11 << 20)


def test_what_passes_is_tried_again_wherever_it_happens(folder, proxy):
    for number, fault in enumerate((SLOW_DOWN, INTERNAL, RESET, HALF, LOST)):
        proxy.well()
        # The first of each kind fails.
        proxy.behave = lambda asked, fault=fault: fault if proxy.count(asked.what) == 1 else None
        folder.write(f"{number}", b"data" * 1000)
        assert folder.read(f"{number}") == b"data" * 1000
        assert folder.files() == [str(n) for n in range(number + 1)]
        assert folder.has(f"{number}")
        counted = [proxy.count(what) for what in ("put", "get", "list", "head")]
        assert counted == [2, 2, 2, 2], fault


def test_a_store_that_does_not_answer_is_asked_again(folder, proxy, monkeypatch):
    monkeypatch.setattr(s3, "READ_SECONDS", 1)
    proxy.behave = lambda asked: HANG if asked.times == 1 else None
    folder.write("a", b"data")
    assert proxy.count("put") == 2


def test_what_lasts_is_an_error_that_a_stage_is_retried_for(folder, proxy, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    asking = (lambda: folder.write("a", b"x"), lambda: folder.read("a"), folder.files)
    for attempt, fault in zip(asking, (SLOW_DOWN, INTERNAL, RESET), strict=True):
        proxy.behave = lambda asked, fault=fault: fault
        with pytest.raises(StoreError, match=f"{folder.uri}.* at {proxy.url}: ") as found:
            attempt()
        assert found.value.transient


def test_what_the_user_must_mend_is_said_after_one_request(proxy):
    for fault, said in (
        (Fault(403, "InvalidAccessKeyId"), "access denied .*InvalidAccessKeyId.*AWS_PROFILE"),
        (Fault(403, "SignatureDoesNotMatch"), "access denied .*check the credentials"),
        (Fault(403, "RequestTimeTooSkewed"), "refused .*; set the clock of this machine"),
        (Fault(404, "NoSuchBucket"), "there is no bucket retort there; make it"),
        (Fault(400, "AuthorizationHeaderMalformed"), "set AWS_DEFAULT_REGION"),
        (Fault(501, "NotImplemented"), "AWS_REQUEST_CHECKSUM_CALCULATION"),
        (Fault(400, "InvalidRequest"), "400 InvalidRequest: told by the test"),
    ):
        proxy.well()
        proxy.behave = lambda asked, fault=fault: fault
        with pytest.raises(StoreError, match=f"s3://retort/.* at {proxy.url}: .*{said}") as found:
            PROBED.probe()
        assert not found.value.transient
        assert proxy.count() == 1
        assert SECRET not in str(found.value)


def test_a_bucket_that_is_missing_is_no_empty_folder(proxy):
    folder = Folder("s3://no-such-bucket/jobs")
    for attempt in (open_store(folder.uri).probe, folder.files, folder.manifest):
        with pytest.raises(StoreError, match="there is no bucket no-such-bucket there"):
            attempt()
    assert proxy.count() == 3


def test_a_probe_does_not_wait_for_what_is_not_there(proxy, monkeypatch):
    proxy.behave = lambda asked: INTERNAL
    with pytest.raises(StoreError, match="InternalError"):
        PROBED.probe()
    assert proxy.count() == s3.QUICK_ATTEMPTS < s3.ATTEMPTS
    for url in ("http://127.0.0.1:9", "no-address"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        forget_clients()
        with pytest.raises(StoreError, match=r"cannot be reached .*check AWS_ENDPOINT_URL"):
            PROBED.probe()


def test_an_endpoint_that_only_redirects_is_said(proxy):
    proxy.behave = lambda asked: Fault(301, "PermanentRedirect")
    with pytest.raises(StoreError, match="redirects every request; check AWS_ENDPOINT_URL"):
        PROBED.probe()


def test_no_credentials_are_said_and_no_key_is_asked_for_elsewhere(proxy, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    forget_clients()
    with pytest.raises(StoreError, match=r"Unable to locate credentials.*set|check .*AWS_PROFILE"):
        PROBED.probe()
    assert proxy.count() == 0


def test_keys_region_and_endpoint_come_from_the_environment_or_a_profile(
    proxy, monkeypatch, tmp_path
):
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    forget_clients()
    PROBED.probe()
    assert "/eu-north-1/s3/" in proxy.seen[-1].headers["authorization"]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    (tmp_path / "keys").write_text(
        f"[mine]\naws_access_key_id = mykey\naws_secret_access_key = {SECRET}\n"
    )
    (tmp_path / "config").write_text(
        f"[profile mine]\nregion = ap-south-1\nendpoint_url = {proxy.url}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "mine")
    forget_clients()
    PROBED.probe()
    assert "Credential=mykey/" in proxy.seen[-1].headers["authorization"]
    assert "/ap-south-1/s3/" in proxy.seen[-1].headers["authorization"]
    assert SECRET not in str([asked.headers for asked in proxy.seen])


def test_a_large_file_goes_and_comes_in_parts_and_parts_are_tried_again(
    folder, proxy, in_parts, tmp_path
):
    proxy.behave = lambda asked: (
        RESET if asked.what in ("part", "get") and asked.times == 1 else None
    )
    (tmp_path / "model.bin").write_bytes(in_parts)
    folder.put_tree(tmp_path, "model")
    assert proxy.count("part") == 6
    assert proxy.count("put") == 0
    with folder.local_copy("model") as local:
        assert (local / "model.bin").read_bytes() == in_parts
    assert proxy.count("get") == 4
    folder.write("again.bin", in_parts)
    assert folder.read("again.bin") == in_parts
    assert (proxy.count("begin"), proxy.count("put")) == (2, 0)


def test_an_upload_whose_last_answer_got_lost_is_not_an_error(folder, proxy, in_parts):
    gone = Fault(404, "NoSuchUpload")

    def forgetful(asked):
        return (LOST if asked.times == 1 else gone) if asked.what == "complete" else None

    proxy.behave = forgetful
    folder.write("a", in_parts)
    assert proxy.count("complete") == 2
    assert folder.sizes() == {"a": len(in_parts)}
    proxy.behave = lambda asked: gone if asked.what == "complete" else None
    with pytest.raises(StoreError, match="NoSuchUpload"):
        folder.write("a", in_parts)


def test_an_upload_that_fails_or_is_interrupted_leaves_nothing(folder, proxy, in_parts):
    def interrupt(asked):
        if asked.what == "part" and asked.key.endswith("2"):
            _thread.interrupt_main()

    def refuse(asked):
        return Fault(403, "AccessDenied") if asked.what == "part" else None

    for behave, error in ((interrupt, KeyboardInterrupt), (refuse, StoreError)):
        proxy.behave = behave
        with pytest.raises(error):
            folder.write("a", in_parts)
    assert proxy.count("abort") == 2
    assert folder.files() == []
    assert open_store(folder.uri).unfinished_uploads(float("inf")) == []


def test_an_upload_whose_process_was_killed_is_not_readable_and_can_be_removed(
    folder, proxy, in_parts
):
    begun, store = threading.Event(), open_store(folder.uri)
    proxy.behave = lambda asked: begun.set() if asked.what == "part" else None
    code = (
        "import sys; from retort.store import Folder, s3; s3.PART_BYTES = 5 << 20; "
        "Folder(sys.argv[1]).write('a', bytes(400 << 20))"
    )
    child = subprocess.Popen([sys.executable, "-c", code, folder.uri])
    assert begun.wait(120)
    child.kill()
    child.wait()
    assert folder.files() == []
    assert not folder.has("a")
    assert store.unfinished_uploads(0.0, remove=True) == []
    assert store.unfinished_uploads(float("inf"), remove=True) == [f"{folder.uri}/a"]
    assert store.unfinished_uploads(float("inf")) == []


def test_a_cached_artifact_costs_two_requests_whatever_it_holds(folder, proxy):
    for number in range(20):
        folder.write(f"{number}/a", b"%d" % number)
    folder.commit({})
    names = folder.files()
    before = proxy.count()
    assert folder.finished()
    assert proxy.count() - before == 2
    assert list(folder.read_all(names)) == [(name, folder.read(name)) for name in names]
    assert proxy.count() - before == 2 + 2 * len(names)


@pytest.mark.parametrize("attempts", ["abc", "0", "-1", "2.5"])
def test_a_number_of_attempts_that_is_none_is_refused_by_its_name(proxy, monkeypatch, attempts):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", attempts)
    with pytest.raises(SpecError, match=f"AWS_MAX_ATTEMPTS: '{attempts}'; give a whole number"):
        Folder(f"s3://retort/{uuid.uuid4().hex}").files()
    assert proxy.count() == 0
