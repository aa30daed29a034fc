"""What stands at the head of a GGUF file, read without its tokens and tensors.

The official reader (gguf.GGUFReader) takes seconds for a vocabulary of 50,000 tokens.
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retort.errors import DamagedError
from retort.records import JsonObject

# GGUF's types of values (docs/gguf.md of ggml), as `struct` has them.
NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class Header:
    """The values of a file, without its arrays, and the type of each tensor."""

    values: JsonObject
    types: dict[str, str]

    @property
    def context(self) -> int:
        """The longest context that the model is made for."""
        return int(self.values[f"{self.values['general.architecture']}.context_length"])

    @property
    def vocabulary(self) -> int:
        """The number of tokens that the model gives a probability."""
        return int(self.values[f"{self.values['general.architecture']}.vocab_size"])

    @property
    def numbers_of_token(self) -> int:
        """How many numbers are kept of a token as keys and values, in all layers."""
        name = self.values["general.architecture"]

        def of(key: str, default: int) -> int:
            return int(self.values.get(f"{name}.{key}", default))

        heads = of("attention.head_count", 1)
        width = of("embedding_length", 0) // heads
        lengths = of("attention.key_length", width) + of("attention.value_length", width)
        return of("block_count", 1) * of("attention.head_count_kv", heads) * lengths

    @property
    def quantization(self) -> str:
        """The quantization's name in small letters: f16, q8_0, q4_k_m."""
        import gguf

        name: str = gguf.LlamaFileType(self.values["general.file_type"]).name
        return name.removeprefix("MOSTLY_").removeprefix("ALL_").lower()


def read_header(path: Path) -> Header:
    """Returns a file's header. Raises `DamagedError` where the file is no whole GGUF header."""
    import gguf

    with (
        path.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        try:
            reader = _Reader(data)
            if data[:4] != b"GGUF":
                raise DamagedError(f"{path} is no GGUF file; write the export again")
            _, _, num_tensors, num_values = reader.numbers("IIQQ")
            values = {reader.string(): reader.value() for _ in range(num_values)}
            types = dict(reader.tensor() for _ in range(num_tensors))
        except struct.error:
            raise DamagedError(f"{path} is cut short; write the export again") from None
    named = {name: gguf.GGMLQuantizationType(kind).name for name, kind in types.items()}
    return Header(values, named)


class _Reader:
    """Reads one thing after another from a file's bytes."""

    def __init__(self, data: mmap.mmap):
        self._data, self._place = data, 0

    def numbers(self, kinds: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{kinds}", self._data, self._place)
        self._place += struct.calcsize(f"<{kinds}")
        return found

    def string(self) -> str:
        (length,) = self.numbers("Q")
        self._place += length
        return self._data[self._place - length : self._place].decode(errors="replace")

    def value(self) -> Any:
        """The next value; of an array nothing, it is only passed over."""
        (kind,) = self.numbers("I")
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.numbers(NUMBERS[kind])[0]
        kind, length = self.numbers("IQ")
        if kind != STRING:
            self._place += length * struct.calcsize(f"<{NUMBERS[kind]}")
            return None
        for _ in range(length):
            (size,) = self.numbers("Q")
            self._place += size
        return None

    def tensor(self) -> tuple[str, int]:
        """The next tensor's name and type."""
        name = self.string()
        (num_axes,) = self.numbers("I")
        *_, kind, _ = self.numbers(f"{num_axes}QIQ")
        return name, kind
