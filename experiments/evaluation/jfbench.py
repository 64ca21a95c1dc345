"""Compare our checkers with JFBench's own constraints on the same answers.

    git clone https://github.com/pfnet-research/jfbench
    python experiments/evaluation/jfbench.py jfbench --python PYTHON

PYTHON is a Python 3.12 with JFBench's requirements (janome, pysbd, esprima, html5lib, pylatexenc, pyyaml, pymarkdownlnt, markdown-it-py,
emoji, syllapy, beautifulsoup4, openai, numpy, pandas, tqdm, matplotlib, plotly). JFBench's code runs there; nothing of it is copied.

Answers are made from templates near each constraint's bounds, from the texts in JFBench's tests and from the bundled corpus. They are
then changed in white space, width, punctuation and markup. The script writes `jfbench.json` and `jfbench.md` beside itself: the share of
equal verdicts of each constraint, and the differences.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
from pathlib import Path
from typing import Any

from jfbench_answers import EDGES, PER_CONSTRAINT, changed, examples, literals, sentences
from jfbench_reasons import REASONS

from plamo2_jax import checkers
from plamo2_jax.eval.bundled import read_json, read_lines

HERE = Path(__file__).parent
SHOWN = 100
"""Number of characters of an answer that the result shows."""


def rows_of(
    constraint: dict[str, Any], texts: list[str], by_file: dict[str, list[str]], document: str, seed: int
) -> list[dict]:
    """Return the answers to a constraint with our verdicts."""
    rng = random.Random(f"{seed}/{constraint['number']}/{document}")
    parameters = constraint["parameters"] | ({"document": document} if document else {})
    own = [text for source, some in by_file.items() if constraint["constraint"] in source for text in some]
    seeds = list(dict.fromkeys(examples(constraint["number"], parameters, document) + own))

    def passes(text: str) -> bool:
        return checkers.check(constraint["checker"], text, parameters) != bool(constraint.get("negated"))

    others = list(texts)
    rng.shuffle(others)
    accepted = [text for text in others if passes(text)][:30]
    variants = [variant for text in [*seeds, *accepted] for variant in changed(text, rng)]
    rng.shuffle(variants)
    count = PER_CONSTRAINT // (3 if document else 1)
    chosen = list(dict.fromkeys([*EDGES, *seeds[: count // 2], *accepted]))
    chosen = list(dict.fromkeys([*chosen, *variants[: max(0, count - 60 - len(chosen))], *others[:60]]))
    return [
        {"number": constraint["number"], "document": document, "answer": text, "ours": passes(text)} for text in chosen
    ]


def compare(checkout: Path, python: str, seed: int) -> dict[str, Any]:
    """Return counts and differences of all constraints."""
    head = subprocess.run(["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    commit = head.stdout.strip() or "c8fed01"
    constraints, _ = read_json("jfbench/constraints.json")
    prompts = [line["prompt"] for line in read_lines("jfbench/prompts.jsonl.xz")[0]]
    short = sorted(prompts, key=len)
    by_file = literals(checkout)
    texts = list(dict.fromkeys([text for some in by_file.values() for text in some] + sentences(60)))
    rows = []
    for constraint in constraints:
        for document in (short[0], short[150], short[200]) if constraint.get("document") else ("",):
            rows += rows_of(constraint, texts, by_file, document, seed)
    sent = "".join(json.dumps({k: row[k] for k in ("number", "document", "answer")}) + "\n" for row in rows)
    command = [python, str(HERE / "jfbench_verdicts.py"), str(checkout)]
    done = subprocess.run(command, input=sent, capture_output=True, text=True, check=True)
    result: dict[str, Any] = {"seed": seed, "commit": commit, "constraints": {}}
    names = {one["number"]: one["constraint"] for one in constraints}
    for row, line in zip(rows, done.stdout.splitlines(), strict=True):
        theirs = json.loads(line)
        found = result["constraints"].setdefault(
            str(row["number"]),
            {
                "constraint": names[row["number"]],
                "answers": 0,
                "accepted": 0,
                "errors": 0,
                "different": 0,
                "differences": [],
            },
        )
        found["answers"] += 1
        found["accepted"] += bool(theirs["passed"])
        found["errors"] += theirs["passed"] is None
        if bool(theirs["passed"]) != row["ours"]:
            found["different"] += 1
            found["differences"].append(
                {"answer": row["answer"][:SHOWN], "jfbench": theirs["passed"], "ours": row["ours"]}
            )
    everything = result["constraints"].values()
    for name in ("answers", "accepted", "errors", "different"):
        result[name] = sum(one[name] for one in everything)
    result["percent_equal"] = round(100 * (1 - result["different"] / result["answers"]), 2)
    return result


def to_markdown(result: dict[str, Any]) -> str:
    """Return a table of the constraints that differ, with the reasons."""
    equal = sum(1 for one in result["constraints"].values() if not one["different"])
    lines = [
        "# This project's checkers and JFBench's own code",
        "",
        f"Produced by `python experiments/evaluation/jfbench.py`, JFBench's commit {result['commit']}.",
        f"{result['answers']:,} answers to {len(result['constraints'])} constraints, of which JFBench accepts {result['accepted']:,}.",
        f"{result['percent_equal']} % of the verdicts are equal. For {equal} constraints, all verdicts are equal.",
        "`accepted` counts the answers that JFBench accepts.",
        "",
        "| constraint | answers | accepted | different | reason |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for number, one in result["constraints"].items():
        if one["different"]:
            name = f"{number} {one['constraint'].removesuffix('Constraint')}"
            reason = REASONS.get(one["constraint"], "not explained")
            lines.append(f"| {name} | {one['answers']} | {one['accepted']} | {one['different']} | {reason} |")
    lines += [
        "",
        "## Every difference",
        "",
        "Answers are cut after 100 characters. The reason is the one of the constraint above.",
        "",
    ]
    lines += ["| constraint | answer | JFBench | ours |", "| --- | --- | --- | --- |"]
    for number, one in result["constraints"].items():
        for difference in one["differences"]:
            shown = json.dumps(difference["answer"], ensure_ascii=False).replace("|", "\\|")
            verdicts = " | ".join("accepted" if difference[who] else "refused" for who in ("jfbench", "ours"))
            lines.append(f"| {number} | `{shown}` | {verdicts} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--python", required=True, help="a Python with JFBench's requirements")
    parser.add_argument("--seed", type=int, default=0, help="seed of the changes to answers")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of jfbench.json and jfbench.md")
    options = parser.parse_args()
    result = compare(options.checkout, options.python, options.seed)
    (options.output / "jfbench.json").write_text(
        json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )
    (options.output / "jfbench.md").write_text(to_markdown(result), encoding="utf-8")
    print({name: result[name] for name in ("answers", "accepted", "errors", "different", "percent_equal")})


if __name__ == "__main__":
    main()
