"""What each way of quantizing costs: held-out bits per byte, KL divergence, greedy agreement, bytes and tokens per second.

plamo2 pretrain experiments/quantization/wide.py                       # after make demo; about 30 minutes
plamo2 pretrain experiments/demo_gpu.py                                # for --scale gpu, in the place of wide.py
python experiments/quantization/run.py                                 # quantizes and measures; continues where it was stopped
python experiments/quantization/run.py --speed                         # tokens per second, on a machine that does nothing else
python experiments/quantization/run.py --chat tuned=runs/demo/tuned --only int8 'int4 g64, rtn'   # rules of post_training, too

Every cell (a model, a variant, a seed of the calibration rows) is one file in `--work`, so the script can run in pieces: `--minutes 20`
stops after the cell in which 20 minutes are over. `results.json`, `plot.png` and `README.md` are written from the cells that exist.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import itertools
import json
import os
import platform
import shutil
import statistics
import sys
import time
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import flax.traverse_util
import jax
import jax.numpy as jnp

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from scales import parse  # noqa: E402
from trials import run  # noqa: E402

from plamo2_jax.checkpoint import write_json  # noqa: E402
from plamo2_jax.convert.load import load_model  # noqa: E402
from plamo2_jax.convert.read import with_dtype  # noqa: E402
from plamo2_jax.data.pipeline import DataConfig, MixtureItem, heldout_batches  # noqa: E402
from plamo2_jax.engine.generator import Generator  # noqa: E402
from plamo2_jax.engine.sampling import SamplingConfig  # noqa: E402
from plamo2_jax.engine.stop import StopConfig  # noqa: E402
from plamo2_jax.engine.weights import load_weights, unstack  # noqa: E402
from plamo2_jax.model import Plamo2, abstract_params  # noqa: E402
from plamo2_jax.model.quantized import is_quantized  # noqa: E402
from plamo2_jax.quantize.config import QuantizeConfig, matrix_formats  # noqa: E402
from plamo2_jax.quantize.divergence import features  # noqa: E402
from plamo2_jax.quantize.layers import effective  # noqa: E402
from plamo2_jax.quantize.report import total_bytes  # noqa: E402
from plamo2_jax.quantize.search import format_bytes  # noqa: E402

LANGUAGES = ("ja", "en")
LENGTH, ROWS, NEW_TOKENS = 512, 4, 128


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way of quantizing."""

    name: str
    options: tuple[str, ...]
    calibrated: bool = True
    """Whether the result depends on the calibration rows, and so on the seed."""


def four(method: str, group: int = 64, *more: str) -> tuple[str, ...]:
    """Options of 4 bits."""
    return ("--bits", "4", "--method", method, "--group-size", str(group), *more)


MAMBA = ("--bits-for", "mixer/(in|out)_proj=4")
VARIANTS = (
    Variant("int8", (), False),
    Variant("W8A8 int8, rtn", ("--activations", "int8"), False),
    Variant("W8A8 int8, smoothquant", ("--activations", "int8", "--method", "smoothquant")),
    Variant("W8A8 float8", ("--bits", "float8", "--activations", "float8"), False),
    Variant("int4 g64, rtn", four("rtn"), False),
    Variant("int4 g64, rtn, clip search", four("rtn", 64, "--clip-search"), False),
    Variant("int4 g64, gptq", four("gptq")),
    Variant("int4 g64, awq", four("awq")),
    Variant("int4 g64, awq+gptq", four("awq+gptq")),
    Variant("int4 g64, gptq, trained scales", four("gptq", 64, "--finetune-norms", "100")),
    Variant("int4 g64, awq+gptq, trained scales", four("awq+gptq", 64, "--finetune-norms", "100")),
    Variant("int4 g32, rtn", four("rtn", 32), False),
    Variant("int4 g32, awq+gptq", four("awq+gptq", 32)),
    Variant("int4 g128, rtn", four("rtn", 128), False),
    Variant("int4 g128, awq+gptq", four("awq+gptq", 128)),
    Variant("int4 one scale an output, rtn", ("--bits", "4", "--group-size", "none"), False),
    Variant("int4 one scale an output, awq+gptq", ("--bits", "4", "--group-size", "none", "--method", "awq+gptq")),
    Variant("int4 g64 with Mamba, rtn", four("rtn", 64, *MAMBA), False),
    Variant("int4 g64 with Mamba, awq+gptq", four("awq+gptq", 64, *MAMBA)),
    Variant("budget halfway, rtn", ("--budget", "HALFWAY")),
)


class Reference:
    """A float model on held-out rows."""

    def __init__(self, path: Path, data: Path, batches: int):
        self.loaded = load_model(path)
        self.model = Plamo2(self.loaded.config, scan_layers=False)
        self.params = unstack(Plamo2(self.loaded.config), self.loaded.params)
        lengths = jnp.asarray(self.loaded.tokenizer.padded_byte_lengths(self.loaded.config.vocab_size))
        self.batches = {}
        for language in LANGUAGES:
            folder = data / language / "heldout"
            rows = heldout_batches(DataConfig((MixtureItem(folder),), LENGTH, ROWS), folder, self.loaded.tokenizer)
            self.batches[language] = list(itertools.islice(rows, batches))

        @jax.jit
        def compare(reference, params, batch):
            expected, found = (
                jax.nn.log_softmax(
                    self.model.apply({"params": each}, features(self.model, each, batch), method="logits")
                )
                for each in (reference, params)
            )
            weights, targets = batch["loss_weights"], batch["targets"]
            own = jnp.take_along_axis(found, targets[..., None], axis=-1)[..., 0]
            divergence = jnp.sum(jnp.exp(expected) * (expected - found), axis=-1)
            same = jnp.argmax(expected, axis=-1) == jnp.argmax(found, axis=-1)
            return {
                "nats": -jnp.sum(own * weights),
                "kl": jnp.sum(divergence * weights),
                "same": jnp.sum(same * weights),
                "tokens": jnp.sum(weights),
                "bytes": jnp.sum(jnp.where(weights > 0, lengths[targets], 0)),
            }

        self._compare = compare

    def measure(self, params: dict) -> dict:
        """Bits per byte, KL divergence from the float model in nats per token, and the share of equal greedy tokens."""
        params = jax.tree.map(effective, params, is_leaf=is_quantized)
        result = {}
        for language, batches in self.batches.items():
            sums: dict[str, float] = {}
            for batch in batches:
                for name, value in self._compare(self.params, params, batch).items():
                    sums[name] = sums.get(name, 0.0) + float(value)
            result[language] = {
                "bits_per_byte": sums["nats"] / sums["bytes"] / float(jnp.log(2.0)),
                "kl": sums["kl"] / sums["tokens"],
                "greedy_agreement": sums["same"] / sums["tokens"],
                "tokens": sums["tokens"],
            }
        return result


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
    begun = time.monotonic()
    run(
        "quantize", path, folder, *options, "--calibration", *calibration, "--samples", arguments.samples,
        "--sequence-length", LENGTH, "--batch-size", ROWS, "--seed", seed,
    )  # fmt: skip
    return time.monotonic() - begun


def rule_scores(work: Path, model: Path, questions: int) -> dict[str, float]:
    """Return the scores of post_training's rules, on held-out requests in `work`/instructions."""
    spec = importlib.util.spec_from_file_location("post_training", HERE.parent / "post_training" / "run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["post_training"] = module
    spec.loader.exec_module(module)
    return module.rule_scores(SimpleNamespace(questions=questions), work, model)


def cells(arguments: argparse.Namespace) -> None:
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
                write_json_file(target, cell)
                mean = statistics.fmean(cell[language]["bits_per_byte"] for language in LANGUAGES)
                print(f"{name}: {label}, seed {seed}: {mean:.4f} bits per byte, {cell['bytes']:,} bytes", flush=True)
                if folder != path and seed != 0:
                    shutil.rmtree(folder)  # The speed is measured with seed 0 only.


def unstacked(folder: Path) -> dict:
    """Return the parameters of a quantized model without a scan over layers."""

    def abstract(config):
        return with_dtype(abstract_params(Plamo2(config, scan_layers=False)), jnp.float32, None)

    return load_model(folder, quantized=True, abstract=abstract).params


def speed(arguments: argparse.Namespace) -> None:
    """Tokens per second of decoding with one row, the variants of a model in turns."""
    for name, path in arguments.models.items():
        folders = {"float": path}
        folders |= {v.name: arguments.work / name / "models" / f"{v.name}, 0" for v in VARIANTS}
        folders = {label: folder for label, folder in folders.items() if folder.exists()}
        generators = {}
        for label, folder in folders.items():
            network, loaded = load_weights(folder)
            generators[label] = Generator(network, loaded.params, loaded.tokenizer)
        greedy, stop = SamplingConfig(temperature=0.0), StopConfig(max_new_tokens=NEW_TOKENS, ids=())
        rates: dict[str, list[float]] = {label: [] for label in generators}
        for turn in range(arguments.turns + 1):
            for label, generator in generators.items():
                begun = time.perf_counter()
                rows = generator.generate([[1]], sampling=greedy, stop=stop)
                if turn:  # The first call compiles.
                    rates[label].append(len(rows[0].token_ids) / (time.perf_counter() - begun))
        write_json_file(
            arguments.work / name / "speed.json",
            {
                label: {"median": statistics.median(some), "least": min(some), "most": max(some)}
                for label, some in rates.items()
            },
        )


def write_json_file(path: Path, value: dict) -> None:
    """Write a JSON file; create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, value)


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
    results["machine"] = f"{platform.machine()}, {os.cpu_count()} CPU cores"
    results["versions"] = {name: metadata.version(name) for name in ("jax", "jaxlib")}
    return results


def bars(results: dict) -> list[tuple[str, bool]]:
    """The bars and whether each model reaches them."""
    found = []
    for name, model in results["models"].items():
        change = {label: statistics.fmean(each["change"]) for label, each in model["variants"].items()}
        if "int8" in change:
            found.append((f"{name}: int8 loses at most 0.1 %: {100 * change['int8']:.3f} %", change["int8"] <= 1e-3))
        eights = {label: value for label, value in change.items() if label.startswith("W8A8 int8")}
        if eights:
            label = min(eights, key=eights.get)
            found.append((f"{name}: {label} loses at most 0.5 %: {100 * eights[label]:.3f} %", eights[label] <= 5e-3))
        fours = {label: value for label, value in change.items() if label.startswith("int4 g64,")}
        if len(fours) > 1 and "int4 g64, rtn" in fours:
            label, nearest = min(fours, key=fours.get), fours["int4 g64, rtn"]
            best = fours[label]
            found.append((f"{name}: {label} loses at most 1.5 %: {100 * best:.3f} %", best <= 0.015))
            text = f"{name}: {label} loses at most half of rounding: {100 * best:.3f} % of {100 * nearest:.3f} %"
            found.append((text, best <= nearest / 2))
        divergences = {
            label: statistics.fmean(value for lang in LANGUAGES for value in each[lang]["kl"])
            for label, each in model["variants"].items()
            if label.startswith("int4 g64,")
        }
        if len(divergences) > 1 and "int4 g64, rtn" in divergences:
            label, nearest = min(divergences, key=divergences.get), divergences["int4 g64, rtn"]
            text = f"{name}: {label} diverges at most half as much as rounding: KL {divergences[label]:.2e} of {nearest:.2e}"
            found.append((text, divergences[label] <= nearest / 2))
    return found


def floors(results: dict) -> list[str]:
    """The divergence of int8, beside those of 4 bits, which have the embedding and the Mamba projections in 8 bits."""
    lines = []
    for name, model in results["models"].items():
        kl = {
            label: statistics.fmean(value for lang in LANGUAGES for value in each[lang]["kl"])
            for label, each in model["variants"].items()
        }
        if {"int8", "int4 g64, rtn", "int4 g64, gptq"} <= set(kl):
            lines.append(
                f"{name}: int8 alone has a KL divergence of {kl['int8']:.2e}. In the int4 variants, the embedding and the Mamba "
                f"projections have 8 bits. Relative to int8, rounding to 4 bits changes the divergence by "
                f"{kl['int4 g64, rtn'] - kl['int8']:+.1e}, and gptq by {kl['int4 g64, gptq'] - kl['int8']:+.1e}."
            )
            lines.append("")
    return lines[:-1]


def page(results: dict) -> str:
    """The README."""
    lines = [
        "# Loss and speed of quantized models",
        "",
        "**Question.** How much quality do models lose with 8 and with 4 bits, by method?",
        "",
        f"**Method.** `plamo2 quantize` quantizes each model. The calibration set has {results['samples']} rows of "
        f"{results['sequence_length']} tokens "
        "of the training data, Japanese and English in equal shares. Methods that use it are run with 3 seeds (mean ± standard "
        "deviation); rows without a deviation have one seed. "
        "Changes of bits per byte are relative to the float model on the same held-out rows. Agreement is the share of positions with the "
        "same most likely token. KL is the divergence from the float model in nats per token.",
    ]
    for name, model in results["models"].items():
        rules = any("rules" in each for each in model["variants"].values())
        timed = any("tokens_per_second" in each for each in model["variants"].values())
        header = "| variant | bytes | bits per byte, change | KL ja, 10⁻⁵ | KL en, 10⁻⁵ | agreement ja | agreement en |"
        header += " tokens/s |" if timed else ""
        header += " rules | all obeyed |" if rules else ""
        lines += [
            "",
            f"## {name}: {model['parameters']:,} parameters",
            "",
            header,
            "|---" * (header.count("|") - 1) + "|",
        ]
        for label, each in model["variants"].items():
            change = "0" if label == "float" else spread([100 * value for value in each["change"]], 3) + " %"
            figures = [spread([1e5 * value for value in each[lang]["kl"]], 2) for lang in LANGUAGES]
            figures += [spread(each[lang]["greedy_agreement"], 4) for lang in LANGUAGES]
            cells = [label, f"{each['bytes']:,}", change, *figures]
            if timed:
                cells.append(
                    f"{each['tokens_per_second']['median']:.0f}" if "tokens_per_second" in each else "not measured"
                )
            if rules:
                cells += [spread([one[key] for one in each["rules"]], 3) for key in ("rules", "all_obeyed")]
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "## Goals",
        "",
        *(f"- {text}: {'reached' if good else '**not reached**'}" for text, good in bars(results)),
        "",
        *floors(results),
        "",
        *(HERE / "notes.md").read_text(encoding="utf-8").splitlines(),
        "",
        *chat_notes(results),
        "![Loss by size](plot.png)",
        "",
        *memory_notes(HERE / "memory.json"),
        *speed_table(HERE / "speed.json"),
        "`python experiments/quantization/run.py` repeats the experiment; its docstring lists the steps.",
        "",
    ]
    return "\n".join(lines)


def chat_notes(results: dict) -> list[str]:
    """Return what the rules of the chat models are, as lines of Markdown."""
    if not any("rules" in each for model in results["models"].values() for each in model["variants"].values()):
        return []
    return [
        f"Rules: each chat model answers {results['questions']} held-out requests of the demo's instructions four times, at temperature "
        "0.8 and top-p 0.95. The rules of `experiments/post_training` score the answers (language, length, form, stopped by itself). "
        '"rules" is the mean of all scores, and "all obeyed" is the share of answers in which every rule scores at least 0.5.',
        "",
    ]


def memory_notes(path: Path) -> list[str]:
    """Return the figures of memory.py as lines of Markdown."""
    if not path.exists():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    gigabytes = {name: f"{found[name] / 1e9:.2f} GB" for name in ("model_bytes", "peak_bytes", "above_the_model")}
    return [
        "## Memory",
        "",
        f"`{found['command']}`: {found['preset']} with random weights, {found['layers']} layers, {found['method']} with 4 bits, "
        f"{found['calibration_tokens']:,} calibration tokens. Peak resident memory {gigabytes['peak_bytes']}, "
        f"{gigabytes['above_the_model']} above the {gigabytes['model_bytes']} of the float32 model. The goal is at most "
        f"{found['allowed_above_the_model'] / 1e9:.2f} GB above it. It took {found['user_seconds']:,.0f} s of CPU time and "
        f"{found['seconds']:,.0f} s on {found['machine']} that other programs shared (load {found['load_after']}).",
        "",
    ]


def speed_table(path: Path) -> list[str]:
    """The figures of speed.py as lines of Markdown, and the notes on them."""
    if not path.exists():
        return []
    figures = json.loads(path.read_text())
    rates, ratios = figures["tokens_per_second"], figures["ratios"]

    def cell(one: dict, digits: int) -> str:
        return f"{one['median']:.{digits}f} ({one['least']:.{digits}f} to {one['most']:.{digits}f})"

    return [
        "## Speed on a CPU",
        "",
        f"`python experiments/quantization/speed.py`: decoding with a model of 51.3 million random weights on {figures['machine']}, jax "
        f"{figures['versions']['jax']}. llama.cpp (xllamacpp {figures['versions']['xllamacpp']}) runs in the same turns. "
        "Median (minimum to maximum).",
        "",
        "| weights and rows | tokens/s, or ratio |",
        "|---|---|",
        *(f"| {name} | {cell(one, 0)} |" for name, one in rates.items()),
        *(f"| {name} | {cell(one, 2)} |" for name, one in ratios.items()),
        "",
        *path.with_name("speed_notes.md").read_text(encoding="utf-8").splitlines(),
        "",
    ]


def spread(values: list[float], digits: int) -> str:
    """Mean and standard deviation over seeds as text."""
    text = f"{statistics.fmean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {statistics.stdev(values):.{digits}f}"


def plot(results: dict, path: Path) -> None:
    """Loss by bytes, one panel for each model."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    models = results["models"]
    figure, axes = plt.subplots(1, len(models), figsize=(6 * len(models), 5), layout="constrained", squeeze=False)
    for axis, (name, model) in zip(axes[0], models.items(), strict=True):
        for label, each in model["variants"].items():
            if label == "float":
                continue
            change = 100 * statistics.fmean(each["change"])
            (line,) = axis.plot(each["bytes"] / 1e6, max(change, 1e-3), "o", label=label)
            axis.plot(
                [each["bytes"] / 1e6] * len(each["change"]),
                [max(100 * c, 1e-3) for c in each["change"]],
                "_",
                color=line.get_color(),
            )
        axis.set(
            xlabel="MB",
            ylabel="bits per byte, % above float",
            yscale="log",
            title=f"{name}, {model['parameters'] / 1e6:.1f}M",
        )
    axes[0][-1].legend(fontsize=7)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def named(text: str) -> tuple[str, Path]:
    """NAME=PATH."""
    name, _, path = text.partition("=")
    return name, Path(path)


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", type=named, nargs="*", help="NAME=PATH of base models (default: demo and wide in runs/)"
    )
    parser.add_argument("--chat", type=named, nargs="*", default=[], help="NAME=PATH of chat models, measured by rules")
    parser.add_argument(
        "--instructions",
        type=Path,
        default=Path("runs/demo"),
        help="folder with instructions/heldout.jsonl, for --chat",
    )
    parser.add_argument("--questions", type=int, default=192, help="held-out requests, for --chat")
    parser.add_argument(
        "--data", type=Path, default=Path("runs/demo/data"), help="folder with LANGUAGE/train and LANGUAGE/heldout"
    )
    parser.add_argument("--work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=64, help="calibration rows of 512 tokens")
    parser.add_argument(
        "--batches", type=int, default=24, help="held-out batches of 4 rows of 512 tokens, for each language"
    )
    parser.add_argument("--minutes", type=float, default=1e9, help="start no cell after this time")
    parser.add_argument("--only", nargs="*", help="only variants with these names; * stands for any text")
    parser.add_argument("--speed", action="store_true", help="measure tokens per second instead")
    parser.add_argument("--turns", type=int, default=5, help="measurements of each variant, for --speed")
    parser.add_argument("--output", type=Path, help="folder of results.json, plot.png and README.md")
    arguments, _ = parse(parser, "quantization", HERE)
    arguments.models, arguments.chat = dict(arguments.models), dict(arguments.chat)
    speed(arguments) if arguments.speed else cells(arguments)
    results = gather(arguments)
    write_json_file(arguments.output / "results.json", results)
    if results["models"]:
        plot(results, arguments.output / "plot.png")
        (arguments.output / "README.md").write_text(page(results), encoding="utf-8")
        for text, good in bars(results):
            print(f"{'reached' if good else 'NOT REACHED'}: {text}")


if __name__ == "__main__":
    main()
