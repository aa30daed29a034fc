"""Texts as 64-bit words, equal for texts that differ only in case, white space and punctuation.

Numbers, signs and operators are words too: "1.5 - 2" and "15 2" ask different things. The pieces
of a text between spaces are split into words once and then looked up, as most occur often.
"""

import re
import unicodedata
from hashlib import blake2b

# The kind of a word is in the lowest four bits of its hash. Those before BRACKET are words.
WORD, NUMBER, OPERATOR, NEGATION, FUNCTION, NAME, CHARACTER, BRACKET, LINE, SENTENCE = range(10)
KIND_BITS = 4
BREAK = "\0"  # the end of a line, as splitting a text removes its white space
MAX_CACHED_CHARS = 64
MAX_CACHED = 1 << 19

# "one", and its Chinese character, mean too many other things.
_NUMBERS = (
    "zero two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety "
    "hundred thousand million billion half third quarter dozen twice double triple "
    "零 \u3007 二 两 三 四 五 六 七 八 九 十 百 千 万 亿 半"
)
_NEGATIONS = "not no never none nothing nobody neither nor cannot except without"
# Words with which two questions may differ and still ask the same.
_FUNCTIONS = (
    "a an the of in on at for by as is are was were be been am do does did can could would will "
    "shall should may might have has had i you we he she it they me us him them my your our his "
    "her its their this that these those there here please kindly just so and if then also very "
    "der die das ein eine einen einem einer des den dem und ist sind bitte im am "
    "le la les l un une des du de d et est sont s il vous plaît "
    "el los las una unos unas del y es son por favor o os as um uma do da e é por "
    "il lo gli uno della di per favore het een en van "
    "的 了 吗 呢 吧 啊 请 が は を に で と も の か ね よ"
)
NUMBER_WORDS, NEGATIONS = frozenset(_NUMBERS.split()), frozenset(_NEGATIONS.split())
FUNCTIONS = frozenset(_FUNCTIONS.split()) - NUMBER_WORDS - NEGATIONS
SENTENCE_END, CLOSING = frozenset(".!?:\u3002\uff01\uff1f"), "\"')]}*_\u201d\u2019\u00bb"
APOSTROPHES = "'\u2019\u02bc\u2032"
# Signs of multiplication and division, and dashes that word processors make of a minus.
SAME_OPERATOR = str.maketrans(
    "\xd7\xb7\u22c5\xf7\u2215\u2044\u2212\u2010\u2011\u2012\u2013\u2014", "***///------"
)
PROSE = ".,;:?!\"'"

# Raised and lowered digits do not belong to the number before them: 5² is not 52, 1½ not 11/2.
RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ]+")
LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎]+")
FRACTION = re.compile("([¼-¾⅐-⅞↉])")
UNSEEN = {0x200B: " "} | dict.fromkeys(
    [0xAD, 0x200C, 0x200D, 0x200E, 0x200F, 0x2060, 0xFEFF, *range(0x202A, 0x202F)]
)
# Scripts without spaces between words: each character is a word.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u312f\u31a0-\u31ff\u3400-\u9fff"
    "\uf900-\ufaff\U00020000-\U000323af]"
)

# A text is matched by the classes of its characters: a letter, k mark on a letter, c letter that is
# a word, 9 digit, o operator, b bracket, s other symbol. Characters whose meaning depends on their
# place are their own class, all others are a space.
_CLASSES = {ord(own): own for own in "_'.,-*!:$#"} | {
    ord(char): kind
    for kind, chars in {
        "o": "+=<>^%/",
        "b": "()[]{}|",
        "s": "&~\u3007",
        "'": APOSTROPHES,
        "*": "\xb7",
        "-": "\u2010\u2011",  # hyphens
        "n": "\u2013",  # shorter dash
        "m": "\u2014\u2012",  # longer dash
        " ": "`",
    }.items()
    for char in chars
}
_BY_CATEGORY = {"Nd": "9", "Sm": "o", "Sc": "s", "So": "s", "No": "s", "Nl": "s"}
TOKEN = re.compile(
    r"""
    (?P<number> (?: (?<!9)9{1,3}(?:,9{3})+(?!,?9) | 9+ ) (?:\.9+)* | (?<![ak9.])\.9+ )
  | (?P<word> a[ak]*(?:['_]a[ak]*)* | ck* | k+ )
    # Emphasis, and dashes.
  | (?P<skip> ^\*\*+(?=[^*]) | ^\*(?=[ac][akc]) | (?<=[^*])\*\*+(?=[ .,:!']*$)
      | (?<=[akc][akc])\*(?=[ .,:!']*$) | (?<![akc9b])--+(?![9b]) | (?<=[akc])--+(?=[akc]) )
    # A sign, not a hyphen: at the start of the piece, or not beside a word.
  | (?P<operator> o | \* | ^-(?=[akc]) | (?<=b)-(?=[akc]) | (?<![ak][ak])(?<!c)-(?![ak][ak]|c)
      | (?<![akc])n(?![akc]) | (?<=9)m(?=9) | (?<=9):(?=9)
      | (?<=[9b])! | ^!(?=[ab]) | !(?=o) | (?<=(?<![ak])a)! | (?<=(?<![ak9'\ ])a)'+(?![ak]) )
  | (?P<bracket> b )
  | (?P<symbol> s | \$(?=\.?9) | (?<=a)\# )
    """,
    re.VERBOSE,
)
_KINDS = {"number": NUMBER, "operator": OPERATOR, "bracket": BRACKET}


class _CharClasses(dict[int, str]):
    """The class of each character by its code point, found when first looked up."""

    def __missing__(self, code: int) -> str:
        category = unicodedata.category(chr(code))
        if category[0] == "L":
            own = "c" if UNSPACED.match(chr(code)) else "a"
        else:
            own = "k" if category[0] == "M" else _BY_CATEGORY.get(category, " ")
        self[code] = own
        return own


_CHAR_CLASSES = _CharClasses(_CLASSES)


def tokens(piece: str) -> list[tuple[str, int]]:
    """Returns the words of a piece of text in normal form, each with its kind."""
    if not piece.isascii():
        piece = _compatible(piece)
    original, piece = piece, piece.casefold()
    has_places = len(original) == len(piece)  # without case a text may be longer
    words = []
    for match in TOKEN.finditer(piece.translate(_CHAR_CLASSES)):
        group, text = str(match.lastgroup), piece[match.start() : match.end()]
        if group == "word":
            is_capital = (has_places or not match.start()) and original[match.start()].isupper()
            word = re.sub(f"[_{APOSTROPHES}]", "", text)
            is_negation = text.endswith(("n't", "n\u2019t"))
            words.append((word, NEGATION if is_negation else _kind(word, is_capital)))
        elif group == "number":
            words.append((text.replace(",", ""), NUMBER))
        elif group != "skip":
            words.append((text.translate(SAME_OPERATOR), _KINDS.get(group, WORD)))
    return words


def normal_words(text: str) -> list[str]:
    """Returns the words of a text in normal form."""
    return [word for piece in text.split() for word, _ in tokens(piece)]


def _compatible(piece: str) -> str:
    piece = RAISED.sub(lambda match: "^" + match[0], piece.translate(UNSEEN))
    piece = LOWERED.sub(lambda match: " " + match[0] + " ", FRACTION.sub(r" \1", piece))
    piece = unicodedata.normalize("NFKC", piece)
    return "".join(
        str(unicodedata.decimal(char)) if char.isdecimal() and not char.isascii() else char
        for char in piece
    )


def _kind(word: str, is_capital: bool = False) -> int:
    if word in NUMBER_WORDS:
        return NUMBER
    if word in NEGATIONS:
        return NEGATION
    if word in FUNCTIONS:
        return FUNCTION
    if UNSPACED.match(word):
        return CHARACTER
    return NAME if is_capital else WORD


def ends_sentence(piece: str) -> bool:
    """Whether a piece of text ends a sentence, so that the next word is capitalised anyway."""
    return piece.rstrip(CLOSING)[-1:] in SENTENCE_END


def hash64(text: str) -> int:
    """Returns 64 bits of a text's blake2b, the same in every process."""
    return int.from_bytes(_digest(text), "little")


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _record(word: str, kind: int) -> bytes:
    """Returns eight bytes: a word's hash, and its kind in the lowest bits."""
    digest = _digest(word)
    return bytes((digest[0] >> KIND_BITS << KIND_BITS | kind,)) + digest[1:]


_SPECIAL = {word: _record(word, _kind(word)) for word in NUMBER_WORDS | NEGATIONS | FUNCTIONS}
_END = SENTENCE.to_bytes(8, "little")


class _Records(dict[tuple[str, int], bytes]):
    """The record of each word, made when first looked up."""

    def __missing__(self, token: tuple[str, int]) -> bytes:
        self[token] = record = _record(*token)
        return record


class Pieces(dict[str, bytes]):
    """The words of each piece of text, eight bytes each, made when first looked up.

    The owner calls `trim` now and then, which bounds the memory.
    """

    def __init__(self) -> None:
        self._records = _Records()
        self.trim()

    def __missing__(self, piece: str) -> bytes:
        bare = piece.strip(PROSE)
        if len(bare) > 1 and bare.isascii() and bare.isalpha():
            word = bare.lower()
            record = _SPECIAL.get(word) or _record(word, NAME if bare[0].isupper() else WORD)
        else:
            record = b"".join([self._records[token] for token in tokens(piece)])
        if ends_sentence(piece):
            record += _END
        if len(piece) <= MAX_CACHED_CHARS:
            self[piece] = record
        return record

    def trim(self) -> None:
        """Empties the cache if it is too large."""
        if not self or len(self) > MAX_CACHED or len(self._records) > MAX_CACHED:
            self.clear()
            self._records.clear()
            self[BREAK] = LINE.to_bytes(8, "little")
