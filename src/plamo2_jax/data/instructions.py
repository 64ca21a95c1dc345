"""Instructions made from the bundled corpus: questions, summaries, titles, headings and translations, with rules for their answers.

Every prompt and answer is text of a page or of its translation, so the licences of the corpus apply. Each line has these fields:

    id: Unique id, "TASK/LANGUAGE/PAGE/NUMBER".
    messages: One message of the user and one of the assistant.
    rules: Checks of an answer that need no reference (`align.rules`): `language`, `characters`, `finished`, and for formatted answers
        `matches` or `json`.
    task, language: Kind of the request, and the requested language.
    source, license, pair: Source, licence and pair key of the page. `pair` is the key of the held-out split, so a page and its
        translation are on the same side.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import re
from collections.abc import Iterable, Iterator

import numpy as np

from plamo2_jax.data import corpus
from plamo2_jax.data.clean import guess_language
from plamo2_jax.data.minhash import squeeze
from plamo2_jax.errors import PlamoError

TASKS = ("question", "summary", "title", "headings", "record", "translation")
PASSAGE, ANSWER = (20, 240), 160
"""Smallest and largest number of characters of a passage in a prompt, and largest of an answer. English may have twice as many, because a
Japanese character carries about as much as two Latin letters."""
_WIDTH = {"ja": 1, "en": 2}
REPEATED = 3
"""Largest number of occurrences of one answer. Pages share general remarks."""

# Several wordings per task, so that a model does not learn one fixed string.
_ASK: dict[tuple[str, str], tuple[str, ...]] = {
    ("question", "ja"): (
        "「{a}」とは何ですか。",
        "「{a}」について説明してください。",
        "{a} について日本語で教えてください。",
    ),
    ("question", "en"): ("What is “{a}”?", "Explain “{a}”.", "Tell me about {a} in English."),
    ("summary", "ja"): (
        "題名が「{a}」の文書の要約を一文で書いてください。",
        "「{a}」という文書の内容を一文で述べてください。",
    ),
    ("summary", "en"): ("Write a one-sentence summary of the document “{a}”.", "In one sentence, what does “{a}” say?"),
    ("title", "ja"): (
        "次の文書に題名を付け、「題名: 」に続けて書いてください。\n\n{a}",
        "次の文書の題名を「題名: 」の形で答えてください。\n\n{a}",
    ),
    ("title", "en"): (
        "Give the following text a title, in the form “Title: …”.\n\n{a}",
        "Answer in the form “Title: …”: what is this text called?\n\n{a}",
    ),
    ("headings", "ja"): (
        "「{a}」という文書の見出しを箇条書きで挙げてください。",
        "文書「{a}」の目次を「- 」で始まる箇条書きで書いてください。",
    ),
    ("headings", "en"): (
        "List the headings of the document “{a}” as bullets.",
        "Write the contents of “{a}” as lines that begin with “- ”.",
    ),
    ("record", "ja"): ("次の文書の題名と要約を JSON で書いてください。キーは title と summary です。\n\n{a}",),
    ("record", "en"): ("Write the title and a summary of this text as JSON with the keys title and summary.\n\n{a}",),
    # The language is the target language.
    ("translation", "ja"): ("次の英文を日本語に翻訳してください。\n\n{a}", "Translate into Japanese.\n\n{a}"),
    ("translation", "en"): ("次の文を英語に翻訳してください。\n\n{a}", "Translate into English.\n\n{a}"),
}
_TITLED = {"ja": "題名: ", "en": "Title: "}
_BULLETS = r"- [^\n]+(\n- [^\n]+)*"
_JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")
_SENTENCE = {"ja": re.compile(r"[^。]+。"), "en": re.compile(r".+?[.!?](?= |$)")}


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and the paragraphs below it."""

    heading: str
    paragraphs: tuple[str, ...]


def sections(text: str) -> list[Section]:
    """Return the sections of a document. The first line, and each line after an empty line, is a heading."""
    blocks = (block.split("\n") for block in text.strip().split("\n\n"))
    return [Section(block[0].strip(), tuple(line.strip() for line in block[1:] if line.strip())) for block in blocks]


def instructions(split: str, *, per_page: int = 6, seed: int = 0) -> Iterator[dict]:
    """Yield the instructions of one side of the corpus split, in page order.

    Repeated lines are omitted. Held-out lines whose request or answer occurs in the training lines are omitted too.

    Args:
        split: "train", "heldout" or "all".
        per_page: Largest number of instructions per page and its translation, drawn at random.
        seed: Random seed.

    Raises:
        PlamoError: The split is unknown, or per_page is below 1.
    """
    if per_page < 1:
        raise PlamoError(f"per_page={per_page} is not allowed: it must be at least 1")
    if split == "heldout":
        trained = {_key(message["content"]) for line in _all("train", per_page, seed) for message in line["messages"]}
        for line in _all(split, per_page, seed):
            if not any(_key(message["content"]) in trained for message in line["messages"]):
                yield line
    else:
        yield from _all(split, per_page, seed)


def _all(split: str, per_page: int, seed: int) -> Iterator[dict]:
    pages: dict[str, dict[str, dict]] = {}
    for document in corpus.documents(split=split):
        pages.setdefault(document["pair"], {})[document["language"]] = document
    seen: set[str] = set()
    answers: collections.Counter[str] = collections.Counter()
    for number, (pair, page) in enumerate(sorted(pages.items())):
        found = [line for line in _of_page(pair, page, np.random.default_rng([seed, number])) if _fits(line)]
        rng = np.random.default_rng([seed, number, 1])
        chosen = sorted(rng.permutation(len(found))[:per_page])
        for line in (found[i] for i in chosen):
            prompt, answer = (_key(message["content"]) for message in line["messages"])
            if prompt not in seen and answers[answer] < REPEATED:
                seen.add(prompt)
                answers[answer] += 1
                yield line


def _key(text: str) -> str:
    return squeeze(text).casefold()


def _of_page(pair: str, page: dict[str, dict], rng: np.random.Generator) -> Iterator[dict]:
    parts = {language: sections(document["text"]) for language, document in page.items()}
    asked = itertools.chain(
        *(_about(language, found) for language, found in parts.items()),
        _translations(parts["ja"], parts["en"]) if len(parts) == 2 else (),
    )
    counts: dict[tuple[str, str], int] = {}
    for task, language, given, answer, rules in asked:
        number = counts[task, language] = counts.get((task, language), 0) + 1
        wordings = _ASK[task, language]
        document = page[language]
        yield {
            "id": f"{task}/{language}/{pair}/{number}",
            "messages": [
                {"role": "user", "content": wordings[rng.integers(len(wordings))].format(a=given)},
                {"role": "assistant", "content": answer},
            ],
            "rules": {
                "language": language,
                "characters": [1, 2 * ANSWER * _WIDTH[language]],
                "finished": True,
                **rules,
            },
            "task": task,
            "language": language,
            **{field: document[field] for field in ("source", "license", "pair")},
        }


_Asked = tuple[str, str, str, str, dict]


def _about(language: str, found: list[Section]) -> Iterator[_Asked]:
    """Yield the requests about one page in its own language: task, language, given text, answer, rules."""
    title, first = found[0].heading, next((part for part in found if part.paragraphs), None)
    if first is None:
        return
    summary = _sentence(first.paragraphs[0], language)
    if summary:
        yield "summary", language, title, summary, {}
    for part in found:
        answer = _sentence(part.paragraphs[0], language) if part.paragraphs else None
        if answer and part.heading != title:
            yield "question", language, part.heading, answer, {}
    passage = "\n".join(first.paragraphs)[: PASSAGE[1] * _WIDTH[language]]
    if len(passage) >= PASSAGE[0]:
        head = _TITLED[language]
        yield "title", language, passage, head + title, {"matches": re.escape(head) + r"[^\n]+"}
        if summary:
            record = json.dumps({"title": title, "summary": summary}, ensure_ascii=False)
            yield "record", language, passage, record, {"json": {"title": "string", "summary": "string"}}
    headings = list(dict.fromkeys(part.heading for part in found[1:]))
    if 2 <= len(headings) <= 6:
        yield "headings", language, title, "\n".join(f"- {heading}" for heading in headings), {"matches": _BULLETS}


def aligned_texts(ja: list[Section], en: list[Section]) -> list[tuple[str, str]]:
    """Return Japanese texts with their English translations: titles and paragraphs at the same place of both pages.

    Only the title and the first paragraph are compared if the structures of the pages differ.
    """
    pairs = [(ja[0].heading, en[0].heading)]
    if [len(part.paragraphs) for part in ja] == [len(part.paragraphs) for part in en]:
        for a, b in zip(ja, en, strict=True):
            pairs += [(a.heading, b.heading), *zip(a.paragraphs, b.paragraphs, strict=True)]
    elif ja[0].paragraphs and en[0].paragraphs:
        pairs.append((ja[0].paragraphs[0], en[0].paragraphs[0]))
    # The ratio of characters of real translations. Other paragraphs are at the same place by chance.
    return [(a, b) for a, b in dict.fromkeys(pairs) if a and a != b and 1.0 <= len(b) / len(a) <= 4.5]


def _translations(ja: list[Section], en: list[Section]) -> Iterator[_Asked]:
    """Yield both directions of the aligned texts."""
    for a, b in aligned_texts(ja, en):
        yield "translation", "en", a, b, {}
        yield "translation", "ja", b, a, {}


def _sentence(text: str, language: str) -> str | None:
    """Return the first sentence, or None if its length is out of range."""
    found = _SENTENCE[language].match(text)
    return found[0] if found and 8 * _WIDTH[language] <= len(found[0]) <= ANSWER * _WIDTH[language] else None


def _fits(line: dict) -> bool:
    """Return whether the lengths are in range and the answer is in the requested language (some pages are only partly translated)."""
    prompt, answer = (message["content"] for message in line["messages"])
    language = line["language"]
    if len(answer) > ANSWER * _WIDTH[language] or len(prompt) > (PASSAGE[1] + 80) * 2:
        return False
    # Titles are too short to contain a common English word.
    return not _JAPANESE.search(answer) if language == "en" else guess_language(answer) == "ja"


def count_tasks(lines: Iterable[dict]) -> dict[str, int]:
    """Return the number of lines by "TASK LANGUAGE"."""
    counts = {f"{task} {language}": 0 for task in TASKS for language in corpus.LANGUAGES}
    for line in lines:
        counts[f"{line['task']} {line['language']}"] += 1
    return counts
