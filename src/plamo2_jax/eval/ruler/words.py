"""Words and texts of the contexts: names of needles, values, words of the bundled corpus, and its held-out pages."""

from __future__ import annotations

import collections
import functools
import re
import string
import uuid

import numpy as np

from plamo2_jax.data.corpus import documents

_ADJECTIVES = {
    "en": "amber ancient angry azure bold brave bright brisk broken calm clever cold cosmic crimson curious daring dusty eager early "
    "elegant empty faint fancy fierce foggy fresh friendly frosty gentle giant gilded golden graceful grand happy hasty hidden "
    "hollow humble icy idle jolly keen late lively lonely loud lucky mellow mighty misty modest muddy narrow nimble noble olive "
    "patient pale polite proud quick quiet rapid rough rusty scarlet secret shiny silent silver sleepy slow small snowy solid "
    "spicy steady stormy sunny sweet swift tall tidy tiny tough vivid warm wild wise wooden young",
    "ja": "青い 赤い 白い 黒い 古い 新しい 小さい 大きい 高い 低い 長い 短い 明るい 暗い 軽い 重い 早い 遅い 強い 弱い 甘い 辛い 苦い 暑い "
    "寒い 丸い 四角い 深い 浅い 太い 細い 広い 狭い 硬い 優しい 楽しい 寂しい 嬉しい 眠い 若い 静かな 賑やかな 元気な 正直な 豊かな 丈夫な "
    "透明な 奇妙な 立派な 素朴な 勇敢な 気楽な 上品な 平和な 幸せな 器用な 真面目な 大胆な 慎重な 親切な 華やかな 穏やかな 滑らかな 巨大な",
}
_NOUNS = {
    "en": "anchor apple badger barrel basket beacon beetle bottle bridge bucket butter button cactus camel candle canyon carpet castle "
    "cherry circle cloud clover compass copper coral cradle crane cricket crystal desert dolphin dragon eagle ember engine falcon "
    "feather fiddle forest fountain garden garlic glacier guitar hammer harbor helmet heron island jacket jungle kettle ladder "
    "lantern lemon lizard locket magnet maple marble meadow mirror monkey mountain napkin needle nutmeg ocean orchid otter oyster "
    "paddle parrot pebble pencil pepper pigeon pillow planet pocket pumpkin puzzle rabbit raven ribbon river rocket saddle salmon "
    "shadow shovel spider spoon squirrel table teapot temple thistle thunder tiger timber tunnel turtle valley violin walnut whale "
    "whistle window winter zebra",
    "ja": "鯨 象 虎 兎 狐 狸 熊 鹿 猫 犬 鶴 亀 梟 鷹 燕 雀 蛙 蟹 鮭 鯉 蝶 蜂 桜 梅 松 竹 菊 藤 柳 苺 桃 柿 "
    "林檎 蜜柑 葡萄 胡桃 茸 大根 南瓜 茄子 山脈 湖 海岸 砂漠 草原 森林 渓谷 火山 氷河 半島 洞窟 滝 橋 塔 城 "
    "寺 灯台 水車 時計 望遠鏡 羅針盤 太鼓 笛 琴 風鈴 提灯 扇子 茶碗 花瓶 鏡 箪笥 屏風 絵筆 手紙 切手 封筒 辞書 "
    "地図 帽子 手袋 靴 鞄 傘 指輪 首飾り 自転車 汽車 帆船 気球 飛行機 金槌 鋸 梯子 錨 鍵 磁石 電球 太陽 月 彗星",
}

_KATAKANA = "アイウエオカキクケコサシスセソタチツテトナニヌネノマミムメモラリルレロ"
_OFTEN = 2
"""Smallest number of occurrences of a word in the bundled corpus. Rarer words are often parts of words and typing errors."""


def names(rng: np.random.Generator, language: str, count: int) -> list[str]:
    """Return `count` different names of an adjective and a noun, such as "quiet-otter", in random order."""
    adjectives, nouns = _ADJECTIVES[language].split(), _NOUNS[language].split()
    chosen = rng.choice(len(adjectives) * len(nouns), count, replace=False)
    between = "-" if language == "en" else ""
    return [f"{adjectives[i // len(nouns)]}{between}{nouns[i % len(nouns)]}" for i in map(int, chosen)]


def names_available(language: str) -> int:
    """Return the number of different names."""
    return len(_ADJECTIVES[language].split()) * len(_NOUNS[language].split())


def number(rng: np.random.Generator) -> str:
    """Return a random number of seven digits."""
    return str(rng.integers(10**6, 10**7))


def identifier(rng: np.random.Generator) -> str:
    """Return a random UUID of version 4."""
    return str(uuid.UUID(bytes=rng.bytes(16), version=4))


def coded(rng: np.random.Generator, language: str) -> str:
    """Return a random word without a meaning: six Latin letters, or four katakana."""
    letters, size = (string.ascii_lowercase, 6) if language == "en" else (_KATAKANA, 4)
    return "".join(letters[i] for i in rng.integers(len(letters), size=size))


@functools.cache
def corpus_words(language: str) -> tuple[str, ...]:
    """Return frequent words of the bundled corpus in a fixed order. No word contains another one.

    English words have 4 to 10 lower-case letters. Japanese words are two kanji, or 3 to 8 katakana.
    """
    latin = r"(?<![A-Za-z])[a-z]{4,10}(?![A-Za-z])"
    japanese = r"(?<![一-龥])[一-龥]{2}(?![一-龥])|(?<![ァ-ヴー])[ァ-ヴー]{3,8}(?![ァ-ヴー])"
    text = "\n".join(document["text"] for document in documents(language))
    found = collections.Counter(re.findall(latin if language == "en" else japanese, text))
    kept: set[str] = set()
    for word in sorted((word for word in found if found[word] >= _OFTEN), key=lambda word: (len(word), word)):
        parts = (word[i:j] for i in range(len(word)) for j in range(i + 2, len(word) + 1))
        if kept.isdisjoint(parts):
            kept.add(word)
    return tuple(sorted(kept))


@functools.cache
def corpus_text(language: str) -> tuple[str, ...]:
    """Return the held-out pages of the bundled corpus, with each run of white space as one space."""
    return tuple(re.sub(r"\s+", " ", document["text"]).strip() for document in documents(language, "heldout"))


def sentences(language: str, text: str) -> list[str]:
    """Split a text at the ends of sentences."""
    return [part for part in re.split(r"(?<=[.!?])\s+" if language == "en" else r"(?<=[。！？])\s*", text) if part]
