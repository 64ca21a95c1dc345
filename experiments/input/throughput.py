"""Tokens a second and memory of the training input on one host of sixteen, against what a step of the 8B needs.

    python experiments/input/throughput.py --work /tmp/input --output experiments/input

Each case runs in a process of its own. It reads the data of host 0 of 16: rows of 8,192 positions in batches of 512, a mixture of four
folders with the documents of the bundled corpus. The folders are small, so the page cache holds them: this measures the work of the CPUs,
not disks.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

from plamo2_jax.checkpoint import write_json
from plamo2_jax.data.pipeline import DataConfig, MixtureItem, train_iterator
from plamo2_jax.data.shard_writer import write_shards
from plamo2_jax.data.sources import read_documents
from plamo2_jax.tokenizer.tokenizer import Tokenizer
from plamo2_jax.tokenizer.train import VocabularyOptions, train_tokenizer

HOSTS, ROWS, LENGTH = 16, 512, 8192
STEP_SECONDS = (11.0, 14.0)
"""Range of the predicted time of a step of the 8B on a v5p:4x4x4 (experiments/tpu_plans)."""
SHARDS = 2 * HOSTS
WEIGHTS = {"en0": 0.45, "ja0": 0.30, "en1": 0.15, "ja1": 0.10}
COPIES = 12
"""How often the folders repeat each document. Grain's shuffle is slow for shares of few documents, which no corpus for a pod has."""
CASES = [(packing, workers) for packing in ("global", "per_process") for workers in (0, 1, 2)]


def prepare(work: Path) -> dict[str, int]:
    """Write a tokenizer and four folders of shards, once. Return the number of documents and tokens."""
    counts = {"documents": 0, "tokens": 0}
    if not (work / "tokenizer.jsonl").exists():
        work.mkdir(parents=True, exist_ok=True)
        texts = (document.text for document in read_documents(["bundled:all:train"]))
        options = VocabularyOptions(vocab_size=4096, sample_bytes=400_000, character_coverage=0.99)
        train_tokenizer(texts, options).save(work / "tokenizer.jsonl")
    tokenizer = Tokenizer.load(work)
    for language in ("en", "ja"):
        documents = list(read_documents([f"bundled:{language}:train"]))
        for half in (0, 1):
            folder = work / f"{language}{half}"
            if not folder.exists():
                copies = documents[half::2] * COPIES
                random.Random(half).shuffle(copies)
                write_shards(copies, tokenizer, folder, processes=2, progress=False)
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            for name in counts:
                counts[name] += manifest[name]
    return counts


def measure(work: Path, packing: str, workers: int, blocks: int) -> dict:
    """Measure one case in this process. A block is as many batches as the packer fills at a time, so that no block has only its rest."""
    shards = SHARDS if packing == "per_process" else 0
    mixture = tuple(MixtureItem(work / name, weight) for name, weight in WEIGHTS.items())
    config = DataConfig(
        mixture, LENGTH, ROWS, packing=packing, packing_shards=shards, worker_processes=workers, prefetch_batches=2
    )
    start = time.perf_counter()
    batches = train_iterator(config, Tokenizer.load(work), process_index=0, process_count=HOSTS)
    next(batches)
    first = time.perf_counter() - start
    # Of its own rows, a block has 512 with per_process. With global packing it takes 16 times the work to have as many.
    per_block = HOSTS if packing == "per_process" else 2
    # What was prepared in advance is taken first.
    for _ in range(2 * per_block):
        next(batches)
    rates, used, memory = [], 0, 0
    for _ in range(blocks):
        start, tokens = time.perf_counter(), 0
        for _ in range(per_block):
            batch = next(batches)
            tokens += int((batch["segment_ids"] != 0).sum())
        rates.append(tokens / (time.perf_counter() - start))
        used += tokens
        memory = max(memory, proportional_memory(os.getpid()))
    batches.close()
    return {
        "packing": packing,
        "workers": workers,
        "own_tokens_per_second": rates,
        "first_batch_seconds": first,
        "positions_used": used / (blocks * per_block * ROWS // HOSTS * LENGTH),
        "memory_bytes": memory,
    }


def proportional_memory(process: int) -> int:
    """Return the memory of a process and its children in bytes, shared pages divided among those that share them."""
    threads = Path(f"/proc/{process}/task").iterdir()
    children = [child for thread in threads for child in (thread / "children").read_text(encoding="ascii").split()]
    lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
    own = next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return own + sum(proportional_memory(int(child)) for child in children)


def page(results: dict, notes: str) -> str:
    """Return the README: the notes, the table and the command."""
    least, most = results["share_tokens_per_second"]
    lines = [
        notes.rstrip(),
        "",
        "## Result",
        "",
        f"{results['machine']}; {results['versions']}; load {results['load'][0]:.1f} before and {results['load'][1]:.1f} after; "
        f"{results['date']}. Median of {results['blocks']} blocks (minimum to maximum).",
        "",
        "| packing | worker processes | tokens/s of the host's own rows | multiple of its share at 11 s/step | memory | positions used |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for case in results["cases"]:
        rates = case["own_tokens_per_second"]
        median = statistics.median(rates)
        lines.append(
            f"| {case['packing']} | {case['workers']} | {median:,.0f} ({min(rates):,.0f} to {max(rates):,.0f}) | {median / most:.1f} | "
            f"{case['memory_bytes'] / 2**30:.2f} GiB | {case['positions_used']:.2%} |"
        )
    lines += [
        "",
        f"The share of a host is {ROWS} rows × {LENGTH:,} positions / {HOSTS} hosts = {ROWS * LENGTH // HOSTS:,} tokens per step: "
        f"{most:,.0f} tokens/s if a step takes {STEP_SECONDS[0]:.0f} s, and {least:,.0f} if it takes {STEP_SECONDS[1]:.0f} s.",
        "",
        f"    {results['command']}",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure all cases, or the one that --case names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for tokenizer and shards, about 100 MB")
    parser.add_argument("--output", type=Path, help="folder of throughput.json and README.md")
    parser.add_argument("--blocks", type=int, default=5, help="measurements of each case (default 5)")
    parser.add_argument("--case", nargs=2, metavar=("PACKING", "WORKERS"), help="measure one case and print it")
    parser.add_argument("--render", action="store_true", help="only write README.md again")
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.work, options.case[0], int(options.case[1]), options.blocks)))
        return
    path = options.output / "throughput.json"
    if not options.render:
        counts = prepare(options.work)
        load = [os.getloadavg()[0]]
        cases = []
        for packing, workers in CASES:
            words = ["--work", options.work, "--blocks", options.blocks, "--case", packing, workers]
            # A chip is of no use here.
            environment = os.environ | {"JAX_PLATFORMS": "cpu"}
            done = subprocess.run(
                [sys.executable, __file__, *map(str, words)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            cases.append(json.loads(done.stdout))
            print(packing, workers, f"{statistics.median(cases[-1]['own_tokens_per_second']):,.0f}", flush=True)
        step = ROWS * LENGTH / HOSTS
        names = ("grain", "numpy", "array_record")
        results = {
            "command": "python experiments/input/throughput.py --work /tmp/input --output experiments/input",
            "date": datetime.date.today().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "versions": ", ".join(
                [
                    f"Python {platform.python_version()}",
                    *(f"{name} {importlib.metadata.version(name)}" for name in names),
                ]
            ),
            "load": [*load, os.getloadavg()[0]],
            "data": counts,
            "blocks": options.blocks,
            "share_tokens_per_second": [step / seconds for seconds in sorted(STEP_SECONDS, reverse=True)],
            "cases": cases,
        }
        write_json(path, results)
    results = json.loads(path.read_text(encoding="utf-8"))
    notes = Path(__file__).with_name("notes.md").read_text(encoding="utf-8")
    (options.output / "README.md").write_text(page(results, notes), encoding="utf-8")


if __name__ == "__main__":
    main()
