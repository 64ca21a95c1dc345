"""Checkers of data and code: JSON, YAML, XML, CSV, HTML and LaTeX tables, MediaWiki tables, diffs, Python."""

from __future__ import annotations

import ast
import json
import re
import warnings
from xml.parsers import expat

import yaml

from plamo2_jax.checkers.checker import plain
from plamo2_jax.checkers.diff_text import is_diff
from plamo2_jax.checkers.html_table import is_html_table
from plamo2_jax.checkers.latex_text import is_latex, is_latex_table

MAX_BRACKETS = 20_000
"""Largest number of brackets, colons and operators of a text that is parsed as YAML or Python. Deeper and longer texts fail."""
MAX_PARSED = 50_000
"""Largest number of characters of a text that is parsed as YAML or Python. The parsers take about 10 µs a character."""
_FENCE = re.compile(r"(```|~~~)([^\n`]*)\n(.*)\n\1\s*", re.DOTALL)

_FENCE_START = re.compile("```|~~~")


def fenced(text: str) -> tuple[str, str] | None:
    """Return the language and the content of a text that is one code block; None if it is not."""
    match = _FENCE.fullmatch(text.strip())
    return None if match is None else (match.group(2).strip().lower(), match.group(3))


def leading_block(text: str) -> tuple[str, str] | None:
    """Return the language and the content of the code block that a text starts with; None if it starts with something else."""
    text = text.lstrip()
    fence = text[:3]
    if fence not in ("```", "~~~"):
        return None
    head, _, body = text[3:].partition("\n")
    end = body.find(fence)
    return None if end < 0 else (head.strip().lower(), body[:end])


def _content(text: str) -> str:
    block = fenced(text)
    return text if block is None else block[1]


def is_json_value(text: str) -> bool:
    """Return whether a text is JSON. NaN and infinities count, as in Python's parser."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def json_or_block(text: str) -> bool:
    text = text.strip()
    for prefix in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(prefix)
    return is_json_value(text.removesuffix("```").strip())


def yaml_text(text: str) -> bool:
    text = _content(text)
    if len(text) > MAX_PARSED or text.count("[") + text.count("{") > 100 or _deepest_indent(text) > 200:
        return False
    try:
        # Events are syntax: aliases are not expanded, so a small text cannot become a huge value.
        for _ in yaml.parse(text, Loader=yaml.SafeLoader):
            pass
    except (yaml.YAMLError, RecursionError, ValueError):
        return False
    return True


def _deepest_indent(text: str) -> int:
    return max((len(line) - len(line.lstrip(" -?:")) for line in text.split("\n")), default=0)


def xml_text(text: str) -> bool:
    # JFBench removes ``` only.
    content = _content(text) if text.lstrip().startswith("```") else text
    parser = expat.ParserCreate()

    def refuse(*arguments) -> None:
        raise expat.ExpatError("entities are not allowed")

    parser.EntityDeclHandler = refuse  # A few entities can expand to gigabytes.
    try:
        parser.Parse(content.encode("utf-8", "surrogatepass"), True)
    except (expat.ExpatError, ValueError):
        return False
    return True


def _same_columns(text: str, separator: str) -> bool:
    return len({line.count(separator) for line in text.strip().split("\n")}) == 1


def csv_text(text: str) -> bool:
    return _same_columns(text, ",")


def tsv_text(text: str) -> bool:
    return _same_columns(text, "\t")


def markdown_table(text: str) -> bool:
    lines = text.strip().split("\n")
    if len(lines) < 2:
        return False
    header, rule = lines[0].split("|"), lines[1].split("|")
    cells = [cell.strip() for cell in rule[1:-1]]
    return (
        min(len(header), len(rule)) >= 2
        and all(cell.startswith(("-", ":")) and cell.endswith(("-", ":")) for cell in cells)
        and all(line.count("|") == len(header) - 1 for line in lines[2:])
    )


def without_comments(text: str) -> str:
    """Return a text without <!-- comments -->. An open comment stays."""
    kept, position = [], 0
    while (start := text.find("<!--", position)) >= 0 and (end := text.find("-->", start + 4)) >= 0:
        kept.append(text[position:start])
        position = end + 3
    return "".join(kept) + text[position:]


def mediawiki_table(text: str) -> bool:
    lines = [line.strip() for line in without_comments(text.strip()).strip().splitlines()]
    if len(lines) < 2 or not lines[0].startswith("{|") or lines[-1] != "|}":
        return False
    header = data = False
    for line in lines[1:-1]:
        if "{|" in line or "|}" in line:
            return False
        if not line or line.startswith(("|+", "|-")):
            continue
        if line.startswith("!"):
            if data and not header:
                return False
            header = True
        elif line.startswith("|"):
            data = True
        else:
            return False
    return header and data


def _parses(code: str) -> bool:
    """Return whether a text is Python of bounded size. The parser refuses deep nesting itself."""
    if len(code) > MAX_PARSED or sum(code.count(c) for c in "([{:-~+*.") > MAX_BRACKETS:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def python_text(text: str) -> bool:
    fence = _FENCE_START.search(text)
    block = None if fence is None else leading_block(text[fence.start() :])
    return _parses(text if block is None else block[1])


def python_bare(text: str) -> bool:
    return leading_block(text) is None and _parses(text)


def python_block(text: str) -> bool:
    block = leading_block(text)
    return block is not None and ("python" in block[0] or block[0] == "py") and _parses(block[1])


CHECKERS = (
    plain(
        "json_text",
        "The whole text is JSON.",
        is_json_value,
        ja=(
            "JSON だけを出力してください。",
            "回答の全体を JSON にしてください。",
            "コードブロックや説明を付けず、JSON の値のみで答えること。",
        ),
        en=(
            "Output JSON only.",
            "The whole answer must be JSON.",
            "Answer with a JSON value, without a code block or comments.",
        ),
    ),
    plain(
        "json_or_block",
        "The whole text is JSON, in a code block or not.",
        json_or_block,
        ja=(
            "JSON 形式で答えてください。",
            "回答を JSON にし、コードブロックに入れても構いません。",
            "全体を一つの JSON として書いてください（``` で囲むのは自由です）。",
        ),
        en=(
            "Answer in JSON.",
            "Write the answer as JSON, in a code block if you like.",
            "The complete output has to be one JSON value; ``` around it is allowed.",
        ),
    ),
    plain(
        "yaml_text",
        "The whole text is YAML, in a code block or not.",
        yaml_text,
        ja=(
            "YAML 形式で答えてください。",
            "回答の全体を YAML にしてください。",
            "YAML として読める形だけで書いてください。",
        ),
        en=("Answer in YAML.", "The whole answer must be YAML.", "Write something that a YAML parser accepts in full."),
    ),
    plain(
        "xml_text",
        "The whole text is well-formed XML, in a code block or not.",
        xml_text,
        ja=(
            "XML 形式で答えてください。",
            "回答の全体を XML にしてください。",
            "整形式の XML 文書だけを書いてください。",
        ),
        en=("Answer in XML.", "The whole answer must be XML.", "Write one well-formed XML document and nothing else."),
    ),
    plain(
        "csv_text",
        "All lines have the same number of commas.",
        csv_text,
        ja=(
            "CSV 形式で答えてください。",
            "回答をコンマ区切りの表にしてください。",
            "どの行も列数が同じ CSV だけを書いてください。",
        ),
        en=(
            "Answer in CSV.",
            "Write the answer as comma-separated values.",
            "Output CSV rows that all have the same number of columns.",
        ),
    ),
    plain(
        "tsv_text",
        "All lines have the same number of tabs.",
        tsv_text,
        ja=(
            "TSV 形式で答えてください。",
            "回答をタブ区切りの表にしてください。",
            "どの行も列数が同じ TSV だけを書いてください。",
        ),
        en=(
            "Answer in TSV.",
            "Write the answer as tab-separated values.",
            "Output TSV rows that all have the same number of columns.",
        ),
    ),
    plain(
        "markdown_table",
        "The whole text is a Markdown table.",
        markdown_table,
        ja=(
            "Markdown の表で答えてください。",
            "回答を Markdown の表だけにしてください。",
            "見出し行と区切り行のある Markdown の表のみを書いてください。",
        ),
        en=(
            "Answer with a Markdown table.",
            "The whole answer must be a Markdown table.",
            "Write only a Markdown table with a header and a rule below it.",
        ),
    ),
    plain(
        "mediawiki_table",
        "The whole text is a MediaWiki table with a header and data.",
        mediawiki_table,
        ja=(
            "MediaWiki の表で答えてください。",
            "回答を MediaWiki の表だけにしてください。",
            "{{| で始まり |}} で終わる MediaWiki 記法の表のみを書いてください。",
        ),
        en=(
            "Answer with a MediaWiki table.",
            "The whole answer must be a table in MediaWiki markup.",
            "Write only a wiki table from {{| to |}}, with a header.",
        ),
    ),
    plain(
        "html_table",
        "The whole text is one HTML table with rows and cells.",
        is_html_table,
        ja=(
            "HTML の表で答えてください。",
            "回答を <table> 要素だけにしてください。",
            "<table> から </table> までの HTML のみを書いてください。",
        ),
        en=(
            "Answer with an HTML table.",
            "The whole answer must be a <table> element.",
            "Write only HTML from <table> to </table>.",
        ),
    ),
    plain(
        "latex_table",
        "The whole text is one LaTeX tabular.",
        is_latex_table,
        ja=(
            "LaTeX の表で答えてください。",
            "回答を tabular 環境だけにしてください。",
            "tabular 環境一つだけからなる LaTeX を書いてください。",
        ),
        en=(
            "Answer with a LaTeX table.",
            "The whole answer must be a tabular environment.",
            "Write only LaTeX, with a single tabular.",
        ),
    ),
    plain(
        "latex_text",
        "The text is LaTeX with balanced groups, environments and formulas, in a code block or not.",
        lambda text: is_latex(_content(text)),
        ja=(
            "LaTeX 形式で答えてください。",
            "回答を LaTeX のソースにしてください。",
            "括弧や環境の対応が正しい LaTeX だけを書いてください。",
        ),
        en=(
            "Answer in LaTeX.",
            "Write the answer as LaTeX source.",
            "Output LaTeX in which all groups and environments are closed.",
        ),
    ),
    plain(
        "diff_text",
        "The text is a unified diff, as `git diff` writes it, in a code block or not.",
        lambda text: is_diff(_content(text)),
        ja=(
            "Git の差分の形で答えてください。",
            "回答を git diff の出力の形にしてください。",
            "unified diff の書式だけで書いてください。",
        ),
        en=("Answer as a Git diff.", "Write the answer in the form of git diff.", "Output nothing but a unified diff."),
    ),
    plain(
        "python_text",
        "The text, or its first code block, is Python without syntax errors.",
        python_text,
        ja=(
            "Python のコードで答えてください。",
            "文法の正しい Python を書いてください。",
            "Python として構文解析できるコードで回答してください。",
        ),
        en=(
            "Answer with Python code.",
            "Write Python without syntax errors.",
            "Reply in code that a Python parser accepts.",
        ),
    ),
    plain(
        "python_bare",
        "The whole text is Python without syntax errors, not in a code block.",
        python_bare,
        ja=(
            "コードブロックを使わず、Python のコードだけを書いてください。",
            "``` を付けずに Python で答えてください。",
            "Python のソースをそのまま、囲みなしで出力してください。",
        ),
        en=(
            "Write only Python code, without a code block.",
            "Answer in Python and do not use ```.",
            "Output bare Python source, not fenced.",
        ),
    ),
    plain(
        "python_block",
        "The text starts with a code block of Python without syntax errors.",
        python_block,
        ja=(
            "```python のコードブロックで答えてください。",
            "Python のコードをコードブロックに入れ、それから書き始めてください。",
            "回答の冒頭を ```python で始まるコードブロックにしてください。",
        ),
        en=(
            "Answer with a ```python block.",
            "Begin with a code block of Python.",
            "The answer has to open with code fenced as ```python.",
        ),
    ),
)
