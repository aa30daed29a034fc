"""Scrubbers: what is personal goes, what only looks like it stays, and mathematics is untouched."""

import json
import random
import time

import pytest

from retort.data import scrubbers
from retort.errors import SpecError
from retort.plugins import find_function, function_names
from tests.support.real_data import GSM8K, needs_gsm8k

NAMES = function_names("retort.data.scrubbers")
KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIB\n-----END RSA PRIVATE KEY-----"

PHONES = [
    *("+49 30 1234567", "+4915123456789", "+44 (0)20 7946 0958", "+33 6 12 34 56 78"),
    *("+1 (555) 123-4567", "+1-800-555-0199", "+91 98765 43210", "0049 30 1234567"),
    *("(555) 234-5678", "(555)234-5678", "555-234-5678", "555.234.5678", "1-800-555-0199"),
    *("020 7946 0958", "030/1234567", "030 / 123456", "0171-1234567", "06 12 34 56 78"),
    *("06.12.34.56.78", "(030) 123456", "(11) 91234-5678", "03-1234-5678", "138 1234 5678"),
]
NO_PHONES = [
    *("1234567", "1,234,567", "1 000 000 000", "12.345.678", "3.14159265", "+1234567.89"),
    *("2020-2021", "2024-01-15", "01/02/2024", "05-06-2023 10:30", "0900-1700", "12:30:45"),
    *("500-1000 words", "900-300-2000 = -1400", "500-200-1000=", "2*555-234-5678"),
    *("12 +34567890", "x+12345678", "7+8=15", "0101 1010 0011", "001 002 003 004"),
    *("192.168.100.200", "4111 1111 1111 1111", "978-3-16-148410-0", "(100)2000-3000"),
    *("the phone costs 1234567", "call 1000 - 2000", "10-20-30-40", "$1000-200-3000"),
]


@pytest.mark.parametrize("number", PHONES)
def test_phone_numbers_go_wherever_they_stand(number):
    for text in ("{}", "Ring me: {}.", "({}), or <b>{}</b>", "**{}** today, please"):
        expected = text.replace("{}", "[PHONE]")
        assert scrubbers.phone_numbers(text.replace("{}", number)) == expected


def test_after_a_word_that_announces_one_shorter_forms_are_phone_numbers():
    text = "Call 555-1234, phone number is 98765 43210 (tel. 612 345 678), Fax: 234-5678 ok"
    expected = "Call [PHONE], phone number is [PHONE] (tel. [PHONE]), Fax: [PHONE] ok"
    assert scrubbers.phone_numbers(text) == expected


def test_a_row_of_numbers_is_none_but_a_row_of_phone_numbers_is():
    text = "300 400 5000 600 and 200 300 4000 50 60"
    assert scrubbers.phone_numbers(text) == text
    assert scrubbers.phone_numbers("555-234-5678 (555) 234-5679") == "[PHONE] [PHONE]"


@pytest.mark.parametrize("text", NO_PHONES)
def test_numbers_dates_and_sums_are_no_phone_numbers(text):
    assert scrubbers.phone_numbers(text) == text
    assert scrubbers.phone_numbers(f"It is {text}, he says.") == f"It is {text}, he says."


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("emails", "j.doe+x@mail.example.co.uk. <a@b.io>", "[EMAIL]. <[EMAIL]>"),
        ("emails", "jörg@müller.de wrote", "[EMAIL] wrote"),
        ("emails", "@handle a@b 3@4.5 f(x)@y", "@handle a@b 3@4.5 f(x)@y"),
        ("credit_cards", "4111 1111 1111 1111 12/26 123", "[CARD] 12/26 123"),
        ("credit_cards", "378282246310005; 5555-5555-5555-4444.", "[CARD]; [CARD]."),
        (
            "credit_cards",
            "4111111111111112, 1111222233334444",
            "4111111111111112, 1111222233334444",
        ),
        ("ip_addresses", "from 192.168.1.1/24 or 8.8.8.8.", "from [IP]/24 or [IP]."),
        ("ip_addresses", "2001:db8::8a2e:370:7334: fe80::1", "[IP]: [IP]"),
        (
            "ip_addresses",
            "999.1.1.1 1.2.3 1.2.3.4.5 10:30:45",
            "999.1.1.1 1.2.3 1.2.3.4.5 10:30:45",
        ),
        ("ip_addresses", "a[::2], std::vector, dead::beef", "a[::2], std::vector, dead::beef"),
        ("ibans", "DE89 3704 0044 0532 0130 00 is mine", "[IBAN] is mine"),
        (
            "ibans",
            "GB82 WEST 1234 5698 7654 32 AND FR1420041010050500013M02606",
            "[IBAN] AND [IBAN]",
        ),
        ("ibans", "DE89370400440532013001 XX89370400440532013000", None),
        ("secrets", "key=sk-proj-abcdef1234567890ABCDEF;", "key=[SECRET];"),
        ("secrets", "AKIAIOSFODNN7EXAMPLE ghp_" + "a1" * 18, "[SECRET] [SECRET]"),
        ("secrets", "Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc-def_", "Bearer [SECRET]"),
        ("secrets", f"a\n{KEY}\nb", "a\n[SECRET]\nb"),
        ("secrets", "sk-learn-something-with-a-long-name eyJust.text.here", None),
    ],
)
def test_each_scrubber_takes_its_own_and_nothing_that_only_looks_like_it(name, text, expected):
    scrub = find_function("scrubber", name, "retort.data.scrubbers")
    assert scrub(text) == (text if expected is None else expected)


def luhn(digits: str) -> bool:
    """Luhn's sum with a table of doubled digits, as on paper."""
    pairs = enumerate(map(int, reversed(digits)))
    return sum((0, 2, 4, 6, 8, 1, 3, 5, 7, 9)[d] if at % 2 else d for at, d in pairs) % 10 == 0


def test_exactly_the_card_numbers_with_a_right_sum_go():
    chance = random.Random(1)
    numbers = ["4" + "".join(chance.choices("0123456789", k=15)) for _ in range(500)]
    scrubbed = [number for number in numbers if scrubbers.credit_cards(number) == "[CARD]"]
    assert scrubbed == [number for number in numbers if luhn(number)]
    assert len(scrubbed) > 20


def test_an_account_with_one_wrong_digit_is_no_account():
    right = "NL91ABNA0417164300"
    assert scrubbers.ibans(right) == scrubbers.ibans(right.lower()) == "[IBAN]"
    for at in range(8, len(right)):
        wrong = right[:at] + str((int(right[at]) + 1) % 10) + right[at + 1 :]
        assert scrubbers.ibans(wrong) == wrong


@needs_gsm8k
def test_no_row_of_gsm8k_is_changed():
    rows = [json.loads(line) for line in GSM8K.read_text(encoding="utf-8").splitlines()]
    for text in [text for row in rows for text in (row["question"], row["answer"])]:
        for name in NAMES:
            assert getattr(scrubbers, name)(text) == text


def test_scrubbing_twice_is_scrubbing_once():
    text = ", ".join([*PHONES, *NO_PHONES, "a@b.io 8.8.8.8 NL91ABNA0417164300", KEY])
    for name in NAMES:
        once = getattr(scrubbers, name)(text)
        assert getattr(scrubbers, name)(once) == once


@pytest.mark.parametrize(
    "piece",
    ["a", "1", "1 ", "12-", "a.", "a@", "1.1.", ":", "DE89 ", "sk-", "(0", "+1 ", "call 12 "],
)
def test_time_grows_with_the_length_of_the_worst_text_only(piece):
    start = time.process_time()
    for name in NAMES:
        getattr(scrubbers, name)(piece * (60_000 // len(piece)))
    assert time.process_time() - start < 2


def test_scrubbers_are_found_by_name_and_an_unknown_one_is_told_what_there_is():
    first, *_, last = NAMES
    assert (first, last, len(NAMES)) == ("credit_cards", "secrets", 6)
    with pytest.raises(SpecError, match=r"did you mean 'emails'.*phone_numbers"):
        find_function("scrubber", "email", "retort.data.scrubbers")
