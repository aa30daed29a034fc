"""The login of the servers of `retort up`, and what stands before MLflow's pages."""

import asyncio
import base64
import os
import stat

import pytest

from flows.mlflow_app import Guard
from retort.jobs import login

API, TRACKING = "http://127.0.0.1:4200/api", "http://127.0.0.1:5000"


def test_the_password_is_made_once_and_kept_for_its_owner_alone(tmp_path):
    first = login.write(tmp_path, API, TRACKING)
    assert stat.S_IMODE((tmp_path / login.FILE).stat().st_mode) == 0o600
    again = login.write(tmp_path, "http://127.0.0.1:4201/api", TRACKING)
    assert again["PREFECT_API_AUTH_STRING"] == first["PREFECT_API_AUTH_STRING"]
    assert login.read(tmp_path) == again
    assert len(first["MLFLOW_TRACKING_PASSWORD"]) >= 32
    assert login.write(tmp_path / "..", API, TRACKING) != first  # each store has its own


def test_a_file_that_others_may_have_written_is_not_read(tmp_path, monkeypatch):
    login.write(tmp_path, API, TRACKING)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert login.read(tmp_path) == {}


def test_the_login_is_sent_to_its_own_servers_only(tmp_path, monkeypatch):
    made = login.write(tmp_path, API, TRACKING)
    for names in login.CLIENTS.values():
        for name in names:
            monkeypatch.setenv(name, "")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4201/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{TRACKING}/")
    login.use(str(tmp_path))
    assert os.environ["PREFECT_API_AUTH_STRING"] == ""
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == made["MLFLOW_TRACKING_PASSWORD"]
    monkeypatch.setenv("PREFECT_API_URL", API)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "mine:own")
    login.use(str(tmp_path))
    assert os.environ["PREFECT_API_AUTH_STRING"] == "mine:own"


def answer(kind="http", path="/", **headers):
    """The status that a request gets; 200 where it is let through."""
    sent = []

    async def through(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    async def send(message):
        sent.append(message)

    pairs = {"host": "127.0.0.1:5000", **{k.replace("_", "-"): v for k, v in headers.items()}}
    scope = {
        "type": kind,
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in pairs.items()],
    }
    guard = Guard(through, "retort:se:cret", ["127.0.0.1:5000", "mlflow.retort:*"])
    asyncio.run(guard(scope, None, send))
    return sent[0].get("status", sent[0]["type"])


def basic(text):
    return f"Basic {base64.b64encode(text.encode()).decode()}"


OWNER = {"authorization": basic("retort:se:cret")}
OWN_PAGE = {"origin": "http://127.0.0.1:5000", "sec_fetch_site": "same-origin"}
LINK = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (OWNER, 200),
        ({}, 401),
        ({"authorization": basic("retort:secret")}, 401),
        ({"authorization": "Basic not base64"}, 401),
        ({"authorization": "Bearer retort:se:cret"}, 401),
        ({**OWNER, **OWN_PAGE}, 200),
        ({**OWNER, **LINK}, 200),
        ({**OWNER, "host": "mlflow.retort:5000"}, 200),
        ({**OWNER, "host": "evil.example:5000"}, 403),
        ({**OWNER, "host": "127.0.0.1:5001"}, 403),
        ({**OWNER, "origin": "http://127.0.0.1:5001"}, 403),
        ({**OWNER, "origin": "null"}, 403),
        ({**OWNER, "sec_fetch_site": "same-site", "sec_fetch_mode": "no-cors"}, 403),
        ({**OWNER, **LINK, "sec_fetch_dest": "iframe"}, 403),
    ],
)
def test_only_the_owner_and_the_servers_own_pages_are_let_in(headers, status):
    assert answer(**headers) == status


def test_a_health_check_needs_no_login_and_a_socket_does():
    assert answer(path="/health") == 200
    assert answer(path="/health/../") == 401
    assert answer(kind="websocket") == "websocket.close"
    with pytest.raises(ValueError, match="user:password"):
        Guard(None, "", [])
