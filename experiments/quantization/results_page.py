"""README.md and the plot, from the results, notes.md and the files of memory.py and speed.py."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from trials import LANGUAGES, spread

HERE = Path(__file__).resolve().parent


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
