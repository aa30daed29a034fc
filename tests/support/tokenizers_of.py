"""Tokenizers of the families in use, trained on given texts: what differs is how they cut bytes.

`transformers` loads the real ones of these families with the same steps in `tokenizer.json`.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

LLAMA_3 = r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"
QWEN = LLAMA_3.replace("{1,3}", "")
PAIRS = r"\d{1,2}| ?[^\W\d]+| ?[^\s\w]+|\s+|_"
SPACE = "\u2581"
Steps = tuple[Any, Any, Any, bool]  # normalizer, pre-tokenizer, decoder, byte fallback


def _split(pattern: str) -> Any:
    parts = [pre_tokenizers.Split(Regex(pattern), "isolated"), _level(use_regex=False)]
    return pre_tokenizers.Sequence(parts)


def _level(**options: Any) -> Any:
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False, **options})


def _pieces(strips: bool) -> Any:
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strips else steps)


def _replaced(prepends: bool) -> Any:
    steps = [normalizers.Replace(" ", SPACE)]
    return normalizers.Sequence([normalizers.Prepend(SPACE), *steps] if prepends else steps)


BYTES = decoders.ByteLevel()
FAMILIES: dict[str, Steps] = {
    "gpt-2": (None, _level(), BYTES, False),
    "gpt-2 with a space before": (None, _level(add_prefix_space=True), BYTES, False),
    "llama-3": (None, _split(LLAMA_3), BYTES, False),
    "qwen": (normalizers.NFC(), _split(QWEN), BYTES, False),
    "smollm": (
        None,
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _level()]),
        BYTES,
        False,
    ),
    "pairs of digits": (None, _split(PAIRS), BYTES, False),
    "llama-2": (_replaced(prepends=True), None, _pieces(strips=True), True),
    "gemma": (_replaced(prepends=False), None, _pieces(strips=False), True),
    "mistral": (
        None,
        pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
        _pieces(strips=True),
        True,
    ),
    "bytes": (None, _level(use_regex=False), BYTES, False),
}


def tokenizer(name: str, texts: Sequence[str], size: int = 600) -> PreTrainedTokenizerFast:
    """Returns a tokenizer of a family."""
    normalizer, pre_tokenizer, decoder, falls_back = FAMILIES[name]
    made = Tokenizer(
        models.BPE(byte_fallback=falls_back, unk_token="<unk>" if falls_back else None)
    )
    if normalizer:
        made.normalizer = normalizer
    if pre_tokenizer:
        made.pre_tokenizer = pre_tokenizer
    made.decoder = decoder
    specials = ["<unk>", "<s>", "</s>"]
    if falls_back:
        specials += [f"<0x{byte:02X}>" for byte in range(256)]
    letters = [] if falls_back else pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280 if name == "bytes" else size,
        special_tokens=specials,
        initial_alphabet=letters,
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    if falls_back:  # bytes are ordinary tokens there, which the trainer does not know
        made = _with_plain_bytes(made)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def _with_plain_bytes(made: Tokenizer) -> Tokenizer:
    import json

    described = json.loads(made.to_str())
    described["added_tokens"] = described["added_tokens"][:3]
    return Tokenizer.from_str(json.dumps(described))


def strings(number: int, seed: int = 0) -> list[str]:
    """Returns texts of every kind: words, numbers, scripts, emoji, marks, white space."""
    rng = random.Random(seed)
    words = [
        "the",
        "answer",
        "is",
        "Ada",
        "theory",
        "x",
        "mbH",
        "don't",
        "na\u00efve",
        "\u00c5ngstr\u00f6m",
    ]
    odd = [
        "\u4f60\u597d",
        "\u0645\u0631\u062d\u0628\u0627",
        "\u0928\u092e\u0938\u094d\u0924\u0947",
        "\U0001f600",
        "\U0001f469\u200d\U0001f467",
        "e\u0301",
        "\ufb01",
        "\u00a0",
        "\u2028",
        "\x00",
    ]
    marks = [
        ".",
        ", ",
        "\n",
        "\n\n  ",
        "\t",
        " = ",
        "#### ",
        "</s>",
        "<|im_end|>",
        "  ",
        "_",
        "\u2581",
        "<0x41>",
    ]
    kinds: list[Callable[[], str]] = [
        lambda: rng.choice(words),
        lambda: " " + rng.choice(words),
        lambda: str(rng.randrange(10 ** rng.randint(1, 8))),
        lambda: rng.choice(odd),
        lambda: rng.choice(marks),
        lambda: chr(rng.choice([rng.randrange(32, 0x250), rng.randrange(0x3000, 0x9FFF)])),
    ]
    return ["".join(rng.choice(kinds)() for _ in range(rng.randint(1, 24))) for _ in range(number)]
