"""The demo, from text to a model trained with DPO: `make demo`, or `plamo2 pipeline configs/pipeline_demo.py`.

Stages: pretraining; pruning, distillation and merging; synthetic data; context extension with full attention, partly on synthetic
text; fine-tuning on conversations and DPO, each with two runs that are merged. `--dry-run` prints the commands, so that
you can run each stage by hand.
"""

from pathlib import Path

from plamo2_jax.pipeline.stage import Pipeline, Stage

HOME = Path("runs/demo")
LANGUAGES, SEEDS = ("ja", "en"), (1, 2)
TOKENIZER = HOME / "tokenizer.jsonl"
EVALUATED = {"pretrained": HOME} | {name: HOME / name for name in ("merged", "sft", "tuned")}
HELDOUT = {language: HOME / "data" / language / "heldout" for language in LANGUAGES}


def shards(language: str, split: str) -> Stage:
    """Return the stage that tokenizes the bundled text of one language."""
    folder = HOME / "data" / language / split
    command = f"data prepare --input bundled:{language}:{split} --tokenizer {TOKENIZER} --output {folder}"
    return Stage(f"{language}_{split}", command, outputs=(folder,), inputs=(TOKENIZER,))


def figures(name: str, model: Path) -> Stage:
    """Return the stage that measures the held-out bits per byte of a model."""
    path = HOME / f"{name}.json"
    heldout = " ".join(f"{language}={folder}" for language, folder in HELDOUT.items())
    command = f"evaluate {model} --heldout {heldout} --sequence-length 512 --output {path}"
    return Stage(name, command, outputs=(path,), inputs=(model, *HELDOUT.values()))


def scores(name: str, model: Path) -> Stage:
    """Evaluate a model on benchmark tasks and held-out bits per byte. The report has a table of all models."""
    folder, prompts = HOME / "scores" / name, HOME / "prompts/heldout.jsonl"
    heldout = " ".join(f"{language}={path}" for language, path in HELDOUT.items())
    command = (
        f"evaluate {model} --tasks cloze phonebook rules --path rules={prompts} --heldout {heldout} --sequence-length 512 "
        f"--limit 32 --lengths 256 --max-new-tokens 32 --output {folder}"
    )
    return Stage(f"{name}_scores", command, outputs=(folder,), inputs=(model, HOME / "prompts", *HELDOUT.values()))


def merged(name: str, *models: str) -> Stage:
    """Merge models (runs or RUN@STEP) into their mean."""
    folders = tuple(HOME / model for model in models)
    command = f"merge --method linear {' '.join(map(str, folders))} {HOME}/{name}"
    return Stage(name, command, outputs=(HOME / name,), inputs=folders)


def tuned(verb: str, seed: int) -> Stage:
    """Return the stage of one post-training run. Its config names its inputs."""
    return Stage(f"{verb}_{seed}", f"{verb} configs/demo_{verb}.py --name {verb}_{seed} --data.seed {seed}")


pipeline = Pipeline(
    home=HOME,
    stages=(
        Stage(
            "tokenizer",
            f"tokenizer train --input bundled:all:train --vocab-size 4096 --output {TOKENIZER}",
            outputs=(TOKENIZER,),
        ),
        *(shards(language, split) for split in ("train", "heldout") for language in LANGUAGES),
        Stage("pretrain", "pretrain configs/demo.py"),
        figures("evaluation", HOME),
        Stage(
            "samples",
            f"generate {HOME} --prompt 日本語の文書を --prompt 'To open the' --samples 2 --max-new-tokens 80 --json > "
            f"{HOME}/samples.jsonl",
            inputs=(HOME,),
        ),
        # Pruning and distillation.
        Stage(
            "prune",
            f"prune {HOME} {HOME} {HOME}/pruned --set intermediate_size=256 --set mamba_num_heads=4 --calibration {HOME}/data/ja/train",
            outputs=(HOME / "pruned",),
            inputs=(HOME, HOME / "data/ja/train"),
        ),
        Stage("distil", "pretrain configs/demo_small.py"),
        merged("merged", "small@60", "small@120"),
        # Synthetic texts and conversations, made by rules and by the pretrained model.
        Stage("instructions", f"data instructions --output {HOME}/instructions", outputs=(HOME / "instructions",)),
        Stage(
            "synth",
            "synth configs/synth_demo.yaml",
            inputs=(HOME, HOME / "instructions", "configs/synth_demo_continue.yaml"),
        ),
        Stage(
            "synth_text",
            f"data prepare --input {HOME}/synth/records/text_*.jsonl --tokenizer {TOKENIZER} --output {HOME}/data/synthetic",
            outputs=(HOME / "data/synthetic",),
            inputs=(HOME / "synth", TOKENIZER),
        ),
        # Context extension.
        Stage(
            "extend",
            f"extend {HOME} {HOME}/opened --full-attention all --rope-theta 40000",
            outputs=(HOME / "opened",),
            inputs=(HOME,),
        ),
        Stage("long", "pretrain configs/demo_extend.py"),
        # Fine-tuning on conversations, and DPO.
        Stage(
            "prompts", f"data instructions --output {HOME}/prompts --seed 1 --limit 480", outputs=(HOME / "prompts",)
        ),
        *(tuned("sft", seed) for seed in SEEDS),
        merged("sft", *(f"sft_{seed}" for seed in SEEDS)),
        Stage("preferences", "preference-data configs/demo_preference_data.py", inputs=(HOME / "sft",)),
        *(tuned("dpo", seed) for seed in SEEDS),
        merged("tuned", *(f"dpo_{seed}" for seed in SEEDS)),
        # Evaluation of all models: pretrained; pruned, distilled and merged; fine-tuned; trained with DPO.
        *(scores(name, folder) for name, folder in EVALUATED.items()),
        Stage(
            "report",
            f"report {HOME}",
            outputs=(HOME / "report.html",),
            # The report also shows the runs and models in this folder.
            inputs=(
                HOME,
                HOME / "evaluation.json",
                *(HOME / "scores" / name for name in EVALUATED),
                HOME / "samples.jsonl",
                HOME / "synth",
                *(HOME / name for name in ("small", "long", "sft_1", "sft_2", "dpo_1", "dpo_2")),
            ),
        ),
    ),
)
