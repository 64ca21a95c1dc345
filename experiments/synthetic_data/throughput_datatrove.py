"""The stages of throughput.py with datatrove 0.10.1: parse, filter, MinHash deduplication, write.

throughput.py runs this file in datatrove's environment. Differences from ours: n-grams of 5 words instead of 5 characters, 14 buckets of 8
hashes, exact duplicates are only found as near-duplicates, the filter is the number of characters alone, and pairs that share a bucket are
not compared again. With --stages filter, no duplicates are removed.
"""

import argparse
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
from datatrove.pipeline.filters import LambdaFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter


def long_enough(document) -> bool:
    """Keep texts as our filter does by length."""
    return len(document.text) >= 50


def main() -> None:
    """Run the stages."""
    parser = argparse.ArgumentParser()
    parser.add_argument("input", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--stages", choices=("filter", "minhash"), default="minhash")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    tasks, config, work = len(list(options.input.iterdir())), MinhashConfig(), options.work

    def run(steps, tasks: int, name: str) -> None:
        LocalPipelineExecutor(
            steps, tasks=tasks, workers=min(options.workers, tasks), logging_dir=str(work / "logs" / name)
        ).run()

    def read() -> list:
        return [JsonlReader(str(options.input), compression=None), LambdaFilter(long_enough)]

    def write() -> JsonlWriter:
        return JsonlWriter(str(work / "out"), compression=None)

    if options.stages == "filter":
        run([*read(), write()], tasks, "filter")
        return
    signatures, buckets, removed = (str(work / name) for name in ("signatures", "buckets", "removed"))
    run([*read(), MinhashDedupSignature(signatures, config)], tasks, "signatures")
    run([MinhashDedupBuckets(signatures, buckets, config=config)], config.num_buckets, "buckets")
    run([MinhashDedupCluster(buckets, removed, config=config)], 1, "clusters")
    run([*read(), MinhashDedupFilter(removed), write()], tasks, "write")


if __name__ == "__main__":
    main()
