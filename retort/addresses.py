"""Addresses as they may be shown: without the user, the password and the signed query of a URL."""

import re
from urllib.parse import urlsplit, urlunsplit

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")


def public(text: str) -> str:
    """Returns a text with the secrets taken out of every URL in it."""
    return URL.sub(lambda found: _bare(found.group()), text) if "://" in text else text


def _bare(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:  # no address after all, such as http://[x
        return url.split("?", maxsplit=1)[0].rpartition("@")[2]
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=place, query="", fragment=""))
