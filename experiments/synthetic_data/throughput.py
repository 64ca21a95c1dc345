"""Time and memory of the model-free stages on generated records: parse, filter, remove duplicates, write; also with datatrove.

python experiments/synthetic_data/throughput.py --records 1000000 --folder /path/with/3/GB --repeats 1 \\
    --datatrove /path/to/venv/bin/python --peer-records 200000 --output experiments/synthetic_data/throughput.json

A record has about 300 bytes: 38 words of a vocabulary of 5,000, an id and a source. A tenth repeat an earlier record exactly. The rows are
    near                   data deduplicate --processes 2: parse, exact and near-duplicates, write
    clean and near         data clean --workers 2: all of its filters without boilerplate, exact and near-duplicates
    clean and near, 1      the same with --workers 1
    datatrove clean        Gopher's filters and MinHash deduplication with 2 workers (throughput_datatrove.py)
datatrove and a second row of `clean and near` read the first --peer-records. The environment of datatrove needs
datatrove[io,processing]==0.10.1, orjson and spacy. Memory is the largest sum of the proportional memory (PSS) of all processes.
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
from typing import NamedTuple

from report import write_readme

FILES, EXACT = 8, 0.10
FREQUENT = "the of and to in is for that are with it as be on or by this you a can"


class Row(NamedTuple):
    """A measured command, the number of records that it reads, and its output."""

    records: int
    command: list[str]
    output: Path


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
    parser.add_argument("--peer-records", type=int, default=200_000, help="Number of records for datatrove.")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    work, plamo2 = options.folder / "work", [sys.executable, "-m", "plamo2_jax.cli.main", "data"]

    def source(records: int) -> str:
        folder = options.folder / f"in-{records}"
        if not folder.exists():
            write_records(folder, records)
        return str(folder)

    def clean(records: int, workers: int) -> Row:
        command = ["clean", source(records), str(work / "out.jsonl"), "--boilerplate-documents", "0"]
        return Row(records, [*plamo2, *command, "--workers", str(workers)], work / "out.jsonl")

    deduplicate = ["deduplicate", "--input", source(options.records), "--output", str(work / "out")]
    rows = {
        "near": Row(options.records, [*plamo2, *deduplicate, "--processes", "2"], work / "out"),
        "clean and near": clean(options.records, 2),
        "clean and near, 1 worker": clean(options.records, 1),
    }
    if options.datatrove:
        peer = options.peer_records
        script = [str(options.datatrove), str(Path(__file__).with_name("throughput_datatrove.py"))]
        rows[f"clean and near, {peer:,} records"] = clean(peer, 2)
        rows[f"datatrove clean, {peer:,} records"] = Row(peer, [*script, source(peer), str(work)], work / "out")
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
    kept = {}
    for _ in range(options.repeats):
        for name, row in rows.items():
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
            results[name].append(measure(row.command))
            kept[name] = count_lines(row.output)
            print(name, *(f"{value:.1f}" for value in results[name][-1]), kept[name], flush=True)
    shutil.rmtree(work)
    content = {
        "command": f"throughput.py --records {options.records} --repeats {options.repeats} --peer-records {options.peer_records}",
        "bytes": sum(path.stat().st_size for path in Path(source(options.records)).iterdir()),
        "load_average": os.getloadavg(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "rows": {
            name: {
                "records": rows[name].records,
                "seconds": round(statistics.median(s for s, _ in runs), 2),
                "all_seconds": [round(s, 2) for s, _ in runs],
                "peak_mb": round(max(mb for _, mb in runs)),
                "kept": kept[name],
            }
            for name, runs in results.items()
        },
    }
    options.output.write_text(json.dumps(content, indent=2) + "\n")
    results_file = options.output.with_name("results.json")
    if results_file.exists():
        write_readme(options.output.parent, json.loads(results_file.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
