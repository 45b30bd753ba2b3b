"""Personal data and secrets: found by their shape, confirmed by a checksum where the kind has one, and masked.

Written by hand, since the libraries for it load language models of hundreds of megabytes. Every pattern is linear in
the length of the text, and a text is searched only if it holds a character that the pattern can't do without.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Kind(NamedTuple):
    """A kind of personal data.

    Args:
        name: in words.
        needs: a text without any of these holds none.
        pattern: what it looks like.
        is_real: confirms a match.
    """

    name: str
    needs: tuple[str, ...]
    pattern: re.Pattern[str]
    is_real: Callable[[str], bool] = bool


def _digits(text: str) -> str:
    return re.sub(r"\D", "", text)


def luhn(text: str) -> bool:
    """Whether the digits of a payment card's number pass Luhn's check (ISO/IEC 7812-1)."""
    digits = [int(digit) for digit in _digits(text)]
    if not 13 <= len(digits) <= 19 or len(set(digits)) < 2:
        return False
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(digits[::-2]) + sum(doubled)) % 10 == 0


def iban(text: str) -> bool:
    """Whether an account number passes its check modulo 97 (ISO 13616)."""
    code = text.replace(" ", "")
    if not 15 <= len(code) <= 34:
        return False
    return int("".join(str(int(character, 36)) for character in code[4:] + code[:4])) % 97 == 1


def _public_address(text: str) -> bool:
    numbers = [int(part) for part in text.split(".")]
    private = numbers[0] in (0, 10, 127, 255) or numbers[:2] == [192, 168] or numbers[0] >= 224
    return all(number <= 255 for number in numbers) and not private and any(numbers[1:])


def _phone(text: str) -> bool:
    return 9 <= len(_digits(text)) <= 15


def _security_number(text: str) -> bool:
    area, group, serial = text.split("-")
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


KINDS = (
    Kind(
        "private key",
        ("PRIVATE KEY",),
        re.compile(r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----[A-Za-z0-9+/=\s]{0,4000}"),
    ),
    Kind(
        "API key",
        ("AKIA", "ASIA", "gh", "sk-", "sk_live", "xox", "AIza", "hf_", "glpat-", "eyJ"),
        re.compile(
            r"\b(?:(?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{36}|sk-[A-Za-z0-9_-]{20,200}|sk_live_[A-Za-z0-9]{20,99}"
            r"|xox[abprs]-[A-Za-z0-9-]{10,200}|AIza[A-Za-z0-9_-]{35}|hf_[A-Za-z0-9]{30,60}|glpat-[A-Za-z0-9_-]{20}"
            r"|eyJ[A-Za-z0-9_-]{10,2000}\.eyJ[A-Za-z0-9_-]{10,2000}\.[A-Za-z0-9_-]{10,500})"
        ),
    ),
    Kind(
        "e-mail address",
        ("@",),
        re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,4}\.[A-Za-z]{2,24}\b"),
        lambda text: not text.lower().rpartition("@")[2].startswith("example."),
    ),
    Kind("account number (IBAN)", (), re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), iban),
    Kind("payment card", (), re.compile(r"(?<![\d.-])\d(?:[ -]?\d){12,18}(?![\d-]|\.\d)"), luhn),
    Kind("social security number", ("-",), re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])"), _security_number),
    Kind("IP address", (".",), re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.])"), _public_address),
    Kind(
        "phone number",
        ("+", "(", "-"),
        re.compile(
            r"(?<![\w+])(?:\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,5}\d{2,4}|\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4})(?!\w)"
        ),
        _phone,
    ),
)

_WITHOUT_DIGITS = ("private key", "e-mail address", "API key")
_DIGITS = re.compile(r"\d\D{0,2}\d\D{0,2}\d\D{0,2}\d")


def find(text: str) -> Iterator[tuple[str, str]]:
    """Every (kind, match) in a text."""
    has_digits = _DIGITS.search(text) is not None
    for kind in KINDS:
        if not has_digits and kind.name not in _WITHOUT_DIGITS:
            continue
        if kind.needs and not any([need in text for need in kind.needs]):  # noqa: C419 - a list is faster here
            continue
        for match in kind.pattern.finditer(text):
            if kind.is_real(match[0]):
                yield kind.name, match[0]


def mask(text: str) -> str:
    """The text with personal data and secrets replaced by their kind."""
    for kind, found in list(find(text)):
        text = text.replace(found, f"[{kind}]")
    return text
