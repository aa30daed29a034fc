"""Chromium without a window: what a page comes to, what it says on the console, how it looks."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")


@dataclass(frozen=True)
class Seen:
    """The page as it stands when its script has run, and the messages on its console."""

    dom: str
    console: list[str]


def see(page: Path, fragment: str = "", width: int = 1280) -> Seen:
    """Opens a page from the disk, at a place in it, and returns what became of it."""
    done = _run(page, fragment, width, "--dump-dom")
    lines = done.stderr.decode(errors="replace").splitlines()
    return Seen(done.stdout.decode(), [line for line in lines if "CONSOLE" in line])


def shoot(page: Path, picture: Path, width: int, height: int = 900, dark: bool = False) -> bytes:
    """Returns a page's picture as PNG."""
    look = "--blink-settings=preferredColorScheme=" + ("0" if dark else "1")
    _run(page, "", width, f"--screenshot={picture}", f"--window-size={width},{height}", look)
    return picture.read_bytes()


def _run(
    page: Path, fragment: str, width: int, *options: str
) -> "subprocess.CompletedProcess[bytes]":
    assert CHROMIUM
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--no-first-run", "--hide-scrollbars", "--enable-logging=stderr"),
        f"--user-data-dir={page.parent / 'chromium'}",
        *(f"--window-size={width},900", *options, page.as_uri() + fragment),
    ]
    return subprocess.run(command, capture_output=True, timeout=120, check=True)
