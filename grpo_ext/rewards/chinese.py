"""Numbers in Chinese answers: 二十三, 3万, 五分之二, 百分之二十, 一半, with units and the words around them."""

import math
import re
from fractions import Fraction

from grpo_ext.rewards.exact import number
from grpo_ext.rewards.spellings import FOLD_ALL

DIGITS = {
    character: value
    for value, characters in enumerate("零〇 一 二两 三 四 五 六 七 八 九".split())
    for character in characters
}
_SMALL, _LARGE = {"十": 10, "百": 100, "千": 1000}, {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
MAX_CHARACTERS = 200

_HAN = re.compile(r"[\u4e00-\u9fff]")
# A thousand of gram or metre is a unit, not a factor.
_NUMERAL = r"(?:[零〇一二两三四五六七八九十百万亿]|千(?![克米瓦卡升帕]))+(?:点[零〇一二三四五六七八九]+)?"
_ARABIC = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?"
_ANY = rf"(?:{_ARABIC}|{_NUMERAL})"
_PERCENT = re.compile(rf"百分之({_ANY})")
_PARTS = re.compile(rf"(?:({_ANY})又)?({_ANY})分之({_ANY})")
_SCALES = r"(?:[万萬亿億]|[百千](?![克米瓦卡升帕分]))+"
_PART = re.compile(rf"({_ARABIC})\s*({_SCALES})")
_SCALED = re.compile(rf"(?:{_ARABIC}\s*{_SCALES})+(?:{_ARABIC})?")
# 负 also begins words, such as 负责 and 负担
_MINUS = re.compile(rf"负\s*(?={_ANY})")
_NUMBER = re.compile(rf"-?(?:{_ARABIC})(?:/[0-9]+)?%?")
_ROUND = re.compile(r"[0-9]|%")
# Words that make the number beside them another one, or one of several.
_REFUSED = re.compile(r"或|不|非|没|负(?![责担])|多于|少于|超过|大于|小于|以上|以下|半|至|到|余|倒数|和|与|…")
_WORDS = re.compile(r"[\s\u4e00-\u9fff,.:;!?，。：；！？、()（）=*A-Za-z°²³$¥/-]*")
_HALF = frozenset({"一半", "半", "二分之一"})


def has_chinese(text: str) -> bool:
    """Tell whether a text holds a Chinese character."""
    return _HAN.search(text) is not None


def numeral(text: str) -> Fraction | None:
    """Read a number in Chinese characters: 三百零五 is 305, 三点一四 is 3.14, 二〇二四 is 2024."""
    whole, _, decimals = text.partition("点")
    if whole and all(character in DIGITS for character in whole):
        value = Fraction(int("".join(str(DIGITS[character]) for character in whole)))
    else:
        parsed = _positional(whole)
        if parsed is None:
            return None
        value = Fraction(parsed)
    if decimals:
        value += Fraction(int("".join(str(DIGITS[digit]) for digit in decimals)), 10 ** len(decimals))
    return value


def _positional(text: str) -> int | None:
    """Read units of ten thousand, within them thousands, hundreds and tens. A bare last digit counts ones."""
    total = section = digit = 0
    for character in text:
        if character in DIGITS:
            if digit:
                return None  # two digits in a row belong to the other way of writing
            digit = DIGITS[character]
        elif character in _SMALL:
            section += (digit or 1) * _SMALL[character]
            digit = 0
        elif character in _LARGE:
            if character in "亿億":
                total = (total + section + digit) * _LARGE[character]
            else:
                total += (section + digit) * _LARGE[character]
            section = digit = 0
        else:
            return None
    return total + section + digit if text else None


def _plain(text: str) -> str | None:
    """Write one number, Arabic or Chinese, in Arabic digits; fractions as `a/b`."""
    value = number(text) if text[:1].isdigit() else numeral(text)
    if value is None:
        return None
    return str(value.numerator) if value.denominator == 1 else f"{value.numerator}/{value.denominator}"


def chinese_number(text: str) -> tuple[Fraction, bool] | None:
    """Read a Chinese answer that holds exactly one number.

    Arabic digits come before Chinese ones: in "第二次拍了68下" the number is 68. Words around it are taken for
    units and the sentence; "7或8", "不是7", "3元5角" and "3个半" hold no single number.

    Args:
        text: The answer alone.

    Returns:
        The number as written and whether it is in per cent, or `None`.
    """
    text = text.strip().translate(FOLD_ALL).strip(" 。.!！,")
    if not text or len(text) > MAX_CHARACTERS:
        return None
    if text in _HALF:
        return Fraction(1, 2), False
    text = _MINUS.sub("-", text)
    for pattern, write in ((_PERCENT, "{0}%"), (_PARTS, None)):
        if found := pattern.search(text):
            numbers = [None if part is None else _plain(part) for part in found.groups()]
            if any(part is not None and value is None for part, value in zip(found.groups(), numbers, strict=True)):
                return None
            if write is None:
                whole, under, over = (None if value is None else Fraction(value) for value in numbers)
                if over is None or not under:
                    return None
                value = over / under + (whole or 0)
                written = f"{value.numerator}/{value.denominator}"
            else:
                value = Fraction(numbers[0] or 0)
                written = write.format(_decimal(value))
            text = text[: found.start()] + written + text[found.end() :]
    if not _ROUND.search(text):
        numerals = list(re.finditer(_NUMERAL, text))
        only = numeral(numerals[0][0]) if len(numerals) == 1 else None
        if only is None:
            return None
        text = text[: numerals[0].start()] + _decimal(only) + text[numerals[0].end() :]
    text = _SCALED.sub(_written_out, text)
    runs = list(_NUMBER.finditer(text))
    if len(runs) != 1:
        return None
    outside = text[: runs[0].start()] + text[runs[0].end() :]
    if _REFUSED.search(outside) or not _WORDS.fullmatch(outside):
        return None
    read = number(runs[0][0].rstrip("%"))
    return None if read is None else (read, runs[0][0].endswith("%"))


def _written_out(found: re.Match[str]) -> str:
    """Add up 1万2千 or 1万2000; what does not fill the places it leaves, such as 2万3, stays as two numbers."""
    total, scale, end = Fraction(0), None, 0
    for part in _PART.finditer(found[0]):
        factor = math.prod({**_SMALL, **_LARGE}[character] for character in part[2])
        value = Fraction(part[1].replace(",", "")) * factor
        if scale is not None and value >= scale:
            return found[0]
        total, scale, end = total + value, factor, part.end()
    rest = found[0][end:].replace(",", "")
    if rest and len(rest.partition(".")[0]) != len(str(scale)) - 1:
        return found[0]
    return _decimal(total + Fraction(rest or 0))


def _decimal(value: Fraction) -> str:
    """Write a value with a finite decimal expansion as digits, another one as a fraction."""
    if value.denominator == 1:
        return str(value.numerator)
    twos = value.denominator
    digits = 0
    while digits < 40 and 10**digits % twos:
        digits += 1
    if 10**digits % twos:
        return f"{value.numerator}/{value.denominator}"
    whole, part = divmod(value.numerator * 10**digits // twos, 10**digits)
    return f"{whole}.{part:0{digits}d}"
