"""Time and memory of `plamo2 data deduplicate` on a generated set of documents with planted duplicates.

python experiments/deduplication/run.py --documents 10000000 --folder /path/with/20/GB --output experiments/deduplication/result.json

A document has eight sentences of the bundled corpus, drawn at random. Of all documents, 10 % repeat an earlier one with other white space,
and 5 % repeat an earlier one with three characters replaced. With --kills N, the command is killed N times and restarted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from plamo2_jax.data import corpus

SENTENCES, EXACT, NEAR, FILES = 8, 0.10, 0.05, 40


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a document is: new, or a repetition of an earlier one."""

    name: str
    of: int


def sentences() -> list[str]:
    """Return the sentences of the bundled Japanese pages with 20 to 80 characters, each once."""
    found: dict[str, None] = {}
    for document in corpus.documents("ja", "train"):
        found |= dict.fromkeys(s for s in re.findall(r"[^。\n]+。", document["text"]) if 20 <= len(s) <= 80)
    return list(found)


def write_documents(folder: Path, count: int, seed: int = 0) -> dict[str, int]:
    """Write the documents as JSON lines; return the number of each kind."""
    folder.mkdir(parents=True)
    pool, counts = sentences(), {"new": 0, "exact": 0, "near": 0}
    rng = np.random.default_rng(seed)
    kinds = rng.choice(3, size=count, p=[1 - EXACT - NEAR, EXACT, NEAR])
    kinds[0] = 0
    earlier = (rng.random(count) * np.arange(count)).astype(np.int64)
    # A repetition is always of a new document, so that no chain of edits makes two documents different.
    new = np.flatnonzero(kinds == 0)
    per_file = -(-count // FILES)
    for start in range(0, count, per_file):
        with (folder / f"{start // per_file:03d}.jsonl").open("w", encoding="utf-8") as file:
            for i in range(start, min(start + per_file, count)):
                of = i if kinds[i] == 0 else int(new[np.searchsorted(new, earlier[i], side="right") - 1])
                picks = random.Random(f"{seed} {of}").choices(pool, k=SENTENCES)
                kind = ("new", "exact", "near")[kinds[i]]
                text = ("\n" if kind == "exact" else "").join(picks)
                if kind == "near":
                    edit = random.Random(f"{seed} edit {i}")
                    letters = list(text)
                    for _ in range(3):
                        letters[edit.randrange(len(letters))] = chr(edit.randrange(0x4E00, 0x9000))
                    text = "".join(letters)
                counts[kind] += 1
                file.write(json.dumps({"id": f"{kind}-{i}-{of}", "text": text}, ensure_ascii=False) + "\n")
    return counts


def peak_rss(process: subprocess.Popen) -> int:
    """Wait for a process; return the largest sum of the resident memory of it and its children, in bytes, without file mappings."""
    peak = 0
    while process.poll() is None:
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        total = 0
        for pid in [str(process.pid), *children]:
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            total += sum(int(kb) for kb in re.findall(r"Rss(?:Anon|Shmem):\s+(\d+)", status)) << 10
        peak = max(peak, total)
        time.sleep(0.5)
    return peak


def main() -> None:
    """Generate, deduplicate, check and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, required=True, help="Folder for the documents; about 2.2 kB a document.")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    documents, out = options.folder / f"in-{options.documents}", options.folder / "out"
    if not documents.exists():
        write_documents(documents, options.documents)
    counts = {"new": 0, "exact": 0, "near": 0}
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(options.folder / "out.work", ignore_errors=True)
    command = [sys.executable, "-m", "plamo2_jax.cli.main", "data", "deduplicate", "--input", str(documents)]
    command += ["--output", str(out), "--processes", str(options.processes)]
    start, cpu, peak, kills = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN), 0, options.kills
    rng = random.Random(0)
    while True:
        process = subprocess.Popen(command, start_new_session=True)
        if kills:
            time.sleep(rng.uniform(5, 60))
            kills -= 1
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                continue
        peak = max(peak, peak_rss(process))
        if process.returncode != 0:
            raise SystemExit(process.returncode)
        break
    seconds = time.monotonic() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    for path in sorted(documents.iterdir()):
        with path.open("rb") as file:
            for line in file:
                counts[line[8 : line.index(b"-")].decode()] += 1
    kept = {"new": 0, "exact": 0, "near": 0}
    for path in sorted(out.glob("*.jsonl")):
        with path.open("rb") as file:
            for line in file:
                kept[line[8 : line.index(b"-")].decode()] += 1
    result = {
        "command": " ".join(map(os.path.basename, sys.argv)),
        "documents": sum(counts.values()),
        "bytes": sum(path.stat().st_size for path in documents.iterdir()),
        "planted": counts,
        "kept": kept,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime - cpu.ru_utime - cpu.ru_stime, 1),
        "documents_per_second": round(sum(counts.values()) / seconds),
        "peak_memory_mb": round(peak / 1e6),
        "processes": options.processes,
        "kills": options.kills,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
