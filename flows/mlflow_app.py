"""MLflow's server behind a login: `mlflow server --app-name retort` serves what `app` returns.

MLflow's own checks admit every user of the machine, and every page that comes from localhost,
whatever its port. Here a request needs the login in RETORT_MLFLOW_LOGIN (`user:password`) and one
of the server's own addresses as its Host, and a page may only ask the server it came from.
"""

import base64
import binascii
import hmac
import os
from fnmatch import fnmatch
from typing import Any
from urllib.parse import urlsplit

LOGIN, HOSTS = "RETORT_MLFLOW_LOGIN", "MLFLOW_SERVER_ALLOWED_HOSTS"
# Answers that hold nothing: health checks of containers have no login.
OPEN = ("/health",)


class Guard:
    """An ASGI app that lets a request through to another one, or refuses it with 401 or 403."""

    def __init__(self, app: Any, login: str, hosts: list[str]):
        if ":" not in login:
            raise ValueError(f"{LOGIN} must be user:password")
        self._app, self._login, self._hosts = app, login.encode(), hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serves one request."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] in OPEN):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): v.decode("latin-1") for name, v in scope["headers"]}
        if why := self._foreign(headers):
            await _refuse(scope["type"], send, 403, why)
        elif not self._is_owner(headers.get("authorization", "")):
            await _refuse(scope["type"], send, 401, "log in")
        else:
            await self._app(scope, receive, send)

    def _foreign(self, headers: dict[str, str]) -> str:
        """Returns why a request does not come from this server's own pages, or from a program."""
        host = headers.get("host", "")
        # A name of someone else's that leads here (DNS rebinding).
        if not any(fnmatch(host, pattern) for pattern in self._hosts):
            return f"this server is not {host}; allowed: {HOSTS}"
        if "origin" in headers and urlsplit(headers["origin"]).netloc != host:
            return "a page of another origin may ask nothing"
        # A browser that has logged in adds the login to what other pages embed; a link is harmless.
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and (
            (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest"))
            != ("navigate", "document")
        ):
            return "a page of another origin may embed nothing"
        return ""

    def _is_owner(self, authorization: str) -> bool:
        scheme, _, credentials = authorization.partition(" ")
        try:
            login = base64.b64decode(credentials, validate=True)
        except binascii.Error:
            return False
        return scheme.lower() == "basic" and hmac.compare_digest(login, self._login)


async def _refuse(kind: str, send: Any, status: int, why: str) -> None:
    if kind == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="MLflow", charset="UTF-8"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": why.encode()})


def app() -> Guard:
    """Returns MLflow's server behind the login and the addresses that the environment names."""
    from mlflow.server.fastapi_app import app as mlflow_app

    hosts = [host.strip() for host in os.environ.get(HOSTS, "").split(",") if host.strip()]
    return Guard(mlflow_app, os.environ.get(LOGIN, ""), hosts)
