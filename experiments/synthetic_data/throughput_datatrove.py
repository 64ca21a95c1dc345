"""The stages of throughput.py with datatrove 0.10.1: parse, filter, MinHash deduplication, write.

throughput.py runs this file in datatrove's environment. Differences from ours: n-grams of 5 words instead of 5 characters, 14 buckets of 8
hashes, exact duplicates are only found as near-duplicates, and pairs that share a bucket are not compared again. The filters are those of
Gopher (repetition; quality with at least 10 words, because the records have 38), and the number of characters. With --stages minhash, only
the number of characters is a filter.
"""

import argparse
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter, LambdaFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter


def long_enough(document) -> bool:
    """Keep texts as our filter does by length."""
    return len(document.text) >= 50


def read(folder: Path) -> JsonlReader:
    """Return the reader of a folder of JSON lines."""
    return JsonlReader(str(folder), compression=None)


def main() -> None:
    """Run the stages."""
    parser = argparse.ArgumentParser()
    parser.add_argument("input", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--stages", choices=("clean", "minhash"), default="clean")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    tasks, config, work = len(list(options.input.iterdir())), MinhashConfig(), options.work

    def run(steps, tasks: int, name: str) -> None:
        LocalPipelineExecutor(
            steps, tasks=tasks, workers=min(options.workers, tasks), logging_dir=str(work / "logs" / name)
        ).run()

    source = options.input
    if options.stages == "clean":
        # Filtered once and stored, as in datatrove's own examples: the next stages read the documents twice.
        filters = [LambdaFilter(long_enough), GopherRepetitionFilter(), GopherQualityFilter(min_doc_words=10)]
        source = work / "filtered"
        run([read(options.input), *filters, JsonlWriter(str(source), compression=None)], tasks, "filter")
    signatures, buckets, removed = (str(work / name) for name in ("signatures", "buckets", "removed"))
    filters = [LambdaFilter(long_enough)]
    run([read(source), *filters, MinhashDedupSignature(signatures, config)], tasks, "signatures")
    run([MinhashDedupBuckets(signatures, buckets, config=config)], config.num_buckets, "buckets")
    run([MinhashDedupCluster(buckets, removed, config=config)], 1, "clusters")
    write = JsonlWriter(str(work / "out"), compression=None)
    run([read(source), *filters, MinhashDedupFilter(removed), write], tasks, "write")


if __name__ == "__main__":
    main()
