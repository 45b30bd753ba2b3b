"""The language of a text, roughly: by its script, and for scripts of many languages by their commonest words.

Written by hand, since libraries for it bring models of a hundred megabytes. It tells the languages below from each
other in texts of a dozen words, and says nothing where it can't tell: for shares in a data set that is enough.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict

LETTERS = 400
"""Characters of a text that are looked at."""

_SCRIPTS = {
    "HANGUL": "Korean",
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "CJK": "Chinese",
    "ARABIC": "Arabic script",
    "HEBREW": "Hebrew",
    "GREEK": "Greek",
    "THAI": "Thai",
    "DEVANAGARI": "Devanagari script",
    "BENGALI": "Bengali",
    "TAMIL": "Tamil",
    "TELUGU": "Telugu",
    "GEORGIAN": "Georgian",
    "ARMENIAN": "Armenian",
    "CYRILLIC": "Cyrillic script",
}

_WORDS = {
    "English": "the of and to in is that it for was with as on be this are you what how from or an have not",
    "German": "der die das und ist nicht ein eine ich zu den mit von für auf sich dem wie was auch bei sind",
    "French": "le la les des et est une un dans que pour qui pas sur avec ce vous je du comment sont plus",
    "Spanish": "el la los las de que y en un una es por con para no se del como qué más su lo",
    "Italian": "il lo la gli di che e è un una per non con sono del della come cosa più nel si",
    "Portuguese": "o os as de que e em um uma é para com não do da no na como mais por se você",
    "Dutch": "de het een en van is dat niet op te zijn voor met die hoe wat ik je er maar ook aan",
    "Polish": "i w nie na się z że jest do to jak co o po dla czy są od ale",
    "Turkish": "ve bir bu için ile ne nasıl da de çok olarak daha mi var gibi olan",
    "Swedish": "och att det i en som är på för av med jag inte den ett om hur vad har till",
    "Indonesian": "yang dan di untuk dengan ini itu dari apa adalah tidak pada bagaimana dalam saya akan ke",
    "Vietnamese": "và của là có trong cho một những được với không để các này như",
}
_LANGUAGES: dict[str, list[str]] = {}
for _name, _common in _WORDS.items():
    for _word in _common.split():
        _LANGUAGES.setdefault(_word, []).append(_name)

_TOKEN = re.compile(r"[^\W\d_]+")


def language(text: str) -> str | None:
    """The language, or the script where that is all that can be told; ``None`` where nothing can."""
    text = text[:LETTERS]
    script = None if text.isascii() else _script(text)
    if script:
        return script
    votes: defaultdict[str, float] = defaultdict(float)
    for word in _TOKEN.findall(text.lower()):
        names = _LANGUAGES.get(word, ())
        for name in names:
            votes[name] += 1 / len(names)
    ranked = sorted(votes.items(), key=lambda item: -item[1])[:2]
    if not ranked or ranked[0][1] < 1:
        return None
    if len(ranked) == 2 and ranked[0][1] < 1.3 * ranked[1][1]:
        return None
    return ranked[0][0]


def _script(text: str) -> str | None:
    """The language of the script that most letters are of, ``None`` for the Latin one."""
    scripts = Counter(unicodedata.name(letter, "").partition(" ")[0] for letter in text if letter.isalpha())
    if not scripts:
        return None
    if scripts["HIRAGANA"] + scripts["KATAKANA"] > 0.1 * scripts.total():
        return "Japanese"
    name, count = scripts.most_common(1)[0]
    return _SCRIPTS.get(name) if 2 * count > scripts.total() else None
