"""What each stage of post-training does to the demo's model: fine-tuning, merging, preferences, merging.

python experiments/post_training/run.py --base runs/demo                      # after make demo; goes on where it was stopped
python experiments/post_training/run.py --base runs/demo --small              # minutes, to see that it runs
plamo2 pretrain experiments/demo_gpu.py && python experiments/post_training/run.py --scale gpu    # after make demo
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

import jax

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from scales import Scale, parse  # noqa: E402
from trials import STOPPED, heldout_bits, run, spread  # noqa: E402

from plamo2_jax import models  # noqa: E402
from plamo2_jax.align.dpo import PreferenceConfig  # noqa: E402
from plamo2_jax.align.preference_data.config import PreferenceDataConfig  # noqa: E402
from plamo2_jax.align.preference_data.pairing import PairingConfig  # noqa: E402
from plamo2_jax.align.preference_data.prompts import read_prompts  # noqa: E402
from plamo2_jax.align.preference_data.sampling import make_preference_data  # noqa: E402
from plamo2_jax.align.preferences import (  # noqa: E402
    Dpo,
    PairsConfig,
    preference_evaluator,
    preference_loss_fn,
)
from plamo2_jax.align.sft import Sft  # noqa: E402
from plamo2_jax.checkpoint import latest_step, write_json  # noqa: E402
from plamo2_jax.convert.load import load_model  # noqa: E402
from plamo2_jax.data.pipeline import DataConfig, MixtureItem  # noqa: E402
from plamo2_jax.engine.sampling import SamplingConfig  # noqa: E402
from plamo2_jax.engine.stop import StopConfig  # noqa: E402
from plamo2_jax.eval import answer_rules as rules  # noqa: E402
from plamo2_jax.model import Plamo2  # noqa: E402
from plamo2_jax.model.bits_per_byte import make_evaluator  # noqa: E402
from plamo2_jax.train.config import RunConfig  # noqa: E402
from plamo2_jax.train.loop import train  # noqa: E402
from plamo2_jax.train.optimizer import OptimizerConfig  # noqa: E402
from plamo2_jax.train.schedule import ScheduleConfig  # noqa: E402

MODELS = ("base", "SFT", "SFT merged", "DPO", "DPO merged")
SAMPLING = SamplingConfig(0.8, top_p=0.95)
FORMS = ("matches", "json")
"""Rules about the form of an answer."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run of the experiment is; another one's results are not mixed with it."""

    base: str
    sft_steps: int
    sft_rate: float
    dpo_steps: int
    dpo_rate: float
    beta: float
    nll: float
    prompts: int
    samples: int
    questions: int


def fit(work: Path, config: RunConfig) -> Path:
    """The run's folder, once its last step is done."""
    if latest_step(config.folder) != config.steps and train(config).signal is not None:
        raise SystemExit(STOPPED)
    return config.folder


def sft_config(plan: Plan, scale: Scale, work: Path, name: str, seed: int) -> RunConfig:
    """Fine-tuning on the instructions; two runs differ in the order of the data."""
    base = load_model(Path(plan.base))
    return RunConfig(
        name=name,
        output=work / "runs",
        model=base.config,
        tokenizer=Path(plan.base),
        init_from=Path(plan.base),
        data=DataConfig(
            (MixtureItem(work / "instructions/train.jsonl"),), scale.length, scale.rows, seed=seed, packing_bins=64
        ),
        steps=plan.sft_steps,
        task=Sft(z_loss=0.0),
        heldout={"answers": work / "instructions/heldout.jsonl"},
        optimizer=OptimizerConfig(weight_decay=0.0),
        schedule=ScheduleConfig(kind="cosine", learning_rate=plan.sft_rate, warmup=0.1, final_fraction=0.1),
        dtype=scale.dtype,
        seed=seed,
        checkpoint_every=plan.sft_steps,
        max_to_keep=1,
    )


def dpo_config(plan: Plan, scale: Scale, work: Path, name: str, seed: int, start: Path, pairs: Path) -> RunConfig:
    """Preferences on top of the merged fine-tune."""
    loaded = load_model(start)
    return RunConfig(
        name=name,
        output=work / "runs",
        model=loaded.config,
        tokenizer=start,
        init_from=start,
        data=DataConfig((MixtureItem(pairs / "pairs.jsonl"),), scale.length, scale.rows, seed=seed, packing_bins=16),
        steps=plan.dpo_steps,
        task=Dpo(
            pairs=PairsConfig(template=str(start), max_pairs=8),
            preference=PreferenceConfig(losses=("sigmoid", "nll"), weights=(1.0, plan.nll), beta=plan.beta),
        ),
        heldout={"pairs": pairs / "heldout.jsonl"},
        optimizer=OptimizerConfig(weight_decay=0.0),
        schedule=ScheduleConfig(kind="cosine", learning_rate=plan.dpo_rate, warmup=0.1, final_fraction=0.1),
        dtype=scale.dtype,
        seed=seed,
        checkpoint_every=plan.dpo_steps,
        max_to_keep=1,
    )


def merged(work: Path, name: str, models: Iterable[Path]) -> Path:
    """The mean of models."""
    folder = work / "merged" / name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        run("merge", "--method", "linear", *models, folder)
    return folder


def preference_data(plan: Plan, work: Path, policy: Path, seed: int) -> Path:
    """Pairs of the policy's own answers, scored by rules alone."""
    folder = work / f"pairs-{seed}"
    make_preference_data(
        PreferenceDataConfig(
            output=folder,
            prompts=(work / f"prompts-{seed}" / "train.jsonl",),
            policy=models.ChatModelConfig(model=str(policy), batch_size=128),
            samples=plan.samples,
            sampling=SAMPLING,
            stop=StopConfig(max_new_tokens=96),
            pairing=PairingConfig(margin=0.1),
            heldout_share=0.2,
            seed=seed,
        )
    )
    return folder


def rule_scores(plan: Plan, work: Path, model: Path) -> dict[str, float]:
    """Means over answers to held-out requests, drawn as preference data are: of all rules, of each kind, and of answers that obey every
    one; the last two also of greedy answers.
    """
    prompts = read_prompts((work / "instructions" / "heldout.jsonl",), {})
    chosen = [prompts[i * len(prompts) // plan.questions] for i in range(plan.questions)]
    opened = models.open(model, batch_size=128)

    def scores(sampling: SamplingConfig, samples: int) -> list[dict[str, float]]:
        stop = StopConfig(max_new_tokens=96)
        requests = [
            models.ChatRequest(prompt.id, prompt.messages, sampling=sampling, stop=stop, n=samples) for prompt in chosen
        ]
        responses = opened.chat(requests)
        for prompt, response in zip(chosen, responses, strict=True):
            if isinstance(response, models.RequestError):
                raise SystemExit(f"{prompt.id}: {response.reason}")
        return [
            rules.score(prompt.rules, answer.text, answer.finish_reason == "stop")
            for prompt, response in zip(chosen, responses, strict=True)
            for answer in response
        ]

    def all_obeyed(found: list[dict[str, float]]) -> float:
        return statistics.fmean(float(min(score.values()) >= 0.5) for score in found)

    drawn, greedy = scores(SAMPLING, 4), scores(SamplingConfig(0.0), 1)
    return {
        "rules": statistics.fmean(map(rules.mean, drawn)),
        "all_obeyed": all_obeyed(drawn),
        "form": statistics.fmean(score[name] for score in drawn for name in FORMS if name in score),
        "language": statistics.fmean(score["language"] for score in drawn),
        "finished": statistics.fmean(score["finished"] for score in drawn),
        "greedy_all_obeyed": all_obeyed(greedy),
        "greedy_finished": statistics.fmean(score["finished"] for score in greedy),
    }


def answer_bits(config: RunConfig, model: Path) -> float:
    """Held-out bits per byte of what the assistant says."""
    loaded = load_model(model)
    evaluate = make_evaluator(Plamo2(loaded.config), loaded.tokenizer.padded_byte_lengths(loaded.config.vocab_size))
    return evaluate(
        loaded.params, config.task.make_source(config, loaded.tokenizer).heldout("answers", 0, 1)
    ).bits_per_byte


def reward_accuracy(config: RunConfig, model: Path, reference: Path) -> dict[str, float]:
    """Share of held-out pairs whose chosen answer has the larger log-ratio of model to reference, and the mean margin over β."""
    loaded = load_model(model)
    network = Plamo2(loaded.config)
    loss_fn = preference_loss_fn(
        network, PreferenceConfig(beta=1.0), config.task.pairs.max_pairs, reference="reference"
    )
    frozen = {"reference": load_model(reference).params}
    batches = config.task.make_source(config, loaded.tokenizer).heldout("pairs", 0, 1)
    found = preference_evaluator(loss_fn)(loaded.params, batches, frozen).metrics
    return {
        "reward_accuracy": found["reward_accuracy"],
        "reward_margin": found["reward_margin"],
        "pairs": found["pairs"],
    }


def one_seed(plan: Plan, scale: Scale, work: Path, data: Path, seed: int) -> dict[str, list[dict[str, float]]]:
    """Figures of every model; where two runs differ in their data's order, of both."""
    base = Path(plan.base)
    if not (work / f"prompts-{seed}").exists():
        run("data", "instructions", "--output", work / f"prompts-{seed}", "--seed", 100 + seed, "--limit", plan.prompts)
    tuning = [sft_config(plan, scale, work, f"sft-{seed}-{i}", 10 * seed + i) for i in (1, 2)]
    tuned = [fit(work, config) for config in tuning]
    middle = merged(work, f"sft-{seed}", tuned)
    pairs = preference_data(plan, work, middle, seed)
    preferring = [dpo_config(plan, scale, work, f"dpo-{seed}-{i}", 10 * seed + i, middle, pairs) for i in (1, 2)]
    preferred = [fit(work, config) for config in preferring]
    last = merged(work, f"dpo-{seed}", preferred)
    # Each with what its stage began from, which its rewards are taken against.
    models = ((base, None), (tuned, base), (middle, base), (preferred, middle), (last, middle))
    return {
        name: [
            {
                "answer_bits": answer_bits(tuning[0], model),
                **rule_scores(plan, work, model),
                **({} if reference is None else reward_accuracy(preferring[0], model, reference)),
                **{
                    f"text_{language}": bits
                    for language, bits in heldout_bits(data, model, scale.length, 4, 40).items()
                },
            }
            for model in (found if isinstance(found, list) else [found])
        ]
        for name, (found, reference) in zip(MODELS, models, strict=True)
    }


COLUMNS = {
    "answer_bits": ("answers, bits per byte", 3),
    "rules": ("rules, mean", 3),
    "all_obeyed": ("all rules obeyed", 3),
    "form": ("form", 3),
    "language": ("language", 3),
    "finished": ("stopped", 3),
    "greedy_all_obeyed": ("greedy: all rules obeyed", 3),
    "greedy_finished": ("greedy: stopped", 3),
    "reward_accuracy": ("reward accuracy", 3),
    "text_ja": ("text ja, bits per byte", 3),
    "text_en": ("text en, bits per byte", 3),
}


def plot(path: Path, means: dict[str, dict[str, list[float]]]) -> None:
    """Rules, answers and ordinary text by model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    for panel, title, names in zip(
        panels,
        ("rules obeyed by answers", "held-out answers, bits per byte", "ordinary text, bits per byte"),
        (("rules", "all_obeyed", "form", "finished"), ("answer_bits",), ("text_ja", "text_en")),
        strict=True,
    ):
        for i, name in enumerate(names):
            values = [means[model][name] for model in MODELS]
            centre = [statistics.fmean(some) for some in values]
            panel.plot(MODELS, centre, color=f"C{i}", marker="o", label=COLUMNS[name][0].split(",")[0])
            for x, some in enumerate(values):
                panel.scatter([x] * len(some), some, color=f"C{i}", s=12, alpha=0.5)
        panel.set_title(title)
        panel.tick_params(axis="x", rotation=30)
        if len(names) > 1:
            panel.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def write(output: Path, results: dict, scale: Scale) -> None:
    """results.json, plot.png and README.md."""
    write_json(output / "results.json", results)
    seeds = list(results["seeds"].values())
    # A seed's two runs count as one figure: their mean.
    means = {
        model: {
            name: [statistics.fmean(run[name] for run in seed[model]) for seed in seeds]
            for name in COLUMNS
            if name in seeds[0][model][0]
        }
        for model in MODELS
    }
    plot(output / "plot.png", means)
    rows = [
        f"| {model} | "
        + " | ".join(
            spread(means[model][name], digits) if name in means[model] else "" for name, (_, digits) in COLUMNS.items()
        )
        + " |"
        for model in MODELS
    ]
    plan, preferred = results["plan"], ("SFT merged", "DPO merged")

    def change(name: str, before: str, after: str) -> str:
        return f"{statistics.fmean(means[after][name]) - statistics.fmean(means[before][name]):+.3f}"

    def level(name: str, model: str) -> str:
        return f"{statistics.fmean(means[model][name]):.3f}"

    output.joinpath("README.md").write_text(
        f"""# Effect of each stage of post-training

**Question.** PLaMo 2 was made by fine-tuning and preference optimization, with model merging after each stage. How does each stage change a
small model: its held-out answers, the rules that a program checks, the rewards of held-out pairs, and ordinary text?

**Method.** The demo's model (`{plan["base"]}`, {results["parameters"]:,} parameters) is fine-tuned twice on conversations made from the
bundled corpus (`plamo2 data instructions`), {plan["sft_steps"]} steps of {scale.rows} × {scale.length} tokens, with different orders of
the data. The two models are averaged. The averaged model answers {plan["prompts"]} requests {plan["samples"]} times each. For each request,
the best and the worst answer by rules (language, length, form, stopped by itself) are a pair; a fifth of the pairs are held out. DPO
(sigmoid,
β = {plan["beta"]}, + {plan["nll"]} × NLL, {plan["dpo_steps"]} steps) starts twice from the averaged model, and the two results are
averaged.
Everything except the base model has {len(seeds)} seeds. The table has the mean ± standard deviation over seeds; the two runs of a seed
count as their mean.

Rules are scored on answers to {plan["questions"]} held-out requests: four sampled answers each (temperature 0.8, top-p 0.95, as for the
pairs), and
one greedy answer. `form` is the share of answers with the requested form (JSON with two keys, "Title: …", bullets). "all rules obeyed"
counts
answers in which every rule scores at least 0.5. Rewards are log-ratios to the model from which the stage started; the reward accuracy
of a random
choice is 0.5. "Text" is held-out text of the corpus.

| model | {" | ".join(title for title, _ in COLUMNS.values())} |
|---|{"---|" * len(COLUMNS)}
{chr(10).join(rows)}

* **Fine-tuning** changes the mean rule score from {level("rules", "base")} to {level("rules", "SFT")}, the share of answers that obey
  all rules from
  {level("all_obeyed", "base")} to {level("all_obeyed", "SFT")}, and the bits per byte of ordinary English text by
  {change("text_en", "base", "SFT")}.
* **Preference optimization** starts from the averaged fine-tuned model. Relative to it, the mean rule score changes by
  {change("rules", *preferred)}, and
  the share of answers that obey all rules by {change("all_obeyed", *preferred)} (greedy answers:
  {change("greedy_all_obeyed", *preferred)}). The reward
  accuracy on held-out pairs is {level("reward_accuracy", "DPO merged")}. The bits per byte of held-out answers change by
  {change("answer_bits", *preferred)}, and those of ordinary English text by {change("text_en", *preferred)}.
* **Averaging the two fine-tuned models** changes the mean rule score by {change("rules", "SFT", "SFT merged")}, and the bits per byte
  of held-out
  answers by {change("answer_bits", "SFT", "SFT merged")} and of ordinary English text by {change("text_en", "SFT", "SFT merged")}.
  Averaging the two
  DPO models changes them by {change("rules", "DPO", "DPO merged")}, {change("answer_bits", "DPO", "DPO merged")} and \
{change("text_en", "DPO", "DPO merged")}.

The rules that score the answers also selected the pairs, for other requests. The scores show what a program can check; they do not show
whether an
answer is correct.

![by stage](plot.png)

`python experiments/post_training/run.py --base {plan["base"]}` repeats the experiment. An interrupted run resumes.
""",
        encoding="utf-8",
    )


def main() -> None:
    """Run what is missing and write everything anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="model to begin with (default: runs/demo)")
    parser.add_argument(
        "--data", type=Path, help="folder that holds data/LANGUAGE/heldout (default: that of the model)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sft-steps", type=int)
    parser.add_argument("--sft-rate", type=float)
    parser.add_argument("--dpo-steps", type=int)
    parser.add_argument("--dpo-rate", type=float)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--nll", type=float, default=0.2, help="weight of the chosen answers' likelihood in the loss")
    parser.add_argument("--prompts", type=int)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--questions", type=int, default=192)
    parser.add_argument("--small", action="store_true", help="a few steps, into WORK/small")
    options, scale = parse(parser, "post_training", HERE)
    if options.small:
        options.sft_steps, options.dpo_steps, options.prompts, options.questions = 20, 6, 40, 24
        options.work = options.output = options.work / "small"
    options.work.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(options.work / "compiled"))
    if not (options.work / "instructions").exists():
        run("data", "instructions", "--output", options.work / "instructions")
    plan = Plan(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Plan)})
    path = options.output / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if results.get("plan") != dataclasses.asdict(plan):
        parameters = load_model(Path(plan.base)).config.parameter_count()
        results = {"plan": dataclasses.asdict(plan), "parameters": parameters, "seeds": {}}
    for seed in options.seeds:
        if str(seed) not in results["seeds"]:
            results["seeds"][str(seed)] = one_seed(plan, scale, options.work, options.data or Path(plan.base), seed)
            write_json(path, results)
    write(options.output, results, scale)


if __name__ == "__main__":
    main()
