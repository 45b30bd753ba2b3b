"""Personal data and secrets: what is found, what only looks like it, and that neither page nor log shows it."""

from __future__ import annotations

import time

import pytest

from dipole.data.audit.personal import find, iban, luhn, mask


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to anna.smith+news@mail.co.uk today", "e-mail address"),
        ("card 4111 1111 1111 1111", "payment card"),
        ("card 5500-0000-0000-0004.", "payment card"),
        ("IBAN DE89 3704 0044 0532 0130 00", "account number (IBAN)"),
        ("GB82WEST12345698765432", "account number (IBAN)"),
        ("call +44 20 7946 0958", "phone number"),
        ("call (415) 555-2671", "phone number"),
        ("server 93.184.216.34 is down", "IP address"),
        ("my number is 123-45-6789", "social security number"),
        ("AKIAIOSFODNN7EXAMPLE", "API key"),
        ("ghp_" + "a1" * 18, "API key"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n", "private key"),
    ],
)
def test_found_and_masked(text: str, kind: str) -> None:
    ((found_kind, found),) = find(text)
    assert found_kind == kind
    assert found not in mask(text)
    assert f"[{kind}]" in mask(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a @ b",
        "someone@example.com",  # reserved for examples
        "4111 1111 1111 1112",  # Luhn's check fails
        "0000 0000 0000 0000",
        "DE89 3704 0044 0532 0130 01",  # so does the check of the account number
        "127.0.0.1, 10.0.0.1, 192.168.1.1, 0.0.0.0",
        "version 1.2.3.4.5",
        "300.1.1.1",
        "in 1984, 2001 and 2010",
        "3.14159265358979323846",
        "ISBN 978-3-16-148410-0",
        "000-12-3456",
        "skeleton sk-short",
        "x = 12345 - 67890",
    ],
)
def test_what_only_looks_like_it(text: str) -> None:
    assert list(find(text)) == []
    assert mask(text) == text


def test_checksums() -> None:
    assert luhn("79927398713000") is False
    assert luhn("4012888888881881")
    assert iban("FR1420041010050500013M02606")
    assert not iban("FR1420041010050500013M02607")


@pytest.mark.parametrize(
    "part", ["1 ", "a@", "+1-", "A", "DE89", ".", "a.", "eyJ", "-----BEGIN PRIVATE KEY-----", "1-2-3"]
)
def test_hostile_text_takes_no_time(part: str) -> None:
    text = part * (100_000 // len(part))
    began = time.process_time()
    list(find(text))
    assert time.process_time() - began < 2
