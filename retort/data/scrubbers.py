r"""Scrubbers replace personal data in a text; `prepare.scrub` names them, in order.

They recognise patterns; the names and addresses of people need a model. Your own scrubber is a
function from text to text, named as `package.module:name`. A file `mine.py` with Microsoft
Presidio, for example:

    from presidio_analyzer import AnalyzerEngine
    from presidio_anonymizer import AnonymizerEngine
    find, replace = AnalyzerEngine(), AnonymizerEngine()
    def people(text: str) -> str:
        return replace.anonymize(text, find.analyze(text, language="en")).text
"""

import ipaddress
import re

# A pattern only matches from the start of a run of its characters, which keeps time linear.
_EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[^\W_][\w-]{0,62}\.)+[^\W\d_]{2,24}\b")

_PHONES = re.compile(
    r"""(?<![\w@/+-])(?<!\d[.,])(?:
    \+\d{1,3}[ .-]?\(\d{1,5}\)\d{0,10}(?:[ ./-]\d{2,10}){0,5}         # +44 (0)20 7946 0958
  | \+\d{1,3}(?:[ .-]\d(?=[ .-]))?(?:[ ./-]\d{2,10}){1,6}             # +33 6 12 34 56 78
  | \+\d{8,15}
  | (?:1[ .-])?\([2-9]\d\d\)[ -]?[2-9]\d\d[ .-]\d{4}                  # (555) 234-5678
  | (?:1[ .-])?[2-9]\d\d(?P<a>[ .-])[2-9]\d\d(?P=a)\d{4}              # 555-234-5678
  | 1[3-9]\d(?P<b>[ -])\d{4}(?P=b)\d{4}                               # 138 1234 5678
  | 0\d(?P<c>[ .-])\d\d(?:(?P=c)\d\d){3}                              # 06 12 34 56 78
  | \(0\d{1,4}\)[ /-]?\d{3,9}(?:[ -]\d{2,5})?                         # (030) 1234567
  | \(\d{2,4}\)[ ]\d{3,5}[ -]\d{3,5}                                  # (11) 91234-5678
  | 0\d{1,4}[ ]?[ /-][ ]?\d{2,8}(?:[ -]\d{2,8}){0,3}                  # 020 7946 0958
    )(?:[ ]?(?:x|ext\.?)[ ]?\d{1,6})?(?![\w+]|[.,/-]\d)""",
    re.VERBOSE,
)
# After a word such as "phone", any digits in groups are a phone number.
_ANNOUNCED = re.compile(
    r"(?i)(?<!\w)((?:(?:tele)?(?:phone|fax)|tel|mobile|cell|whatsapp|call|dial)"
    r"(?: (?:number|no|nr|me|us|at|on|is|or))*[.:]* ?)"
    r"(\(?\d{2,5}\)?(?:[ .-]\d{2,5}){1,4})(?![\w+*=]|[.,/-]\d| \d| [=*+])"
)
# Numbers that only look like phone numbers: dates, opening hours.
_NO_PHONE = re.compile(r"(\d{1,2})([ ./-])\d{1,2}\2\d{4}(?!\d)|0\d{3} ?- ?[012]\d{3}$")
_SUM_BEFORE = re.compile(r"\d\s*[*/^\xd7\xf7]\s*$")
_SUM_AFTER = re.compile(r"\s*(?:=|[*/^\xd7\xf7]\s*\d)|\s[+-]\s*\d")

_CARD = re.compile(
    r"(?<!\w)(?<!\d[.,-])(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}|\d{4}([ -])\d{6}\2\d{4,5})"
    r"(?!\w|[.,]\d)"
)
# Visa, Mastercard, American Express, Diners, JCB, Discover, UnionPay, Maestro.
_ISSUED = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|(?:5[1-5]|2[2-7])\d{14}|3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11}"
    r"|35\d{14}|(?:5[06-8]|6\d)\d{14,17}"
)

_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f:]{5,39}(?![\w:])")

# The countries of each length of an IBAN.
_IBAN_COUNTRIES = {
    15: "NO", 16: "BE", 18: "DK FI FK FO GL NL SD", 19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK", 21: "CH HR LI LV", 22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM SO TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST",
    26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
    29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
}  # fmt: skip
_IBAN = re.compile(
    r"(?<![^\W_])(?=[A-Z]{2}\d\d)(?:"
    + "|".join(
        f"(?:{countries.replace(' ', '|')})\\d\\d(?:[ -]?[A-Z0-9]){{{length - 4}}}"
        for length, countries in _IBAN_COUNTRIES.items()
    )
    + r")(?![^\W_])",
    re.IGNORECASE | re.ASCII,
)

_SECRET = re.compile(
    r"""-----BEGIN\ [A-Z ]*PRIVATE\ KEY-----.*?(?:-----END\ [A-Z ]*PRIVATE\ KEY-----|\Z)
  | (?<![\w-])(?:
        sk-(?=[\w-]*\d)[\w-]{20,}                          # OpenAI, Anthropic
      | [sr]k_(?:live|test)_[A-Za-z0-9]{16,}               # Stripe
      | (?:AKIA|ASIA)[A-Z0-9]{16}                          # AWS
      | gh[pousr]_[A-Za-z0-9]{36,} | github_pat_\w{22,} | glpat-[\w-]{20,}
      | hf_[A-Za-z0-9]{30,}
      | xox[abeoprs]-[A-Za-z0-9-]{10,}                     # Slack
      | AIza[\w-]{35}                                      # Google
      | eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*                 # JSON Web Token
    )(?![\w-])""",
    re.VERBOSE | re.DOTALL | re.ASCII,
)


def emails(text: str) -> str:
    """Replaces e-mail addresses by [EMAIL]."""
    return _EMAIL.sub("[EMAIL]", text) if "@" in text else text


def phone_numbers(text: str) -> str:
    """Replaces phone numbers by [PHONE].

    A phone number has at least 8 digits after a +, grouped as in North America or China, or after
    a trunk 0 or an area code in brackets; after a word such as phone or call, 7 digits in groups
    are enough. Dates, hours, decimals and numbers beside an operator are kept.
    """
    return _ANNOUNCED.sub(_announced, _PHONES.sub(_phone, text))


def credit_cards(text: str) -> str:
    """Replaces card numbers by [CARD]: an issuer's format and a right checksum (Luhn)."""
    return _CARD.sub(_card, text)


def ip_addresses(text: str) -> str:
    """Replaces IPv4 and IPv6 addresses by [IP].

    A version of four numbers looks like an IPv4 address and is replaced too. `::1` is kept: it
    identifies nobody, and it is a slice in Python.
    """
    text = _IPV4.sub(lambda match: "[IP]" if _is_ip(match[0]) else match[0], text)
    return _IPV6.sub(_ipv6, text) if ":" in text else text


def ibans(text: str) -> str:
    """Replaces bank accounts by [IBAN]: the length of the country and a right checksum.

    Lengths: SWIFT IBAN registry; checksum: ISO 7064, mod 97 is 1.
    """
    return _IBAN.sub(lambda match: "[IBAN]" if _is_iban(match[0]) else match[0], text)


def secrets(text: str) -> str:
    """Replaces keys and tokens in the formats of well-known issuers by [SECRET]."""
    return _SECRET.sub("[SECRET]", text)


def _phone(match: re.Match[str]) -> str:
    number, text = match[0], match.string
    groups = re.findall(r"\d+", number)
    digits = "".join(groups)
    before = text[max(0, match.start() - 8) : match.start()]
    in_a_sum = _SUM_BEFORE.search(before) or _SUM_AFTER.match(text, match.end())
    signed = number[0] == "+" and len(groups) == 1
    added = signed and re.search(r"[\d)]\s*$", before)
    decimal = number[0] == "+" and re.fullmatch(r"\+\d+\.\d+", number)
    padded = set(digits) <= {"0", "1"} or all(group[0] == "0" for group in groups)
    listed = number.replace(" ", "").isdigit() and re.match(r" \d", text[match.end() :][:2])
    refused = in_a_sum or added or decimal or padded or listed or _NO_PHONE.match(number)
    return number if refused or not 8 <= len(digits) <= 21 else "[PHONE]"


def _announced(match: re.Match[str]) -> str:
    digits = re.sub(r"\D", "", match[2])
    refused = _NO_PHONE.match(match[2]) or not 7 <= len(digits) <= 15
    return match[0] if refused else f"{match[1]}[PHONE]"


def _card(match: re.Match[str]) -> str:
    digits = re.sub(r"\D", "", match[0])
    doubled = (int(digit) * (2 - at % 2) for at, digit in enumerate(digits[::-1], start=1))
    total = sum(number - 9 if number > 9 else number for number in doubled)
    return "[CARD]" if total % 10 == 0 and _ISSUED.fullmatch(digits) else match[0]


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _ipv6(match: re.Match[str]) -> str:
    """Requires two groups and a digit, as `a::b` is a name in C++; keeps a colon at the end."""
    address = match[0].rstrip(":") if not match[0].endswith("::") else match[0]
    groups = [group for group in address.split(":") if group]
    named = len(groups) < 2 or not any(letter.isdigit() for letter in address)
    return match[0] if named or not _is_ip(address) else "[IP]" + match[0][len(address) :]


def _is_iban(text: str) -> bool:
    account = re.sub(r"[ -]", "", text).upper()
    return int("".join(str(int(letter, 36)) for letter in account[4:] + account[:4])) % 97 == 1
