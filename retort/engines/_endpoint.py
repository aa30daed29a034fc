"""The endpoint of a remote engine: its protocol, its address, and the key.

The key is held here alone. It never follows a redirect to another host, and it is cut out of all
that an endpoint replies, because some endpoints repeat it in their errors.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from retort.engines import Request, Settings
from retort.errors import SpecError
from retort.records import JsonObject


@dataclass(frozen=True)
class Connection:
    """An address with its key. Only `shown` and `key_env` may appear in messages."""

    shown: str
    key_env: str
    base: str = field(repr=False)
    query: str = field(repr=False)
    key: str = field(repr=False)
    headers: dict[str, str] = field(repr=False)
    proxy: str | None = field(repr=False)

    def url(self, path: str) -> str:
        """Returns the URL of a path below the endpoint."""
        return f"{self.base}{path}{'?' if self.query else ''}{self.query}"

    def clean(self, text: str) -> str:
        """Returns a text without the key."""
        return text.replace(self.key, "***") if self.key else text


@dataclass(frozen=True)
class Api:
    """What distinguishes one protocol from another.

    A chat is answered at `path` below the address; every address ends with `version`, added if a
    user leaves it out. `client_class` is the provider's own client in the package of this `name`.
    `rename` is the name of a field and the name that newer models insist on.
    """

    name: str
    endpoint: str  # the default
    key_env: str
    path: str
    headers: Callable[[str, str], dict[str, str]]  # for a host and a key
    body: Callable[[Settings, Request], JsonObject]
    client_class: str
    version: str = ""
    rename: tuple[str, str] | None = None


def open_connection(settings: Settings, api: Api) -> Connection:
    """Returns the endpoint of the settings. Raises `SpecError` for a bad one, or a missing key."""
    address = settings.endpoint or api.endpoint
    shown = address.rpartition("@")[2].partition("?")[0]
    parts = _split(address)
    if not parts or not parts.hostname or "@" in parts.netloc:
        raise SpecError(
            f"endpoint '{shown}' must be a URL such as {api.endpoint}; "
            "a key goes into the environment variable that api_key_env names"
        )
    key_env, key = _key(settings, api, is_required=address.startswith(api.endpoint))
    path = parts.path.rstrip("/").removesuffix(api.path).removesuffix(api.version)
    proxies = {} if proxy_bypass(parts.hostname) else getproxies()
    return Connection(
        shown=shown,
        key_env=key_env,
        base=f"{parts.scheme}://{parts.netloc}{path}{api.version}",
        query=parts.query,
        key=key,
        headers=api.headers(parts.hostname, key),
        proxy=proxies.get(parts.scheme) or proxies.get("all"),
    )


def _split(url: str) -> SplitResult | None:
    with suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.port != 0:
            return parts
    return None


def _key(settings: Settings, api: Api, is_required: bool) -> tuple[str, str]:
    """Returns the variable's name and the key in it, empty if there is none."""
    name = settings.api_key_env or api.key_env
    if not name.isidentifier():
        raise SpecError("api_key_env must be the name of an environment variable, never the key")
    key = os.environ.get(name, "").strip()
    if not key and (is_required or settings.api_key_env):
        raise SpecError(f"engine {api.name} needs a key in the environment variable {name}")
    if not (key.isascii() and key.isprintable()):
        raise SpecError(f"the key in {name} holds characters that no HTTP header can carry")
    return name, key


def describe(settings: Settings, api: Api) -> str:
    """Returns one line without secrets: the endpoint, and the variable of its key."""
    connection = open_connection(settings, api)
    key = f"key in {connection.key_env}" if connection.key else "no key"
    return f"{api.name} at {connection.shown}, {key}"


def facts_of(connection: Connection, api: Api) -> JsonObject:
    """Returns the facts of an endpoint that artifacts carry."""
    return {
        "engine": api.name,
        "engine_version": "1",
        "endpoint": connection.shown,
        "dtype": "unknown",
        "logprobs_mode": "none",
    }
