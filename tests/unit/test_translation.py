"""A signal across tokenizers: bytes of tokens, chunks, events; against what brute force finds."""

import functools
import itertools

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from retort.data import encoding
from retort.data.token_bytes import ByteOrder, TokenBytes, token_bytes, without_lead
from retort.errors import SpecError
from retort.stages.train.translation import JOINED_TOKENS, LONGEST_TOKENS, Translator
from retort.store.signals import Signal, captured
from tests.support import tokenizers_of

TEXTS = tokenizers_of.strings(60, seed=1)
NAMES = sorted(tokenizers_of.FAMILIES)


@functools.cache
def family(name):
    tokenizer = tokenizers_of.tokenizer(name, tokenizers_of.strings(800, seed=2))
    return tokenizer, token_bytes(tokenizer, name, [tokenizer.eos_token_id])


def ids_of(tokenizer, text):
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def weighed(table, ids, text, weights):
    """A signal that says of each token the weights of its bytes, and that anything may end."""
    parts = table.of(ids[:-1])
    lead = int(without_lead(parts, text) or 0)
    edges = np.maximum(np.cumsum([0, *map(len, parts)]) - lead, 0)
    logprobs = [-weights[a:b].sum() for a, b in itertools.pairwise(edges)] + [-weights[-1]]
    top = np.array([[i, max(table.ends)] if i not in table.ends else [i, 0] for i in ids], np.int32)
    half = np.log(np.full(top.shape, 0.4)).astype(np.float32)
    return captured(top, half, np.array(ids, np.int32), np.array(logprobs, np.float32))


@pytest.mark.parametrize("name", NAMES)
def test_the_bytes_of_a_familys_tokens_are_those_of_its_texts(name):
    tokenizer, table = family(name)
    changed = 0
    for text in TEXTS:
        parts = table.of(ids_of(tokenizer, text)[:-1])
        changed += parts is None or without_lead(parts, text) is None
    # NFC changes some texts, and SentencePiece reads its own mark as a space; a special token that
    # a text spells out is that token.
    composed = sum("e\u0301" in text or not text.isascii() for text in TEXTS)
    spelled = sum("</s>" in text or "\u2581" in text for text in TEXTS)
    assert changed <= spelled + (composed if name == "qwen" else 0)
    assert changed < len(TEXTS) / 2


@pytest.mark.parametrize("theirs", NAMES)
def test_chunks_spell_the_same_bytes_on_both_sides(theirs):
    (teacher, table) = family(theirs)
    num_chunks = 0
    for ours in NAMES:
        student, own = family(ours)
        translator = Translator(table, ByteOrder(own, table))
        for text in TEXTS:
            weights = np.random.default_rng(len(text)).random(len(text.encode()) + 1) + 0.5
            parts = table.of(ids_of(teacher, text)[:-1])
            if parts is None or without_lead(parts, text) is None:
                continue
            signal = weighed(table, ids_of(teacher, text), text, weights)
            row = encoding.encode("a", [1], ids_of(student, text))
            (made,), reasons = translator.translate([(row, signal, text)])
            if reasons:
                continue
            pieces = own.of(row.labels[:-1])
            lead = int(without_lead(pieces, text))
            edges = np.maximum(np.cumsum([0, *map(len, pieces)]) - lead, 0)
            start = 0
            for at in np.flatnonzero(made.ends_T)[:-1]:
                end = edges[at + 1]
                if not np.isnan(made.surprisal_T[at]):
                    assert made.surprisal_T[at] == pytest.approx(weights[start:end].sum(), rel=1e-4)
                    num_chunks += 1
                start = end
            assert start == edges[-1]
            assert made.surprisal_T[-1] == pytest.approx(weights[-1], rel=1e-4)
    assert num_chunks > 1_500


VOCABULARY = [b"a", b"b", b"ab", b"abc", b"ba", b"c", b"bca", b"ca", b"aa"]


def begins(token, text, teacher):
    """Whether a token begins with a text, and with no longer string of the teacher's than it."""
    return token.startswith(text) and all(
        text.startswith(string) for string in teacher if token.startswith(string)
    )


def event_of(text, own, student, teacher):
    """The ids with which a student goes on, by definition."""
    if own is not None and len(own) < len(text):
        return frozenset(i for i, t in enumerate(student) if t == own)
    if text in student:
        return frozenset(i for i, t in enumerate(student) if begins(t, text, teacher))
    longest = max((t for t in student if text.startswith(t)), key=len, default=None)
    return frozenset(i for i, t in enumerate(student) if t == longest)


def is_open(said, own, student, teacher):
    """Whether the label is not told apart from the tokens that begin with it."""
    return len(said) < len(own) or (
        said == own and any(t != own and begins(t, own, teacher) for t in student)
    )


def events_of(steps, own, student, teacher):
    """The events of a position: every path through the teacher's next places, one by one.

    `steps` are, of each place from this one on, the masses of its strings and the one it chose.
    """
    found: dict[frozenset, float] = {}
    paths = [(b"", 1.0, 0)]
    while paths:
        said, mass, at = paths.pop()
        if at == len(steps):
            found[event_of(said, None, student, teacher)] = mass
            continue
        strings, target = steps[at]
        for string, more in strings.items():
            if string is None:
                end = frozenset([len(student)])
                event = event_of(said + b"\0", None, student, teacher) if said else end
            elif (
                string == target
                and own is not None
                and is_open(said + string, own, student, teacher)
            ):
                paths.append((said + string, mass * more, at + 1))
                continue
            else:
                event = event_of(said + string, own if string == target else None, student, teacher)
            found[event] = found.get(event, 0) + mass * more
    merged: dict[frozenset, float] = {}
    for event, mass in found.items():
        if event:
            widest = max((e for e in found if e >= event), key=len)
            merged[widest] = merged.get(widest, 0) + mass
    return merged


@pytest.mark.parametrize("seed", range(30))
def test_events_are_those_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    theirs = sorted({*rng.choice(VOCABULARY, 6), b"a", b"b", b"c"})
    ours = sorted({*rng.choice(VOCABULARY, 5), b"a", b"b", b"c"})
    teacher = TokenBytes((*theirs, None), frozenset([len(theirs)]))
    student = TokenBytes((*ours, None), frozenset([len(ours)]))
    text = "".join(rng.choice(list("abc"), 12))
    mine, yours = split(text.encode(), ours, rng), split(text.encode(), theirs, rng)
    ids_TK = np.stack(
        [
            np.r_[i, rng.permutation([j for j in range(len(theirs) + 1) if j != i])[:4]]
            for i in [*yours, len(theirs)]
        ]
    )
    masses_TK = rng.dirichlet(np.ones(6), len(ids_TK))[:, :5].astype(np.float32)
    signal = captured(
        ids_TK.astype(np.int32),
        np.log(masses_TK),
        ids_TK[:, 0].astype(np.int32),
        np.log(masses_TK[:, 0]),
    )
    order = ByteOrder(student, teacher)
    row = encoding.encode("a", [0], [*mine, len(ours)])
    (made,), _ = Translator(teacher, order).translate([(row, signal, text)])
    their_starts = [0, *np.cumsum([len(theirs[i]) for i in yours])]
    our_starts = [0, *np.cumsum([len(ours[i]) for i in mine])]
    for t, start in enumerate(our_starts):
        ranges = zip(made.first_TK[t], made.end_TK[t], made.logprobs_TK[t], strict=True)
        found = {frozenset(order.ids[a:b]): np.exp(p) for a, b, p in ranges if b > a}
        at = max(n for n, begin in enumerate(their_starts) if begin <= start)
        consumed = text.encode()[their_starts[at] : start]
        assert made.aligned_T[t] == (not consumed)
        masses = dict(zip(ids_TK[at].tolist(), masses_TK[at].tolist(), strict=True))
        tail = 1 - sum(masses.values())
        if consumed:  # what the teacher says next, given these bytes
            begun = {i for i in masses if i < len(theirs) and theirs[i].startswith(consumed)}
            scale = (1 - tail) / sum(masses[i] for i in begun)
            masses = {i: masses[i] * scale for i in begun}
        is_end = t == len(mine)
        steps = []
        for place in range(at, len(ids_TK)):
            if place > at:
                consumed = b""
                masses = dict(zip(ids_TK[place].tolist(), masses_TK[place].tolist(), strict=True))
            strings = {
                None if i == len(theirs) else theirs[i][len(consumed) :]: mass
                for i, mass in masses.items()
            }
            last = place == len(ids_TK) - 1
            steps.append((strings, None if last else theirs[yours[place]][len(consumed) :]))
        wanted = events_of(steps, None if is_end else ours[mine[t]], ours, theirs)
        assert is_end or any(mine[t] in event for event in wanted)
        wanted = dict(sorted(wanted.items(), key=lambda pair: -pair[1])[: ids_TK.shape[1]])
        assert found.keys() == wanted.keys()
        assert all(found[e] == pytest.approx(wanted[e], rel=1e-4) for e in wanted)
        assert np.exp(made.tail_T[t]) == pytest.approx(1 - sum(found.values()), abs=1e-5)


def split(text, tokens, rng):
    """A random way to spell a text with tokens, as ids."""
    ids = []
    while text:
        fits = [i for i, token in enumerate(tokens) if text.startswith(token)]
        ids.append(int(rng.choice(fits)))
        text = text[len(tokens[ids[-1]]) :]
    return ids


def test_a_chunk_ends_only_where_the_teacher_may_begin_a_word_or_end():
    tokens = (b"1", b"2", b" x", None)
    table = TokenBytes(tokens, frozenset([3]))
    ids = np.array([0, 1, 2, 3], np.int32)  # "12 x" and the end
    likely = np.array([[0, 1], [1, 0], [2, 1], [3, 2]], np.int32)
    masses = np.array([[0.8, 0.1], [0.9, 0.05], [0.7, 0.2], [0.6, 0.3]], np.float32)
    signal = captured(likely, np.log(masses), ids, np.log(masses[:, 0]))
    row = encoding.encode("a", [0], ids.tolist())
    (made,), _ = Translator(table, ByteOrder(table, table)).translate([(row, signal, "12 x")])
    assert made.ends_T.tolist() == [False, True, True, True]
    assert made.surprisal_T[1] == pytest.approx(-np.log(0.8 * 0.9), rel=1e-5)
    assert np.isnan(made.surprisal_T[0])


def test_a_stretch_without_a_common_place_is_cut_and_not_learned():
    number = 2 * LONGEST_TOKENS + 3
    teacher = TokenBytes((b"a" * number, b" b", None), frozenset([2]))
    student = TokenBytes((b"a", b" b", None), frozenset([2]))
    ids = np.array([0, 1, 2], np.int32)
    signal = captured(
        ids[:, None], np.log(np.full((3, 1), 0.5, np.float32)), ids, np.full(3, -0.7, np.float32)
    )
    row = encoding.encode("a", [0], [0] * number + [1, 2])
    (made,), _ = Translator(teacher, ByteOrder(student, teacher)).translate(
        [(row, signal, "a" * number + " b")]
    )
    ends = np.flatnonzero(made.ends_T)
    assert ends.tolist() == [
        LONGEST_TOKENS - 1,
        2 * LONGEST_TOKENS - 1,
        number - 1,
        number,
        number + 1,
    ]
    assert np.isnan(made.surprisal_T[ends[:3]]).all() and made.surprisal_T[number] == pytest.approx(
        0.7
    )
    assert JOINED_TOKENS < LONGEST_TOKENS


def test_rows_whose_tokens_do_not_spell_the_text_have_no_signal_and_say_why():
    table = TokenBytes((b"a", None, b"\xff", None), frozenset([3]))
    translator = Translator(table, ByteOrder(table, table))
    row = encoding.encode("a", [0], [0, 3])
    good = Signal(
        *(np.zeros((2, 1), t) for t in (np.int32, np.float32)),
        np.array([0, 3], np.int32),
        np.zeros(2, np.float32),
        np.full(2, -9, np.float32),
    )
    for ids, text in (([1, 3], "a"), ([2, 3], "a"), ([0, 3], "A")):
        bad = Signal(
            good.ids_TK,
            good.logprobs_TK,
            np.array(ids, np.int32),
            good.target_logprobs_T,
            good.tail_T,
        )
        (made,), reasons = translator.translate([(row, bad, text)])
        assert made.num_known == 0 and reasons.total() == 1
        # It learns its labels: the letter, and the end.
        ranks = made.first_TK[:, 0].tolist()
        assert [translator.student.ids[rank] for rank in ranks] == [0, 3]
        assert (made.logprobs_TK[:, 0] == 0).all() and (made.tail_T < -20).all()
    assert translator.translate([(row, None, "a")])[1] == {"the teacher's answer has no signal": 1}
    assert translator.translate([(row, good, "a")])[0][0].num_known == 2


def test_a_tokenizer_that_changes_the_text_is_refused_by_name():
    lower = Tokenizer(models.WordLevel({"hello": 0, "world": 1, "<unk>": 2}, unk_token="<unk>"))
    lower.normalizer, lower.decoder = normalizers.Lowercase(), decoders.Fuse()
    lower.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(SpecError, match=r"lower: its tokenizer changes the text \('Hello"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=lower, unk_token="<unk>"), "lower")
    pieces = Tokenizer(models.WordPiece({"Hello": 0, "[UNK]": 1}, unk_token="[UNK]"))
    pieces.decoder = decoders.WordPiece()
    with pytest.raises(SpecError, match=r"bert: the bytes .* its decoder is WordPiece"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=pieces), "bert")


def test_a_table_of_bytes_is_stored_and_read():
    table = TokenBytes((b"\xff\x00", None, "é".encode()), frozenset([1]))
    assert TokenBytes.from_json(table.to_json()) == table


def test_the_tokens_that_begin_with_given_bytes_are_a_range():
    table = TokenBytes(
        (b"\xff", b"a", b"ab", b"\xff\xff", b"b", b"a\xff", None, b"a"), frozenset([6])
    )
    for strings in ((), (b"a",), (b"a", b"ab", b"\xff"), (b"ab", b"\xff\xff", b"b")):
        teacher = TokenBytes(strings)
        order = ByteOrder(table, teacher)
        for prefix in (b"a", b"ab", b"\xff", b"\xff\xff", b"c", b"a\xff", b""):
            first, end = order.range_of(prefix)
            wanted = {i for i, b in enumerate(table.spelled) if b and begins(b, prefix, strings)}
            assert set(order.ids[first:end]) == wanted
        assert {*order.ids[slice(*order.range_of(b"a", whole=True))]} == {1, 7}
        assert order.longest(b"abc") == b"ab" and order.longest(b"zz") == b""
        assert order.ids[slice(*order.ends)] == [6]


def test_the_space_before_a_text_is_no_part_of_what_is_compared_inside_the_first_token():
    teacher = TokenBytes((b" Bon", b"jour", b" Ba", None), frozenset([3]))
    student = TokenBytes((b"B", b"on", b"jour", b"a", None), frozenset([4]))
    ids = np.array([0, 1, 3], np.int32)
    listed = np.array([[0, 2], [1, 0], [3, 0]], np.int32)
    masses = np.array([[0.6, 0.3], [0.9, 0.05], [0.9, 0.05]], np.float32)
    signal = captured(listed, np.log(masses), ids, np.log(masses[:, 0]))
    row = encoding.encode("a", [0], [0, 1, 2, 4])
    order = ByteOrder(student, teacher)
    (made,), _ = Translator(teacher, order).translate([(row, signal, "Bonjour")])
    found = {
        tuple(order.ids[a:b]): float(np.exp(p))
        for a, b, p in zip(made.first_TK[1], made.end_TK[1], made.logprobs_TK[1], strict=True)
        if b > a
    }
    # Given the B: "on" or "a".
    assert found == {(1,): pytest.approx(0.6, rel=1e-4), (3,): pytest.approx(0.3, rel=1e-4)}
    is_event = made.first_TK < made.end_TK
    assert made.known_T.all() and np.isfinite(made.logprobs_TK[is_event]).all()
