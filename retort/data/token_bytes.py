"""The bytes that the tokens of a vocabulary spell, by which two vocabularies can be compared."""

import base64
from dataclasses import dataclass

import orjson


@dataclass(frozen=True)
class TokenBytes:
    """The bytes of each token by its id; None for a token that spells nothing in a text.

    `ends` are the ids of the tokens that end an answer.
    """

    spelled: tuple[bytes | None, ...]
    ends: frozenset[int]

    def to_json(self) -> str:
        """Returns the table as JSON, which is the same for equal tables."""
        tokens = [
            None if spelled is None else base64.b64encode(spelled).decode()
            for spelled in self.spelled
        ]
        return orjson.dumps({"tokens": tokens, "ends": sorted(self.ends)}).decode()

    @classmethod
    def from_json(cls, text: str) -> "TokenBytes":
        """Returns the table that `to_json` wrote."""
        table = orjson.loads(text)
        spelled = (None if token is None else base64.b64decode(token) for token in table["tokens"])
        return cls(tuple(spelled), frozenset(table["ends"]))
