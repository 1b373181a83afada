"""A reward for staying in the language of the prompt, by Unicode scripts and a few frequent words.

What it can tell: which script a text is written in (Latin, Cyrillic, Greek, Arabic, Hebrew, Devanagari, Thai, Hangul
and whatever else Unicode names), Chinese from Japanese by kana, and, among the languages of `FREQUENT_WORDS`, which
Latin-script language a stretch of running text is in. What it cannot tell: languages of one script that have no row
there (Ukrainian from Russian, Persian from Arabic, Danish from Swedish), simplified from traditional Chinese, and the
language of single words and names. Where it cannot tell, the text counts as consistent.
"""

import functools
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from grpo_ext.rewards.rows import Completion, completion_text

# The words of a running text that its neighbours do not have, or have far less often.
FREQUENT_WORDS: dict[str, frozenset[str]] = {
    "en": frozenset(
        "the of and to is that it for with as was are this be have from or by not we they you which has so if then "
        "each how many what there were will would can she his her its".split()
    ),
    "de": frozenset(
        "der die das und ist nicht ein eine einen zu mit auf für von dem den sich es wir sie ich auch als aus bei "
        "nach wie wenn dann hat haben sind wird jede jeder insgesamt also über oder".split()
    ),
    "fr": frozenset(
        "le la les des et est une du que qui dans pour pas sur avec il elle nous vous ce cette sont au aux par plus "
        "donc chaque ont ou mais combien".split()
    ),
    "es": frozenset(
        "el la los las de y es que en un una por para con no se del al lo su sus como más pero cada hay son tiene "
        "entonces cuántos cuántas".split()
    ),
    "it": frozenset(
        "il lo la gli le di e è che un una per con non si del della dei delle nel sono ha come più ma ogni quindi "
        "quanti quante".split()
    ),
    "pt": frozenset(
        "os de é que em um uma por para com não se da dos das na são tem como mais mas cada então isso ele ela você "
        "quantos quantas".split()
    ),
    "nl": frozenset(
        "de het een en is van niet dat te met op voor zijn er aan ook als bij uit naar wij ze hij dan heeft hebben "
        "wordt hoeveel elke dus".split()
    ),
}

# What belongs to no language: code, formulas, tags, addresses.
_NO_LANGUAGE = re.compile(
    r"```[^`]*```|`[^`\n]*`|\$\$[^$]*\$\$|\$[^$\n]*\$|\\\[.{0,2000}?\\\]|\\\(.{0,500}?\\\)"
    r"|\\begin\{.{0,2000}?\\end\{[a-z*]{0,20}\}|\\[A-Za-z]+|https?://\S+|</?[A-Za-z][\w-]{0,30}>",
    re.DOTALL,
)
_UNIT = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_SENTENCE_END = re.compile(r"[.!?;\n]+")
WINDOW = 12  # words that are judged together
MAX_CHARACTERS = 50_000  # only the beginning of a longer text is read
_CHARACTERWISE = {"CJK", "HIRAGANA", "KATAKANA"}  # scripts without spaces, in which a character counts as a word
_KANA_SHARE = 0.05  # Japanese prose has several times as much kana


@functools.lru_cache(maxsize=20_000)
def script_of(character: str) -> str:
    """Return the script of a letter, the first word of its Unicode name: "LATIN", "CJK", "CYRILLIC"."""
    return unicodedata.name(character, "UNKNOWN").split()[0].split("-")[0]


@functools.cache
def _is_script(name: str) -> bool:
    """Tell whether `script_of` gives this name to any letter."""
    letters = (character for character in map(chr, range(sys.maxunicode + 1)) if character.isalpha())
    return name.isalpha() and any(unicodedata.name(x, "").startswith((f"{name} ", f"{name}-")) for x in letters)


def _named(language: Any, row: int) -> str:
    """Return a name of a language, or raise where `language_of` returns no such name."""
    names = ("zh", "ja", *FREQUENT_WORDS)
    if language in names or (isinstance(language, str) and _is_script(language)):
        return language
    lower = str(language).lower()
    way_out = f"write {lower!r}" if lower in names else f"use one of {', '.join(names)}, or a script such as CYRILLIC"
    raise ValueError(f"column 'language' has {language!r} in row {row}, which names no language; {way_out}.")


def _prose(text: str) -> str:
    """Return the part of a text that is read, without what belongs to no language."""
    return _NO_LANGUAGE.sub(" ", unicodedata.normalize("NFKC", text[:MAX_CHARACTERS]))


def _units(text: str) -> list[tuple[str, str]]:
    """Split a text into words, or characters where a script has no spaces, each with its script."""
    units = []
    for word in _UNIT.findall(text):
        start = 0
        for end in range(1, len(word) + 1):
            script = script_of(word[start])
            if script in _CHARACTERWISE or end == len(word) or script_of(word[end]) in _CHARACTERWISE:
                units.append((script, word[start:end].lower()))
                start = end
    return units


def _latin_language(words: Sequence[str]) -> str | None:
    """Return the row of `FREQUENT_WORDS` that most words belong to, or `None` without a clear winner."""
    # Different words of two letters at least: one repeated word may be a name, a single letter is a variable.
    different = {word for word in words if len(word) > 1}
    hits = Counter({name: len(different & frequent) for name, frequent in FREQUENT_WORDS.items()})
    (first, most), (_, second) = hits.most_common(2)
    return first if most >= 2 and most > second else None


def language_of(text: str) -> str | None:
    """Return the language of a text as far as it can be told.

    Args:
        text: Any text; code, formulas and tags in it are passed over.

    Returns:
        "zh", "ja", a key of `FREQUENT_WORDS`, or the name of a script in capital letters ("LATIN", "HANGUL") where
        the script is all that can be told; `None` for a text without words.
    """
    text = _prose(text)
    units = _units(text)
    if not units:
        return None
    scripts = Counter(script for script, _ in units)
    kana, han = scripts["HIRAGANA"] + scripts["KATAKANA"], scripts["CJK"]
    main = "CJK" if kana + han >= max(scripts.values()) else scripts.most_common(1)[0][0]
    if main == "CJK":
        return "ja" if kana > _KANA_SHARE * (kana + han) else "zh"
    if main == "LATIN":
        return _latin_language([word for script, word in units if script == "LATIN"]) or "LATIN"
    return main


def consistency(text: str, language: str) -> float:
    """Return the share of the words of a text that are in a language, as `language_of` names them.

    Returns:
        A number from 0 to 1; 1 for a text without words, which is in no other language.
    """
    text = _prose(text)
    units = _units(text)
    if not units:
        return 1.0
    if language in ("zh", "ja"):
        kana = sum(script in ("HIRAGANA", "KATAKANA") for script, _ in units)
        han = sum(script == "CJK" for script, _ in units)
        if language == "zh":
            japanese = kana > _KANA_SHARE * (kana + han)
            return 0.0 if japanese else han / len(units)
        chinese = han >= WINDOW and kana <= _KANA_SHARE * (kana + han)
        return (kana if chinese else kana + han) / len(units)
    wanted = "LATIN" if language in FREQUENT_WORDS else language
    good = sum(script == wanted for script, _ in units)
    if language in FREQUENT_WORDS:
        for sentence in _SENTENCE_END.split(text):
            words = [word for script, word in _units(sentence) if script == wanted]
            for start in range(0, len(words), WINDOW):
                window = words[start : start + WINDOW]
                if _latin_language(window) not in (language, None):
                    good -= len(window)
    return good / len(units)


def language_consistency(
    completions: Sequence[Completion],
    prompts: Sequence[str | Sequence[Mapping[str, Any]]] | None = None,
    language: Sequence[str | None] | None = None,
    **kwargs: Any,
) -> list[float | None]:
    """Score the share of a completion's words that are in the language of its prompt, from 0 to 1.

    The language of a conversation is that of its last user message. Code, formulas and tags count for no language. The
    module's docstring says what can be told apart.

    Args:
        completions: B strings, or B lists of messages.
        prompts: B prompts, which TRL passes.
        language: Dataset column of B names as `language_of` returns them, which come before the prompts' own language.
        kwargs: What else TRL passes; not used.

    Returns:
        B scores, `None` where the prompt has no words and the row no language.

    Raises:
        ValueError: There are neither prompts nor a column `language`, their number is not that of the completions, or
            an entry of the column names no language.
    """
    rows = len(completions)
    for name, column in (("prompts", prompts), ("language", language)):
        if column is not None and (isinstance(column, str) or len(column) != rows):
            raise ValueError(f"{name} given to reward 'language_consistency' must be a list of {rows} entries.")
    if prompts is None and language is None:
        raise ValueError(
            "reward 'language_consistency' needs prompts, or a dataset column 'language'; it has neither."
        )
    scores: list[float | None] = []
    for row, completion in enumerate(completions):
        wanted = None
        if language is not None and language[row] is not None:
            wanted = _named(language[row], row)
        elif prompts is not None:
            wanted = language_of(_question(prompts[row]))
        scores.append(None if wanted is None else consistency(completion_text(completion), wanted))
    return scores


def _question(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """Return the text of a prompt, of a conversation its last user message."""
    if isinstance(prompt, str):
        return prompt
    asked = [message for message in prompt if message.get("role") == "user"] or list(prompt)
    return completion_text(asked[-1:])
