"""Detectors of personal data and secrets, made for few false alarms: one teaches the model to avoid what is harmless.

So each asks for more than a look: a checksum, a known prefix, a cue word. Values reserved for documentation
(example.com, 555-0123, 192.0.2.1, keys that say EXAMPLE) are not reported. Repetitions are bounded, so that the time
grows no faster than the text.
"""

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain

from reward.config.rules import Detector
from reward.rules import tables

Span = tuple[int, int]


def detect(kind: Detector, text: str) -> Iterator[Span]:
    """Start and end of each thing of this kind in the text, from left to right."""
    free = 0
    for start, end in sorted(_DETECTORS[kind](text)):
        if start >= free:
            yield start, end
            free = end


def stands_in(found: str, text: str) -> bool:
    """Whether a text contains what was found, however it is spaced and punctuated there."""
    return _bare(found) in _bare(text)


def _bare(text: str) -> str:
    return re.sub(r"[\s().-]+", "", text).casefold()


# Personal data


_EMAIL = re.compile(
    r"(?<![\w.%+-])\w[\w.%+-]{0,63}@((?:[A-Za-z0-9-]{1,63}\.){1,8}([A-Za-z]{2,24}))"
    r"(?![\w@(-]|:[\w/])"  # not git@host:path
)
_RESERVED_DOMAIN = re.compile(r"(?:.*\.)?example\.(?:com|net|org)", re.IGNORECASE)  # RFC 2606


def _emails(text: str) -> Iterator[Span]:
    for match in _EMAIL.finditer(text):
        known = len(match[2]) == 2 or match[2].lower() in tables.TOP_LEVEL_DOMAINS
        if known and not _RESERVED_DOMAIN.fullmatch(match[1]):
            yield match.span()


_NOT_IN_A_SUM = r"(?<![\w.$+*/^=-])(?<![=+*/^)}\]-]\s)(?<![=+*/^-]\()(?<![=+*/^-]\s\()"
_NO_SUM_AFTER = r"(?![\w-]|[.,]\d|\s?[=+*/^$])"
_INTERNATIONAL = re.compile(
    rf"(?<!\d\s){_NOT_IN_A_SUM}\+[1-9]"
    rf"(?:\d{{9,14}}|\d{{0,2}}(?:[ .-]?\(\d{{1,5}}\))?(?:[ .-]\d{{1,8}}){{1,6}}){_NO_SUM_AFTER}"
)
_NORTH_AMERICAN = re.compile(
    rf"{_NOT_IN_A_SUM}(?:1[ .-])?(?:\([2-9]\d\d\)[ -]?|[2-9]\d\d[.-])([2-9]\d\d)[.-](\d{{4}}){_NO_SUM_AFTER}"
)
_AFTER_CUE = re.compile(
    r"\b(?:phone|telephone|tel|mobile|cell ?phone|fax|whatsapp)(?:\s(?:number|no|nr))?\s?(?:[.:=]|is\b)\s?"
    r"(\(?\d[\d ().-]{5,18}\d)(?!\w|[.,]\d)",
    re.IGNORECASE,
)


def _phones(text: str) -> Iterator[Span]:
    for match in _INTERNATIONAL.finditer(text):
        if 10 <= len(_digits(match[0])) <= 15:  # E.164 allows no more
            yield match.span()
    for match in _NORTH_AMERICAN.finditer(text):
        if match[1] != "555" or not match[2].startswith("01"):  # numbers kept for fiction
            yield match.span()
    for match in _AFTER_CUE.finditer(text):
        if 7 <= len(_digits(match[1])) <= 15:
            yield match.span(1)


_GROUPED_CARD = re.compile(
    r"(?<![\w.-])(?<!\d[ -])(?:\d{4}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{1,3})?|\d{4}([ -])\d{6}\2\d{4,5})"
    r"(?!\w|[ -]\d|[.,]\d)"
)
_BARE_CARD = re.compile(r"(?<![\w.-])\d{13,19}(?![\w-]|[.,]\d)")
_CARD_CUE = re.compile(r"\b(?:card|visa|master ?card|amex|american express|credit|debit|cc)\b", re.IGNORECASE)
_NETWORKS = re.compile(  # Visa, Mastercard, American Express, Discover, UnionPay, JCB, Diners
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|(?:6011|65\d\d|64[4-9]\d|62\d\d|35(?:2[89]|[3-8]\d))\d{12,15}|3(?:0[0-5]|[689]\d)\d{11}"
)


def _credit_cards(text: str) -> Iterator[Span]:
    grouped = (match.span() for match in _GROUPED_CARD.finditer(text))
    bare = (m.span() for m in _BARE_CARD.finditer(text) if _CARD_CUE.search(text, max(0, m.start() - 40), m.start()))
    for start, end in chain(grouped, bare):
        digits = _digits(text[start:end])
        if _NETWORKS.fullmatch(digits) and _luhn(digits):
            yield start, end


def _luhn(digits: str) -> bool:
    """ISO/IEC 7812-1, annex B: every second digit from the right doubled, all digits added up: a multiple of 10."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0


_IPV4 = re.compile(r"(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d|/\d)")
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:]|\.\d|/\d)")  # 2000::/3 is in use
_VERSION_CUE = re.compile(
    r"(?:\bv|\bver\.?|version|release|build|section|chapter|§|[=<>~]=)[\"' :=]{0,4}\Z", re.IGNORECASE
)

_OBJECT_IDENTIFIER = re.compile(
    r"(?:1\.[0-3]|2\.(?:5|16|23))\."
)  # 2.5.4.10: ITU-T X.660, far commoner than the address


def _ip_addresses(text: str) -> Iterator[Span]:
    """Public ones. 1.2.3.4 is none: with one digit in each part it is a version or a section, if not the address of a
    public name server."""
    for match in chain(_IPV4.finditer(text), _IPV6.finditer(text)):
        try:
            address = ipaddress.ip_address(match[0])
        except ValueError:
            continue
        is_version = len(match[0]) == len("1.2.3.4") or _VERSION_CUE.search(
            text[max(0, match.start() - 16) : match.start()]
        )
        is_identifier = _OBJECT_IDENTIFIER.match(match[0])
        if address.is_global and not address.is_multicast and not is_version and not is_identifier:
            yield match.span()


_IBAN_START = re.compile(r"(?<!\w)([A-Z]{2})[0-9]{2}(?=[ -]?[A-Z0-9])")


def _ibans(text: str) -> Iterator[Span]:
    """ISO 13616: the length of its country, and as a number, country and check digits last, 1 modulo 97."""
    for start in _IBAN_START.finditer(text):
        rest = tables.IBAN_LENGTHS.get(start[1], 0) - 4
        body = re.compile(rf"(?:[ -]?[A-Z0-9]){{{rest}}}(?!\w)").match(text, start.end()) if rest > 0 else None
        if body:
            moved = re.sub("[ -]", "", body[0]) + start[0]
            if int("".join(str(int(character, 36)) for character in moved)) % 97 == 1:
                yield start.start(), body.end()


# Secrets


_KEY_BLOCK = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_KEY_BODY = re.compile(r"[A-Za-z0-9+/]{40}")


def _private_keys(text: str) -> Iterator[Span]:
    """A PEM or PGP block with something in it: the mark alone is a mention."""
    for mark in _KEY_BLOCK.finditer(text):
        body = _KEY_BODY.search(text[mark.end() : mark.end() + 500].partition("-----")[0])
        if body:
            yield mark.start(), mark.end() + body.end()


_API_KEY = re.compile(
    r"(?<![\w-])(?:(?:AKIA|ASIA)([A-Z2-7]{16})"  # AWS
    r"|gh[pousr]_([A-Za-z0-9]{36,251})|github_pat_(\w{82})"
    r"|glpat-([\w-]{20,64})|xox[abprs]-([A-Za-z0-9-]{20,200})"  # GitLab, Slack
    r"|AIza([\w-]{35})|[rs]k_live_([A-Za-z0-9]{20,200})"  # Google, Stripe
    r"|sk-((?:ant-|proj-|svcacct-|admin-)?[\w-]{20,200})"  # Anthropic, OpenAI
    r"|hf_([A-Za-z0-9]{34,64})|npm_([A-Za-z0-9]{36})|pypi-(AgEI[\w-]{50,250})|SG\.([\w-]{20,32}\.[\w-]{32,64}))(?![\w-])",
    re.ASCII,
)
_PLACEHOLDER = re.compile(r"x{4}|\*{3}|\.{3}|example|your|placeholder|dummy|redacted|insert", re.IGNORECASE)
_COUNTING = re.compile("abcdef|123456", re.IGNORECASE)
_KINDS_OF_CHARACTERS = tuple(map(re.compile, ("[a-z]", "[A-Z]", "[0-9]")))


def _api_keys(text: str) -> Iterator[Span]:
    for match in _API_KEY.finditer(text):
        secret = match[match.lastindex or 0]
        kinds = sum(kind.search(secret) is not None for kind in _KINDS_OF_CHARACTERS)
        enough = 3 if match[0].startswith("sk-") else 2  # sk-learn-pipeline-of-2-steps
        is_made_up = _PLACEHOLDER.search(secret) or _COUNTING.search(secret)
        if kinds >= enough and _entropy(secret) >= 3 and not is_made_up:
            yield match.span()


def _entropy(text: str) -> float:
    """−Σ p log2 p over its characters, in bits: about 4 for 20 random ones, 0 for xxxx."""
    shares = [count / len(text) for count in Counter(text).values()]
    return -sum(share * math.log2(share) for share in shares)


_PASSWORD = re.compile(
    r"(?<![A-Za-z])(?:password|passwd|passphrase|passcode|pwd)[\"']?\s{0,3}(:=?|=(?!=)|is\b)\s{0,3}([\"'`]?)([^\s\"'`]{4,64})"
    r"([\"'`]?)([^\n]{0,40})",
    re.IGNORECASE,
)
_CODE = re.compile(r"[(\[{<$\\]|\A[%&]|\A[A-Za-z_]\w*(?:\.\w+)+\Z")


def _passwords(text: str) -> Iterator[Span]:
    for match in _PASSWORD.finditer(text):
        sign, opening, value, closing, rest = match.groups()
        value = value.rstrip(".,;:)]}")
        is_quoted = opening != "" and opening == closing
        is_alone = sign == ":" and not rest.strip(" .,;\r")
        if len(value) >= 4 and _is_password(value, may_be_a_word=is_quoted or is_alone):
            yield match.start(3), match.start(3) + len(value)


def _is_password(value: str, *, may_be_a_word: bool) -> bool:
    """Not code, not a placeholder; a plain word only where nothing else could stand."""
    if _CODE.search(value) or _PLACEHOLDER.search(value) or value.lower() in tables.NO_PASSWORDS:
        return False
    letters, digits, signs = (re.search(kind, value) for kind in ("[A-Za-z]", "[0-9]", "[!@#%^&*?~+]"))
    is_word = may_be_a_word and letters and "password" not in value.lower()
    return bool(value.isdecimal() or (letters and (digits or signs)) or is_word)


def _digits(text: str) -> str:
    return re.sub("[^0-9]", "", text)


_DETECTORS: dict[Detector, Callable[[str], Iterator[Span]]] = {
    "email": _emails,
    "phone": _phones,
    "credit_card": _credit_cards,
    "ip_address": _ip_addresses,
    "iban": _ibans,
    "private_key": _private_keys,
    "api_key": _api_keys,
    "password": _passwords,
}
