"""Measurements on texts: words, language, repetition, names and numbers, JSON.

py3langid and jsonschema are imported here only, and only when they are needed. In scripts without
spaces between words (Chinese, Japanese, Thai) each character counts as a word.
"""

import functools
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import regex

from retort.errors import SpecError, did_you_mean
from retort.records import JsonObject

# Thai to Khmer, kana, Chinese characters, and those beyond the first 65,536.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
UNSPACED += "\uff66-\uff9f\U00020000-\U0003134f"
WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
# A letter or digit of such a script with the marks on it, or a run of letters and digits of others.
LETTERS = regex.compile(
    rf"(?=[\p{{L}}\p{{Nd}}])[{UNSPACED}]\p{{M}}*|(?:(?![{UNSPACED}])[\p{{L}}\p{{M}}\p{{Nd}}])+"
)
# Parts of a text that do not show its language: code, formulas, addresses, markup, numbers.
NO_LANGUAGE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$[^$\n]*\$|\\\[.*?\\\]|\\\(.*?\\\)|<<.*?>>|<[^>\n]*>"
    r"|https?://\S+|\S+@\S+|[\d_*#=+/\\|<>{}\[\]$%^~-]+",
    re.DOTALL,
)
CODES = (
    "ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu "
    "ext fa fi fo fr fuv fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is "
    "it ja jv ka kab kik kk km kn ko ku ky la lb lg lij ln lo lt ltg lv mg mk ml mn mr ms mt my ne "
    "nl nn no nso oc om or pa pcm pl ps pt qu ro ru rw sa sdh se si sk sl sn so sq sr st sv sw ta "
    "te tg th tk tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo yue zh zu zxx"
)
LANGUAGES = frozenset(CODES.split())
# Languages that cannot be distinguished for certain by a few sentences.
KIN = (
    {"no", "nn", "da"},
    {"bs", "hr", "sr", "sl"},
    {"id", "ms", "jv", "ace"},
    {"zh", "yue", "wuu"},
    {"ar", "ary", "arz"},
    {"es", "gl", "ext", "an", "ca"},
    {"en", "pcm"},
    {"fa", "ps"},
    {"cs", "sk"},
)
NO_CONTENT = "zxx"
FEWEST_LETTERS, READ_CHARACTERS = 20, 2_000

BLOCK_REPEATS, LETTERLESS_REPEATS, LOOP_CHARACTERS, LOOP_WINDOW = 4, 50, 40, 8_000
PROBE = 10

SPOKEN = "zero one two three four five six seven eight nine ten eleven twelve"
NUMBER_WORDS = {word: str(number) for number, word in enumerate(SPOKEN.split())}
NUMBER = re.compile(r"(?<![\w.,])\d+(?:[.,]\d+)*")
TOKEN = re.compile(r"[^\W_][\w'&-]*|\n|[^\w\s]")
SMALL = "of the de la du von van der and &"
LINKS = frozenset(SMALL.split())
MAIN_NAMES = 5


def fold(text: str) -> str:
    """Returns a text without case and with every run of white space as one space."""
    return " ".join(_straight(unicodedata.normalize("NFKC", text)).casefold().split())


def words(text: str) -> list[str]:
    """Returns the words of a text: the parts between spaces that hold a letter or a digit."""
    return [word for word in WORD.findall(text) if any(c.isalnum() for c in word)]


def letters_and_digits(text: str) -> list[str]:
    """Returns the words of a text without any punctuation: "don't" is two."""
    found: list[str] = LETTERS.findall(text)
    return found


def language(text: str) -> tuple[str, float]:
    """Returns the ISO code of the language and its probability; ("", 0.0) for too short a text.

    Code, formulas and numbers do not count; the first 2,000 characters are read.
    """
    prose = " ".join(NO_LANGUAGE.sub(" ", text[: 2 * READ_CHARACTERS]).split())[:READ_CHARACTERS]
    if sum(c.isalpha() for c in prose) < FEWEST_LETTERS:
        return "", 0.0
    code, probability = _identifier().classify(prose)
    return ("", 0.0) if code == NO_CONTENT else (str(code), float(probability))


@functools.lru_cache(maxsize=4096)
def language_of_prompt(text: str) -> tuple[str, float]:
    """Returns `language` from a cache, as one prompt has many answers."""
    return language(text)


def kin(codes: list[str]) -> set[str]:
    """Returns language codes with those that cannot be distinguished from them for certain."""
    return set(codes).union(*(group for group in KIN if group & set(codes)))


def language_code(code: str) -> str:
    """Returns a known code. Raises ValueError that names the nearest one for any other."""
    if code not in LANGUAGES - {NO_CONTENT}:
        near = did_you_mean(code, LANGUAGES)
        raise ValueError(f"no language code '{code}'{near}; give ISO 639 codes such as en, de, zh")
    return code


def repeated_share(text: str) -> float:
    """Returns the share of four-word sequences that occurred earlier in the text, 0 to 1.

    After the n-gram rules of Gopher (Rae et al. 2021, arXiv:2112.11446, table A1). Sequences of
    numbers alone do not count, and the share is 0 for fewer than 30 sequences. If most words are
    single characters, a sequence is eight of them, about four words.
    """
    found = words(fold(text))
    unspaced = sum(len(word) == 1 and not word.isascii() for word in found)
    n = 8 if 2 * unspaced > len(found) else 4
    lettered = [any(c.isalpha() for c in word) for word in found]
    sequences = [
        tuple(found[at : at + n]) for at in range(len(found) - n + 1) if any(lettered[at : at + n])
    ]
    if len(sequences) < 30:
        return 0.0
    return 1 - len(set(sequences)) / len(sequences)


def loops(text: str) -> bool:
    """Whether a text ends with at least four repeats of a block, of which the last may be cut.

    The repeats have at least 40 characters (a Chinese one counts as three). A block without
    letters, as in a row of numbers or a ruled line, must occur 50 times.
    """
    tail = fold(text)[-LOOP_WINDOW:]
    if len(tail) <= PROBE:
        return False
    probe = tail[-PROBE:]
    at = tail.rfind(probe, 0, len(tail) - 1)
    while at >= 0:
        period = len(tail) - PROBE - at
        block = tail[-period:]
        lettered = any(c.isalpha() for c in block)
        repeats = BLOCK_REPEATS if lettered else LETTERLESS_REPEATS
        if period * BLOCK_REPEATS > len(tail):
            return False
        width = period + 2 * sum("\u2e80" <= c <= "\uffdc" for c in block)
        least = max(repeats * period, -(-LOOP_CHARACTERS // width) * period)
        if least <= len(tail) and tail[-least + period :] == tail[-least:-period]:
            return True
        at = tail.rfind(probe, 0, at + PROBE - 1)
    return False


def numbers(text: str) -> list[str]:
    """Returns the numbers in digits, without separators of thousands."""
    return [_plain(number) for number in NUMBER.findall(text)]


def spoken_numbers(text: str) -> set[str]:
    """Returns the numbers up to twelve that are written as English words, in digits."""
    return {
        NUMBER_WORDS[word] for word in re.findall(r"[a-z]+", fold(text)) if word in NUMBER_WORDS
    }


def names(text: str) -> list[str]:
    """Returns runs of capitalised words, joined by small ones such as "of".

    The first word of a sentence is left out, as it is capitalised anyway.
    """
    spans: list[list[str]] = [[]]
    begins, before = True, ""
    for token in [*TOKEN.findall(_straight(text)), "\n"]:
        if token == "." and before[:1].isupper() and len(before) <= 3:
            continue  # "Mr." and "U.S." end no sentence
        if token[0].isupper() and not begins:
            spans[-1].append(_bare(token))
        elif token in LINKS and spans[-1]:
            spans[-1].append(token)
        elif spans[-1]:
            spans.append([])
        begins, before = _may_end(token), token
    return [name for span in spans if (name := _without_links(span))]


def main_names(text: str) -> list[str]:
    """Returns the five most frequent names of a text, equally frequent ones in their order."""
    return [name for name, _ in Counter(names(text)).most_common(MAIN_NAMES)]


def name_words(text: str) -> set[str]:
    """Returns all words of a text, folded, in which names are looked up."""
    return {_bare(word) for word in re.findall(r"[\w'&-]+", fold(text))}


def parts(name: str) -> set[str]:
    """Returns the words of a name, folded, without the small ones."""
    return {_bare(fold(word)) for word in name.split()} - LINKS


def sound_schema(schema: JsonObject) -> JsonObject:
    """Returns a valid JSON schema. Raises ValueError with the fault of an invalid one."""
    import jsonschema

    try:
        jsonschema.validators.validator_for(schema).check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"no JSON schema: {error.message} at {error.json_path}") from None
    return schema


def schema_file(path: str) -> str:
    """Returns the path of a JSON schema. Raises ValueError if there is none."""
    try:
        schema = orjson.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(schema, dict):
        raise ValueError(f"{path} holds no JSON object")
    sound_schema(schema)
    return path


@functools.lru_cache(maxsize=64)
def schema_from(path: str) -> JsonObject:
    """Returns the JSON schema of a file, read once."""
    schema: JsonObject = orjson.loads(Path(path).read_bytes())
    return schema


def schema_fault(value: Any, schema: JsonObject) -> str | None:
    """Returns the rule that a JSON value breaks and its place, such as "required at $.items[]".

    Nothing is downloaded: a reference to another address raises `SpecError`.
    """
    validator = _validator(orjson.dumps(schema))
    from referencing.exceptions import Unresolvable

    try:
        error = next(iter(sorted(validator.iter_errors(value), key=lambda e: e.json_path)), None)
    except Unresolvable as unresolvable:
        raise SpecError(f"json_valid: the schema refers to {unresolvable.ref}, not in it") from None
    if error is None:
        return None
    return f"{error.validator} at {re.sub(r'[[][0-9]+[]]', '[]', error.json_path)}"


@functools.lru_cache(maxsize=16)
def _validator(schema: bytes) -> Any:
    import jsonschema
    from referencing import Registry

    content = orjson.loads(schema)
    return jsonschema.validators.validator_for(content)(content, registry=Registry())


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _plain(number: str) -> str:
    """Returns a number without separators of thousands and without zeros at its end."""
    if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", number):
        number = number.replace(",", "")
    elif re.fullmatch(r"\d{1,3}(?:\.\d{3})+(?:,\d+)?", number):
        number = number.replace(".", "")
    number = number.replace(",", ".")
    return number.rstrip("0").rstrip(".") if number.count(".") == 1 else number


def _may_end(token: str) -> bool:
    """Whether a sentence may begin after a token: after a line end and most punctuation."""
    return token == "\n" or (unicodedata.category(token[0])[0] == "P" and token not in ",-&'")


def _straight(text: str) -> str:
    """Returns a text with straight apostrophes."""
    return text.replace("\u2019", "'")


def _without_links(span: list[str]) -> str:
    """Returns a run of words without small ones at its end; "" for a single letter."""
    while span and span[-1] in LINKS:
        span = span[:-1]
    name = " ".join(span)
    return name if len(name) > 1 else ""


def _bare(word: str) -> str:
    """Returns a word without the genitive's ending."""
    return re.sub(r"'s?$", "", word)
