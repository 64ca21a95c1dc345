"""Time and memory of the model-free stages on generated records: parse, filter, remove duplicates, write; also with datatrove.

python experiments/synthetic_data/throughput.py --records 1000000 --folder /path/with/3/GB --repeats 3 \\
    --datatrove /path/to/venv/bin/python --output experiments/synthetic_data/throughput.json

A record has about 300 bytes: 38 words of a vocabulary of 5,000, an id and a source. A tenth repeat an earlier record exactly. The rows are
    near             data deduplicate --processes 2: parse, exact and near-duplicates, write
    clean and near   data clean with all of its filters without boilerplate, with exact and near-duplicates, in one process
    datatrove        its MinHash pipeline with 2 workers, and its reader, filter and writer alone
The environment of datatrove needs datatrove[io,processing]==0.10.1, orjson and spacy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FILES, EXACT = 8, 0.10
FREQUENT = "the of and to in is for that are with it as be on or by this you a can"


def write_records(folder: Path, count: int, seed: int = 0) -> int:
    """Write the records as JSON lines; return the number of bytes."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    rng = random.Random(seed)
    # Three tenths of the words are frequent ones, because the filters recognise English by them.
    vocabulary = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 10))) for _ in range(5000)]
    frequent, texts = FREQUENT.split(), []
    per_file = -(-count // FILES)
    for start in range(0, count, per_file):
        with (partial / f"{start // per_file:03d}.jsonl").open("w", encoding="utf-8") as file:
            for i in range(start, min(start + per_file, count)):
                of = rng.choice(texts) if texts and rng.random() < EXACT else i
                if of == i:
                    texts.append(i)
                words = random.Random(of)
                picks = [words.choice(frequent if words.random() < 0.3 else vocabulary) for _ in range(38)]
                record = {"id": f"r{i}", "text": " ".join(picks), "source": f"seed-{i % 997}"}
                file.write(json.dumps(record) + "\n")
    partial.rename(folder)
    return sum(path.stat().st_size for path in folder.iterdir())


def measure(command: list[str]) -> tuple[float, float]:
    """Run a command; return its seconds, and the largest sum of the proportional memory (PSS) of its processes in MB."""
    peak = 0
    with tempfile.TemporaryFile() as errors:
        start = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True)
        while process.poll() is None:
            peak = max(peak, group_memory(process.pid))
            time.sleep(0.2)
        seconds = time.monotonic() - start
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{' '.join(command)} failed: {errors.read()[-2000:].decode(errors='replace')}")
    return seconds, peak / 1e6


def group_memory(group: int) -> int:
    """Return the proportional memory of the processes of a session in bytes."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rsplit(")", 1)[1].split()[3]) == group:
                rollup = (folder / "smaps_rollup").read_text()
                total += int(rollup.split("\nPss:", 1)[1].split()[0]) << 10
        except (OSError, IndexError, ValueError):
            continue
    return total


def count_lines(folder: Path) -> int:
    """Return the number of lines of the JSON lines files in a folder or of a file."""
    paths = [folder] if folder.is_file() else list(folder.glob("*.jsonl"))
    total = 0
    for path in paths:
        with path.open("rb") as file:
            total += sum(1 for _ in file)
    return total


def main() -> None:
    """Generate, run each command several times in turn, and write the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--datatrove", type=Path, help="Python of an environment with datatrove.")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    source, work = options.folder / f"in-{options.records}", options.folder / "work"
    size = (
        sum(p.stat().st_size for p in source.iterdir()) if source.exists() else write_records(source, options.records)
    )
    plamo2 = [sys.executable, "-m", "plamo2_jax.cli.main", "data"]
    deduplicate = [*plamo2, "deduplicate", "--input", str(source), "--output", str(work / "out"), "--processes", "2"]
    clean = [*plamo2, "clean", str(source), str(work / "out.jsonl"), "--boilerplate-documents", "0"]
    rows = {"near": (deduplicate, work / "out"), "clean and near": (clean, work / "out.jsonl")}
    if options.datatrove:
        script = Path(__file__).with_name("throughput_datatrove.py")
        for stages in ("minhash", "filter"):
            command = [str(options.datatrove), str(script), str(source), str(work), "--stages", stages]
            rows[f"datatrove {stages}"] = (command, work / "out")
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
    kept = {}
    for _ in range(options.repeats):
        for name, (command, output) in rows.items():
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            results[name].append(measure(command))
            kept[name] = count_lines(output)
            print(name, *(f"{value:.1f}" for value in results[name][-1]), kept[name], flush=True)
    shutil.rmtree(work)
    content = {
        "records": options.records,
        "bytes": size,
        "load_average": os.getloadavg(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "rows": {
            name: {
                "seconds": round(statistics.median(s for s, _ in runs), 2),
                "all_seconds": [round(s, 2) for s, _ in runs],
                "peak_mb": round(max(mb for _, mb in runs)),
                "kept": kept[name],
            }
            for name, runs in results.items()
        },
    }
    options.output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
