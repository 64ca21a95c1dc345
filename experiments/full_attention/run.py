"""A windowed hybrid and its continuation under full attention on phonebooks inside and beyond the window.

python experiments/full_attention/run.py --seeds 0 1 2        # resumes; writes results.json, plot.png, README.md
python experiments/full_attention/run.py --seeds 0 --small    # minutes, to see that it runs
python experiments/full_attention/run.py --scale gpu          # 65 million parameters
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from phonebooks import Books, accuracy, measure, prepare  # noqa: E402
from scales import Scale, parse  # noqa: E402
from trials import LANGUAGES, train_to_end  # noqa: E402

from plamo2_jax import checkpoint  # noqa: E402
from plamo2_jax.config import ModelConfig  # noqa: E402
from plamo2_jax.data.pipeline import DataConfig, MixtureItem  # noqa: E402
from plamo2_jax.surgery.extend import extend  # noqa: E402
from plamo2_jax.train.config import RunConfig  # noqa: E402
from plamo2_jax.train.pretraining import Pretrain  # noqa: E402
from plamo2_jax.train.schedule import ScheduleConfig  # noqa: E402

# Looking up is learnt from some hundred thousand questions about short books, and then all at once; so it comes first and by itself.
FIRST = {"short": 1.0}
THEN = {"short": 0.1, "long": 0.4, "ja/train": 0.25, "en/train": 0.25}
"""Shares of the tokens."""
MODELS = ("windowed", "windowed, trained on", "full attention")


def train(
    home: Path,
    scale: Scale,
    name: str,
    seed: int,
    steps: int,
    model: ModelConfig,
    start: Path | None,
    shares: dict,
    share_of_rate: float = 1.0,
) -> Path:
    """A run on text and phonebooks, or what is left of it to do."""
    return train_to_end(
        RunConfig(
            name=f"{name}-{seed}",
            output=home / "runs",
            model=model,
            tokenizer=home / "tokenizer.jsonl",
            data=DataConfig(
                tuple(MixtureItem(home / "data" / part, share) for part, share in shares.items()),
                sequence_length=scale.length,
                batch_size=scale.rows,
                seed=seed,
            ),
            steps=steps,
            task=Pretrain(),
            init_from=start,
            schedule=ScheduleConfig(
                learning_rate=share_of_rate * scale.learning_rate,
                warmup=0.05,
                decay_fraction=0.3,
                decay_shape="linear",
            ),
            dtype=scale.dtype,
            seed=seed,
            checkpoint_every=max(1, steps // 4),
            max_to_keep=1,
        )
    )


def one_seed(scale: Scale, books: Books, seed: int, options: argparse.Namespace) -> dict[str, dict]:
    """The windowed model, the same trained on, and its continuation under full attention."""
    home, shape = options.work, scale.models["windowed"]
    # One for all seeds, which are those of what follows.
    first = train(home, scale, "first", 0, options.first, shape, None, FIRST)
    windowed = train(home, scale, "windowed", seed, options.steps, shape, first, THEN, 2 / 3)
    control = train(home, scale, "control", 1000 + seed, options.more, shape, windowed, THEN, 1 / 3)
    opened = home / "runs" / f"opened-{seed}"
    if not opened.exists():
        extend(str(windowed), opened, full_attention="all", rope_theta=shape.rope_theta)
    config = checkpoint.read_model_config(opened)
    full = train(home, scale, "full", 1000 + seed, options.more, config, opened, THEN, 1 / 3)
    folders = dict(zip(MODELS, (windowed, control, full), strict=True))
    return {
        name: measure(
            home,
            folder,
            books,
            lengths=question_lengths(scale),
            samples=options.samples,
            sequence=(scale.length, scale.rows),
            batches=options.batches,
        )
        for name, folder in folders.items()
    }


def question_lengths(scale: Scale) -> list[int]:
    """Return the tokens of the questioned phonebooks: three quarters of the window, the window, twice and four times the window."""
    window = scale.models["windowed"].attention_window_size
    return [3 * window // 4, window, 2 * window, 4 * window]


def write(output: Path, results: dict, scale: Scale, books: Books) -> None:
    """results.json, plot.png and README.md."""
    lengths, shape = question_lengths(scale), scale.models["windowed"]
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    checkpoint.write_json(output / "results.json", results)
    seeds = list(results["seeds"].values())
    means = {
        name: {
            score: [float(np.mean([accuracy(seed[name], score, n) for seed in seeds])) for n in lengths]
            for score in ("exact", "ranked")
        }
        for name in MODELS
    }
    bits = {
        name: [float(np.mean([seed[name]["bits_per_byte"][language] for seed in seeds])) for language in LANGUAGES]
        for name in MODELS
    }
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    for panel, score in zip(panels, ("exact", "ranked"), strict=True):
        for i, name in enumerate(MODELS):
            for seed in seeds:
                panel.plot(lengths, [accuracy(seed[name], score, n) for n in lengths], color=f"C{i}", alpha=0.25)
            panel.plot(lengths, means[name][score], color=f"C{i}", marker="o", label=name)
        panel.axvline(
            shape.attention_window_size, color="k", linestyle=":", label=f"window, {shape.attention_window_size}"
        )
        panel.set(xscale="log", xlabel="tokens of the phonebook", ylabel="accuracy", title=score, ylim=(0, 1.02))
        panel.set_xticks(lengths, list(map(str, lengths)))
        panel.minorticks_off()
    panels[0].legend()
    figure.savefig(output / "plot.png", dpi=120)
    plt.close(figure)
    rows = [
        f"| {name} | {score} | " + " | ".join(f"{value:.3f}" for value in means[name][score]) + " |"
        for name in MODELS
        for score in ("exact", "ranked")
    ]
    texts = [f"| {name} | {ja:.4f} | {en:.4f} |" for name, (ja, en) in bits.items()]
    worse = max(full / control - 1 for full, control in zip(bits[MODELS[2]], bits[MODELS[1]], strict=True))
    output.joinpath("README.md").write_text(
        f"""# Full attention after training with a window

**Question.** Does a hybrid with windowed attention fail to look up facts beyond its window? Does further training with full attention \
repair this, and \
what does it cost on ordinary text?

**Method.** The model has {shape.num_hidden_layers} layers; state-space layers alternate with attention layers with a window of \
{shape.attention_window_size} (width {shape.hidden_size}, vocabulary {shape.vocab_size}). It is trained for {results["first"]} steps of \
{scale.rows} × {scale.length} tokens on phonebooks of 2 to 5 entries with numbers of {books.digits} digits, and for {results["steps"]} \
steps on a mixture: half phonebooks, most of them with 2 to {books.kinds["long"][1]} entries, and half the bundled corpus. It is then \
trained for \
{results["more"]} more steps of the mixture twice, on the same data: unchanged, and after `plamo2 extend --full-attention all`. The \
questions are about \
phonebooks that were not in the training data, {results["samples"]} for each language, length and one of four depths. The table has the \
mean accuracy \
over {len(seeds)} seed(s) of all but the first training. `exact` is greedy decoding; chance is {10.0**-books.digits:g}. `ranked` chooses \
among four \
numbers of the same book; chance is 0.25.

| model | score | {" | ".join(f"{n} tokens" for n in lengths)} |
|---|---|{"---|" * len(lengths)}
{chr(10).join(rows)}

| model | Japanese, held-out bits per byte | English, held-out bits per byte |
|---|---|---|
{chr(10).join(texts)}

With full attention, the bits per byte of ordinary text are at most {worse:.2%} higher than after the same training with the window.

![accuracy by length](plot.png)

`python experiments/full_attention/run.py --seeds {" ".join(results["seeds"])}` repeats the experiment.
""",
        encoding="utf-8",
    )


def main() -> None:
    """Run what is missing and write everything anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--first", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--more", type=int)
    parser.add_argument("--entries", type=int, help="most entries of a long phonebook")
    parser.add_argument("--digits", type=int, help="digits of a number")
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--batches", type=int, default=20, help="batches of held-out text in each language")
    parser.add_argument("--documents", type=int)
    parser.add_argument("--small", action="store_true", help="a few steps, into WORK/small")
    options, scale = parse(parser, "full_attention", HERE)
    if options.small:
        options.first, options.steps, options.more, options.samples, options.documents, options.batches = (
            6,
            6,
            3,
            1,
            600,
            2,
        )
        options.work = options.output = options.work / "small"
    books = Books(options.digits, kinds={"short": (2, 5, 5), "long": (2, options.entries, options.entries // 2)})
    prepare(options.work, books, options.documents, scale.vocab_size)
    path = options.output / "results.json"
    wanted = {"first": options.first, "steps": options.steps, "more": options.more, "samples": options.samples}
    results = json.loads(path.read_text()) if path.exists() else {}
    if {name: results.get(name) for name in wanted} != wanted:
        results = {**wanted, "seeds": {}}
    for seed in options.seeds:
        if str(seed) not in results["seeds"]:
            results["seeds"][str(seed)] = one_seed(scale, books, seed, options)
            checkpoint.write_json(path, results)
    write(options.output, results, scale, books)


if __name__ == "__main__":
    main()
