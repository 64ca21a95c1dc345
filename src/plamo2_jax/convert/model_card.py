"""The model card of an export: README.md with metadata for the Hugging Face Hub and information from the run folder."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from plamo2_jax import checkpoint
from plamo2_jax.config import LayerKind, ModelConfig
from plamo2_jax.convert.compressed_tensors import Scheme
from plamo2_jax.convert.errors import ConvertError
from plamo2_jax.json_input import read_json_object
from plamo2_jax.model_files import optional_file

FILE_NAME = "README.md"
EVALUATION = "evaluation.json"
_TASKS = {
    "pretrain": "pretraining",
    "distill": "distillation",
    "sft": "supervised fine-tuning",
    "dpo": "preference optimization (DPO)",
}
_LANGUAGES = {"ja": "Japanese", "en": "English"}


@dataclasses.dataclass(frozen=True)
class CardOptions:
    """Information about a model from the user, for the model card.

    Raises:
        ConvertError: A value is not an identifier that the Hub accepts.
    """

    base_model: str | None = None
    """Hub name of the model that this one was made from."""
    license: str | None = None
    """Licence of the weights, as the Hub's identifier, such as apache-2.0."""
    languages: tuple[str, ...] = ()
    """Codes of languages, such as ja; empty: the languages in the names of the run's data."""

    def __post_init__(self) -> None:
        checks = {
            "base-model": ([self.base_model], r"[\w.-]{1,96}(/[\w.-]{1,96})?", "a name such as pfnet/plamo-2-1b"),
            "license": ([self.license], r"[a-z0-9][a-z0-9.-]{0,40}", "an identifier such as apache-2.0"),
            "languages": (self.languages, r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})?", "codes such as ja en"),
        }
        for option, (values, pattern, allowed) in checks.items():
            for value in values:
                if value is not None and not re.fullmatch(pattern, value, re.ASCII):
                    raise ConvertError(f"--{option} {value[:100]!r} is not allowed: it must be {allowed}")


def model_card(
    folder: Path,
    config: ModelConfig,
    options: CardOptions,
    *,
    step: int | None,
    newest: bool,
    with_code: bool,
    chat: bool,
    schemes: Mapping[str, Scheme | None] | None,
) -> bytes:
    """Return the README.md of an export.

    Args:
        folder: Run folder of the model. Its config.json gives the training summary, its evaluation.json the evaluation table.
        config: Shape of the model.
        options: Information from the user.
        step: Step of the exported checkpoint, if known.
        newest: Whether it is the newest checkpoint with its own parameters. Otherwise evaluation.json, which has no step, is not used.
        with_code: Whether the export has Python files.
        chat: Whether it has a chat template.
        schemes: How the linear layers are quantized; None: not at all.
    """
    run = checkpoint.read_config(folder)
    evaluation = _evaluation(folder) if newest else {}
    languages = options.languages or _languages(run, evaluation)
    lines = [*_front_matter(options, languages, with_code, schemes), ""]
    name = _last(run.get("name") or folder.resolve().name)
    lines += [f"# {name}", "", _summary(config, languages), ""]
    lines += [*_use(with_code, chat, schemes), *_architecture(config), *_training(run, step, options)]
    if evaluation:
        lines += [
            "## Evaluation",
            "",
            "Bits per byte and next-token accuracy on held-out text (`plamo2 evaluate`).",
            "",
        ]
        lines += _table(("text", "bits per byte", "accuracy", "bytes"), _rows(evaluation))
    lines += ["## Licence", "", options.license or "The licence of the weights is not specified.", ""]
    if with_code:
        lines += ["The Python files in this folder are licensed under Apache-2.0.", ""]
    return "\n".join(lines).encode()


def _front_matter(
    options: CardOptions,
    languages: Sequence[str],
    with_code: bool,
    schemes: Mapping[str, Scheme | None] | None,
) -> Iterator[str]:
    yield "---"
    if options.license:
        yield f"license: {options.license}"
    if languages:
        yield from ("language:", *(f"- {language}" for language in languages))
    if options.base_model:
        yield f"base_model: {options.base_model}"
        if schemes:
            yield "base_model_relation: quantized"
    yield f"library_name: {'transformers' if with_code else 'plamo2-jax'}"
    yield "pipeline_tag: text-generation"
    tags = ["plamo2", "mamba", "hybrid", "jax", "arxiv:2509.04897"]
    yield from ("tags:", *(f"- {tag}" for tag in tags + (["compressed-tensors"] if schemes else [])))
    yield "---"


def _summary(config: ModelConfig, languages: Sequence[str]) -> str:
    spoken = " and ".join(_LANGUAGES.get(language, language) for language in languages)
    of = f" for {spoken}" if spoken else ""
    return (
        f"A PLaMo 2 language model{of} with {config.parameter_count():,} parameters, exported by plamo2-jax. PLaMo 2 "
        "(arXiv:2509.04897) alternates Mamba and attention layers."
    )


def _use(with_code: bool, chat: bool, schemes: Mapping[str, Scheme | None] | None) -> Iterator[str]:
    yield from ("## Use", "", "```sh")
    yield f"plamo2 {'chat .' if chat else 'generate . --prompt 日本語の'}"
    yield from ("```", "")
    if with_code and not schemes:
        yield from (
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'tokenizer = AutoTokenizer.from_pretrained(".", trust_remote_code=True)',
            'model = AutoModelForCausalLM.from_pretrained(".", trust_remote_code=True)',
            "```",
            "",
        )
    else:
        yield from (
            "```python",
            "from transformers import AutoTokenizer",
            "",
            f'tokenizer = AutoTokenizer.from_pretrained("."{", trust_remote_code=True" if with_code else ""})',
            "```",
            "",
        )
    yield "vLLM 0.27 or later needs the plugin in `integrations/vllm` of plamo2-jax."
    yield (
        "`tokenizer.jsonl` is the exact tokenizer. `tokenizer.json`, which AutoTokenizer loads without remote "
        "code, chooses differently between segmentations of equal cost: 0.05 % of the token boundaries of a "
        "test corpus differ."
    )
    if schemes:
        found = dict.fromkeys(scheme for scheme in schemes.values() if scheme is not None)
        kinds = "; ".join(_described(scheme) for scheme in found)
        yield f"The linear layers are quantized ({kinds}) in the compressed-tensors format."
    yield ""


def _described(scheme: Scheme) -> str:
    weights = f"{scheme.bits}-bit {scheme.kind} weights"
    groups = "one scale for each output" if scheme.group_size is None else f"groups of {scheme.group_size}"
    return f"{weights}, {groups}" + (f", {scheme.activations} activations" if scheme.activations else "")


def _architecture(config: ModelConfig) -> Iterator[str]:
    counts = {kind: config.layer_kinds.count(kind) for kind in LayerKind}
    attention = [f"{counts[LayerKind.WINDOW]} with a window of {config.attention_window_size:,} tokens"]
    attention = [] if not counts[LayerKind.WINDOW] else attention
    attention += [f"{counts[LayerKind.FULL]} with full attention"] if counts[LayerKind.FULL] else []
    rows = [
        ("parameters", f"{config.parameter_count():,}"),
        ("Mamba layers", f"{counts[LayerKind.MAMBA]}"),
        ("attention layers", ", ".join(attention) or "0"),
        ("hidden size, MLP size", f"{config.hidden_size:,}, {config.intermediate_size:,}"),
        ("vocabulary", f"{config.vocab_size:,}"),
    ]
    yield from ("## Architecture", "", *_table(("", ""), rows))


def _training(run: Mapping[str, Any], step: int | None, options: CardOptions) -> Iterator[str]:
    """Yield the training summary, from the fields of the run's config.json that are there."""
    rows = [("base model", options.base_model)] if options.base_model else []
    task, data = _object(run.get("task")), _object(run.get("data"))
    if "kind" in task:
        rows.append(("training", _TASKS.get(str(task["kind"]), str(task["kind"]))))
    if run.get("init_from"):
        rows.append(("started from", _last(run["init_from"])))
    if step is not None and data:
        rows.append(("steps", f"{step:,}"))
    size, length = data.get("batch_size"), data.get("sequence_length")
    if isinstance(size, int) and isinstance(length, int):
        rows.append(("batch", f"{size:,} rows of {length:,} tokens"))
    mixture = data.get("mixture")
    if isinstance(mixture, list):
        found = [_object(item) for item in mixture]
        rows.append(("data", ", ".join(f"{_last(item.get('path'), 2)} ({item.get('weight')})" for item in found)))
    schedule, optimizer = _object(run.get("schedule")), _object(run.get("optimizer"))
    if "learning_rate" in schedule:
        rows.append(("learning rate", f"{schedule['learning_rate']} ({schedule.get('kind')})"))
    if "weight_decay" in optimizer:
        rows.append(("optimizer", f"AdamW, weight decay {optimizer['weight_decay']}"))
    quantization = _object(run.get("quantization"))
    if "method" in quantization:
        rows.append(("quantization method", str(quantization["method"])))
    if rows:
        yield from ("## Training", "", *_table(("", ""), rows))


def _languages(run: Mapping[str, Any], evaluation: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the languages in the names of held-out sets, evaluations and data."""
    mixture = _object(run.get("data")).get("mixture")
    paths = [str(_object(item).get("path")) for item in mixture] if isinstance(mixture, list) else []
    words = {*evaluation, *_object(run.get("heldout")), *(part for path in paths for part in re.split(r"[/:]", path))}
    return tuple(language for language in _LANGUAGES if language in words)


def _evaluation(folder: Path) -> dict[str, dict[str, Any]]:
    path = optional_file(folder, EVALUATION, error=ConvertError)
    if path is None:
        return {}
    languages = _object(read_json_object(path, error=ConvertError).get("languages"))
    return {name: figures for name, figures in languages.items() if isinstance(figures, dict)}


def _rows(evaluation: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for name, figures in evaluation.items():
        yield (
            _LANGUAGES.get(name, name),
            *(_number(figures.get(key), form) for key, form in (("bits_per_byte", ".4f"), ("accuracy", ".4f"))),
            _number(figures.get("bytes"), ",.0f"),
        )


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _table(head: Sequence[str], rows: Any) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        plain = (re.sub(r"[|\n\r]", " ", cell)[:500] for cell in cells)
        return f"| {' | '.join(plain)} |"

    return [line(head), f"|{'---|' * len(head)}", *map(line, rows), ""]


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _last(path: Any, parts: int = 1) -> str:
    """Return the last parts of a path, because the whole path would publish names of folders of this machine."""
    return json.dumps("/".join(PurePosixPath(str(path)).parts[-parts:]), ensure_ascii=False)[1:-1]
