"""Compile the configurations in configs/ for TPU slices; write results.json and the table of README.md.

Plans that are in results.json are not compiled again, except with `--again`. `--table` prints the table and compiles nothing.

results.json and the table are from libtpu 0.0.42 with jax 0.10.2. Results of another version are written to a file named after it.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
from pathlib import Path

from plamo2_jax.cli.run_options import parse_config
from plamo2_jax.config_file import load_config
from plamo2_jax.plan import report
from plamo2_jax.plan.compiler import libtpu_version
from plamo2_jax.plan.request import Request
from plamo2_jax.plan.steps import gpu_argument_bytes, plan
from plamo2_jax.train.config import RunConfig

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
REFERENCE = "0.0.42"
V6E = "--remat dots_except_gate_up --loss-chunk 1024"

TPU7X = "--mesh.data 8 --accumulation 4"

# name: configuration, slice, options of the run, kind of program, implementation.
PLANS = {
    "1b v5e:4x4": ("pretrain_1b", "v5e:4x4", "", "train", "pallas"),
    "8b v5p:4x4x4": ("pretrain_8b", "v5p:4x4x4", "", "train", "pallas"),
    "8b v6e:8x8": ("pretrain_8b", "v6e:8x8", V6E, "train", "pallas"),
    "8b tpu7x:4x4x4": ("pretrain_8b", "tpu7x:4x4x4", TPU7X, "train", "pallas"),
    "8b fp8 tpu7x:4x4x4": ("pretrain_8b", "tpu7x:4x4x4", f"{TPU7X} --linear-type fp8", "train", "pallas"),
    "8b 32k v5p:4x4x4": ("pretrain_8b_32k", "v5p:4x4x4", "", "train", "pallas"),
    "8b 128k v5p:8x8x8": ("pretrain_8b_128k", "v5p:8x8x8", "", "train", "pallas"),
    "31b v5p:8x8x8": ("pretrain_31b", "v5p:8x8x8", "", "train", "pallas"),
    "8b v5e:2x2": ("pretrain_8b", "v5e:2x2", "--mesh.data 1 --data.batch-size 4 --accumulation 1", "train", "pallas"),
    "8b prefill v5e:2x4": ("pretrain_8b", "v5e:2x4", "", "prefill", "xla"),
    "8b decode v5e:2x4": ("pretrain_8b", "v5e:2x4", "", "decode", "xla"),
}
# Plans compiled at the same time; libtpu uses about one core for each.
AT_ONCE = 2


def configuration(name: str, options: str) -> RunConfig:
    """Load a config file and replace fields, as on the command line."""
    return parse_config(load_config(ROOT / "configs" / f"{name}.py"), options.split(), f"plamo2 plan {name}.py")


def one(name: str) -> dict:
    """Compile one plan."""
    config, topology, options, kind, kernels = PLANS[name]
    request = Request(configuration(config, options), topology, kind, kernels)
    found = plan(request)
    data = {"config": config, "topology": topology, "options": options, "kind": kind, "implementation": kernels}
    data |= report.to_json(found)
    return data


def gpus() -> dict:
    """Return the argument bytes of the 8B's train step on each of eight GPUs."""
    return gpu_argument_bytes(Request(configuration("pretrain_8b", "--mesh.data 1"), "", gpus=8))


def table(results: dict) -> str:
    """Return the plans as a Markdown table."""
    lines = [
        "| plan | libtpu | chips | HBM used / available | predicted step | MFU bound | MFU as scheduled | limit | longest collectives |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for name, p in results["plans"].items():
        head = f"| {name} | {p['libtpu']} | {p['devices']} | {report.gib(p['hbm_needed'])} / {report.gib(p['hbm_available'])} |"
        if p["error"] or not p["fits"]:
            over = p["error"] or f"does not fit: {report.gib(p['hbm_needed'] - p['hbm_available'])} over"
            lines.append(f"{head} {over} | | | | |")
            continue
        # Plans of before record the MFU if no collective is hidden.
        scheduled = (
            f"{p['mfu_as_scheduled']:.1%}"
            if "mfu_as_scheduled" in p
            else f"{p['mfu_without_overlap']:.1%} (nothing hidden)"
        )
        top = "; ".join(
            f"{c['kind']} ×{c['count']} {c['bytes'] / 1e9:.1f} GB {c['seconds']:.2f} s" for c in p["collectives"][:3]
        )
        missing = f" (without {', '.join(p['unknown'])}, which could not be counted)" if p["unknown"] else ""
        lines.append(
            f"{head} {p['predicted_seconds']:.3f} s{missing} | {p['mfu_bound']:.1%} | {scheduled} | "
            f"{p['times']['limit']} | {top} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Compile the missing plans and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="print the table of results.json and compile nothing")
    parser.add_argument("--again", action="store_true", help="compile plans that are in results.json, too")
    parser.add_argument(
        "--only", nargs="*", choices=PLANS, metavar="PLAN", help=f"compile only these plans: {', '.join(PLANS)}"
    )
    arguments = parser.parse_args()
    results = {"plans": {}, "gpus": {}}
    short = REFERENCE if arguments.table else ".".join(libtpu_version().split(".")[:3])
    path = HERE / ("results.json" if short == REFERENCE else f"results_libtpu_{short}.json")
    if path.exists():
        results = json.loads(path.read_text())
    if not arguments.table:
        results |= {"note": report.NOTE, "libtpu": libtpu_version()}
        again = arguments.again
        fill(results, path, "plans", PLANS if arguments.only is None else arguments.only, one, again)
        if arguments.only is None:
            fill(results, path, "gpus", ["8b h100x8"], lambda _: gpus(), again)
    if short == REFERENCE:
        write_readme(table(results))
    print(table(results))
    for name, p in results["plans"].items():
        print(
            f"{name}: traced in {p['seconds_to_trace']:.0f} s, compiled in {p['seconds_to_compile']:.0f} s, "
            f"{p['cpu_seconds_to_compile']:.0f} s of processor time"
        )
    for name, kinds in results["gpus"].items():
        print(f"{name}: " + ", ".join(f"{kind} {report.gib(size)}" for kind, size in kinds.items()) + " per GPU")


def write_readme(text: str) -> None:
    """Replace the table in README.md."""
    path = HERE / "README.md"
    head, _, rest = path.read_text(encoding="utf-8").partition("<!-- table -->")
    _, _, tail = rest.partition("<!-- end -->")
    path.write_text(f"{head}<!-- table -->\n\n{text}\n\n<!-- end -->{tail}", encoding="utf-8")


def fill(results: dict, path: Path, section: str, names, function, again: bool) -> None:
    """Add results to a section: the missing ones, or with `again` all. Each result is written as soon as it is there."""
    missing = [name for name in names if again or name not in results[section]]
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        waiting = {pool.submit(function, name): name for name in missing}
        for done in concurrent.futures.as_completed(waiting):
            try:
                results[section][waiting[done]] = done.result()
            except (ValueError, RuntimeError) as error:
                print(f"{section} {waiting[done]}: {error}", flush=True)
                continue
            # Keep the order of PLANS.
            results["plans"] = {key: results["plans"][key] for key in PLANS if key in results["plans"]}
            partial = path.with_suffix(f".{os.getpid()}.partial")
            partial.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            os.replace(partial, path)
            print(f"{section} {waiting[done]}: done", flush=True)


if __name__ == "__main__":
    main()
