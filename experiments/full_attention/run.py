"""A windowed hybrid and its continuation under full attention on phonebooks inside and beyond the window.

python experiments/full_attention/run.py --seeds 0 1 2        # goes on where it was stopped; writes results.json, plot.png, README.md
python experiments/full_attention/run.py --seeds 0 --small    # minutes, to see that it runs
python experiments/full_attention/run.py --first 2000 --steps 8000 --more 4000 --samples 32    # on an accelerator
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import jax
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from trials import LANGUAGES, heldout_bits, run, train_to_end  # noqa: E402

from plamo2_jax import checkpoint, models  # noqa: E402
from plamo2_jax.config import ModelConfig, preset  # noqa: E402
from plamo2_jax.data.pipeline import DataConfig, MixtureItem  # noqa: E402
from plamo2_jax.eval import phonebook  # noqa: E402
from plamo2_jax.eval.depths import depths  # noqa: E402
from plamo2_jax.eval.phonebook_names import full_names  # noqa: E402
from plamo2_jax.eval.retrieval import ask, table  # noqa: E402
from plamo2_jax.storage import write_whole  # noqa: E402
from plamo2_jax.surgery.extend import extend  # noqa: E402
from plamo2_jax.train.config import RunConfig  # noqa: E402
from plamo2_jax.train.pretraining import Pretrain  # noqa: E402
from plamo2_jax.train.schedule import ScheduleConfig  # noqa: E402

WINDOW, LENGTHS, LENGTH, ROWS = 64, (48, 64, 128, 256), 256, 16
# Numbers of two digits, each a token as names are, behind a tab, which is joined with nothing: a model this small then learns to look up
# in minutes, where it would take hours to learn to spell.
DIGITS, SEPARATOR = 2, "\t"
BOOKS = {"short": (2, 5, 5), "long": (2, 40, 20)}
"""Entries, least and most, and queries."""
# Looking up is learnt from some hundred thousand questions about short books, and then all at once; so it comes first and by itself.
FIRST = {"short": 1.0}
THEN = {"short": 0.1, "long": 0.4, "ja/train": 0.25, "en/train": 0.25}
"""Shares of the tokens."""
MODELS = ("windowed", "windowed, trained on", "full attention")


def prepare(home: Path, documents: int) -> None:
    """Tokenizer, shards of the bundled corpus, and phonebooks."""
    home.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(home / "compiled"))
    if not (home / "tokenizer.jsonl").exists():
        words = home / "words.jsonl"
        lines = "".join(json.dumps({"text": word}, ensure_ascii=False) + "\n" for word in spelt())
        write_whole(words, lines.encode())
        run("tokenizer", "train", "--input", "bundled:all:train", words, "--vocab-size", 2048, "--output", home)
    sources = {
        f"{language}/{split}": f"bundled:{language}:{split}" for language in LANGUAGES for split in ("train", "heldout")
    }
    for name, (least, most, queries) in BOOKS.items():
        sources[name] = home / f"{name}.jsonl"
        if not sources[name].exists():
            form = ("--digits", DIGITS, "--separator", SEPARATOR, "--queries", queries)
            run("phonebook", sources[name], "--documents", documents, "--entries", least, most, *form)
    for name, source in sources.items():
        if not (home / "data" / name).exists():
            run("data", "prepare", "--input", source, "--tokenizer", home, "--output", home / "data" / name)


def spelt() -> list[str]:
    """Names and numbers, often enough for the vocabulary to have them as tokens."""
    rng = np.random.default_rng(0)
    names = [name for language in LANGUAGES for name in full_names(rng, language, 1600)]
    return 20 * names + 1000 * [f"{i:02}" for i in range(100)]


def train(
    home: Path, name: str, seed: int, steps: int, rate: float, model: ModelConfig, start: Path | None, shares: dict
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
                sequence_length=LENGTH,
                batch_size=ROWS,
                seed=seed,
            ),
            steps=steps,
            task=Pretrain(),
            init_from=start,
            schedule=ScheduleConfig(learning_rate=rate, warmup=0.05, decay_fraction=0.3, decay_shape="linear"),
            dtype="float32",
            seed=seed,
            checkpoint_every=max(1, steps // 4),
            max_to_keep=1,
        )
    )


def measure(home: Path, folder: Path, samples: int, batches: int) -> dict:
    """Held-out bits a byte by language, and accuracies by length."""
    model = models.open(folder, batch_size=8 * 4)
    questions = phonebook.questions(
        lambda text: len(model.tokenizer.encode(text, bos=True)),
        lengths=LENGTHS,
        depths=depths(4),
        samples=samples,
        candidates=4,
        digits=DIGITS,
        separator=SEPARATOR,
    )
    answered = ask(questions, model, batch_size=8)
    return {"bits_per_byte": heldout_bits(home, folder, LENGTH, ROWS, batches), "rows": table(answered)}


def one_seed(home: Path, seed: int, options: argparse.Namespace) -> dict[str, dict]:
    """The windowed model, the same trained on, and its continuation under full attention."""
    shape = preset("tiny", vocab_size=2048, num_hidden_layers=2, mamba_chunk_size=64, attention_window_size=WINDOW)
    # One for all seeds, which are those of what follows.
    first = train(home, "first", 0, options.first, 3e-3, shape, None, FIRST)
    windowed = train(home, "windowed", seed, options.steps, 2e-3, shape, first, THEN)
    control = train(home, "control", 1000 + seed, options.more, 1e-3, shape, windowed, THEN)
    opened = home / "runs" / f"opened-{seed}"
    if not opened.exists():
        extend(str(windowed), opened, full_attention="all", rope_theta=shape.rope_theta)
    full = train(home, "full", 1000 + seed, options.more, 1e-3, checkpoint.read_model_config(opened), opened, THEN)
    folders = dict(zip(MODELS, (windowed, control, full), strict=True))
    return {name: measure(home, folder, options.samples, options.batches) for name, folder in folders.items()}


def accuracy(found: dict, score: str, length: int) -> float:
    """Mean over languages and depths."""
    rows = [row for row in found["rows"] if row["length"] == length and row["depth"] is None]
    return float(np.mean([row[score] for row in rows]))


def write(output: Path, results: dict) -> None:
    """results.json, plot.png and README.md."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    checkpoint.write_json(output / "results.json", results)
    seeds = list(results["seeds"].values())
    means = {
        name: {
            score: [float(np.mean([accuracy(seed[name], score, n) for seed in seeds])) for n in LENGTHS]
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
                panel.plot(LENGTHS, [accuracy(seed[name], score, n) for n in LENGTHS], color=f"C{i}", alpha=0.25)
            panel.plot(LENGTHS, means[name][score], color=f"C{i}", marker="o", label=name)
        panel.axvline(WINDOW, color="k", linestyle=":", label=f"window, {WINDOW}")
        panel.set(xscale="log", xlabel="tokens of the phonebook", ylabel="accuracy", title=score, ylim=(0, 1.02))
        panel.set_xticks(LENGTHS, list(map(str, LENGTHS)))
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
        f"""# From a window to full attention

Question: does a windowed hybrid fail to look up what lies beyond its window, and does training on under full \
attention mend that, at what cost to ordinary text?

Method: a model of two layers, a state-space and an attention layer with a window of {WINDOW} (width 128, vocabulary 2048), is \
trained for {results["first"]} steps of {ROWS} × {LENGTH} tokens on phonebooks of 2 to 5 entries with numbers of {DIGITS} digits, and for \
{results["steps"]} steps on a mixture: half of it phonebooks, most of 2 to 40 entries, half the bundled corpus. It is trained on for \
{results["more"]} steps of the mixture twice, as it is and after `plamo2 extend --full-attention all`, on the same data. Then phonebooks \
that no model saw, {results["samples"]} of each language, length and of four depths; accuracy, mean of {len(seeds)} seed(s) of all but the \
first training. `exact` is greedy decoding: chance is 0.01. `ranked` chooses among four numbers of the same book: chance is 0.25.

| model | score | {" | ".join(f"{n} tokens" for n in LENGTHS)} |
|---|---|{"---|" * len(LENGTHS)}
{chr(10).join(rows)}

| model | Japanese, held-out bits a byte | English |
|---|---|---|
{chr(10).join(texts)}

Ordinary text under full attention against the same training without: at most {worse:+.2%}.

![accuracy by length](plot.png)

Again: `python experiments/full_attention/run.py --seeds {" ".join(results["seeds"])}`.
""",
        encoding="utf-8",
    )


def main() -> None:
    """Run what is missing and write everything anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--home", type=Path, default=Path("runs/full_attention"), help="where runs and shards lie")
    parser.add_argument("--output", type=Path, default=HERE, help="where results go")
    parser.add_argument("--first", type=int, default=600)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--more", type=int, default=150)
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--batches", type=int, default=20, help=f"of {ROWS} rows of held-out text in each language")
    parser.add_argument("--documents", type=int, default=30000)
    parser.add_argument("--small", action="store_true", help="a few steps, into HOME/small")
    options = parser.parse_args()
    if options.small:
        options.first, options.steps, options.more, options.samples, options.documents, options.batches = (
            6,
            6,
            3,
            1,
            600,
            2,
        )
        options.home, options.output = options.home / "small", options.home / "small"
    prepare(options.home, options.documents)
    path = options.output / "results.json"
    wanted = {"first": options.first, "steps": options.steps, "more": options.more, "samples": options.samples}
    results = json.loads(path.read_text()) if path.exists() else {}
    if {name: results.get(name) for name in wanted} != wanted:
        results = {**wanted, "seeds": {}}
    for seed in options.seeds:
        if str(seed) not in results["seeds"]:
            results["seeds"][str(seed)] = one_seed(options.home, seed, options)
            checkpoint.write_json(path, results)
    write(options.output, results)


if __name__ == "__main__":
    main()
