"""Japanese words without a morphological analyser: whether a text has a word, and whether a sentence ends with a noun.

IFEval's Japanese version finds words with an analyser (Janome with the IPADIC dictionary). These functions decide from the script of the
neighbouring characters. `experiments/evaluation/instructions.md` counts how often the verdicts differ.
"""

from __future__ import annotations

import re
import unicodedata

KANJI = "\u3005\u3007\u4e00-\u9fff\u3400-\u4dbf"
KATAKANA = "\u30a1-\u30fa\u30fc\uff66-\uff9f"
HIRAGANA = "\u3041-\u3096"
_KANJI = re.compile(f"[{KANJI}]")
_KATAKANA = re.compile(f"[{KATAKANA}]")
_LATIN = re.compile("[A-Za-z0-9]")
_HIRAGANA = re.compile(f"[{HIRAGANA}]")


def count_word(text: str, word: str) -> int:
    """Count the places where a word stands as a word.

    A place counts unless the word continues there: next to katakana for a katakana word, next to a Latin letter or digit for a Latin one,
    and next to a kanji for a word of a single kanji. Words of several kanji often form compounds that begin or end with them, so their
    neighbours do not matter.
    """
    before, after = _joining(word, word[0]), _joining(word, word[-1])
    found, start = 0, text.find(word)
    while start >= 0:
        end = start + len(word)
        left = start > 0 and before is not None and before.match(text[start - 1])
        right = end < len(text) and after is not None and after.match(text[end])
        if not left and not right:
            found += 1
        start = text.find(word, end)
    return found


def _joining(word: str, edge: str) -> re.Pattern[str] | None:
    if _KATAKANA.match(edge):
        return _KATAKANA
    if _LATIN.match(edge):
        return _LATIN
    return _KANJI if len(word) == 1 and _KANJI.match(edge) else None


# Endings in hiragana that are nouns.
_NOUN_ENDINGS_TEXT = (
    "こと もの とき ところ ため はず わけ よう さま ほう まま とおり おかげ つもり ひと ひとつ ふたつ "
    "みんな すべて それぞれ ほか なか あいだ いのち こころ からだ ことば ひととき おもてなし きっかけ "
    "つながり まつり しあわせ たのしみ よろこび あこがれ にぎわい ものづくり まちづくり これ それ あれ "
    "どれ ここ そこ あそこ どこ わたし あなた ぼく おれ だれ きょう あした きのう"
)
_NOUN_ENDINGS = tuple(_NOUN_ENDINGS_TEXT.split())
# Endings of verbs that end like a noun.
_VERB_ENDINGS = (
    "ましたそう",
    "しよう",
    "みよう",
    "ましょう",
    "でしょう",
    "だろう",
    "しまう",
    "いよう",
    "えよう",
    "れよう",
)
# Endings in hiragana after a kanji that make a noun of a verb's stem: 輝き, 流れ, 違い. The same letters end few other forms.
_STEM = re.compile(f"[{KANJI}][かがさざたまらわ]?[いきぎしちにびみりえけげせてねべめれ]$")
_NOT_STEMS = re.compile(f"[{KANJI}](て|せ|に|しい)$")
_ADJECTIVES_TEXT = (
    "無い 高い 低い 長い 短い 強い 弱い 深い 浅い 広い 狭い 早い 速い 遅い 良い 悪い 近い 遠い 多い 太い "
    "細い 白い 黒い 赤い 青い 若い 古い 熱い 暑い 寒い 重い 軽い 甘い 辛い 苦い 痛い 固い 硬い 濃い 薄い "
    "安い 欲しい 凄い 酷い 怖い 暗い 眠い 鋭い 旨い 難い 易い 尊い 清い 憎い 下さい 来い 的に 共に 特に "
    "常に 更に 臭い"
)
_ADJECTIVES = frozenset(_ADJECTIVES_TEXT.split())


def ends_with_noun(text: str) -> bool:
    """Return whether the last word of a text without its full stop is a noun (体言止め).

    Kanji, katakana, Latin letters, digits and signs count as a noun. Hiragana counts if it ends a listed noun, 〜さ after an adjective, or
    the stem of a verb that is used as a noun.
    """
    tail = text[-8:]
    if not tail or tail[-1].isspace():
        return False
    last = tail[-1]
    if _HIRAGANA.match(last):
        if tail.endswith(_NOUN_ENDINGS):
            return not tail.endswith(_VERB_ENDINGS)
        if last == "さ":
            return True
        if tail[-2:] in _ADJECTIVES or tail[-3:] in _ADJECTIVES or _NOT_STEMS.search(tail):
            return False
        return _STEM.search(tail) is not None
    category = unicodedata.category(last)
    if last in "々〇ー" or category[0] in "LN":
        return True
    return category[0] in "PS" and last in ")）]}%％*#+=/\\|<>~^_&@$\"'`"
