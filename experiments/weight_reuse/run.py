"""Grow a trained small model by each method, train on, and compare with a model of that shape from scratch.

python experiments/weight_reuse/run.py                                       # goes on where it was stopped
python experiments/weight_reuse/run.py --scale gpu                           # from 18 to 121 million parameters
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from pathlib import Path

import jax

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from scales import parse  # noqa: E402
from trials import plot, prepare, smooth, spread, steps_to_reach, train, write_results  # noqa: E402

from plamo2_jax.convert.hf import write_public  # noqa: E402
from plamo2_jax.convert.load import load_model  # noqa: E402
from plamo2_jax.surgery.grow.grow import grow  # noqa: E402

# width, depth, noise
METHODS = {
    "clone + identity": ("clone", "identity", 0.1),
    "clone + stack": ("clone", "stack", 0.1),
    "clone + interleave": ("clone", "interleave", 0.1),
    "clone + identity, no noise": ("clone", "identity", 0.0),
    "zero + identity": ("zero", "identity", 0.0),
}


def main() -> None:
    """Runs what is not done yet, and writes results, plot and README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--small-steps", type=int)
    parser.add_argument("--steps", type=int)
    options, scale = parse(parser, "weight_reuse", HERE)
    shapes, work, steps = scale.models, options.work, options.steps
    prepare(work, scale.vocab_size)
    ratio = shapes["small"].flops_per_token(scale.length) / shapes["large"].flops_per_token(scale.length)
    # What the small model's training cost, in steps of the large one.
    longer = steps + round(options.small_steps * ratio)
    trials = {name: [] for name in ("scratch", "scratch, same FLOPs", *METHODS)}
    start = {name: [] for name in METHODS}
    for seed in range(options.seeds):
        # Other documents first: a grown model may not see its data twice where one from scratch sees them once.
        train(work, f"small-{seed}", scale, shapes["small"], options.small_steps, 1000 + seed)
        trials["scratch"].append(train(work, f"scratch-{seed}", scale, shapes["large"], steps, seed))
        trials["scratch, same FLOPs"].append(train(work, f"longer-{seed}", scale, shapes["large"], longer, seed))
        for name, (width, depth, noise) in METHODS.items():
            slug = f"{width}-{depth}-{noise:g}-{seed}"
            folder = work / "grown" / slug
            if not folder.exists():
                small = load_model(work / "runs" / f"small-{seed}")
                params = jax.device_get(small.params)
                grown = grow(params, shapes["small"], shapes["large"], width=width, depth=depth, noise=noise, seed=seed)
                folder.parent.mkdir(parents=True, exist_ok=True)
                write_public(folder, shapes["large"], grown, small.tokenizer)
            trials[name].append(train(work, slug, scale, shapes["large"], steps, seed, folder))
            start[name].append(trials[name][-1].losses[0])
    results = {
        **{role: dataclasses.asdict(shape) for role, shape in shapes.items()},
        "parameters": [shape.parameter_count() for shape in shapes.values()],
        "seeds": options.seeds,
        "steps": steps,
        "small_steps": options.small_steps,
        "longer_steps": longer,
        "tokens_a_step": scale.tokens,
        "methods": {
            name: {
                "heldout": [trial.heldout for trial in found],
                "final_loss": [float(smooth(trial.losses)[-1]) for trial in found],
                "first_loss": start.get(name),
                "steps_to_scratch": [
                    steps_to_reach(trial.losses, float(smooth(scratch.losses)[-1]))
                    for trial, scratch in zip(found, trials["scratch"], strict=True)
                ],
            }
            for name, found in trials.items()
        },
    }
    losses = {name: [trial.losses for trial in found] for name, found in trials.items()}
    plot(losses, scale.tokens, options.output / "loss.png", "weight reuse")
    write_results(options.output, results, page)


def page(results: dict) -> str:
    """The README."""
    small, large = results["parameters"]
    rows = []
    for name, found in results["methods"].items():
        reached = [step for step in found["steps_to_scratch"] if step is not None]
        saved = [100 * (1 - step / results["steps"]) for step in reached]
        some = "" if len(reached) in (0, results["seeds"]) else f" ({len(reached)} of {results['seeds']} seeds)"
        first = spread(found["first_loss"]) if found["first_loss"] else ""
        grown = name in METHODS  # Of scratch itself there is nothing to save.
        tokens = "" if not grown else f"{spread(saved, 0)} %{some}" if saved else "not reached"
        final, heldout = spread(found["final_loss"]), spread(found["heldout"])
        rows.append(f"| {name} | {first} | {final} | {heldout} | {tokens} |")
    heldout = {name: statistics.mean(found["heldout"]) for name, found in results["methods"].items()}
    best = min((name for name in METHODS), key=heldout.get)
    cloned = min(heldout[name] for name in METHODS if name.startswith("clone"))
    same = heldout[best] - heldout["scratch, same FLOPs"]
    steps, small_steps, longer = results["steps"], results["small_steps"], results["longer_steps"]
    a_step, seeds = results["tokens_a_step"], results["seeds"]
    return f"""# Growing a trained small model against training from scratch

**Question.** How many training tokens does a model of {large:,} parameters save when it starts from a trained model of {small:,}?

**Method.** A small model is trained for {small_steps} steps of {a_step} tokens, grown by each method, and trained for {steps} more
steps. The
optimizer is new; the schedule, the data and their order are the same as for the model from scratch. "Same FLOPs" is a model from
scratch with
{longer} steps, which adds the cost of training the small model. {seeds} seeds, mean ± standard deviation. Losses are training losses in
nats
per token; all except the first are means of 20 steps. Held-out is the mean of Japanese and English bits per byte. "Tokens saved"
compares the
tokens until the smoothed loss reaches the final loss of scratch.

| method | first loss | final loss | held-out bits per byte | tokens saved |
|---|---|---|---|---|
{chr(10).join(rows)}

The best method by held-out text is {best}: its bits per byte differ by {heldout[best] - heldout["scratch"]:+.3f} from scratch on the
same tokens,
and by {same:+.3f} from scratch with the same FLOPs. The best cloning method reaches {cloned:.3f}. With only one period of layers to repeat,
stacking and interleaving are the same.

![loss by tokens](loss.png)

`python experiments/weight_reuse/run.py` repeats the experiment. An interrupted run resumes.
"""


if __name__ == "__main__":
    main()
