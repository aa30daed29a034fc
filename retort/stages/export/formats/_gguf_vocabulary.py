"""A tokenizer of Hugging Face as llama.cpp's: tokens, merges, and the name of its pre-tokenizer.

llama.cpp knows pre-tokenizers by name alone. One is recognised by its regular expressions; a
tokenizer that llama.cpp does not have is written as a list of tokens, which suffices for ids.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retort.records import JsonObject
from retort.store import model_folder

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "\u2581"  # what stands for a space in the tokens of SentencePiece

STRIPPED = "white space beside special tokens: the tokenizer drops it, llama.cpp not all of it"

WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}{{1,3}}|{REST}"
QWEN2 = rf"{CONTRACTIONS}|{WORDS}|\p{{N}}|{REST}"
QWEN35 = (
    rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASES = (rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*")
SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT4O = rf"{CASES[0]}{CONTRACTIONS}?|{CASES[1]}{CONTRACTIONS}?|\p{{N}}{{1,3}}|{SLASHES}"
TEKKEN = rf"{CASES[0]}|{CASES[1]}|\p{{N}}|{SLASHES}"
DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ\u30a0-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
# llama.cpp's names, by the expressions that split a text one after another, and whether a word
# that is a token is taken as it is, whatever the merges say.
PRE_TOKENIZERS = {
    ((GPT2,), False): "gpt-2",
    ((r"\p{N}", GPT2), False): "smollm",
    ((LLAMA3,), True): "llama-bpe",
    ((LLAMA3,), False): "dbrx",
    ((QWEN2,), False): "qwen2",
    ((QWEN35,), False): "qwen35",
    ((GPT4O,), False): "gpt-4o",
    ((TEKKEN,), True): "tekken",
    (DEEPSEEK3, False): "deepseek-v3",
}


@dataclass(frozen=True)
class Vocabulary:
    """What GGUF holds of a tokenizer. `readable`: llama.cpp tokenizes with it, too; `unlike` says
    which texts it reads otherwise all the same."""

    model: str
    tokens: list[str]
    types: list[int]
    readable: bool
    pre: str | None = None
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    space_prefix: bool = False
    strips: bool = False
    unlike: str | None = None


def read_vocabulary(folder: Path, size: int = 0) -> Vocabulary:
    """Returns the vocabulary of a model folder; `size` rows of the embedding all get a token."""
    raw = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    texts, types = _tokens(raw, size)
    model = raw["model"]
    pre = _pre_tokenizer(raw)
    if model["type"] == "BPE" and pre:
        unlike = _unlike(raw, pre)
        return Vocabulary("gpt2", texts, types, True, pre, _merges(model), unlike=unlike)
    prefix = _space_prefix(raw)
    if model["type"] == "BPE" and prefix is not None:
        scores = _scores(texts, _merges(model))
        is_byte = [re.fullmatch("<0x[0-9A-F]{2}>", text) is not None for text in texts]
        types = [BYTE if b else kind for b, kind in zip(is_byte, types, strict=True)]
        strips = _strips(raw, texts)
        return Vocabulary(
            *("llama", texts, types, True),
            scores=scores,
            space_prefix=prefix,
            strips=bool(strips),
            unlike=None if strips is False else STRIPPED,
        )
    return Vocabulary("llama", _spaced(texts), types, False, scores=[0.0] * len(texts))


def _tokens(raw: JsonObject, size: int) -> tuple[list[str], list[int]]:
    """Returns the tokens in the order of their ids, and their types."""
    vocabulary = raw["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram: pairs of token and score
        vocabulary = {token: index for index, (token, _) in enumerate(vocabulary)}
    added = {token["id"]: token for token in raw.get("added_tokens", [])}
    texts = {index: token for token, index in vocabulary.items()}
    texts |= {index: token["content"] for index, token in added.items()}
    num = size or max(texts) + 1  # llama.cpp takes no token without a row in the embedding
    types = []
    for index in range(num):
        special = added.get(index)
        kind = NORMAL if index in texts else UNUSED
        if special:
            kind = CONTROL if special["special"] else USER_DEFINED
        types.append(kind)
    return [texts.get(index, f"[PAD{index}]") for index in range(num)], types


def _strips(raw: JsonObject, texts: list[str]) -> bool | None:
    """Whether added tokens take the white space behind them: all but three, as those of Phi-3 do;
    None for others than these, which llama.cpp does not have."""
    added = raw.get("added_tokens", [])
    stripping = {token["content"] for token in added if token["rstrip"]}
    if not stripping:
        return False
    keeping = {"<s>", "<unk>", "<|endoftext|>"}
    is_phi = stripping == {token["content"] for token in added} - keeping
    return True if is_phi and {*keeping, "</s>"} <= set(texts) else None


def _merges(model: JsonObject) -> list[str]:
    return [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]


def _pre_tokenizer(raw: JsonObject) -> str | None:
    """Returns llama.cpp's name of a byte-level pre-tokenizer; None where it has none."""
    steps = _steps(raw.get("pre_tokenizer"), "pretokenizers")
    patterns = []
    for step in steps:
        if step["type"] == "Split":
            if step["behavior"] != "Isolated" or step["invert"] or "Regex" not in step["pattern"]:
                return None
            patterns.append(_plain(step["pattern"]["Regex"]))
        elif step["type"] == "Digits" and step["individual_digits"]:
            patterns.append(r"\p{N}")
        elif step["type"] == "ByteLevel" and not step["add_prefix_space"]:
            patterns += [GPT2] if step.get("use_regex", True) else []
        else:
            return None
    normal = {step["type"] for step in _steps(raw.get("normalizer"), "normalizers")}
    if not steps or steps[-1]["type"] != "ByteLevel" or not normal <= {"NFC"}:
        return None
    known = {
        (tuple(map(_plain, key)), whole): name for (key, whole), name in PRE_TOKENIZERS.items()
    }
    ignores = bool(raw["model"].get("ignore_merges"))
    return known.get((tuple(patterns), ignores)) or known.get((tuple(patterns), not ignores))


def _unlike(raw: JsonObject, pre: str) -> str | None:
    """Returns which texts llama.cpp reads otherwise with a byte-level tokenizer."""
    if any(token["rstrip"] or token["lstrip"] for token in raw.get("added_tokens", [])):
        return STRIPPED
    if _steps(raw.get("normalizer"), "normalizers"):
        return "letters whose accents are characters of their own: the tokenizer joins them first"
    if pre in ("gpt-4o", "tekken"):
        return "words beyond ASCII: llama.cpp knows neither their capitals nor their marks"
    return None


def _plain(pattern: str) -> str:
    """Returns an expression in one spelling: possessive repeats match here what greedy ones do, and
    a single line break after any white space is the last one, like several."""
    pattern = pattern.replace("?+", "?").replace("++", "+").replace("{1}", "")
    pattern = pattern.replace(r"'(?i:[sdmt]|ll|ve|re)", CONTRACTIONS)
    return pattern.replace(r"\s*[\r\n]|", r"\s*[\r\n]+|")


def _steps(part: JsonObject | None, key: str) -> list[JsonObject]:
    """Returns the steps of a pre-tokenizer or normalizer, those in sequences one by one."""
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [step for inner in part[key] for step in _steps(inner, key)]


def _space_prefix(raw: JsonObject) -> bool | None:
    """Returns whether SentencePiece's form puts a space before a text; None for another form."""
    prefix, spaced = False, False
    for step in _steps(raw.get("normalizer"), "normalizers"):
        if step["type"] == "Prepend" and step["prepend"] == SPACE:
            prefix = True
        elif step["type"] == "Replace" and step["pattern"] == {"String": " "}:
            spaced = step["content"] == SPACE
        else:
            return None
    for step in _steps(raw.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] == "Metaspace" and step["replacement"] == SPACE and not step["split"]:
            spaced = True
            if step["prepend_scheme"] != "never":
                return None  # its prefix depends on how the text begins, or on where it stands
        elif step["type"] != "Split" or step["pattern"] != {"String": " "}:
            return None  # a split at spaces splits nothing, where there are none left
    return prefix if spaced else None


def _scores(texts: list[str], merges: list[str]) -> list[float]:
    """Returns a score for each token: llama.cpp merges what has the highest score first."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank)
    return [-float(ranks.get(text, len(merges)) + 1) for text in texts]


def _spaced(texts: list[str]) -> list[str]:
    """Returns tokens as SentencePiece spells them, each once."""
    seen: set[str] = set()
    found = []
    for index, text in enumerate(texts):
        spaced = text.replace(" ", SPACE) or f"[EMPTY{index}]"
        found.append(f"{spaced}[{index}]" if spaced in seen else spaced)
        seen.add(found[-1])
    return found


def write_vocabulary(writer: Any, folder: Path, size: int) -> Vocabulary:
    """Adds a model folder's tokenizer and chat template to a GGUF file; returns what was added."""
    vocabulary = read_vocabulary(folder, size)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_token_list([text.encode() for text in vocabulary.tokens])
    writer.add_token_types(vocabulary.types)
    if vocabulary.pre:
        writer.add_tokenizer_pre(vocabulary.pre)
        writer.add_token_merges([merge.encode() for merge in vocabulary.merges])
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.space_prefix)
    # llama.cpp strips white space behind special tokens by this name, and by no other sign.
    writer.add_name("phi-3 student" if vocabulary.strips else "student")
    _write_special(writer, folder)
    template = model_folder.chat_template(folder)
    if template:
        writer.add_chat_template(template)
    return vocabulary


def _write_special(writer: Any, folder: Path) -> None:
    """Adds the ids of special tokens, all that end an answer among them."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    path = folder / "generation_config.json"
    generation = json.loads(path.read_text()) if path.is_file() else {}
    ends = generation.get("eos_token_id")
    ends = [*ends] if isinstance(ends, list) else [ends]
    ends = list(dict.fromkeys(i for i in [*ends, tokenizer.eos_token_id] if i is not None))
    for name, index in zip(("eos", "eot", "eom"), ends, strict=False):
        getattr(writer, f"add_{name}_token_id")(index)
    for name in ("bos", "pad", "unk"):
        if (index := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    marks = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("").ids
    writer.add_add_bos_token(tokenizer.bos_token_id in marks[:1])
    writer.add_add_eos_token(len(marks) > 0 and marks[-1] in ends and marks[-1:] != marks[:1])
