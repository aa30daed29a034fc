"""The tokens that a chat completion lists spell its text to the byte, or it is text only."""

import math

import pytest

from retort.engines.openai import parse
from retort.stages.generate.listed_tokens import TextOnlyError, read_places
from tests.support.listing import completion, entry, token, words

HALVES = "né".encode()[:2], "né".encode()[2:]


def read(text, content, finish_reason="stop", k=3, **more):
    raw = {"body": completion(text, content, finish_reason, **more)}
    return read_places(raw, parse("a", raw), k)


def spelled(places):
    return [place.token.spelled for place in places]


@pytest.mark.parametrize(
    ("text", "content", "expected", "ends"),
    [
        ("one two", words("one", " two"), ["one", " two"], False),
        ("one", words("one", "<|im_end|>"), ["one", "<|im_end|>"], True),
        ("one", words("one", ""), ["one", ""], True),
        ("", words("</s>"), ["</s>"], True),
        ("one", words(" one", "[EOS]"), ["one", "[EOS]"], True),
        ("né", words(*HALVES), HALVES, False),
        ("a</s>", words("a", "</s>"), ["a", "</s>"], False),
        (
            "<think>\nno\n</think>\n\nyes",
            words("<think>", "\nno\n", "</think>", "\n\nyes"),
            4,
            False,
        ),
    ],
)
def test_the_bytes_of_the_tokens_are_those_of_the_text(text, content, expected, ends):
    places = read(text, content)
    if isinstance(expected, int):
        assert len(places) == expected
    else:
        assert spelled(places) == [x if isinstance(x, bytes) else x.encode() for x in expected]
    assert [place.is_end for place in places] == [False] * (len(places) - 1) + [ends]
    assert b"".join(p.token.spelled for p in places if not p.is_end) == text.encode()


def test_reasoning_beside_the_answer_is_spelled_where_it_is_listed():
    content = words("<think>\n", "so", "\n</think>\n\n", "4", "<|end|>")
    assert read("4", content, message={"reasoning_content": "so"})[-1].is_end
    with pytest.raises(TextOnlyError, match="do not spell"):
        read("4", words("4", "<|end|>"), message={"reasoning_content": "so"})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "lists no log-probabilities"),
        ([], "lists no log-probabilities"),
        ("one", "lists no log-probabilities"),
        (words("one", "."), "do not spell its text"),  # a text that was trimmed has no other end
        (words("one", "\n"), "do not spell its text"),
        (words("on"), "do not spell its text"),
        (words("", "one"), "a token in it spells nothing"),
        ([None], "odd shape .AttributeError"),
        ([{"token": "one"}], "odd shape .KeyError: 'logprob'"),
        ([{**words("one")[0], "top_logprobs": 3}], "odd shape"),
        ([entry(token("one", 0.5, bytes=[111, 999]))], "odd shape"),
        ([entry(token("one", 0.5, bytes="one"))], "odd shape"),
        ([entry(token("one", 0.5), token("X", 0.1, token=None, bytes=None))], "odd shape"),
        ([entry({**token("one", 0.5), "logprob": 0.3})], "no number, or above 0"),
        ([entry({**token("one", 0.5), "logprob": float("nan")})], "no number, or above 0"),
        ([entry({**token("one", 0.5), "logprob": "-1"})], "no number, or above 0"),
        ([entry({**token("one", 0.5), "logprob": None})], "no number, or above 0"),
        ([entry(token("one", 0.8), token("X", 0.7))], "more than 1"),
        ([{**token("one", 0.5), "logprob": -9999.0}], "not told"),
        (
            [{**token("one", 0.5), "top_logprobs": [token("X", 0.1)]}],
            "not in its list, though likelier",
        ),
        ([entry(token("one", 0.9, bytes=None, token="on\ufffd"))], "do not spell"),
    ],
)
def test_whatever_is_odd_makes_an_answer_text_only_with_its_reason(content, reason):
    with pytest.raises(TextOnlyError, match=reason):
        read("one", content)


def test_an_answer_that_calls_tools_or_broken_text_is_text_only():
    call = {"id": "1", "function": {"name": "f", "arguments": "{}"}}
    with pytest.raises(TextOnlyError, match="calls tools"):
        read("one", words("one"), message={"tool_calls": [call]})
    with pytest.raises(TextOnlyError, match="do not spell"):
        read("o\ufffd", words("o", "\ufffd"))
    with pytest.raises(TextOnlyError, match="do not spell"):  # it was cut off: that is no end
        read("one", words("one", "</s>"), "length")


def test_missing_bytes_are_those_of_the_token():
    content = words("nö", "!")
    for listed in [*content, *(other for place in content for other in place["top_logprobs"])]:
        listed["bytes"] = None
    content[1]["top_logprobs"][1]["token"] = "bytes:\\xc3"
    del content[0]["bytes"]
    first, second = read("nö!", content)
    assert [t.spelled for t in first.tokens] == ["nö".encode(), b"X"]
    assert [t.spelled for t in second.tokens] == [b"!", b""]


def test_a_string_listed_twice_has_the_mass_of_both():
    (place,) = read("no", [entry(token("no", 0.5), token("X", 0.1), token("no", 0.25))])
    assert [t.spelled for t in place.tokens] == [b"no", b"X"]
    assert place.logprobs == pytest.approx([math.log(0.75), math.log(0.1)])
    assert place.logprob == pytest.approx(math.log(0.75))
    lost = [entry(token(" no", 0.5), token("no", 0.25)), *words(" no")]
    first, second = read("no no", lost)
    assert [t.spelled for t in first.tokens] == [b"no"] and second.token.spelled == b" no"
    assert first.logprob == pytest.approx(math.log(0.75))


@pytest.mark.parametrize(
    ("own", "listed", "k", "expected"),
    [
        (-9999.0, (0.6, 0.3), 2, 0.1),  # the tail is what it can have
        (-9999.0, (0.6, 0.05), 2, 0.05),  # but no more than the least that is listed
        (math.log(0.02), (0.6, 0.3), 2, 0.02),
        (math.log(0.02), (0.6,), 2, 0.02),
    ],
)
def test_a_sampled_token_outside_its_list_has_what_is_told_or_can_be(own, listed, k, expected):
    others = [token(f"X{n}", p) for n, p in enumerate(listed)]
    (place,) = read("o", [{**token("o", 0.5), "logprob": own, "top_logprobs": others}], k=k)
    assert math.exp(place.logprob) == pytest.approx(expected)
    assert len(place.tokens) == 2
    assert (place.token in place.tokens) == (own != -9999.0 and len(listed) < k)


def test_only_the_k_most_probable_are_kept_in_any_order_of_the_list():
    others = [token(str(n), p) for n, p in enumerate((0.05, 0.3, 0.1))]
    (place,) = read("o", [entry(token("o", 0.2), *others)], k=2)
    assert [t.spelled for t in place.tokens] == [b"1", b"o"]


def test_parts_of_a_character_that_spell_nothing_are_one_place_with_the_whole():
    """As vLLM's server lists them: two parts of which the last spells the character."""
    first = entry(token("", 0.5), token("o", 0.25), token("é!", 0.125))
    last = entry(token("é!", 0.5), token("ë", 0.25))
    n, whole, end = read("né!", [*words("n"), first, last, *words("<|im_end|>")])
    assert spelled([n, whole, end]) == [b"n", "é!".encode(), b"<|im_end|>"]
    assert {t.spelled: p for t, p in zip(whole.tokens, whole.logprobs, strict=True)} == {
        "é!".encode(): pytest.approx(math.log(0.5 * 0.5 + 0.125)),
        b"o": pytest.approx(math.log(0.25)),
    }
    with pytest.raises(TextOnlyError, match="spells nothing"):  # no part of a character
        read("no", [*words("n", "", "o")])
    with pytest.raises(TextOnlyError, match="is not told"):
        read("né!", [*words("n"), {**first, "logprob": -9999.0}, last])


def test_a_server_that_numbers_tokens_says_in_the_list_what_a_token_spells():
    """llama.cpp's own bytes are what it sent just then: held back, or a whole character."""
    held = entry(token("<", 0.6, id=7), bytes=[], token="")
    sent = entry(token("b", 0.6, id=8), bytes=list(b"<b"), token="<b")
    end = entry(token("", 0.6, id=2), token("", 0.2, id=1))
    places = read("<b", [held, sent, end])
    assert spelled(places) == [b"<", b"b", b""]
    assert [t.number for t in places[-1].tokens] == [2, 1] and places[-1].is_end
    second = entry(token(HALVES[1], 0.6, id=9), bytes=list("é".encode()), token="é")
    with pytest.raises(TextOnlyError, match="do not spell"):  # the first half is not listed
        read("né", [entry(token("n", 0.6, id=3)), second])
    unlisted = {**token("é", 0.01, id=9), "top_logprobs": [token("X", 0.6, id=4)]}
    usage = {"completion_tokens": 3}
    with pytest.raises(TextOnlyError, match="amid a character"):
        read("né", [entry(token("n", 0.6, id=3)), unlisted], usage=usage)
