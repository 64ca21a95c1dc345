"""Compare our checkers with the verdicts that M-IFEval's repository stores for 17 models.

    git clone https://github.com/lightblue-tech/M-IFEval
    python experiments/evaluation/instructions.py M-IFEval

The repository has each model's answers with a strict and a loose verdict for every instruction, made by its own checkers. This script
checks the same answers and writes `instructions.json` and `instructions.md` beside itself: agreement by language, by mode and by kind of
instruction, the scores of each model from both, and every verdict that differs with its reason. Answers are not copied.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from plamo2_jax.eval.task import TaskOptions
from plamo2_jax.eval.tasks.instructions import InstructionTask, open

HERE = Path(__file__).parent
LANGUAGES = {"ja": "mifeval_ja", "en": "ifeval"}
MODES = ("strict", "loose")
# Why verdicts of a kind can differ. Every kind that differs must be listed.
REASONS = {
    "language:response_language": (
        "the repository guesses with langdetect (trained on Wikipedia, random unless seeded); ours decides by script and frequent "
        "words. They differ for short, mixed or broken text"
    ),
    "change_case:english_capital": (
        "the repository lets langdetect confirm English. It takes capitalized titles and lists of names for other languages at "
        "random; ours passes short text without words of another language"
    ),
    "change_case:english_lowercase": "as english_capital, for short titles and lists of words",
    "keywords:letter_frequency": (
        "the prompt asks for # or !. The repository's checker accepts letters only and replaces them with a random letter; ours "
        "counts the character of the prompt"
    ),
    "keywords:existence": (
        "the repository finds words with Janome; ours decides from neighbouring characters. A compound such as "
        "ダンスパフォーマンス is two words for Janome and one for ours"
    ),
    "keywords:frequency": "as existence: compounds of katakana words",
    "keywords:forbidden_words": "the repository finds words with Janome, where 栄養素 is one word; ours finds 栄養 in it",
    "length_constraints:number_sentences": (
        "the repository splits with Punkt and its trained abbreviations; ours has a fixed list. They differ by a few sentences, "
        "which matters only near the bound"
    ),
    "detectable_format:nominal_ending": (
        "the repository takes the part of speech from Janome; ours decides from the last characters"
    ),
}


@dataclasses.dataclass
class Count:
    verdicts: int = 0
    differences: int = 0

    def add(self, differs: bool) -> None:
        self.verdicts += 1
        self.differences += differs

    def json(self) -> dict[str, Any]:
        equal = 100 * (1 - self.differences / self.verdicts)
        return {**dataclasses.asdict(self), "percent_equal": round(equal, 3)}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def compare(folder: Path, task: InstructionTask, language: str) -> dict[str, Any]:
    """Return the agreement of one language: counts, scores of each model, and the differences."""
    by_prompt = {item.question: item for item in task.items}
    modes = {mode: Count() for mode in MODES}
    kinds: dict[str, Count] = collections.defaultdict(Count)
    models, differences = {}, []
    prefix = f"{language}_input_response_data_"
    for run in sorted((folder / "evaluations").glob(f"{prefix}*")):
        model = run.name.removeprefix(prefix)
        models[model] = {}
        for mode in MODES:
            stored_total = ours_total = total = 0
            for line in read(run / f"eval_results_{mode}.jsonl"):
                item = by_prompt[line["prompt"]]
                answer = line["response"] if isinstance(line["response"], str) else ""
                ours = task.verdicts(item, answer)[mode]
                ids = [name.split(":", 1)[1] for name in line["instruction_id_list"]]
                for name, stored, mine in zip(ids, line["follow_instruction_list"], ours, strict=True):
                    differs = stored != mine
                    modes[mode].add(differs)
                    kinds[name].add(differs)
                    total, stored_total, ours_total = total + 1, stored_total + stored, ours_total + mine
                    if differs:
                        entry = {
                            "model": model,
                            "mode": mode,
                            "key": int(item.id),
                            "instruction": name,
                            "repository": stored,
                        }
                        differences.append(entry | {"ours": mine})
            models[model][f"instruction_{mode}"] = {
                "repository": round(100 * stored_total / total, 2),
                "ours": round(100 * ours_total / total, 2),
            }
    everything = Count(sum(one.verdicts for one in modes.values()), sum(one.differences for one in modes.values()))
    return {
        "models": len(models),
        "all": everything.json(),
        **{mode: one.json() for mode, one in modes.items()},
        "kinds_that_differ": {name: one.json() for name, one in sorted(kinds.items()) if one.differences},
        "kinds_that_are_equal": sum(1 for one in kinds.values() if not one.differences),
        "scores_percent": models,
        "differences": differences,
    }


def to_markdown(result: dict[str, Any]) -> str:
    lines = ["# Our checkers and the stored verdicts of M-IFEval", ""]
    lines += [
        f"Produced by `python experiments/evaluation/instructions.py M-IFEval`, repository commit {result['commit']}.",
        "",
    ]
    lines += ["| language | models | mode | verdicts | different | equal, % |", "| --- | --- | --- | --- | --- | --- |"]
    for language in LANGUAGES:
        found = result[language]
        for mode in (*MODES, "all"):
            one = found[mode]
            lines.append(
                f"| {language} | {found['models']} | {mode} | {one['verdicts']:,} | {one['differences']} | {one['percent_equal']} |"
            )
    for language in LANGUAGES:
        found = result[language]
        lines += ["", f"## {language}: kinds of instructions that differ", ""]
        lines += [f"The verdicts of the other {found['kinds_that_are_equal']} kinds are all equal.", ""]
        lines += ["| instruction | verdicts | different | reason |", "| --- | --- | --- | --- |"]
        for name, one in found["kinds_that_differ"].items():
            lines.append(f"| {name} | {one['verdicts']:,} | {one['differences']} | {REASONS[name]} |")
        lines += ["", f"## {language}: instruction-level scores, %", ""]
        lines += ["| model | strict, repository | strict, ours | loose, repository | loose, ours |"]
        lines += ["| --- | --- | --- | --- | --- |"]
        for model, scores in found["scores_percent"].items():
            cells = [f"{scores[f'instruction_{mode}'][who]:.2f}" for mode in MODES for who in ("repository", "ours")]
            lines.append(f"| {model} | {' | '.join(cells)} |")
    for language in LANGUAGES:
        lines += ["", f"## {language}: every difference", ""]
        lines += ["`key` is the prompt's key in the data. The reason is the one of the instruction above.", ""]
        lines += ["| key | instruction | model | mode | repository | ours |", "| --- | --- | --- | --- | --- | --- |"]
        for one in result[language]["differences"]:
            verdicts = " | ".join("followed" if one[who] else "not followed" for who in ("repository", "ours"))
            lines.append(f"| {one['key']} | {one['instruction']} | {one['model']} | {one['mode']} | {verdicts} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    folder = Path(sys.argv[1])
    head = subprocess.run(["git", "-C", str(folder), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    result: dict[str, Any] = {"commit": head.stdout.strip() or "0bc3143"}
    for language, name in LANGUAGES.items():
        result[language] = compare(folder, open(name, TaskOptions()), language)
    (HERE / "instructions.json").write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    (HERE / "instructions.md").write_text(to_markdown(result), encoding="utf-8")
    for language in LANGUAGES:
        print(language, result[language]["all"])


if __name__ == "__main__":
    main()
