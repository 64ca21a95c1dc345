"""The files of the results: results.json, plot.png, and README.md with the conclusions of notes.md."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from plamo2_jax.checkpoint import write_json

Value = Callable[[dict], float]


def _mean(*keys: str) -> Value:
    """Return a function that reads the mean of both languages from the measurements of a model."""

    def read(measured: dict) -> float:
        languages = measured[keys[0]].values()
        return statistics.fmean(one if len(keys) == 1 else one[keys[1]] for one in languages)

    return read


COLUMNS: dict[str, tuple[str, Value]] = {
    "ja": ("Japanese pages, bits per byte", lambda measured: measured["bits_per_byte"]["ja"]),
    "en": ("English pages, bits per byte", lambda measured: measured["bits_per_byte"]["en"]),
    "solutions": ("solutions, bits per byte", _mean("word_problems", "bits_per_byte")),
    "problems exact": ("word problems, exact", _mean("word_problems", "exact")),
    "problems ranked": ("word problems, ranked", _mean("word_problems", "ranked")),
    "facts exact": ("facts, exact", _mean("facts", "exact")),
    "facts ranked": ("facts, ranked", _mean("facts", "ranked")),
    "trained exact": ("trained questions, exact", _mean("facts_trained", "exact")),
    "trained ranked": ("trained questions, ranked", _mean("facts_trained", "ranked")),
}
PAGES, TASKS = ("ja", "en", "solutions"), tuple(name for name in COLUMNS if name not in ("ja", "en", "solutions"))
BASE, REFERENCE = "0", "all pages"
"""The arm without synthetic text, and the one with all pages."""


def values(results: dict, arm: str, column: str, less: str | None = None) -> list[float]:
    """Return a value of each seed, or its difference from the value of the arm `less` with the same seed."""
    read = COLUMNS[column][1]
    arms = [seed["arms"] for seed in results["seeds"].values()]
    return [read(one[arm]) - (read(one[less]) if less else 0.0) for one in arms]


def error(numbers: list[float]) -> float:
    """Return the standard error of a mean; 0 for one value."""
    return statistics.stdev(numbers) / len(numbers) ** 0.5 if len(numbers) > 1 else 0.0


def text(numbers: list[float], sign: str = "") -> str:
    """Return the mean and its standard error."""
    return f"{statistics.fmean(numbers):{sign}.3f} ± {error(numbers):.3f}"


def table(results: dict, arms: list[str], columns: tuple[str, ...], less: str | None = None) -> str:
    """Return a Markdown table with an arm in each row."""
    head = ["synthetic share", *(COLUMNS[column][0] for column in columns)]
    rows = [
        [arm, *(text(values(results, arm, column, less), "+" if less else "") for column in columns)] for arm in arms
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def write(output: Path, results: dict) -> None:
    """Write results.json, plot.png and README.md."""
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "results.json", results)
    plot(output / "plot.png", results, list(next(iter(results["seeds"].values()))["arms"]))
    write_readme(output, results)


def write_readme(output: Path, results: dict) -> None:
    """Write README.md from the results, notes.md and throughput.json."""
    seeds = list(results["seeds"].values())
    arms = list(seeds[0]["arms"])
    real = statistics.fmean(sum(seed["real_tokens"].values()) for seed in seeds)
    synthetic = statistics.fmean(seed["synthetic_tokens"] for seed in seeds)
    sizes = seeds[0]["synthetic_bytes"]
    parts = ", ".join(f"{name} {size / sum(sizes.values()):.0%}" for name, size in sizes.items())
    asked = {
        name: sum(one["questions"] for one in seeds[0]["arms"][arms[0]][name].values())
        for name in ("word_problems", "facts")
    }
    epochs = results["tokens"] / real
    others = [arm for arm in arms if arm not in (BASE, REFERENCE)]
    differences = ""
    if BASE in arms and others:
        differences = f"""
Differences from the arm without synthetic text, by seed (same pages, initial parameters and number of tokens):

{table(results, others, PAGES, BASE)}

{table(results, others, TASKS, BASE)}
"""
    notes = output / "notes.md"
    (output / "README.md").write_text(
        f"""# Synthetic text from rules, added to scarce real text

**Question.** Real text is scarce and must be repeated. If rule-based generators, which are correct by construction, replace a part of the \
training tokens with synthetic text, how do the loss on real pages and the accuracy in the domain of the synthetic text change?

## Method

- Model: 2 layers, width 64, vocabulary 2048, trained for {results["steps"]:,} steps of 4 × 256 tokens, {results["tokens"]:,} tokens in \
every arm. {len(seeds)} seeds; a seed sets the available pages, the synthetic text, the initial parameters and the order of the data.
- Real text: 10 % of the training pages of the bundled corpus ({real:,.0f} tokens), a third of the tokens in Japanese. Without synthetic \
text, a page is read {epochs:.1f} times on average. The arm `{REFERENCE}` has all training pages instead.
- Synthetic text: {synthetic:,.0f} tokens from the recipes in `plamo2_jax.synth.rule_recipes`, by bytes: {parts}. Lists and translation \
pairs come from the available pages only. The directory has 24 people of each \
language. All arms have the same tokenizer, which was trained on all training pages and on the synthetic text of seed 0.
- Held-out questions: about one of four word problems, chosen by the hash of its kind and numbers, is never in the training text, in \
either language. About one of four questions about a person is never in the training text, but statements with the fact are. The script \
checks \
that no training text has a held-out question. The statements are not in the prompt of a question, so the model must answer from memory.
- Scores are means of both languages over {asked["word_problems"]} word problems and {asked["facts"]} facts. `exact`: greedy decoding \
ends with \
the right answer. `ranked`: the right one of four continuations has the largest log-probability (`model.score`); chance is 0.25. For a \
word problem, the solution up to the last equals sign is given, and the wrong results come from other problems of the same kind and \
have as many digits. For a fact, the wrong answers belong to other people. `trained questions` are questions in the training text.
- The tables have the mean ± standard error over seeds.

## Results

{table(results, arms, PAGES)}

{table(results, arms, TASKS)}
{differences}
![Held-out loss and accuracy by synthetic share](plot.png)

{notes.read_text(encoding="utf-8") if notes.exists() else ""}{throughput(output / "throughput.json")}
## Run it again

```bash
python experiments/synthetic_data/ablation.py
```

The command resumes where it was stopped: data, checkpoints and measurements are kept in `runs/synthetic_data`.
""",
        encoding="utf-8",
    )


def throughput(path: Path) -> str:
    """Return the table of the results of throughput.py; empty without them."""
    if not path.exists():
        return ""
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        (name, f"{row['records']:,}", f"{row['kept']:,}", f"{row['seconds']:.1f}", f"{row['peak_mb']}")
        for name, row in content["rows"].items()
    ]
    head = ("command", "records", "kept", "seconds", "peak memory of all processes, MB")
    table = "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows))
    repeats = len(next(iter(content["rows"].values()))["all_seconds"])
    return f"""
{table}

`{content["command"]}`: Python {content["python"]}, {content["cores"]} cores, load average {content["load_average"][0]:.1f} at the end. \
Medians; repeats: {repeats}.
"""


def plot(path: Path, results: dict, arms: list[str]) -> None:
    """Plot the held-out loss and the accuracies by synthetic share, with standard errors."""
    shares = [arm for arm in arms if arm != REFERENCE]
    figure, panels = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    panels_of = (
        ("pages", "bits per byte", ("ja", "en")),
        ("word problems", "accuracy", ("problems exact", "problems ranked")),
        ("facts", "accuracy", ("facts exact", "facts ranked", "trained exact", "trained ranked")),
    )
    for panel, (title, label, columns) in zip(panels, panels_of, strict=True):
        for i, column in enumerate(columns):
            found = [values(results, arm, column) for arm in shares]
            means, errors = [statistics.fmean(one) for one in found], [error(one) for one in found]
            name = COLUMNS[column][0].removesuffix(", bits per byte")
            panel.errorbar(list(map(float, shares)), means, errors, color=f"C{i}", marker="o", capsize=3, label=name)
            if title == "pages" and REFERENCE in arms:
                level = statistics.fmean(values(results, REFERENCE, column))
                panel.axhline(level, color=f"C{i}", linestyle=":", label=f"{name}, {REFERENCE}")
        if label == "accuracy":
            panel.axhline(0.25, color="k", linestyle=":", label="chance of ranking")
            panel.set_ylim(-0.02, 1.02)
        panel.set(title=title, xlabel="synthetic share of the tokens", ylabel=label)
        panel.legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)
