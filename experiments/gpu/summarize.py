"""Merge the JSON files of the parts, and write the tables of README.md.

    python experiments/gpu/summarize.py --parts DIR [--ended NAME=STATUS:SECONDS ...]     writes DIR/results_DEVICE.json, prints the tables
    python experiments/gpu/summarize.py                          writes README.md from notes.md and the results_*.json in this folder

Imports neither jax nor torch, so it runs when the parts could not.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PARTS = ("kernels", "scan", "mamba_ssm", "train_step", "train_step_pallas", "decode")
NOT_MEASURED = "not measured"
PLACE = "<!-- tables -->\n"

Part = dict[str, Any]
Results = dict[str, Any]
"""device, dry_run, and `parts`: the content of each part's file, with `ended` for a part that did not end well."""


def merge(folder: Path, ended: dict[str, tuple[int, int]]) -> Results:
    """Merge the files of the parts.

    Args:
        folder: Folder with a file NAME.json for each part that started.
        ended: Exit status and seconds of each part.
    """
    parts: dict[str, Part] = {}
    for name in PARTS:
        path = folder / f"{name}.json"
        part = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"figures": [], "complete": False}
        status, seconds = ended.get(name, (0, 0))
        if status == 124 or status == 137:
            part["ended"] = f"stopped after {seconds} s"
        elif status and not part["complete"]:
            part["ended"] = f"failed with status {status} after {seconds} s; see log.txt"
        if path.exists() or name in ended:
            parts[name] = part
    devices = [part["device"] for part in parts.values() if part.get("device")]
    dry_run = any(part.get("dry_run") for part in parts.values())
    return {"device": devices[0] if devices else None, "dry_run": dry_run, "parts": parts}


def results_name(results: Results) -> str:
    """Return the file name for results."""
    name = "dry_run" if results["dry_run"] else results["device"] or "no_device"
    return f"results_{re.sub(r'[^A-Za-z0-9]+', '_', name)}.json"


def why_not(part: Part | None) -> str:
    """Return why a figure of a part is missing."""
    if not part:
        return NOT_MEASURED
    reason = part.get("skipped") or part.get("ended")
    return f"{NOT_MEASURED}: {reason}" if reason else NOT_MEASURED


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return lines + [f"| {' | '.join(map(str, row))} |" for row in rows]


def missing(head: Sequence[str], first: str, part: Part | None) -> list[object]:
    """Return a row without figures."""
    return [first, why_not(part), *[""] * (len(head) - 2)]


def kernels(parts: dict[str, Part]) -> list[str]:
    """Return the table of errors: the largest over shapes, values and gradients."""
    head = ("kernel", "largest relative L2 error", "bound", "shapes", "verdict")
    groups: dict[tuple[str, ...], list[Part]] = {}
    for figure in parts.get("kernels", {}).get("figures", ()):
        groups.setdefault(tuple(figure[k] for k in ("kernel", "implementation", "dtype")), []).append(figure)
    rows = []
    for name, figures in groups.items():
        errors = [max(figure["errors"].values()) for figure in figures if "errors" in figure]
        failed = [figure for figure in figures if figure["passed"] is False]
        cannot = [figure["reason"] for figure in figures if figure["passed"] is None]
        verdict = "wrong or failed" if failed else f"cannot run: {cannot[0]}" if cannot else "right"
        error = f"{max(errors):.1e}" if errors else "none"
        rows.append((", ".join(name), error, figures[0]["bound"], len(figures), verdict))
    return table(head, rows or [missing(head, "scan, attention, convolution", parts.get("kernels"))])


def scans(parts: dict[str, Part]) -> list[str]:
    """Return the table of times per token."""
    head = ("shape", "scan", "forward, ns/token", "forward and backward, ns/token", "speed of mamba_ssm = 1")
    times: dict[tuple[str, str], dict[str, float]] = {}
    theirs: dict[tuple[str, str], float] = {}
    for name in ("scan", "mamba_ssm"):
        for figure in parts.get(name, {}).get("figures", ()):
            chunk = f", chunks of {figure['chunk']}" if figure["chunk"] else ""
            mode = {"graph": ", CUDA graph", "called": ", called from Python"}.get(figure.get("mode", ""), "")
            label = f"{figure.get('implementation', 'mamba_ssm')}{chunk}{mode}"
            row = times.setdefault((figure["shape"], label), {})
            if "failed" in figure:
                continue
            row[figure["kind"]] = figure["nanoseconds_per_token"]
            if name == "mamba_ssm":
                best = theirs.get((figure["shape"], figure["kind"]), float("inf"))
                theirs[figure["shape"], figure["kind"]] = min(best, figure["nanoseconds_per_token"])
    rows = []
    for (shape, label), row in times.items():
        cells = [f"{row[kind]:.4g}" if kind in row else "failed" for kind in ("forward", "both")]
        ratio = theirs.get((shape, "both"))
        against = f"{ratio / row['both']:.2f}" if ratio and "both" in row else NOT_MEASURED
        rows.append((shape, label, *cells, against))
    for name, label in (("scan", "ours, xla and pallas_gpu"), ("mamba_ssm", "mamba_ssm (Triton)")):
        if not parts.get(name, {}).get("figures"):
            rows.append(("1B and 8B", label, why_not(parts.get(name)), "", ""))
    return table(head, rows)


def train_steps(parts: dict[str, Part]) -> list[str]:
    """Return the table of train steps."""
    head = ("scan", "batch", "ms/step (least to most)", "tokens/s", "MFU", "peak memory")
    rows = []
    for name, scan in (("train_step", "xla"), ("train_step_pallas", "pallas_gpu")):
        figures = parts.get(name, {}).get("figures", ())
        for figure in figures:
            median, least, most = (1e3 * figure["seconds"][each] for each in ("median", "least", "most"))
            mfu = "peak not known" if figure["mfu"] is None else f"{100 * figure['mfu']:.1f} %"
            peak = NOT_MEASURED if figure["peak_bytes"] is None else f"{figure['peak_bytes'] / 1e9:.1f} GB"
            batch = f"{figure['rows']} × {figure['length']:,}, remat {figure['remat']}"
            milliseconds = f"{median:.1f} ({least:.1f} to {most:.1f})"
            rows.append((scan, batch, milliseconds, f"{figure['tokens_per_second']:,}", mfu, peak))
        if not figures:
            rows.append(missing(head, scan, parts.get(name)))
    return table(head, rows)


def decoding(parts: dict[str, Part]) -> list[str]:
    """Return the table of decoding."""
    head = ("rows", "tokens/s", "ms/step (least to most)", "GB/s", "share of the published bandwidth")
    rows = []
    for figure in parts.get("decode", {}).get("figures", ()):
        median, least, most = (1e3 * figure["step_seconds"][each] for each in ("median", "least", "most"))
        share = figure["share_of_bandwidth"]
        of = "not known" if share is None else f"{100 * share:.0f} % of {figure['published_gigabytes_per_second']:,.0f}"
        milliseconds = f"{median:.2f} ({least:.2f} to {most:.2f})"
        rate = f"{figure['tokens_per_second']:,.0f}"
        rows.append((figure["rows"], rate, milliseconds, f"{figure['gigabytes_per_second']:,.0f}", of))
    found = {row[0] for row in rows}
    if not rows:
        rows = [missing(head, str(batch), parts.get("decode")) for batch in (1, 16)]
    elif 16 not in found and "ended" in parts["decode"]:
        rows.append(missing(head, "16", parts["decode"]))
    return table(head, rows)


TABLES: dict[str, Callable[[dict[str, Part]], list[str]]] = {
    "Kernels against float64": kernels,
    "Scan, bfloat16, 8,192 tokens": scans,
    "Train step of the 1B": train_steps,
    "Decoding of the 8B in bfloat16": decoding,
}


def tables(results: Results | None) -> str:
    """Return the tables of a device; without results, tables of rows that say "not measured"."""
    parts = {} if results is None else results["parts"]
    title = "No GPU has been measured" if results is None else results["device"] or "No device was found"
    if results and results["dry_run"]:
        title += ", dry run: tiny sizes, the figures mean nothing"
    lines = [f"## {title}", ""]
    versions = next((part for part in parts.values() if part.get("versions")), None)
    if versions:
        named = ", ".join(f"{name} {version}" for name, version in versions["versions"].items())
        driver = f", driver {versions['driver']}" if versions["driver"] else ""
        lines += [f"{versions['date']}; {versions['machine']}; Python {versions['python']}, {named}{driver}.", ""]
    for name, make in TABLES.items():
        lines += [f"### {name}", "", *make(parts), ""]
    return "\n".join(lines)


def page(notes: str, results: Sequence[Results]) -> str:
    """Return the README: the notes with the tables of every device."""
    return notes.replace(PLACE, "".join(f"{tables(each)}\n" for each in results or [None]))


def main(argv: Sequence[str] | None = None) -> int:
    """Merge the parts, or write README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=Path, help="folder of the parts' JSON files; left out: write README.md")
    parser.add_argument("--ended", action="append", default=[], help="NAME=STATUS:SECONDS of a part")
    options = parser.parse_args(argv)
    if options.parts is None:
        found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(HERE.glob("results_*.json"))]
        notes = (HERE / "notes.md").read_text(encoding="utf-8")
        (HERE / "README.md").write_text(page(notes, found), encoding="utf-8")
        return 0
    ended = {}
    for text in options.ended:
        name, status, seconds = re.fullmatch(r"(\w+)=(\d+):(\d+)", text).groups()
        ended[name] = int(status), int(seconds)
    results = merge(options.parts, ended)
    target = options.parts / results_name(results)
    target.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(tables(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
