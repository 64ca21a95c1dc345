"""Cells: a model, a variant and a seed of the calibration rows, each quantized, measured and kept as one JSON file."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import statistics
import sys
import time
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import flax.traverse_util
import jax.numpy as jnp
from reference import LENGTH, ROWS, Reference
from trials import LANGUAGES, run, where
from variants import VARIANTS, Variant

from plamo2_jax.checkpoint import write_json
from plamo2_jax.convert.load import load_model
from plamo2_jax.convert.read import with_dtype
from plamo2_jax.model import Plamo2, abstract_params
from plamo2_jax.quantize.config import QuantizeConfig, matrix_formats
from plamo2_jax.quantize.report import total_bytes
from plamo2_jax.quantize.search import format_bytes

HERE = Path(__file__).resolve().parent


def halfway(reference: Reference) -> int:
    """Bytes between the model in 8 bits and in 4 bits."""
    leaves = flax.traverse_util.flatten_dict(reference.params, sep="/")

    def size(bits: int) -> int:
        formats = matrix_formats(reference.loaded.config, QuantizeConfig(bits=bits))
        other = total_bytes({path: leaf for path, leaf in leaves.items() if path not in formats})
        # The number of inputs is that of the scales' groups; for one group a few bytes off are no matter here.
        return other + sum(
            format_bytes(leaves[path].shape, form, leaves[path].shape[-1]) for path, form in formats.items()
        )

    return (size(8) + size(4)) // 2


def quantized(
    path: Path, variant: Variant, seed: int, folder: Path, arguments: argparse.Namespace, bytes_: int
) -> float:
    """Quantize a model unless this was done before. Return the seconds that it took (0 if it was done before)."""
    if folder.exists():
        return 0.0
    folder.parent.mkdir(parents=True, exist_ok=True)
    calibration = [f"{arguments.data / language / 'train'}" for language in LANGUAGES]
    options = [str(bytes_) if word == "HALFWAY" else word for word in variant.options]
    if variant.calibrated:
        options += ["--calibration", *calibration, "--samples", arguments.samples]
        options += ["--sequence-length", LENGTH, "--batch-size", ROWS, "--seed", seed]
    begun = time.monotonic()
    run("quantize", path, folder, *options)
    return time.monotonic() - begun


def rule_scores(work: Path, model: Path, questions: int) -> dict[str, float]:
    """Return the scores of post_training's rules, on held-out requests in `work`/instructions."""
    spec = importlib.util.spec_from_file_location("post_training", HERE.parent / "post_training" / "run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["post_training"] = module
    spec.loader.exec_module(module)
    return module.rule_scores(SimpleNamespace(questions=questions), work, model)


def measure_cells(arguments: argparse.Namespace) -> None:
    """Quantize and measure until all is done, or the time is over."""
    end = time.monotonic() + 60 * arguments.minutes
    work = arguments.work
    for name, path in {**arguments.models, **arguments.chat}.items():
        chat = name in arguments.chat
        reference = None
        for variant in (None, *VARIANTS):
            label = "float" if variant is None else variant.name
            if arguments.only and label != "float" and not any(fnmatch(label, each) for each in arguments.only):
                continue
            for seed in arguments.seeds if variant and variant.calibrated else [0]:
                target = work / name / "cells" / f"{label}, {seed}.json"
                if target.exists():
                    continue
                if time.monotonic() > end:
                    print(f"stopped after {arguments.minutes} minutes: run the command again to continue")
                    return
                reference = reference or Reference(path, arguments.data, arguments.batches)
                folder = path
                seconds = 0.0
                if variant is not None:
                    folder = work / name / "models" / f"{label}, {seed}"
                    seconds = quantized(path, variant, seed, folder, arguments, halfway(reference))
                params = reference.params if variant is None else unstacked(folder)
                leaves = flax.traverse_util.flatten_dict(params, sep="/")
                cell = {
                    "model": name,
                    "variant": label,
                    "seed": seed,
                    "parameters": reference.loaded.config.parameter_count(),
                    "bytes": total_bytes(leaves),
                    "seconds": round(seconds, 1),
                    **reference.measure(params),
                }
                if chat:
                    cell["rules"] = rule_scores(arguments.instructions, folder, arguments.questions)
                target.parent.mkdir(parents=True, exist_ok=True)
                write_json(target, cell)
                mean = statistics.fmean(cell[language]["bits_per_byte"] for language in LANGUAGES)
                print(f"{name}: {label}, seed {seed}: {mean:.4f} bits per byte, {cell['bytes']:,} bytes", flush=True)
                if folder != path and seed != 0:
                    shutil.rmtree(folder)  # The speed is measured with seed 0 only.


def unstacked(folder: Path) -> dict:
    """Return the parameters of a quantized model without a scan over layers."""

    def abstract(config):
        return with_dtype(abstract_params(Plamo2(config, scan_layers=False)), jnp.float32, None)

    return load_model(folder, quantized=True, abstract=abstract).params


def gather(arguments: argparse.Namespace) -> dict:
    """The cells that exist, by model and variant, with the change from the float model."""
    results: dict = {"command": "python experiments/quantization/run.py", "models": {}}
    for name in {**arguments.models, **arguments.chat}:
        files = sorted((arguments.work / name / "cells").glob("*.json"))
        found = [json.loads(path.read_text(encoding="utf-8")) for path in files]
        if not found:
            continue
        (exact,) = [cell for cell in found if cell["variant"] == "float"] or [None]
        if exact is None:
            continue
        speeds = arguments.work / name / "speed.json"
        rates = json.loads(speeds.read_text(encoding="utf-8")) if speeds.exists() else {}
        variants = {}
        for label in ("float", *(variant.name for variant in VARIANTS)):
            some = [cell for cell in found if cell["variant"] == label]
            if not some:
                continue
            changes = [
                statistics.fmean(cell[lang]["bits_per_byte"] / exact[lang]["bits_per_byte"] - 1 for lang in LANGUAGES)
                for cell in some
            ]
            variants[label] = {
                "seeds": [cell["seed"] for cell in some],
                "bytes": some[0]["bytes"],
                "change": changes,
                **{
                    lang: {
                        figure: [cell[lang][figure] for cell in some]
                        for figure in ("bits_per_byte", "kl", "greedy_agreement")
                    }
                    for lang in LANGUAGES
                },
                **({"rules": [cell["rules"] for cell in some]} if "rules" in some[0] else {}),
                **({"tokens_per_second": rates[label]} if label in rates else {}),
                "seconds": [cell["seconds"] for cell in some],
            }
        results["models"][name] = {"parameters": exact["parameters"], "variants": variants}
    results["samples"], results["sequence_length"] = arguments.samples, LENGTH
    results["questions"] = arguments.questions
    return results | where()
