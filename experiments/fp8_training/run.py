"""Train the demo's model with FP8 products, and with moments of AdamW in fewer bits, and compare the losses.

python experiments/fp8_training/run.py              # resumes where it was stopped
python experiments/fp8_training/run.py --scale gpu  # 65 million parameters, bfloat16 activations in all arms
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from scales import parse  # noqa: E402
from trials import Trial, prepare, smooth, spread, train, where, write_results  # noqa: E402

from plamo2_jax.train.optimizer import OptimizerConfig  # noqa: E402


def moments(dtype: str) -> OptimizerConfig:
    """AdamW with both moments in a dtype."""
    return OptimizerConfig(mu_dtype=dtype, nu_dtype=dtype)


BASELINE = "float32"
# Fields of RunConfig that differ from the baseline. Logits in chunks change nothing but the rounding of sums, so this arm shows the noise.
ARMS = {
    BASELINE: {},
    "logits in chunks": {"loss_chunk": 128},
    "fp8 products": {"linear_type": "fp8"},
    "bfloat16 moments": {"optimizer": moments("bfloat16")},
    "int8 moments": {"optimizer": moments("int8")},
    "fp8 products, int8 moments": {"linear_type": "fp8", "optimizer": moments("int8")},
}

# Runs by learning rate and arm, in the order of their seeds.
Trials = dict[float, dict[str, list[Trial]]]


def main() -> None:
    """Train what is not trained yet, and write results, plot and README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--rates", type=float, nargs="+", help="highest learning rates; all arms are trained with each")
    parser.add_argument(
        "--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="which arms, with float32 first"
    )
    options, scale = parse(parser, "fp8_training", HERE)
    model = scale.models["model"]
    # The baseline is named after the dtype of its activations, which is bfloat16 at the GPU scale.
    baseline = scale.dtype
    arms = {baseline if name == BASELINE else name: ARMS[name] for name in options.arms}
    prepare(options.work, scale.vocab_size)
    trials: Trials = {rate: {name: [] for name in arms} for rate in options.rates}
    for rate in options.rates:
        rated = dataclasses.replace(scale, learning_rate=rate)
        for seed in range(options.seeds):
            for name, changes in arms.items():
                slug = f"{name.replace(', ', '-').replace(' ', '-')}-{rate:g}-{seed}"
                found = train(options.work, slug, rated, model, options.steps, seed, **changes)
                trials[rate][name].append(found)
                print(f"{slug}: final loss {smooth(found.losses)[-1]:.4f}", flush=True)
    results = {
        "command": f"python experiments/fp8_training/run.py --seeds {options.seeds} --rates "
        + " ".join(f"{rate:g}" for rate in options.rates)
        + " --arms "
        + " ".join(f"'{name}'" for name in options.arms),
        **where(),
        "model": dataclasses.asdict(model),
        "parameters": model.parameter_count(),
        "seeds": options.seeds,
        "steps": options.steps,
        "tokens_per_step": scale.tokens,
        "rates": {
            f"{rate:g}": {name: figures(found, by_arm[baseline]) for name, found in by_arm.items()}
            for rate, by_arm in trials.items()
        },
    }
    plot(trials, options.output / "loss.png")
    write_results(options.output, results, page)


def figures(found: list[Trial], baseline: list[Trial]) -> dict[str, list[float]]:
    """Losses of an arm by seed, and their differences from the baseline with the same seed, in percent."""
    measures = {
        "final_loss": lambda trial: float(smooth(trial.losses)[-1]),
        "mean_loss": lambda trial: statistics.mean(trial.losses),
        "heldout": lambda trial: trial.heldout,
    }
    values = {name: [measure(trial) for trial in found] for name, measure in measures.items()}
    for name, measure in measures.items():
        pairs = zip(values[name], baseline, strict=True)
        values[f"{name}_percent"] = [100 * (value / measure(trial) - 1) for value, trial in pairs]
    curves = np.mean([smooth(trial.losses) for trial in found], axis=0)
    return values | {"loss_every_10_steps": [round(float(loss), 4) for loss in curves[9::10]]}


def plot(trials: Trials, path: Path) -> None:
    """Draw for each learning rate the smoothed losses, and their differences from the baseline for each seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, rows = plt.subplots(len(trials), 2, figsize=(11, 3.5 * len(trials)), layout="constrained", squeeze=False)
    for (left, right), (rate, by_arm) in zip(rows, trials.items(), strict=True):
        curves = {name: np.array([smooth(trial.losses) for trial in found]) for name, found in by_arm.items()}
        baseline = next(iter(curves.values()))
        steps = np.arange(1, baseline.shape[1] + 1)
        for index, (name, seeds) in enumerate(curves.items()):
            left.plot(steps, seeds.mean(axis=0), color=f"C{index}", label=name if rate == next(iter(trials)) else None)
            right.plot(steps, 100 * (seeds / baseline - 1).T, color=f"C{index}", linewidth=0.9)
        left.set(xlabel="update", ylabel="nats per token, mean of 20 updates", title=f"training loss, rate {rate:g}")
        right.set(
            xlabel="update", ylabel=f"difference from {next(iter(curves))} in %", title="difference, a line per seed"
        )
        for level in (-1, 1):
            right.axhline(level, color="gray", linestyle=":")
    figure.legend(loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def page(results: dict) -> str:
    """Return the README: the table from the results, and the text of notes.md."""
    rows = []
    for rate, by_arm in results["rates"].items():
        baseline = next(iter(by_arm))
        for name, found in by_arm.items():
            percents = (
                ""
                if name == baseline
                else f"{statistics.mean(found[key]):+.2f} % ({min(found[key]):+.2f} to {max(found[key]):+.2f})"
                for key in ("final_loss_percent", "mean_loss_percent", "heldout_percent")
            )
            losses = f"{spread(found['final_loss'])} | {spread(found['heldout'])}"
            rows.append(f"| {rate} | {name} | {losses} | {' | '.join(percents)} |")
    notes = (HERE / "notes.md").read_text(encoding="utf-8")
    question, _, conclusions = notes.partition("<!-- results -->\n")
    return f"""{question.strip()}

{results["parameters"]:,} parameters, {results["steps"]} updates of {results["tokens_per_step"]:,} tokens, {results["seeds"]} seeds; mean ±
standard deviation. Percentages compare an arm with {baseline} of the same rate and seed: mean, and smallest to largest of the seeds.
{results["machine"]}, jax {results["versions"]["jax"]}.

| learning rate | arm | final loss | held-out bits per byte | final loss, difference | mean loss, difference | held-out, difference |
|---:|---|---|---|---|---|---|
{chr(10).join(rows)}

![training loss](loss.png)

{conclusions.strip()}
"""


if __name__ == "__main__":
    main()
