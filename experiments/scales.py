"""Sizes of the experiments that train or measure small models: `--scale cpu`, of the committed results, and `--scale gpu`.

The models of the GPU scale have at least 50 million parameters, and an experiment is meant to take minutes on one H100. Nobody has run
them at that scale yet: tests check that their configs are valid, and count their parameters.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from plamo2_jax.config import ModelConfig, preset


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes of one experiment."""

    models: Mapping[str, ModelConfig]
    """Models by their role in the experiment."""
    length: int
    """Tokens of a row."""
    rows: int
    """Rows of a batch."""
    options: Mapping[str, object] = dataclasses.field(default_factory=dict)
    """Values of the options of run.py that the user leaves out."""
    learning_rate: float = 3e-3
    """Highest learning rate of a model that is trained from scratch."""
    dtype: str = "float32"
    """dtype of activations."""

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.length * self.rows

    @property
    def vocab_size(self) -> int:
        """Rows of the tokenizer, equal in all models of an experiment."""
        return next(iter(self.models.values())).vocab_size


def _of(model: ModelConfig, **changes: object) -> ModelConfig:
    return dataclasses.replace(model, **changes)


def _small(models: Mapping[str, ModelConfig], length: int, rows: int, /, **options: object) -> Scale:
    """Return a CPU scale."""
    return Scale(models, length, rows, options)


def _large(models: Mapping[str, ModelConfig], /, *, rows: int = 32, rate: float = 1e-3, **options: object) -> Scale:
    """Return a GPU scale: rows of 1,024 tokens."""
    return Scale(models, 1024, rows, options, rate, "bfloat16")


# 0.3 million parameters.
_TINY = ModelConfig(
    hidden_size=64,
    num_hidden_layers=2,
    intermediate_size=192,
    num_attention_heads=4,
    num_key_value_heads=2,
    hidden_size_per_head=32,
    mamba_num_heads=4,
    mamba_d_state=16,
    mamba_chunk_size=64,
    attention_window_size=128,
    vocab_size=2048,
)
_WIDE = _of(
    _TINY, hidden_size=128, intermediate_size=384, num_attention_heads=8, num_key_value_heads=4, mamba_num_heads=8
)
_PRUNED = _of(_WIDE, num_hidden_layers=4, intermediate_size=512)
# 65 million parameters.
_LARGE = ModelConfig(
    hidden_size=768,
    num_hidden_layers=8,
    intermediate_size=2048,
    num_attention_heads=12,
    num_key_value_heads=2,
    hidden_size_per_head=64,
    mamba_num_heads=24,
    mamba_d_state=64,
    mamba_chunk_size=256,
    attention_window_size=256,
    vocab_size=8192,
)
# 121 million parameters, and a model of half the width and half the depth with 18 million.
_GROWN = _of(
    _LARGE,
    hidden_size=1024,
    intermediate_size=3072,
    num_attention_heads=16,
    num_key_value_heads=4,
    mamba_num_heads=32,
)
_START = _of(
    _GROWN,
    hidden_size=512,
    num_hidden_layers=4,
    intermediate_size=1536,
    num_attention_heads=8,
    num_key_value_heads=2,
    mamba_num_heads=16,
)
# 230 million parameters, and half the width with 61 million.
_UNCUT = _of(
    _GROWN,
    hidden_size=1280,
    num_hidden_layers=10,
    intermediate_size=3840,
    num_attention_heads=20,
    mamba_num_heads=40,
)
_CUT = _of(
    _UNCUT, hidden_size=640, intermediate_size=1920, num_attention_heads=10, num_key_value_heads=2, mamba_num_heads=20
)
# The demo's shape with the demo's tokenizer (experiments/demo_gpu.py trains it).
DEMO_GPU = _of(_LARGE, vocab_size=4096)

# The model of configs/pretrain_demo.py.
_DEMO = _of(
    _TINY,
    hidden_size=256,
    num_hidden_layers=4,
    intermediate_size=512,
    num_key_value_heads=1,
    hidden_size_per_head=64,
    mamba_num_heads=8,
    mamba_d_state=64,
    vocab_size=4096,
)
# The demo's model with a wider MLP and the window of the 1B.
_READER = _of(_DEMO, intermediate_size=1024, mamba_chunk_size=256, attention_window_size=2048)
_TINY_PRESET = preset("tiny", vocab_size=2048, mamba_chunk_size=64)
# A layer of each kind.
_WINDOWED = _of(_TINY_PRESET, num_hidden_layers=2, attention_window_size=64)
# The width alone is cut, as in the public 2B, which was cut from the 8B. The heads are cut, too: beside so narrow a stream they weigh more.
_PRUNED_SMALL = _of(
    _PRUNED, hidden_size=64, intermediate_size=176, num_attention_heads=4, num_key_value_heads=2, mamba_num_heads=4
)

SCALES: dict[str, dict[str, Scale]] = {
    "architecture": {
        "cpu": _small({"hybrid": _WINDOWED}, 512, 8, first=600, steps=150, documents=30_000, digits=2, entries=50),
        "gpu": _large({"hybrid": _LARGE}, first=1000, steps=600, documents=100_000, digits=3, entries=170),
    },
    # Prompts of up to 32,768 tokens.
    "architecture_speed": {
        "cpu": _small({"hybrid": _READER}, 32_768, 1),
        "gpu": Scale({"hybrid": _of(_LARGE, attention_window_size=2048)}, 32_768, 1, dtype="bfloat16"),
    },
    "fp8_training": {
        "cpu": _small({"model": _DEMO}, 512, 2, steps=700, rates=(3e-3, 1e-3)),
        "gpu": _large({"model": _LARGE}, steps=600, rates=(1e-3,)),
    },
    "full_attention": {
        "cpu": _small(
            {"windowed": _WINDOWED},
            256,
            16,
            **{"first": 600, "steps": 150, "more": 150, "documents": 30_000, "digits": 2, "entries": 40},
        ),
        "gpu": _large({"windowed": _LARGE}, first=500, steps=500, more=300, documents=100_000, digits=3, entries=170),
    },
    "merging": {
        "cpu": _small({"model": _TINY_PRESET}, 256, 4, steps=300, tuning=120),
        "gpu": _large({"model": _LARGE}, steps=300, tuning=100),
    },
    # At the CPU scale, the base model is the one of `make demo`. The rows are those of both trainings on top of it.
    "post_training": {
        "cpu": _small(
            {},
            512,
            2,
            **{"base": "runs/demo", "sft_steps": 150, "sft_rate": 1e-3},
            **{"dpo_steps": 300, "dpo_rate": 3e-4, "prompts": 1200},
        ),
        "gpu": _large(
            {"base": DEMO_GPU},
            rows=16,
            **{"base": "runs/demo_gpu", "data": Path("runs/demo"), "sft_steps": 300, "sft_rate": 3e-4},
            **{"dpo_steps": 300, "dpo_rate": 1e-4, "prompts": 4000},
        ),
    },
    "pruning": {
        "cpu": _small({"large": _PRUNED, "small": _PRUNED_SMALL}, 256, 4, large_steps=300, steps=200),
        "gpu": _large({"large": _UNCUT, "small": _CUT}, large_steps=400, steps=200),
    },
    "quantization": {
        "cpu": _small({}, 512, 4, models=[("demo", Path("runs/demo")), ("wide", Path("runs/wide"))]),
        "gpu": Scale({"base": DEMO_GPU}, 512, 4, {"models": [("demo_gpu", Path("runs/demo_gpu"))]}),
    },
    "synthetic_data": {
        "cpu": _small({"model": _TINY}, 256, 4, steps=1000),
        "gpu": _large({"model": _LARGE}, rows=16, steps=500),
    },
    "weight_reuse": {
        "cpu": _small({"small": _TINY, "large": _of(_WIDE, num_hidden_layers=4)}, 256, 4, small_steps=300, steps=300),
        "gpu": _large({"small": _START, "large": _GROWN}, small_steps=400, steps=400),
    },
}
"""Scales by experiment and name."""


def parse(
    parser: argparse.ArgumentParser, experiment: str, committed: Path, argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, Scale]:
    """Add `--scale`, `--work` and `--output`, parse the command line, set the options that the user left out, and create the output folder.

    Args:
        parser: parser with the other options. Those of the scale have the default None.
        experiment: name in SCALES.
        committed: folder of the committed results.
        argv: arguments; None: those of the process.
    """
    parser.add_argument(
        "--scale",
        choices=tuple(SCALES[experiment]),
        default="cpu",
        help="cpu: sizes of the committed results (default). gpu: at least 50 million parameters, not run yet",
    )
    parser.add_argument(
        "--work", type=Path, help=f"folder of data and runs (default: runs/{experiment}; at the GPU scale with _gpu)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="folder of the results (default: the committed ones; at the GPU scale the work folder)",
    )
    options = parser.parse_args(argv)
    scale = SCALES[experiment][options.scale]
    small = options.scale == "cpu"
    options.work = options.work or Path("runs") / (experiment if small else f"{experiment}_{options.scale}")
    options.output = options.output or (committed if small else options.work)
    options.output.mkdir(parents=True, exist_ok=True)
    for name, value in scale.options.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if not small:
        print(notice(experiment, options.scale), flush=True)
    return options, scale


def notice(experiment: str, name: str) -> str:
    """Return the sentences that a user of another scale than cpu reads first."""
    models = SCALES[experiment][name].models.items()
    counts = ", ".join(f"{role} {config.parameter_count() / 1e6:.0f} million parameters" for role, config in models)
    return (
        f"Scale {name}: {counts}. The authors have not run this scale; only its configs are tested. "
        "The committed results are of the scale cpu."
    )
