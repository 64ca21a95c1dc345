"""Names and numbers for retrieval probes: common Japanese and English names, and telephone numbers in the form of the country."""

from __future__ import annotations

import numpy as np

from plamo2_jax.errors import PlamoError

_SURNAMES = {
    "ja": "佐藤 鈴木 高橋 田中 伊藤 渡辺 山本 中村 小林 加藤 吉田 山田 佐々木 山口 松本 井上 木村 林 斎藤 清水 "
    "山崎 森 池田 橋本 阿部 石川 山下 中島 前田 藤田 小川 後藤 岡田 長谷川 村上 近藤 石井 坂本 遠藤 青木",
    "en": "Smith Johnson Williams Brown Jones Miller Davis Wilson Anderson Taylor Moore Martin Thompson White Harris Clark Lewis "
    "Robinson Walker Young Allen King Wright Scott Hill Green Adams Baker Nelson Carter Mitchell Roberts Turner Phillips "
    "Campbell Parker Evans Edwards Collins Stewart",
}
_GIVEN = {
    "ja": "陽葵 結衣 美咲 さくら 花子 恵子 由美子 直美 智子 真由美 明美 久美子 洋子 和子 幸子 健一 太郎 翔太 大輔 拓也 "
    "健太 誠 隆 浩 清 勇 進 茂 実 豊 蓮 湊 悠真 陽翔 大和 颯太 美優 莉子 葵 凛",
    "en": "James Mary John Patricia Robert Jennifer Michael Linda William Elizabeth David Barbara Richard Susan Joseph Jessica "
    "Thomas Sarah Charles Karen Daniel Nancy Matthew Lisa Anthony Betty Mark Margaret Paul Sandra Steven Ashley Andrew Emily "
    "Kenneth Donna George Michelle Edward Carol",
}
LANGUAGES = tuple(_SURNAMES)


def full_names(rng: np.random.Generator, language: str, count: int) -> list[str]:
    """Return `count` different full names in random order.

    Raises:
        PlamoError: The language is unknown, or it has fewer names.
    """
    if language not in _SURNAMES:
        raise PlamoError(f"language {language!r} is not allowed: it must be one of {', '.join(LANGUAGES)}")
    surnames, given = _SURNAMES[language].split(), _GIVEN[language].split()
    total = len(surnames) * len(given)
    if count > total:
        raise PlamoError(f"{count} names are not available in {language!r}: at most {total} are. Use a shorter length")
    chosen = rng.choice(total, count, replace=False)
    pairs = [(surnames[i % len(surnames)], given[i // len(surnames)]) for i in map(int, chosen)]
    return [f"{a}{b}" if language == "ja" else f"{b} {a}" for a, b in pairs]


def _number(rng: np.random.Generator, language: str, digits: int | None = None) -> str:
    """Return a telephone number in the form of the country, or a number of `digits` digits."""
    if digits is not None:
        return "".join(map(str, rng.integers(0, 10, digits)))
    if language == "ja":
        return f"0{rng.choice([70, 80, 90])}-{rng.integers(10**4):04}-{rng.integers(10**4):04}"
    return f"{rng.integers(2, 10)}{rng.integers(100):02}-{rng.integers(2, 10)}{rng.integers(100):02}-{rng.integers(10**4):04}"


def numbers(rng: np.random.Generator, language: str, count: int, digits: int | None = None) -> list[str]:
    """Return `count` different numbers.

    Raises:
        PlamoError: There are fewer numbers of `digits` digits.
    """
    if digits is not None and (digits < 1 or count > 10**digits // 2):
        raise PlamoError(f"digits={digits} is not allowed for {count} numbers: too few numbers have so few digits")
    found: dict[str, None] = {}
    while len(found) < count:
        found[_number(rng, language, digits)] = None
    return list(found)
