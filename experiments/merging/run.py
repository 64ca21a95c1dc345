"""Two fine-tunes of one base, on Japanese and on English, merged by every method: what each keeps of both.

python experiments/merging/run.py --seeds 0 1 2        # resumes; writes results.json, plot.png, README.md
python experiments/merging/run.py --seeds 0 --small    # minutes, to see that it runs
python experiments/merging/run.py --scale gpu          # 65 million parameters
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from scales import Scale, parse  # noqa: E402
from trials import LANGUAGES, heldout_bits, prepare, train_to_end  # noqa: E402

from plamo2_jax import checkpoint  # noqa: E402
from plamo2_jax.data.pipeline import DataConfig, MixtureItem  # noqa: E402
from plamo2_jax.surgery.merge.config import MergeConfig  # noqa: E402
from plamo2_jax.surgery.merge.merge import merge  # noqa: E402
from plamo2_jax.train.config import RunConfig  # noqa: E402
from plamo2_jax.train.pretraining import Pretrain  # noqa: E402
from plamo2_jax.train.schedule import ScheduleConfig  # noqa: E402

METHODS = {
    "linear": MergeConfig("linear"),
    "slerp": MergeConfig("slerp"),
    "karcher": MergeConfig("karcher"),
    "task_arithmetic, λ = 0.5": MergeConfig("task_arithmetic", scale=0.5),
    "task_arithmetic, λ = 0.8": MergeConfig("task_arithmetic", scale=0.8),
    "ties, density 0.2": MergeConfig("ties"),
    "ties, density 0.5": MergeConfig("ties", density=0.5),
    "dare_linear, λ = 0.5": MergeConfig("dare_linear", scale=0.5),
    "dare_ties, λ = 0.5": MergeConfig("dare_ties", scale=0.5),
    "della": MergeConfig("della"),
    "breadcrumbs, λ = 0.5": MergeConfig("breadcrumbs", scale=0.5),
    "model_stock": MergeConfig("model_stock"),
    "nearswap, ja towards en": MergeConfig("nearswap"),
}


def train(
    home: Path, scale: Scale, name: str, seed: int, steps: int, languages: tuple[str, ...], base: Path | None
) -> Path:
    """A run of the model, or what is left of it to do. A fine-tune has a third of the learning rate."""
    rate = scale.learning_rate if base is None else scale.learning_rate / 3
    config = RunConfig(
        name=f"{name}-{seed}",
        output=home / "runs",
        model=scale.models["model"],
        tokenizer=home / "tokenizer.jsonl",
        data=DataConfig(
            tuple(MixtureItem(home / "data" / language / "train") for language in languages),
            sequence_length=scale.length,
            batch_size=scale.rows,
            seed=seed + (1000 if base else 0),
        ),
        steps=steps,
        task=Pretrain(),
        init_from=base,
        schedule=ScheduleConfig(learning_rate=rate, warmup=0.05, decay_fraction=0.5, decay_shape="linear"),
        dtype=scale.dtype,
        seed=seed,
        checkpoint_every=max(1, steps // 2),
        max_to_keep=1,
    )
    return train_to_end(config)


def measure(home: Path, scale: Scale, seed: int, steps: int, tuning: int, batches: int) -> dict[str, dict[str, float]]:
    """Bits a byte of base, parents and every merge."""
    base = train(home, scale, "base", seed, steps, tuple(LANGUAGES), None)
    parents = [train(home, scale, language, seed, tuning, (language,), base) for language in LANGUAGES]
    found = {
        name: heldout_bits(home, folder, scale.length, 8, batches)
        for name, folder in zip(("base", "ja", "en"), (base, *parents), strict=True)
    }
    for name, config in METHODS.items():
        output = home / "merged"
        shutil.rmtree(output, ignore_errors=True)
        origin = None if config.method in ("linear", "slerp", "karcher") else str(base)
        models = [str(parent) for parent in parents]
        if config.method == "nearswap":
            origin, *models = models
        merge(models, output, config, base=origin)
        found[name] = heldout_bits(home, output, scale.length, 8, batches)
    shutil.rmtree(output)
    return found


def plot(path: Path, figures: dict[str, dict[str, list[float]]]) -> None:
    """Japanese across, English up; nearer to the lower left is better."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panel = plt.subplots(figsize=(10, 6), layout="constrained")
    for i, (name, values) in enumerate(figures.items()):
        x, y = (np.mean(values[language]) for language in LANGUAGES)
        marker = {"base": "s", "ja": "^", "en": "v"}.get(name, "o")
        panel.scatter(values["ja"], values["en"], s=10, color=plt.colormaps["tab20"](i), alpha=0.4)
        panel.scatter([x], [y], marker=marker, s=60, color=plt.colormaps["tab20"](i), edgecolor="k", label=name)
    panel.set(xlabel="Japanese, held-out bits per byte", ylabel="English, held-out bits per byte")
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=120)


def write(output: Path, results: dict) -> None:
    """results.json, plot.png and README.md."""
    checkpoint.write_json(output / "results.json", results)
    by_seed = results["seeds"]
    names = list(next(iter(by_seed.values())))
    figures = {
        name: {language: [seed[name][language] for seed in by_seed.values()] for language in LANGUAGES}
        for name in names
    }
    plot(output / "plot.png", figures)
    mean, spread = (
        {name: {language: float(of(values[language])) for language in LANGUAGES} for name, values in figures.items()}
        for of in (np.mean, np.std)
    )
    both = {name: (values["ja"] + values["en"]) / 2 for name, values in mean.items()}
    best = min((name for name in names if name not in ("base", "ja", "en")), key=both.get)
    rows = [
        f"| {name} | {mean[name]['ja']:.4f} ± {spread[name]['ja']:.4f} | {mean[name]['en']:.4f} ± {spread[name]['en']:.4f} | "
        f"{both[name]:.4f} | "
        f"{mean[name]['ja'] - mean['ja']['ja']:+.4f} | {mean[name]['en'] - mean['en']['en']:+.4f} |"
        for name in names
    ]
    output.joinpath("README.md").write_text(
        f"""# Merging two fine-tunes of one base

**Question.** How much of a Japanese and of an English fine-tune does each merge method keep?

**Method.** {results.get("model", "A model of the preset `tiny` (vocabulary 2048)")} \
is trained for {results["steps"]} steps on the bundled corpus, with equal shares of both languages, and then for {results["tuning"]} \
steps on each \
language alone. `plamo2 merge` merges the two fine-tunes. Held-out bits per byte, mean of {len(by_seed)} seed(s) ± standard deviation; \
lower is \
better. The last two columns are differences from the fine-tune of that language.

| model | Japanese | English | mean | Japanese − Japanese fine-tune | English − English fine-tune |
|---|---|---|---|---|---|
{chr(10).join(rows)}

The best merge by the mean is {best} ({both[best]:.4f}). The base model has {both["base"]:.4f}, and the better fine-tune \
{min(both["ja"], both["en"]):.4f}.

![Japanese and English bits per byte](plot.png)

`python experiments/merging/run.py --seeds {" ".join(by_seed)}` repeats the experiment. The ranking of methods for models this small \
does not predict \
the ranking for an 8B.
""",
        encoding="utf-8",
    )


def main() -> None:
    """Run what is missing and write everything anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--tuning", type=int)
    parser.add_argument("--batches", type=int, default=20, help="of 8 rows of held-out text in each language")
    parser.add_argument("--small", action="store_true", help="a few steps, into WORK/small")
    options, scale = parse(parser, "merging", HERE)
    if options.small:
        options.steps, options.tuning, options.batches = 6, 3, 2
        options.work = options.output = options.work / "small"
    prepare(options.work, scale.vocab_size)
    path = options.output / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    if (results.get("steps"), results.get("tuning")) != (options.steps, options.tuning):
        results = {"steps": options.steps, "tuning": options.tuning, "seeds": {}}
        if options.scale != "cpu":
            results["model"] = f"A model of {scale.models['model'].parameter_count():,} parameters"
    for seed in options.seeds:
        if str(seed) not in results["seeds"]:
            results["seeds"][str(seed)] = measure(
                options.work, scale, seed, options.steps, options.tuning, options.batches
            )
            checkpoint.write_json(path, results)
    write(options.output, results)


if __name__ == "__main__":
    main()
