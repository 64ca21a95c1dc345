"""Guess of the language of a text: by script, and among languages with one script by frequent words and letters.

IFEval decides with the package langdetect. This module is deterministic and needs no data. `experiments/evaluation/instructions.md` lists
the verdicts that differ.
"""

from __future__ import annotations

import collections
import re

LANGUAGES = (
    *("ar", "bg", "bn", "de", "en", "es", "fa", "fi", "fr", "gu", "he", "hi", "it", "ja", "kn", "ko", "ml", "mr"),
    *("ne", "pa", "pl", "pt", "ru", "sw", "ta", "te", "th", "uk", "ur", "vi", "zh"),
)
"""ISO 639-1 codes of the languages that can be told apart."""

# Scripts by the ranges of their letters. Kana decides between Japanese and Chinese.
_SCRIPTS = {
    "latin": "A-Za-zÀ-ɏḀ-ỿ",
    "kana": "\u3041-\u309f\u30a1-\u30ff",
    "han": "\u4e00-\u9fff",
    "hangul": "\u1100-\u11ff\uac00-\ud7af",
    "cyrillic": "\u0400-\u04ff",
    "arabic": "\u0600-\u06ff\u0750-\u077f\ufb50-\ufdff\ufe70-\ufefe",
    "devanagari": "\u0900-\u097f",
    "he": "\u0590-\u05ff",
    "bn": "\u0980-\u09ff",
    "pa": "\u0a00-\u0a7f",
    "gu": "\u0a80-\u0aff",
    "ta": "\u0b80-\u0bff",
    "te": "\u0c00-\u0c7f",
    "kn": "\u0c80-\u0cff",
    "ml": "\u0d00-\u0d7f",
    "th": "\u0e00-\u0e7f",
}
_LETTERS = re.compile("|".join(f"(?P<{name}>[{letters}])" for name, letters in _SCRIPTS.items()))
# `\w` does not have the vowel signs of Devanagari and Arabic, so these scripts have alternatives of their own.
_WORD = re.compile(
    "[^\\W\\d_\u0900-\u097f\u0600-\u06ff]+(?:['’][^\\W\\d_]+)?"
    "|[\u0900-\u0963\u0970-\u097f]+"
    "|[\u0610-\u061a\u0620-\u065f\u066e-\u06d3\u06d5-\u06ff]+"
)

# Frequent short words, of each language that shares its script with others.
_FREQUENT = {
    "en": "the of and to in is that it for was on are with as be this have from or had by but what all were when we "
    "there can an your which you my i he she they me at not will if no a so do his her its our their has been "
    "would could more about than into how",
    "fr": "le la les de des du et à est en un une que qui dans pour pas sur au aux avec ce cette par plus se sont il "
    "elle nous vous je ne d'un l'on c'est mais ou son sa ses leur être cela comme",
    "de": "der die das und ist in zu den mit von für auf nicht ein eine es dem sich als auch ich sie wir wie des im "
    "an werden aus er hat dass sind oder bei nach zum zur einen einer ihr kann nur über",
    "es": "el la los las de y en que es un una por con para del se no su al lo como más pero sus le o este sí porque "
    "esta entre cuando muy sin sobre también me hasta hay donde",
    "it": "il la di e che è un una in per non con del della sono gli le i da al si come più anche ma dei nel alla lo "
    "delle ho questo questa essere ci mi o se ha loro molto tutti nella nelle sul sulla sulle senza verso dove "
    "suo sua tra fra era mare sera cuore",
    "pt": "o a os as de e em que é um uma para com não do da dos das no na se por mais como mas ao ou seu sua foi "
    "são ele ela você isso pela pelo muito já também nos às está",
    "fi": "ja on ei se että oli hän ovat mutta joka kun myös sen tai niin kuin ole minä sinä tämä ne voi olla jos "
    "mukaan sekä joita siitä vain kanssa voit ovat tämän hyvin",
    "sw": "ya na wa kwa ni katika la za cha kuwa hii kama yake hiyo lakini pia au vya wake sana watu hilo huo wao "
    "yako mimi wewe hivyo kila bila mwa zaidi siku mtu yenye wenye ili kutoka huu si",
    "pl": "i w na z do nie się jest że to o jak po co tak za ale od czy przez dla są oraz jego który być może tego "
    "ma już tylko lub jako",
    "vi": "và của là có không một được cho các trong người với để này những đã khi về từ đến như tôi bạn sẽ ra cũng "
    "nhưng nó rất nhiều ở hoặc bởi vì",
    "ru": "и в не на что он с как это по но из у за от так же для то все было она бы о его к мы вы я их или если при "
    "был есть которые ты",
    "bg": "и на в да се не е от за с по че са като до той ще си ни или но това който които към бъде има при може тя "
    "този тази ако ви",
    "uk": "і в не на що з до як це та у за від для й але про його є ми ви я їх або якщо при був їй ти який які бути "
    "щоб також було",
    "ar": "في من على إلى أن هذا هذه التي الذي عن مع كان ما لا هو هي كل بين أو و ثم قد لم بعد ذلك يمكن إذا كما حتى",
    "fa": "در به از که این را با است برای آن یک می هم تا بر نیز خود شد باشد های ها و من ما شما اگر یا بود کرد شود",
    "ur": "کے کی کا میں ہے سے اور کو نے پر یہ ہیں کہ اس ایک بھی تھا ہو کر لئے لیے وہ جو نہیں ان گیا تو یا آپ ہم ہوں",
    "hi": "के है में की का और से को पर यह हैं एक नहीं भी कि ने इस लिए कर तो ही हो था वह या जो आप हम अपने साथ मैं तक",
    "mr": "आहे आणि या की ते हे च्या नाही तर मी आहेत व एक तो ती होते करून असे मध्ये साठी त्या तुम्ही आपल्या त्यांच्या "
    "होता करा म्हणून पण आम्ही झाला झाली झाले जातो जाते चालू खूप आला आली",
    "ne": "छ र को मा यो लागि पनि छन् हो गर्न भने एक तपाईं हामी गर्ने छैन भएको थियो मेरो यस त्यो तथा हुन्छ गरेको ले का की वा अनि",
}
_FREQUENT_WORDS = {language: frozenset(words.split()) for language, words in _FREQUENT.items()}
# Letters that only some languages of a script have.
_MARKS = {
    "vi": "ăđơưạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ",
    "pl": "ąćęłńśźż",
    "de": "ß",
    "es": "ñ¿¡",
    "pt": "ãõ",
    "ru": "ыэё",
    "uk": "іїєґ",
    "bg": "ъ",
    "fa": "پچژگکی",
    "ur": "ٹڈڑںےہھپچگکی",
    "mr": "ळ",
}
_CANDIDATES = {
    "latin": ("en", "fr", "de", "es", "it", "pt", "fi", "sw", "pl", "vi"),
    "cyrillic": ("ru", "bg", "uk"),
    "arabic": ("ar", "fa", "ur"),
    "devanagari": ("hi", "mr", "ne"),
}


def guess_language(text: str) -> str | None:
    """Return the language of the largest part of a text, as an ISO 639-1 code; "und" if it is unknown, None if the text has no letters."""
    counts = collections.Counter(match.lastgroup for match in _LETTERS.finditer(text))
    if not counts:
        return None
    japanese = counts.pop("kana", 0)
    if japanese:
        counts["han"] += japanese
    counts["han"] *= 2  # A character of these scripts carries as much as two Latin letters.
    counts["hangul"] *= 2
    script = max(counts, key=counts.__getitem__)
    if script == "han":
        return "ja" if japanese * 20 > counts["han"] // 2 else "zh"
    if script == "hangul":
        return "ko"
    return _by_words(text, _CANDIDATES[script]) if script in _CANDIDATES else script


def _by_words(text: str, candidates: tuple[str, ...]) -> str:
    lowered = text.lower()
    words = collections.Counter(word.replace("’", "'") for word in _WORD.findall(lowered))
    letters = collections.Counter(lowered)
    total = max(1, words.total())
    scores = {}
    for language in candidates:
        known = sum(number for word, number in words.items() if word in _FREQUENT_WORDS[language])
        marks = sum(letters[letter] for letter in _MARKS.get(language, ""))
        scores[language] = known / total + 2 * min(1.0, marks / total)
    best = max(scores, key=scores.__getitem__)
    # Short English titles have no frequent word. Text of other scripts without one is of a language that is not listed.
    return best if scores[best] > 0 or best == "en" else "und"
