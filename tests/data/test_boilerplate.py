"""Boilerplate around web pages goes; headings, programs and licences stay."""

import random

import pytest

from plamo2_jax.data import corpus
from plamo2_jax.data.boilerplate import boilerplate_lines
from plamo2_jax.data.clean import CleanConfig, CleanReport, clean_documents, normalize_text

NAVIGATION = ["Home", "About us", "Products and services", "Contact", "Log in"]
FOOTER = [
    "Share this page",
    "Privacy policy | Terms of use",
    "Copyright 20{} Example Corporation. All rights reserved.",
]
WORDS = [
    "the",
    "keeper",
    "of",
    "light",
    "house",
    "wrote",
    "down",
    "weather",
    "that",
    "day",
    "and",
    "before",
    "as",
    "he",
    "had",
    "done",
    "for",
    "many",
    "years",
    "in",
    "north",
    "sea",
]
ANY = CleanConfig(languages=("ja", "en", "other"), min_chars=1, max_duplicate_lines=1.0, max_top_ngram=1.0)


def sentence(draw: random.Random, words: int = 12) -> str:
    return " ".join(draw.choices(WORDS, k=words)).capitalize() + f" {draw.randrange(10**9):x}."


def clean(texts, where="edges") -> tuple[list[str], CleanReport]:
    documents = [{"text": text} for text in texts]
    report = CleanReport()
    found = boilerplate_lines(documents, 20, where)
    return [document["text"] for document in clean_documents(documents, ANY, report, found)], report


@pytest.mark.parametrize("own", [[], ["{title}"], ["{title}", "12 May 20{year}"]])
@pytest.mark.parametrize("blank", [False, True])
def test_navigation_and_footer_go(own, blank):
    draw = random.Random(0)
    pages, bodies = [], []
    for i in range(40):
        title = sentence(draw, 3)
        body = [sentence(draw) for _ in range(draw.randrange(1, 30))]
        head = [line.format(title=title, year=i) for line in own]
        parts = [*head, *NAVIGATION, *body, *(line.format(10 + i) for line in FOOTER)]
        pages.append(("\n\n" if blank else "\n").join(parts))
        bodies.append([*head, *body])
    cleaned, report = clean(pages)
    if (
        len(own) == 2
    ):  # Digits do not tell lines apart: the dates are one line, of too few characters for boilerplate by itself.
        bodies = [[head[0], *head[2:]] for head in bodies]
    assert [[line for line in text.split("\n") if line] for text in cleaned] == bodies
    assert report.removed.total() == 40 * (len(NAVIGATION) + len(FOOTER) + (len(own) == 2))
    lines = dict(report.most_removed(20))
    assert lines["Home"] == lines["Copyright 2010 Example Corporation. All rights reserved."] == 40


def test_a_japanese_footer_goes():
    draw = random.Random(0)
    pages = [f"{sentence(draw)}\nこのページの先頭へ戻る ・ サイトマップ" for _ in range(30)]
    assert clean(pages)[0] == [page.split("\n")[0] for page in pages]


def test_headings_of_manuals_stay():
    draw = random.Random(0)
    pages = [
        f"NAME\n       x{i} - {sentence(draw)}\n\nSYNOPSIS\n       x{i} [OPTION]\n\nDESCRIPTION\n{sentence(draw)}\n"
        f"\nOPTIONS\n       --help  print this text and exit\n\nEXIT STATUS\n{sentence(draw)}\n\nSEE ALSO\n       y{i}(1)"
        for i in range(60)
    ]
    assert clean(pages)[0] == pages
    # Everywhere means headings too.
    assert all("DESCRIPTION" not in text for text in clean(pages, "anywhere")[0])


def test_programs_stay():
    draw = random.Random(0)
    head = "from __future__ import annotations\n\nimport os\nimport re\nimport sys\n#include <stdio.h>\nusing namespace std;"
    tail = '    return 0;\n}\n\nif __name__ == "__main__":\n    sys.exit(main())'
    pages = [f"{head}\n\ndef f{i}():\n    return {sentence(draw)!r}\n{tail}" for i in range(60)]
    assert clean(pages)[0] == pages


def test_a_paragraph_that_licences_share_stays():
    draw = random.Random(0)
    grant = [sentence(draw) for _ in range(4)]
    texts = [
        "\n".join([sentence(draw) for _ in range(4)] + grant + [sentence(draw) for _ in range(4)]) for _ in range(40)
    ]
    assert clean(texts)[0] == texts
    # Copies of a document count once, for deduplication to remove.
    assert clean(texts[:1] * 50)[0] == texts[:1] * 50


def test_the_bundled_manuals_lose_next_to_nothing():
    documents = list(corpus.documents())[::4]
    report = CleanReport()
    for _ in clean_documents(documents, CleanConfig(), report, boilerplate_lines(documents)):
        pass
    assert 1 - report.chars_out / report.chars_in < 0.005


def test_too_few_documents_are_refused():
    with pytest.raises(ValueError, match="min_documents=1 is not allowed: it must be at least 2"):
        boilerplate_lines([], 1)


def test_lines_are_compared_without_width_case_and_digits():
    found = boilerplate_lines([{"text": f"Page {i}\n{normalize_text(sentence(random.Random(i)))}"} for i in range(30)])
    assert "ＰＡＧＥ 77" in found
    assert "Pages 77" not in found
