"""Tells the webhook in RETORT_NOTIFY_URL something, as JSON with a `text`, which chats take."""

import json
import os
import urllib.request

NOTIFY_URL = "RETORT_NOTIFY_URL"
POST_SECONDS = 10.0


def notify(text: str) -> str | None:
    """Posts a text where an address is set; returns why that failed, None where all is well.

    The address often holds a key, and is never shown.
    """
    url = os.environ.get(NOTIFY_URL)
    if not url:
        return None
    data = json.dumps({"text": text}).encode()
    headers = {"Content-Type": "application/json"}
    try:
        request = urllib.request.Request(url, data, headers)
        with urllib.request.urlopen(request, timeout=POST_SECONDS):
            return None
    except (OSError, ValueError) as error:
        return f"{NOTIFY_URL} was not told: {type(error).__name__}"
