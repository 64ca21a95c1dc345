"""Print the verdicts of JFBench's own constraints. `jfbench.py` runs this file with a Python that has JFBench's requirements.

    python experiments/evaluation/jfbench_verdicts.py CHECKOUT < answers.jsonl > verdicts.jsonl

A line of the input is `{"number": N, "document": TEXT, "answer": TEXT}`, where N counts JFBench's rule-based constraints from 0. A line of
the output is `{"passed": BOOL, "reason": TEXT}`; `passed` is null if the constraint raised an exception.
"""

import asyncio
import inspect
import json
import logging
import sys
from pathlib import Path


def main() -> None:
    sys.path.insert(0, str(Path(sys.argv[1]) / "src"))
    from jfbench.benchmark.build import get_constraint_collections

    logging.disable(logging.CRITICAL)
    factories = get_constraint_collections("test").rule_based
    constraints: dict = {}
    for line in sys.stdin:
        row = json.loads(line)
        key = row["number"], row["document"]
        if key not in constraints:
            constraints[key] = factories[row["number"]](seed=0, document=row["document"])
        try:
            result = constraints[key].evaluate(row["answer"])
            passed, reason = asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result
        except Exception as error:
            passed, reason = None, repr(error)
        print(json.dumps({"passed": passed, "reason": reason}))


async def _awaited(result):
    return await result


if __name__ == "__main__":
    main()
