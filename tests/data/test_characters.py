"""The compiled counts are equal to those of Python's regular expressions and counters, on random text and on real pages."""

import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plamo2_jax.data import corpus
from plamo2_jax.data.characters import NEWLINES, UNWANTED, count_characters, is_plain, most_frequent_window

LETTER = re.compile(r"[^\W\d_]")
KANA = re.compile("[\u3041-\u3096\u30a1-\u30fa\u30fc\uff66-\uff9d]")
HAN = re.compile("[\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
LATIN = re.compile("[A-Za-z\u00c0-\u024f]")
ENGLISH = re.compile(r"\b(?:the|of|and|to|in|is|for|that|are|with|it|as|be|on|or|by|this|you|a|can)\b", re.IGNORECASE)

# Letters that are equal to i, k and s without regard to case, marks and digits beside words, all kinds of white space.
WORDS = "the of and to in is as THE Can a this ſ iſ ıs İt K 1a a1 _a a_ é 日 本 カ ｶ 々 ① ٣ 가"
PARTS = WORDS.split()
PARTS += [" ", " ", "\n", "\n\n\n", "\t", "\u3000", "\u2028", "\r\n", "\x00", "\ufeff", "\u0301", "-", "\ud800", "😀"]
texts = st.lists(st.sampled_from(PARTS)).map("".join) | st.text(alphabet=st.characters(codec=None))


@pytest.fixture(scope="module")
def pages() -> list[str]:
    """Real pages, and pieces that begin and end anywhere."""
    rng = random.Random(0)
    found = [document["text"] for document in corpus.documents(split="heldout")]
    return found + [text[rng.randrange(len(text)) :][: rng.randrange(500)] for text in found]


def check(text: str) -> None:
    assert count_characters(text) == (
        *(len(pattern.findall(text)) for pattern in (LETTER, KANA, HAN, LATIN)),
        len(text.split()),
        len(ENGLISH.findall(text)),
    )
    changed = UNWANTED.sub("", NEWLINES.sub("\n", text))
    changed = re.sub(r"\n{3,}", "\n\n", re.sub(r"[^\S\n]+$", "", changed, flags=re.MULTILINE)).strip()
    assert is_plain(text) == (text == changed)
    for n in (1, 3, 10):
        if len(text) >= n:
            windows = Counter(text[i : i + n] for i in range(len(text) - n + 1))
            assert most_frequent_window(text, n) == max(windows.values())


@given(texts)
def test_counts_of_random_text(text):
    check(text)


@given(st.text(alphabet="ab", max_size=300))
def test_counts_of_repeated_text(text):
    check(text)


def test_counts_of_real_pages(pages):
    assert sum(map(is_plain, pages)) > 100
    for page in pages:
        check(page)
