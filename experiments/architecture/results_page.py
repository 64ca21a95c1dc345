"""README.md and the plots, from results.json, speed.json and notes.md."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from arms import COMPARISONS, KINDS
from phonebooks import accuracy
from trials import LANGUAGES, spread

HERE = Path(__file__).resolve().parent
MARKER = "<!-- results -->\n"
TITLES = {"parameters": "Equal parameters", "flops": "Equal training FLOPs"}
SCORES = ("exact", "ranked")
COLOURS = dict(zip(KINDS, ("#0072B2", "#D55E00", "#009E73"), strict=True))


def write(output: Path) -> None:
    """Write README.md and the plots from the results that exist in a folder."""
    results, speeds = read(output, "results.json"), read(output, "speed.json")
    if results:
        plot_lookups(results, output / "plot.png")
    if speeds:
        plot_speed(speeds, output / "speed.png")
    (output / "README.md").write_text(page(results, speeds), encoding="utf-8")


def page(results: dict | None, speeds: dict | None) -> str:
    """Return the README: notes.md, with the tables in the place of its marker."""
    question, _, conclusions = (HERE / "notes.md").read_text(encoding="utf-8").partition(MARKER)
    parts = [question.strip()]
    if results:
        parts += [training(results), *(comparison(results, name) for name in COMPARISONS)]
        parts.append("![accuracy by length](plot.png)")
    else:
        parts.append("No model has been trained yet. `python experiments/architecture/run.py` trains all models.")
    if speeds:
        parts += [speed(speeds), "![speed and cache by context length](speed.png)"]
    else:
        parts.append("Speed has not been measured yet. `python experiments/architecture/speed.py` measures it.")
    return "\n\n".join([*parts, conclusions.strip()]).rstrip() + "\n"


def read(folder: Path, name: str) -> dict | None:
    """Return the JSON of a file; None if it does not exist."""
    path = folder / name
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def values(results: dict, name: str, measure: Callable[[dict], float]) -> list[float]:
    """Return a figure of a model by seed, of the seeds that have it."""
    return [measure(seed[name]) for seed in results["seeds"].values() if name in seed]


def training(results: dict) -> str:
    """Return the sentences on the training, with its command and machine."""
    tokens = results["rows"] * results["length"]
    million = (results["first"] + results["steps"]) * tokens / 1e6
    seeds, digits = len(results["seeds"]), results["digits"]
    return f"""`{results["command"]}`: {results["first"]} steps on short books and {results["steps"]} steps on text and books, each of
{results["rows"]} × {results["length"]} tokens ({million:.2f} million in all); learning rate {results["learning_rate"]:g}, then two thirds
of it; {results["dtype"]}, window {results["window"]}. {seeds} seed{"s" if seeds > 1 else ""}; mean ± standard deviation.
{results["machine"]}, jax {results["versions"]["jax"]}.

Numbers of the phonebooks have {digits} digits. `exact` is greedy decoding (chance: {10.0**-digits:g}; a random number of the same book: one
over its entries). `ranked` chooses among four numbers of the same book (chance: 0.25). Columns are tokens of the book with question and
answer."""


def mean_accuracy(found: dict, lengths: Sequence[int]) -> float:
    """Return the mean of `exact` over lengths."""
    return statistics.fmean(accuracy(found, "exact", length) for length in lengths)


def comparison(results: dict, name: str) -> str:
    """Return the tables of a comparison: held-out text, lookups, and the differences from the hybrid by seed."""
    texts, lookups, differences = [], [], []
    inside, beyond = ([n for n in results["lengths"] if (n <= results["window"]) is near] for near in (True, False))
    measures = [lambda found, at=at: found["bits_per_byte"][at] for at in LANGUAGES]
    measures += [lambda found, lengths=lengths: mean_accuracy(found, lengths) for lengths in (inside, beyond)]
    models = results["comparisons"][name]
    trained = {kind: model for kind, model in models.items() if values(results, model, lambda found: 1.0)}
    for kind, model in trained.items():
        about = results["models"][model]
        bits = (spread(values(results, model, measure)) for measure in measures[: len(LANGUAGES)])
        texts.append(
            f"| {kind} | {about['config']['intermediate_size']} | {about['parameters']:,} | "
            f"{about['training_flops_per_token'] / 1e6:.2f} | {' | '.join(bits)} |"
        )
        for score in SCORES:
            cells = (
                spread(values(results, model, lambda found, score=score, n=n: accuracy(found, score, n)), 2)
                for n in results["lengths"]
            )
            lookups.append(f"| {kind} | {score} | {' | '.join(cells)} |")
        both = [seed for seed in results["seeds"].values() if {model, models["hybrid"]} <= set(seed)]
        if kind != "hybrid" and both:
            cells = (
                signed([measure(seed[model]) - measure(seed[models["hybrid"]]) for seed in both])
                for measure in measures
            )
            differences.append(f"| {kind} | {len(both)} | {' | '.join(cells)} |")
    heads = (f"{n} ({'inside' if n in inside else 'beyond'})" for n in results["lengths"])
    missing = len(trained) < len(models) or any(set(models.values()) - set(seed) for seed in results["seeds"].values())
    return f"""## {TITLES[name]}

| model | MLP width | parameters | MFLOP per token, training | held-out bits per byte, ja | en |
|---|---|---|---|---|---|
{chr(10).join(texts)}

| model | score | {" | ".join(heads)} |
|---|---|{"---|" * len(results["lengths"])}
{chr(10).join(lookups)}

Differences from the hybrid of the same seed: bits per byte (negative is better), and `exact` (positive is better).

| model | seeds | ja | en | exact inside the window | exact beyond |
|---|---|---|---|---|---|
{chr(10).join(differences)}""" + (
        "\n\nSome models are not trained yet: the command above continues." if missing else ""
    )


def signed(differences: Sequence[float]) -> str:
    """Return the mean of differences with its sign, and their standard deviation."""
    text = f"{statistics.fmean(differences):+.3f}"
    return text if len(differences) < 2 else f"{text} ± {statistics.stdev(differences):.3f}"


def speed(results: dict) -> str:
    """Return the table of speeds."""
    rows = []
    for length, found in sorted(results["lengths"].items(), key=lambda item: int(item[0])):
        for kind in KINDS:
            prefill, decode, size = (found[kind][name] for name in ("prefill", "decode", "cache_bytes"))
            cells = (
                f"{each['median']:,.0f} ({each['least']:,.0f} to {each['most']:,.0f})" for each in (prefill, decode)
            )
            rows.append(f"| {int(length):,} | {kind} | {' | '.join(cells)} | {size / 1e6:,.2f} | {prefill['turns']} |")
    counts = ", ".join(f"{kind} {count / 1e6:.1f} million" for kind, count in results["parameters"].items())
    window = results["models"]["hybrid"]["attention_window_size"]
    return f"""## Speed and cache by context length

`{results["command"]}`: random weights, {results["dtype"]}, one row, window {window:,}.
Parameters: {counts}. Prompts are read in pieces of 512 tokens, and 64 tokens are
decoded after them. The table has the median, and least to most, of the turns in the last column; the models take turns.
{results["machine"]}, jax {results["versions"]["jax"]}.

| context | model | prefill, tokens/s | decode, tokens/s | cache of a row, MB | turns |
|---|---|---|---|---|---|
{chr(10).join(rows)}"""


def plot_lookups(results: dict, path: Path) -> None:
    """Draw the accuracy of lookups by length, a panel a comparison, with a point for each seed; and the loss of the first training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    panels = figure.subplots(1, 3)
    lengths = results["lengths"]
    for panel, name in zip(panels, COMPARISONS, strict=False):
        for kind, model in results["comparisons"][name].items():
            by_length = [values(results, model, lambda found, n=n: accuracy(found, "exact", n)) for n in lengths]
            if not by_length[0]:
                continue
            panel.plot(lengths, list(map(statistics.fmean, by_length)), color=COLOURS[kind], marker="o", label=kind)
            for n, some in zip(lengths, by_length, strict=True):
                panel.scatter([n] * len(some), some, color=COLOURS[kind], s=12, alpha=0.5)
        panel.axvline(results["window"], color="gray", linestyle=":")
        panel.set(xscale="log", xlabel="tokens of the phonebook", title=TITLES[name], ylim=(-0.02, 1.02))
        panel.set_ylabel("exact; dotted line: the window")
        panel.set_xticks(lengths, list(map(str, lengths)))
        panel.minorticks_off()
        panel.legend()
    tokens = results["rows"] * results["length"]
    for name, about in results["models"].items():
        for number, losses in enumerate(values(results, name, lambda found: found["losses_first"])):
            steps = [10 * tokens * (i + 1) / 1e6 for i in range(len(losses))]
            width = about["config"]["intermediate_size"]
            label = f"{about['kind']}, MLP {width}" if number == 0 else None
            style = "--" if name != results["comparisons"]["parameters"][about["kind"]] else "-"
            panels[2].plot(steps, losses, style, color=COLOURS[about["kind"]], label=label, alpha=0.7)
    panels[2].set(xlabel="million tokens", ylabel="nats per token", title="first training", ylim=(None, 2.0))
    panels[2].legend()
    figure.savefig(path, dpi=110)


def plot_speed(results: Mapping, path: Path) -> None:
    """Draw both speeds and the bytes of the cache by context length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    lengths = sorted(map(int, results["lengths"]))
    titles = {"prefill": "prefill, tokens/s", "decode": "decode, tokens/s", "cache_bytes": "cache of a row, bytes"}
    for panel, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for kind in KINDS:
            found = [results["lengths"][str(length)][kind][name] for length in lengths]
            medians = [each if name == "cache_bytes" else each["median"] for each in found]
            panel.plot(lengths, medians, color=COLOURS[kind], marker="o", label=kind)
            if name != "cache_bytes":
                least, most = ([each[end] for each in found] for end in ("least", "most"))
                panel.fill_between(lengths, least, most, color=COLOURS[kind], alpha=0.2)
        panel.set(xscale="log", yscale="log", xlabel="context, tokens", title=title)
        panel.set_xticks(lengths, [f"{length // 1024}K" if length >= 1024 else str(length) for length in lengths])
        panel.minorticks_off()
    figure.axes[0].legend()
    figure.savefig(path, dpi=110)
