"""Japanese in Latin letters: whether a text can be read as syllables of the Hepburn romanization."""

from __future__ import annotations

import re
import unicodedata

# Doubled consonants write a small っ. n stands alone before a consonant and at the end.
_SYLLABLES = {
    first + vowel
    for first, vowels in {
        "": "aiueo", "k": "aiueo", "g": "aiueo", "s": "aueo", "z": "aueo", "t": "aeo", "d": "aeo", "n": "aiueo", "h": "aieo",
        "b": "aiueo", "p": "aiueo", "m": "aiueo", "y": "auo", "r": "aiueo", "w": "ao", "f": "aiueo", "j": "aiuo",
        "sh": "aiuo", "ch": "aiuo", "ts": "u", "ky": "auo", "gy": "auo", "ny": "auo", "hy": "auo", "my": "auo", "ry": "auo",
        "py": "auo", "by": "auo",
    }.items()
    for vowel in vowels
}  # fmt: skip
_LONG_VOWELS = str.maketrans("āīūēōĀĪŪĒŌ", "aiueoAIUEO")
_DASHES = re.compile("[\u2010-\u2014\u2212]")
_OTHER = re.compile(r"[^ -~\s]")


def is_romaji(text: str) -> bool:
    """Return whether all Latin letters of a text form Hepburn syllables, and no other letters occur."""
    plain = _DASHES.sub("-", unicodedata.normalize("NFKC", text).translate(_LONG_VOWELS))
    plain = plain.translate(str.maketrans("“”‘’", "\"\"''"))
    if _OTHER.search(plain):
        return False
    letters = "".join(c for c in plain if c.isascii() and c.isalpha()).lower()
    position = 0
    while position < len(letters):
        letter, after = letters[position], letters[position + 1 : position + 2]
        if (letter == "n" and after not in ("a", "i", "u", "e", "o", "y")) or (
            letter == after and letter not in "aiueon"
        ):
            position += 1
            continue
        for length in (3, 2, 1):
            if letters[position : position + length] in _SYLLABLES:
                position += length
                break
        else:
            return False
    return bool(letters)
