"""Run the canonical solutions and stubs of HumanEval, and of JHumanEval and HumanEval+ if given, in the sandbox.

All canonical solutions must pass, and no stub. The script prints one JSON line a task, with seconds and the user it ran as. Run it as root
with a Python below a home of mode 700 too.

    python experiments/evaluation/code_tasks.py --humaneval-plus HumanEvalPlus.jsonl.gz --jhumaneval HumanEval-ja.jsonl.gz
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from plamo2_jax.eval.benchmark_files import BUNDLED, read_rows
from plamo2_jax.eval.task import TaskOptions
from plamo2_jax.eval.tasks import open_task

STUB = "    pass\n"


def measure(name: str, path: Path, processes: int | None) -> dict[str, object]:
    """Return the numbers of solutions and stubs that pass, with the wall-clock time of each."""
    task = open_task(name, TaskOptions(path=path, processes=processes))
    solutions = {row["task_id"]: row["canonical_solution"] for _, row in read_rows(path, {"canonical_solution": str})}
    found: dict[str, object] = {"task": name, "file": path.name, "problems": len(task.items)}
    for kind in ("solutions", "stubs"):
        texts = [solutions[item.id] if kind == "solutions" else STUB for item in task.items]
        start = time.perf_counter()
        scores = task.score(task.items, [{"text": text} for text in texts])
        passed = [row["pass@1"] == 1 for row in scores]
        found[f"{kind}_seconds"] = round(time.perf_counter() - start, 2)
        found[f"{kind}_passed"] = sum(passed)
        found[f"{kind}_unexpected"] = [
            item.id for item, one in zip(task.items, passed, strict=True) if one != (kind == "solutions")
        ]
    return found


def main() -> int:
    """Return 1 if a solution fails or a stub passes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--humaneval-plus", type=Path)
    parser.add_argument("--jhumaneval", type=Path)
    parser.add_argument("--processes", type=int, help="checks at a time (default: number of cores)")
    options = parser.parse_args()
    paths = {
        "humaneval": BUNDLED / "humaneval" / "HumanEval.jsonl.gz",
        "jhumaneval": options.jhumaneval,
        "humaneval_plus": options.humaneval_plus,
    }
    wrong = False
    for name, path in paths.items():
        if path is None:
            continue
        found = measure(name, path, options.processes)
        place = Path(sys.base_prefix)
        closed = [str(one) for one in (place, *place.parents) if not one.stat().st_mode & 0o001]
        print(json.dumps({**found, "user": os.geteuid(), "folders_closed_to_others": closed}), flush=True)
        wrong |= bool(found["solutions_unexpected"] or found["stubs_unexpected"])
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
