"""Write docs/checkers.md: the table of all checkers, and JFBench's constraints that have none.

    python scripts/checker_table.py

A test compares the page with this script's output.
"""

from __future__ import annotations

import re
from pathlib import Path

from plamo2_jax.checkers import CHECKERS
from plamo2_jax.checkers.ifeval import INSTRUCTIONS
from plamo2_jax.eval.bundled import read_json

PAGE = Path(__file__).parent.parent / "docs" / "checkers.md"
LEFT_OUT = {
    "need a morphological analyser (Janome) to find words, parts of speech or readings": (
        "WordsLength, the negation of WordsLength, PronounsCount, UniqueWordCount, NewlineFormat, OverlapRatio, SentenceWordsRatio, "
        "StopWordsRatio, ChangeRepeat, AlliterationIncrementSentence, IncrementSentence, ConsonantsWords, "
        "KeywordsSpecificPositionWords, LastFirstWords, NoConsecutiveWords, OddEvenSyllablesWords, PalindromeWords, "
        "ParagraphLastFirstWords, PrimeLengthsWords, "
        "RepeatsWords, StartVerbWords, VowelWords, WordsPositionWords"
    ),
    "need a full parser of JavaScript, HTML5 or CommonMark": (
        "Javascript, NoCodeFenceJavascript, WithCodeFenceJavascript, Html, Markdown, MarkdownListStructure, MarkdownTableStructure, "
        "MarkdownUnconsumedEmphasisMarkers"
    ),
    "passes for every text, because a CommonMark parser refuses none": "MarkdownParseable",
    "needs heuristics for many styles of citation, which are not implemented": "Citation",
    "need a judge model (43 constraints)": (
        "the groups MetaOutput, Structure and Style, and of Content and Processing: AbstractExcluded, AbstractIncluded, Intrinsic, "
        "Irrevant, Reason, NoReason, Extraction, Statistics"
    ),
}
HEAD = """# Checkers of instructions

Checkers are programs that decide whether a text follows an instruction, such as "write three bullet points" or "use hiragana only". One
registry serves the tasks `ifeval`, `mifeval_ja` and `jfbench`, the rules of preference data, and synthetic data.

```python
from plamo2_jax import checkers

checkers.check("bullets", "・猫\\n・犬", {"count": 2, "mark": "・"})  # True
parameters = checkers.draw("characters", "ja", seed=1)  # drawn parameters
checkers.instruction("characters", parameters, "ja", "train", seed=1)  # the instruction in words
```

As a rule of preference data (see [post-training](post_training.md)), a checker is
`{"check": {"name": "bullets", "count": 2, "mark": "・"}}`. The score of a list of checkers is the share that the answer passes.

Each wording of an instruction is for training or for testing, in Japanese (ja) or English (en). No sentence is used for both, so a model
that was trained with checked instructions is not tested with the same sentences. The column "wordings" lists the languages.

A checker reads the first 262,144 characters of a text, in time that grows linearly with its length, and ignores the rest. Words,
sentences, languages and noun endings are recognised without a morphological analyser, langdetect or NLTK.
`experiments/evaluation/instructions.md` compares the verdicts with the verdicts on 17 models in M-IFEval's repository.
`experiments/evaluation/jfbench.md` compares them with JFBench's own code.

Scripts of one language, letters and marks are recognised exactly. These decisions are approximate:

- Language: decided by the script with most letters, then by frequent words and letters. Text without a known word has no language.
- Japanese words: a word counts unless the same script continues it (katakana, Latin letters, a single kanji).
- Japanese sentences: they end at 。！？ and at line ends, but not inside 「」 or parentheses. For JFBench, ． and . also end a
  sentence; pysbd, which JFBench uses, differs for some lists and brackets.
- English sentences: they end at . ! ? but not after a listed abbreviation.
- Noun endings: decided by the last characters before the mark.
- LaTeX and Markdown: groups, environments, fences, headings and links are matched; there is no full parser.
"""


def table() -> str:
    benchmarks: dict[str, set[str]] = {}
    for instruction in INSTRUCTIONS:
        # Arguments of every instruction: a value for each name is enough to find the checker.
        arguments = _Any()
        name = INSTRUCTIONS[instruction](arguments)[0]
        benchmarks.setdefault(name, set()).add("IFEval" if instruction.startswith("en:") else "M-IFEval-ja")
    for constraint in read_json("jfbench/constraints.json")[0]:
        benchmarks.setdefault(constraint["checker"], set()).add("JFBench")
    lines = ["## All checkers", "", "Optional parameters are in brackets.", ""]
    lines += ["| name | passes if | parameters | wordings | benchmarks |", "| --- | --- | --- | --- | --- |"]
    for name, checker in CHECKERS.items():
        parameters = [f"[{key}]" if one.optional else key for key, one in checker.parameters.items()]
        summary = re.sub(r"([*<|])", r"\\\1", checker.summary)
        used = ", ".join(sorted(benchmarks.get(name, ())))
        lines.append(f"| {name} | {summary} | {', '.join(parameters)} | {', '.join(checker.wordings)} | {used} |")
    return "\n".join(lines)


class _Any(dict):
    def __missing__(self, name: str) -> str:
        return "at least"


def left_out() -> str:
    groups = dict.fromkeys(constraint["group"] for constraint in read_json("jfbench/constraints.json")[0])
    lines = ["## JFBench", ""]
    lines += [
        "JFBench has 166 kinds of constraints in 16 groups: 123 checked by programs and 43 by a judge model. Its list for tests has"
    ]
    lines += ["131 constraints that programs check, with parameters. The task `jfbench` has 98 of them, in the groups"]
    lines += [
        f"{', '.join(groups)}.",
        "Prompts and wordings equal JFBench's own for each pair of prompt and constraint. These constraints are left out:",
        "",
    ]
    lines += [f"- {reason}: {names}." for reason, names in LEFT_OUT.items()]
    return "\n".join(lines)


def page() -> str:
    return f"{HEAD}\n{table()}\n\n{left_out()}\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
