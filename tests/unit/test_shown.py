"""What rows, models and files say is text: it neither moves a terminal nor becomes markup."""

import io
import re

import pytest
from rich.console import Console

from flows.commands import terminal
from retort.events import shown
from tasks.listeners import line, markdown

TITLE = "\x1b]0;owned\x07\x1b[2J\x1b[31mpassed\x1b[0m"
EVIL = f"[/b] [red]{TITLE}[/INST] [link=http://evil.example]x"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (TITLE, r"\x1b]0;owned\x07\x1b[2J\x1b[31mpassed\x1b[0m"),
        ("one\rtwo\x08\x00\x9b", r"one\rtwo\x08\x00\x9b"),
        ("a\u202eb\u2066c\u2028d", r"a\u202eb\u2066c\u2028d"),
        ("a\udc80b", r"a\udc80b"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("naïve 日本語 עברית हिन्दी 👩‍👩‍👧 e\u0301", "naïve 日本語 עברית हिन्दी 👩‍👩‍👧 e\u0301"),
    ],
)
def test_control_characters_are_written_out_and_scripts_stay(text, wanted):
    assert shown(text) == wanted


def test_a_terminal_of_eighty_columns_shows_every_number_whole():
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=80, color_system=None)
    count = {"kind": "progress", "done": 1234, "total": 12_345, "unit": "responses"}
    with terminal._bars(console) as bars:
        terminal.LiveLines(bars)("generate", {**count, "note": "187 tokens/s, 82% accepted"})
    row = "generate 1,234/12,345 responses 0:00:00 187 tokens/s, 82% accepted"
    assert row in " ".join(written.getvalue().split())


def test_notes_and_counts_on_a_terminal_are_no_markup():
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=200, color_system="truecolor")
    with terminal._bars(console) as bars:
        live = terminal.LiveLines(bars)
        live("prepare", {"kind": "note", "text": EVIL})
        live("generate", {"kind": "progress", "done": 1, "total": 2, "unit": EVIL, "note": EVIL})
    assert "[/b] [red]\\x1b]0;owned" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written.getvalue())
    assert "\x1b]0;" not in written.getvalue() and "\x1b]8;" not in written.getvalue()


def test_the_lines_of_a_log_hold_no_escape():
    assert "\x1b" not in line("prepare", {"kind": "note", "text": TITLE})


def test_markdown_shows_a_text_and_is_none():
    from markdown_it import MarkdownIt

    text = "<img src=x> [link](http://e.example) *b* `c` # h ![i](j) <script>| a~~s~~ &amp; _u_"
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown(text))
    (inline,) = (token for token in tokens if token.type == "inline")
    assert {child.type for child in inline.children} <= {"text", "text_special"}
    assert "".join(child.content for child in inline.children) == text
