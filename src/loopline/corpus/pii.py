"""Personal data and secrets: found by pattern, confirmed by a validator, replaced by a typed placeholder.

Use: `scrub(text)` gives (clean text, counts by kind). It is deterministic and idempotent: the same text
always gives the same result, so mirrors that differ only in addresses become duplicates, and a placeholder stays.
Kinds: email, ip (public addresses only), phone, card (Luhn), iban (mod 97), ssn, secret (keys of known forms, JSON web
tokens, assignments to password-like names), private_key. Not covered: names and postal addresses.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loopline.corpus.document import Document
from loopline.corpus.funnel import Change


def luhn(digits: str) -> bool:
    """Whether the check digit of a card number fits (ISO/IEC 7812-1)."""
    total = 0
    for index, digit in enumerate(map(int, reversed(digits))):
        total += digit if index % 2 == 0 else digit * 2 - 9 * (digit > 4)
    return total % 10 == 0


def iban(text: str) -> bool:
    """Whether the check digits of an IBAN fit (ISO 13616, mod 97)."""
    compact = text.replace(" ", "").upper()
    if not 15 <= len(compact) <= 34:
        return False
    return int("".join(str(int(character, 36)) for character in compact[4:] + compact[:4])) % 97 == 1


def _public_ip(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _card(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    return 13 <= len(digits) <= 19 and digits[0] in "3456" and len(set(digits)) > 1 and luhn(digits)


def _ssn(text: str) -> bool:
    area, group, serial = text.split("-")
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def _phone(text: str) -> bool:
    return 10 <= sum(character.isdigit() for character in text) <= 15


def _email(text: str) -> bool:
    name, _, domain = text.partition("@")
    # git@github.com:owner/name is the address of a repository.
    return name.lower() != "git" and not domain.lower().endswith((".example", ".invalid", ".local"))


def _always(text: str) -> bool:
    return True


@dataclass(frozen=True)
class Kind:
    """One kind: `probe` must occur for the pattern to be tried, group `x` is replaced when `valid` agrees."""

    name: str
    probe: Callable[[str], bool]
    pattern: re.Pattern[str]
    valid: Callable[[str], bool] = _always


def _holds(*needles: str) -> Callable[[str], bool]:
    return lambda text: any(needle in text for needle in needles)


_DIGITS = re.compile(r"\d{3}[ .)-]|\d{9}").search
KINDS = (
    Kind(
        "private_key",
        _holds("PRIVATE KEY"),
        re.compile(r"(?P<x>-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z))", re.DOTALL),
    ),
    Kind(
        "secret",
        _holds("AKIA", "ASIA", "gh", "github_pat_", "sk-", "xox", "eyJ", "AIza", "glpat-", "hf_"),
        re.compile(
            r"(?<![A-Za-z0-9_-])(?P<x>(?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{40,}"
            r"|sk-[A-Za-z0-9_-]{20,}|xox[abprs]-[A-Za-z0-9-]{10,}|AIza[A-Za-z0-9_-]{35}|glpat-[A-Za-z0-9_-]{20,}"
            r"|hf_[A-Za-z0-9]{30,}|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,})(?![A-Za-z0-9_-])"
        ),
    ),
    Kind(
        "secret",
        lambda text: any(word in text.lower() for word in ("password", "passwd", "secret", "api_key", "apikey")),
        re.compile(
            r"(?i)\b(?:password|passwd|secret|api_?key)[\"']?\s*[:=]\s*[\"'](?P<x>(?=[^\"'\s]*\d)[^\"'\s\[\]{}<>%$]{8,})[\"']"
        ),
    ),
    Kind(
        "email",
        _holds("@"),
        re.compile(
            r"(?<![\w.+-])(?P<x>[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24})(?![\w@])"
        ),
        _email,
    ),
    Kind(
        "iban",
        lambda text: re.search(r"\b[A-Z]{2}\d{2}", text) is not None,
        re.compile(r"\b(?P<x>[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?)\b"),
        iban,
    ),
    Kind(
        "card",
        lambda text: _DIGITS(text) is not None,
        re.compile(r"(?<![\w.-])(?P<x>\d{4}(?:[ -]?\d{4}){2}[ -]?\d{1,7}|\d{4}[ -]?\d{6}[ -]?\d{5})(?![\w-]|\.\d)"),
        _card,
    ),
    Kind(
        "ssn",
        lambda text: _DIGITS(text) is not None,
        re.compile(r"(?<![\w.-])(?P<x>\d{3}-\d{2}-\d{4})(?![\w-]|\.\d)"),
        _ssn,
    ),
    Kind(
        "ip",
        lambda text: text.count(".") >= 3,
        re.compile(r"(?<![\w.-])(?P<x>(?:\d{1,3}\.){3}\d{1,3})(?![\w-]|\.\d)"),
        _public_ip,
    ),
    Kind(
        "ip",
        _holds("::", ":"),
        re.compile(
            r"(?<![\w:.])(?P<x>(?:[0-9A-Fa-f]{1,4}:){2,7}(?::?[0-9A-Fa-f]{1,4}){1,6}|(?:[0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4})(?![\w:])"
        ),
        _public_ip,
    ),
    Kind(
        "phone",
        lambda text: _DIGITS(text) is not None or "+" in text,
        re.compile(
            r"(?<![\w.+-])(?P<x>\+\d{1,3}[ .-]?(?:\(\d{1,4}\)|\d{1,4})(?:[ .-]?\d{2,4}){2,4}"
            r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}([-.])\d{3}\2\d{4})(?![\w-]|\.\d)"
        ),
        _phone,
    ),
)


def scrub(text: str) -> tuple[str, Counter[str]]:
    """Text with placeholders such as `[EMAIL]`, and how many of each kind were put in.

    Runs until nothing more is found, so a second call changes nothing; each round takes digits or letters away, so it
    ends.
    """
    counts: Counter[str] = Counter()
    while True:
        before = text
        for kind in KINDS:
            if kind.probe(text):
                text = kind.pattern.sub(_replacer(kind, counts), text)
        if text == before:
            return text, counts


def clean(text: str) -> str:
    """`scrub` without the counts."""
    return scrub(text)[0]


def _replacer(kind: Kind, counts: Counter[str]) -> Callable[[re.Match[str]], str]:
    def replace(match: re.Match[str]) -> str:
        whole, found = match.group(), match.group("x")
        if not kind.valid(found):
            return whole
        counts[kind.name] += 1
        start = match.start("x") - match.start()
        return f"{whole[:start]}[{kind.name.upper()}]{whole[start + len(found) :]}"

    return replace


def step(documents: Sequence[Document]) -> Change:
    """Scrub every natural document. Samples show the scrubbed text, never what was found."""
    change = Change()
    for number, document in enumerate(documents):
        if document.lane == "synthetic":
            continue
        text, counts = scrub(document.text)
        if counts:
            change.edited[number] = document.with_text(text)
            for kind, count in sorted(counts.items()):
                change.counts[kind] += count - 1
                mark = text.find(f"[{kind.upper()}]")
                change.cut.append((number, kind, text[max(0, mark - 60) : mark + 60]))
    return change
