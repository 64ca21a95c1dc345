"""The demo from nothing to a tuned model: `make demo`, or `plamo2 pipeline configs/pipeline_demo.py`.

A model is pretrained; what comes of it is pruned, distilled and merged; its attention is opened; and it is tuned on conversations and on
preferences, twice each, the two runs merged. Each stage is a command that can be given by hand; `--dry-run` prints them.
"""

from pathlib import Path

from plamo2_jax.pipeline.stage import Pipeline, Stage

HOME = Path("runs/demo")
LANGUAGES, SEEDS = ("ja", "en"), (1, 2)
TOKENIZER = HOME / "tokenizer.jsonl"
HELDOUT = " ".join(f"{language}={HOME}/data/{language}/heldout" for language in LANGUAGES)


def shards(language: str, split: str) -> Stage:
    """The bundled text of one language, tokenized."""
    folder = HOME / "data" / language / split
    command = f"data prepare --input bundled:{language}:{split} --tokenizer {TOKENIZER} --output {folder}"
    return Stage(f"{language}_{split}", command, (folder,))


def figures(name: str, model: Path) -> Stage:
    """Held-out bits per byte of a model."""
    path = HOME / f"{name}.json"
    return Stage(name, f"evaluate {model} --heldout {HELDOUT} --sequence-length 512 --output {path}", (path,))


def merged(name: str, *models: str) -> Stage:
    """The mean of models."""
    words = " ".join(f"{HOME}/{model}" for model in models)
    return Stage(name, f"merge --method linear {words} {HOME}/{name}", (HOME / name,))


def tuned(verb: str, seed: int) -> Stage:
    """One of the runs of a verb of post-training."""
    return Stage(f"{verb}_{seed}", f"{verb} configs/demo_{verb}.py --name {verb}_{seed} --data.seed {seed}")


pipeline = Pipeline(
    home=HOME,
    stages=(
        Stage(
            "tokenizer",
            f"tokenizer train --input bundled:all:train --vocab-size 4096 --output {TOKENIZER}",
            (TOKENIZER,),
        ),
        *(shards(language, split) for split in ("train", "heldout") for language in LANGUAGES),
        Stage("pretrain", "pretrain configs/demo.py"),
        figures("evaluation", HOME),
        Stage(
            "samples",
            f"generate {HOME} --prompt 日本語の文書を --prompt 'To open the' --samples 2 --max-new-tokens 80 --json > "
            f"{HOME}/samples.jsonl",
        ),
        # A smaller model.
        Stage(
            "prune",
            f"prune {HOME} {HOME} {HOME}/pruned --set intermediate_size=256 --set mamba_num_heads=4 --calibration {HOME}/data/ja/train",
            (HOME / "pruned",),
        ),
        Stage("distil", "pretrain configs/demo_small.py"),
        merged("merged", "small@60", "small@120"),
        figures("merged_evaluation", HOME / "merged"),
        # A longer context.
        Stage("extend", f"extend {HOME} {HOME}/opened --full-attention all --rope-theta 40000", (HOME / "opened",)),
        Stage("long", "pretrain configs/demo_extend.py"),
        # Conversations and preferences.
        Stage("instructions", f"data instructions --output {HOME}/instructions", (HOME / "instructions",)),
        Stage("prompts", f"data instructions --output {HOME}/prompts --seed 1 --limit 480", (HOME / "prompts",)),
        *(tuned("sft", seed) for seed in SEEDS),
        merged("sft", *(f"sft_{seed}" for seed in SEEDS)),
        Stage("preferences", "prefer configs/demo_prefer.py"),
        *(tuned("dpo", seed) for seed in SEEDS),
        merged("tuned", *(f"dpo_{seed}" for seed in SEEDS)),
        figures("tuned_evaluation", HOME / "tuned"),
        *(
            Stage(
                f"{model}_answers",
                f"prefer configs/demo_prefer.py --policy.model {HOME}/{model} --prompts {HOME}/prompts/heldout.jsonl --output "
                f"{HOME}/{model}_answers --samples 2",
            )
            for model in ("sft", "tuned")
        ),
        Stage(
            "report",
            f"report {HOME}",
            (HOME / "report.html",),
            # The page shows the runs and models below, too.
            inputs=(
                *(HOME / f"{name}evaluation.json" for name in ("", "merged_", "tuned_")),
                HOME / "samples.jsonl",
                *(HOME / name for name in ("small", "long", "sft_1", "sft_2", "dpo_1", "dpo_2")),
            ),
        ),
    ),
)
