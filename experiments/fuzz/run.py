"""Read damaged files with every reader and count what comes of it: `make fuzz`.

usage: python experiments/fuzz/run.py [--cases 20000] [--seed 0] [--target NAME ...] [--output experiments/fuzz/results.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import jax
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from support.fuzz import harness, targets


def main() -> int:
    """Run the cases; the exit status is 1 where one fell into a forbidden category or too many messages were vague."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000, help="number of damaged files (default 20000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first case (default 0)")
    parser.add_argument("--target", action="append", choices=sorted(targets.TARGETS), help="read only these")
    parser.add_argument("--output", type=Path, help="JSON file with the table and the cases that are not clear")
    options = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        seeds = Path(temporary)
        targets.write_seeds(seeds)
        cases = harness.cases(options.cases, options.seed, seeds)
        if options.target:
            cases = [case for case in cases if case.target in options.target]
        with tqdm(total=len(cases), unit="file", mininterval=5) as bar:
            results = harness.run(cases, seeds, lambda result: bar.update())
    table = harness.count(results)
    print(_markdown(table))
    bad = [result for result in results if result.category in (*harness.FORBIDDEN, "vague")]
    for result in bad[:60]:
        print(f"{result.category}: {result.case} {result.mutation}: {result.message[-300:]}", file=sys.stderr)
    if options.output:
        about = {
            "command": " ".join(sys.argv),
            "seconds": round(time.monotonic() - start),
            "python": platform.python_version(),
            "jax": jax.__version__,
            "table": {name: dict(counts) for name, counts in table.items()},
            "not_clear": [
                {
                    **vars(result.case),
                    "category": result.category,
                    "mutation": result.mutation,
                    "message": result.message,
                }
                for result in bad
            ],
        }
        options.output.write_text(json.dumps(about, indent=1) + "\n")
    vague = sum(result.category == "vague" for result in results)
    return int(any(result.category in harness.FORBIDDEN for result in results) or vague > 0.002 * len(results))


def _markdown(table: dict) -> str:
    rows = [f"| reader | {' | '.join(harness.CATEGORIES)} |", "|---|" + "---:|" * len(harness.CATEGORIES)]
    for name, counts in [
        *sorted(table.items()),
        ("all", sum(table.values(), start=type(next(iter(table.values())))())),
    ]:
        rows.append(f"| {name} | {' | '.join(f'{counts[category]:,}' for category in harness.CATEGORIES)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
