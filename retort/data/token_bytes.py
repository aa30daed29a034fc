"""The bytes that each token of a tokenizer spells: what two tokenizers have in common.

They are read from the tokenizer's decoder, for decoding a single token loses what only its
neighbours complete: a byte of a character, a space at the start of a text. A special token spells
nothing. Whether a text's tokens spell that text is seen on the text itself (`spelled`).
"""

import base64
import functools
import itertools
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retort.data import encoding
from retort.errors import SpecError
from retort.records import JsonObject

# A tokenizer that cannot spell this is no use: letters in both cases, spaces, digits, a new line.
PROBE = "Hello World, 12 and 345:\n  caf\u00e9 \U0001f600"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# What a decoder's step may be, for the tokens' bytes to follow each other unchanged.
_KNOWN = {"ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}


@dataclass(frozen=True)
class TokenBytes:
    """The bytes of each id, None for one that spells nothing, and the ids that end an answer."""

    spelled: tuple[bytes | None, ...]
    ends: frozenset[int] = frozenset()

    def of(self, ids: Iterable[int]) -> list[bytes] | None:
        """Returns the bytes of each of these ids; None where one spells nothing or is unknown."""
        parts = [self.spelled[i] if i < len(self.spelled) else None for i in ids]
        return None if None in parts else parts  # type: ignore[return-value]

    def to_json(self) -> str:
        """Returns the table as JSON, the bytes in base 64."""
        tokens = [None if b is None else base64.b64encode(b).decode() for b in self.spelled]
        return json.dumps({"tokens": tokens, "ends": sorted(self.ends)})

    @classmethod
    def from_json(cls, text: str | bytes) -> "TokenBytes":
        """Returns the table that `to_json` wrote."""
        raw = json.loads(text)
        tokens = (None if b is None else base64.b64decode(b) for b in raw["tokens"])
        return cls(tuple(tokens), frozenset(raw["ends"]))


def token_bytes(tokenizer: Any, name: str, ends: Iterable[int] = ()) -> TokenBytes:
    """Returns the bytes of a transformers tokenizer's tokens; `name` is that of its model.

    Raises `SpecError` that says why where they cannot be recovered: a tokenizer that changes the
    text (lower case, white space that is lost), or one without a `tokenizer.json`.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise SpecError(f"{name}: its tokenizer has no tokenizer.json, from which bytes are read")
    described = json.loads(backend.to_str())
    steps = _steps(described["decoder"])
    unknown = sorted({step["type"] for step in steps} - _KNOWN)
    if unknown or not (steps or _is_bytes(described)):
        how = f"its decoder is {', '.join(unknown)}" if unknown else "it has no decoder"
        raise SpecError(f"{name}: the bytes of its tokens cannot be recovered, for {how}")
    spell = _speller(steps)
    found: list[bytes | None] = [None] * (max(backend.get_vocab().values()) + 1)
    for token, index in backend.get_vocab(with_added_tokens=False).items():
        found[index] = spell(token)
    for index, added in backend.get_added_tokens_decoder().items():
        found[index] = None if added.special else added.content.encode()
    for text in filter(None, (described["model"].get("unk_token"), tokenizer.unk_token)):
        index = backend.token_to_id(text)
        if index is not None:
            found[index] = None
    table = TokenBytes(tuple(found), frozenset(ends))
    _check(table, tokenizer, name)
    return table


def _check(table: TokenBytes, tokenizer: Any, name: str) -> None:
    """Raises `SpecError` where the tokenizer does not spell a plain text as it is.

    A text with what the tokenizer does not know is no fault: only what it writes otherwise is.
    """
    for piece in re.findall(r"\S+\s*", PROBE):
        parts = table.of(tokenizer(piece, add_special_tokens=False)["input_ids"])
        if parts is not None and without_lead(parts, piece) is None:
            written = b"".join(parts).decode(errors="replace")
            raise SpecError(
                f"{name}: its tokenizer changes the text ({piece!r} becomes {written!r}), so that "
                "its tokens cannot be compared by their bytes"
            )


def without_lead(parts: Sequence[bytes], text: str) -> bool | None:
    """Returns whether tokens spell a text with one space before it, as SentencePiece does.

    False where they spell the very text, None where they do neither.
    """
    whole, wanted = b"".join(parts), text.encode(errors="surrogatepass")
    if whole == wanted:
        return False
    return True if whole == b" " + wanted else None


def _steps(decoder: JsonObject | None) -> list[JsonObject]:
    """Returns the steps of a decoder, those of a sequence each."""
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [step for part in decoder["decoders"] for step in _steps(part)]
    return [decoder]


def _is_bytes(described: JsonObject) -> bool:
    """Whether tokens are written as bytes although no decoder says so."""
    pre = described["pre_tokenizer"] or {}
    return any(step["type"] == "ByteLevel" for step in [pre, *pre.get("pretokenizers", [])])


def _speller(steps: list[JsonObject]) -> Any:
    """Returns the function from a token's text to its bytes."""
    kinds = {step["type"] for step in steps}
    if not steps or "ByteLevel" in kinds:
        letters = _byte_of_letter()

        def by_letters(token: str) -> bytes | None:
            codes = [letters.get(letter) for letter in token]
            return None if None in codes else bytes(codes)  # type: ignore[arg-type]

        return by_letters
    replaced = [
        (step["pattern"].get("String"), step["content"])
        if step["type"] == "Replace"
        else (step["replacement"], " ")
        for step in steps
        if step["type"] in ("Replace", "Metaspace")
    ]

    def by_text(token: str) -> bytes:
        if "ByteFallback" in kinds and (match := _BYTE.fullmatch(token)):
            return bytes([int(match[1], 16)])
        for old, new in replaced:
            token = token.replace(old, new) if old else token
        return token.encode(errors="surrogatepass")

    return by_text


@functools.cache
def _byte_of_letter() -> dict[str, int]:
    """Returns the byte that each letter of a byte-level vocabulary stands for.

    Printable bytes stand for themselves, the others in their order for the letters from 256 on.
    Source: GPT-2's encoder (Radford et al. 2019), `bytes_to_unicode`.
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(others)}


class ByteOrder:
    """A student's vocabulary in an order in which what a teacher says is a range of it.

    Tokens are sorted by the longest of the teacher's strings with which each begins, and then by
    their bytes. A teacher that says "2" and knows no "27" leaves "27" open; one that knows it does
    not, for it would have said that. `ids` are those that spell something, and then the ends.
    """

    def __init__(self, table: TokenBytes, teacher: TokenBytes):
        self.table = table
        self._theirs = _Prefixes(b for i, b in enumerate(teacher.spelled) if i not in teacher.ends)
        kept = [(b, i) for i, b in enumerate(table.spelled) if b and i not in table.ends]
        self._ours = _Prefixes(b for b, _ in kept)
        order = sorted((self._theirs.longest(b), b, i) for b, i in kept)
        self._keys = [(begin, b) for begin, b, _ in order]
        ends = sorted(table.ends)
        self.ids = [i for _, _, i in order] + ends
        self.ends = (len(order), len(order) + len(ends))

    def range_of(self, prefix: bytes, whole: bool = False) -> tuple[int, int]:
        """Returns the ranks, from and to before, of the tokens that begin with these bytes, and
        with the same string of the teacher's; or of those that are these bytes, with `whole`."""
        begin = self._theirs.longest(prefix)
        first = bisect_left(self._keys, (begin, prefix))
        if whole:
            return first, bisect_right(self._keys, (begin, prefix), first)
        head = prefix.rstrip(b"\xff")
        after = head[:-1] + bytes([head[-1] + 1]) if head else None
        if after is None or not after.startswith(begin):  # up to the end of the teacher's string
            return first, bisect_left(self._keys, (begin + b"\0", b""), first)
        return first, bisect_left(self._keys, (begin, after), first)

    def longest(self, text: bytes) -> bytes:
        """Returns the longest token with which a text begins; empty where there is none."""
        return self._ours.longest(text)


class _Prefixes:
    """Strings, of which the longest that a text begins with is found."""

    def __init__(self, strings: Iterable[bytes | None]):
        self._known = {*filter(None, strings)}
        self._most = max(map(len, self._known), default=0)

    def longest(self, text: bytes) -> bytes:
        for length in range(min(len(text), self._most), 0, -1):
            if text[:length] in self._known:
                return text[:length]
        return b""


def load(folder: Path) -> TokenBytes:
    """Returns the bytes of the tokens of the model in a folder.

    Raises `SpecError` where they cannot be recovered.
    """
    tokenizer = encoding.load_tokenizer(str(folder))
    return token_bytes(tokenizer, str(folder), encoding.end_ids(str(folder), tokenizer))


def share_aligned(teacher: Path, student: Path, texts: Sequence[str]) -> float:
    """Returns the share of the student's tokens that begin where one of the teacher's does.

    Texts that either does not spell exactly count as texts without such a token. Raises `SpecError`
    where the bytes of a tokenizer cannot be recovered.
    """
    starts = []
    for folder in (teacher, student):
        tokenizer, table = encoding.load_tokenizer(str(folder)), load(folder)
        rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        starts.append([_starts(table.of(ids), text) for ids, text in zip(rows, texts, strict=True)])
    pairs = list(zip(*starts, strict=True))
    number = sum(len(ours or ()) for _, ours in pairs)
    return sum(len({*(theirs or ())} & {*(ours or ())}) for theirs, ours in pairs) / max(number, 1)


def _starts(parts: list[bytes] | None, text: str) -> list[int] | None:
    """Returns where each token begins in a text; None where they do not spell it."""
    lead = None if parts is None else without_lead(parts, text)
    if parts is None or lead is None:
        return None
    starts = itertools.accumulate((len(part) for part in parts[:-1]), initial=0)
    return [max(0, start - lead) for start in starts]
