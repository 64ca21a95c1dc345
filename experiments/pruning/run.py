"""Cut a trained model to about a quarter of its parameters by each importance, train on, and compare with that shape from scratch.

python experiments/pruning/run.py                                        # goes on where it was stopped
python experiments/pruning/run.py --scale gpu                            # from 230 to 61 million parameters
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import sys
from pathlib import Path

import jax

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from scales import Scale, parse  # noqa: E402
from trials import LANGUAGES, plot, prepare, smooth, spread, train, write_results  # noqa: E402

from plamo2_jax.convert.hf import write_public  # noqa: E402
from plamo2_jax.convert.load import load_model  # noqa: E402
from plamo2_jax.data.pipeline import DataConfig, MixtureItem, train_iterator  # noqa: E402
from plamo2_jax.surgery.prune.prune import mean_loss, prune  # noqa: E402

# importance, rounds
METHODS = {
    "activation": ("activation", 1),
    "taylor": ("taylor", 1),
    "taylor, 4 rounds": ("taylor", 4),
    "magnitude": ("magnitude", 1),
    "random": ("random", 1),
}
# Trained on with the large model as teacher: name, where it starts.
DISTILLED = {"activation, distilled": "activation", "scratch, distilled": "scratch"}


def main() -> None:
    """Runs what is not done yet, and writes results, plot and README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--large-steps", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batches", type=int, default=16)
    options, scale = parse(parser, "pruning", HERE)
    shapes, work, steps = scale.models, options.work, options.steps
    prepare(work, scale.vocab_size)
    ratio = shapes["large"].flops_per_token(scale.length) / shapes["small"].flops_per_token(scale.length)
    longer = steps + round(options.large_steps * ratio)
    trials = {name: [] for name in ("scratch", "scratch, same FLOPs", *DISTILLED, *METHODS)}
    after = {name: [] for name in METHODS}
    for seed in range(options.seeds):
        train(work, f"large-{seed}", scale, shapes["large"], options.large_steps, 1000 + seed)
        large = work / "runs" / f"large-{seed}"
        trials["scratch"].append(train(work, f"scratch-{seed}", scale, shapes["small"], steps, seed))
        trials["scratch, same FLOPs"].append(train(work, f"longer-{seed}", scale, shapes["small"], longer, seed))
        for name, (method, rounds) in METHODS.items():
            slug = f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
            cut(work, slug, scale, method, rounds, seed, options.batches)
            trials[name].append(train(work, slug, scale, shapes["small"], steps, seed, work / "cut" / slug))
            after[name].append(trials[name][-1].losses[0])
        for name, start in DISTILLED.items():
            slug = f"{start}-distilled-{seed}"
            folder = None if start == "scratch" else work / "cut" / f"{start}-{seed}"
            trials[name].append(train(work, slug, scale, shapes["small"], steps, seed, folder, large))
    results = {
        **{role: dataclasses.asdict(shape) for role, shape in shapes.items()},
        "parameters": [shape.parameter_count() for shape in shapes.values()],
        "seeds": options.seeds,
        "large_steps": options.large_steps,
        "steps": steps,
        "longer_steps": longer,
        "tokens_a_step": scale.tokens,
        "methods": {
            name: {
                "first_loss": after.get(name),
                "final_loss": [float(smooth(trial.losses)[-1]) for trial in found],
                "heldout": [trial.heldout for trial in found],
            }
            for name, found in trials.items()
        },
    }
    # The longer run would squeeze the others.
    shown = {name: [t.losses[:steps] for t in found] for name, found in trials.items() if name != "scratch, same FLOPs"}
    plot(shown, scale.tokens, options.output / "loss.png", "pruning, then training")
    write_results(options.output, results, page)


def cut(work: Path, slug: str, scale: Scale, method: str, rounds: int, seed: int, batches: int) -> None:
    """Write the cut model, unless it is there."""
    folder = work / "cut" / slug
    if folder.exists():
        return
    large = load_model(work / "runs" / f"large-{seed}")
    mixture = tuple(MixtureItem(work / "data" / language / "train", share) for language, share in LANGUAGES.items())
    data = DataConfig(mixture, scale.length, scale.rows, seed=2000 + seed, prefetch_batches=0)
    examples = list(itertools.islice(train_iterator(data, large.tokenizer), batches))
    target = scale.models["small"]
    pruned = prune(large.params, scale.models["large"], target, examples, method=method, rounds=rounds, seed=seed)
    loss = jax.jit(mean_loss(target))
    print(slug, "cut, nats per token:", float(loss(pruned.params, examples[0])), flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_public(folder, pruned.config, pruned.params, large.tokenizer)


def page(results: dict) -> str:
    """The README."""
    large, small = results["parameters"]
    rows = []
    for name, found in results["methods"].items():
        first = spread(found["first_loss"]) if found["first_loss"] else ""
        rows.append(f"| {name} | {first} | {spread(found['final_loss'])} | {spread(found['heldout'])} |")
    heldout = {name: statistics.mean(found["heldout"]) for name, found in results["methods"].items()}
    best = min((name for name in METHODS), key=heldout.get)
    against = {name: f"{heldout[best] - heldout[name]:+.3f}" for name in heldout}
    steps, large_steps, longer = results["steps"], results["large_steps"], results["longer_steps"]
    a_step, seeds = results["tokens_a_step"], results["seeds"]
    return f"""# Pruning against training from scratch, by measure of importance

**Question.** Is it better to prune a model of {large:,} parameters to {small:,} parameters, or to train the smaller model from scratch?
Does
the measure of importance that selects the channels matter?

**Method.** A model is trained for {large_steps} steps of {a_step} tokens. It is pruned in width (residual stream, MLP, heads of both
mixers)
by each measure of importance, and trained for {steps} more steps. The optimizer is new; the schedule, the data and their order are the same
as for the model from scratch. The loss is cross-entropy. For rows with "distilled", half of it is the divergence from the large model; the
teacher's forward passes are not counted. "Same FLOPs" is a model from scratch with {longer} steps, which adds the cost of training the
large
model. {seeds} seeds, mean ± standard deviation. Losses are training losses in nats per token; the final loss is a mean of 20 steps.
Held-out
is the mean of Japanese and English bits per byte.

| method | loss after pruning | final loss | held-out bits per byte |
|---|---|---|---|
{chr(10).join(rows)}

The best pruned model without distillation by held-out text is {best}. Its bits per byte differ by {against["scratch"]} from scratch on
the same
tokens, by {against["scratch, same FLOPs"]} from scratch with the same FLOPs, by {against["magnitude"]} from magnitude, and by
{against["random"]} from random channels. Losses of distilled models contain the divergence, so compare them only with each other.

![loss by tokens](loss.png)

`python experiments/pruning/run.py` repeats the experiment. An interrupted run resumes.
"""


if __name__ == "__main__":
    main()
