"""Kill `plamo2 prefer` at random moments and compare what it ends in with an undisturbed run, byte by byte.

    python experiments/chaos/prefer.py [--kills 10] [--folder runs/chaos_prefer] [--output prefer.json]

Each kill is a SIGKILL at a time drawn evenly from 0 to what a whole undisturbed run takes once its programs are compiled, so that kills
fall into starting, sampling and writing. When the run gets to its end in between, it is compared and begun anew. Afterwards it is run to
its end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax

from plamo2_jax import checkpoint
from plamo2_jax.config import preset
from plamo2_jax.data.corpus import documents
from plamo2_jax.model import Plamo2, init_params
from plamo2_jax.tokenizer.tokenizer import Tokenizer

FILES = ("answers.jsonl", "pairs.jsonl", "heldout.jsonl", "config.json", "report.json")
PROMPTS = 48
CONFIG = """
from pathlib import Path

from plamo2_jax.align.pairing import PairingConfig
from plamo2_jax.align.prefer import PreferConfig
from plamo2_jax.align.speakers import SpeakerConfig
from plamo2_jax.infer.sampling import SamplingConfig
from plamo2_jax.infer.stop import StopConfig

config = PreferConfig(
    output=Path("out"),
    prompts=(Path("../prompts.jsonl"),),
    policy=SpeakerConfig("../model", rows=16),
    sampling=SamplingConfig(1.0),
    stop=StopConfig(max_new_tokens=24),
    pairing=PairingConfig(margin=0.02),
    heldout_share=0.1,
)
"""


def prepare(folder: Path) -> None:
    """A vocabulary, a small model with random parameters, and prompts of the bundled corpus."""
    train = [sys.executable, "-m", "plamo2_jax.cli.main", "tokenizer", "train", "--input", "bundled:en:train"]
    options = ["--vocab-size", "1024", "--sample-bytes", "300000", "--output", str(folder / "tokenizer")]
    subprocess.run([*train, *options], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    config = preset("tiny", hidden_size=64, intermediate_size=96, num_hidden_layers=2, vocab_size=1024)
    params = jax.jit(lambda key: init_params(Plamo2(config), key))(jax.random.key(0))
    # Logits of new parameters hardly differ: text of such a model is noise.
    params = {**params, "embedding": 10 * params["embedding"]}
    checkpoint.save_model(folder / "model", config, params, Tokenizer.load(folder / "tokenizer"))
    texts = [document["text"] for document in documents("en", "heldout")]
    rules = {"matches": "[^aeiou]*", "characters": [10, 60]}
    lines = [{"id": f"p{i}", "prompt": text[: 20 + i % 40], "rules": rules} for i, text in enumerate(texts[:PROMPTS])]
    written = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "prompts.jsonl").write_text(written, encoding="utf-8")


def start(folder: Path) -> subprocess.Popen:
    """`plamo2 prefer` in a folder."""
    folder.mkdir(exist_ok=True)
    (folder / "config.py").write_text(CONFIG, encoding="utf-8")
    command = [sys.executable, "-m", "plamo2_jax.cli.main", "prefer", "config.py"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(folder: Path) -> None:
    """Run to the end."""
    process = start(folder)
    _, error = process.communicate()
    if process.returncode:
        raise SystemExit(f"prefer ended with status {process.returncode}: {error[-2000:]}")


def same(left: Path, right: Path) -> bool:
    """Whether two runs ended in the same bytes, and each prompt is in the journal once."""
    journal = [json.loads(line)["id"] for line in (right / "out" / "journal.jsonl").read_bytes().splitlines()]
    equal = [(left / "out" / name).read_bytes() == (right / "out" / name).read_bytes() for name in FILES]
    return all(equal) and len(journal) == len(set(journal))


def campaign(folder: Path, kills: int, seed: int) -> dict:
    """All of it, in an empty folder."""
    prepare(folder)
    whole, killed = folder / "whole", folder / "killed"
    finish(whole)
    warm = folder / "warm"
    began = time.monotonic()
    finish(warm)
    took = time.monotonic() - began
    if not same(whole, warm):
        raise SystemExit("two undisturbed runs differ")
    draw, found, equal = random.Random(seed), [], []
    journal = killed / "out" / "journal.jsonl"
    while len(found) < kills:
        seconds = draw.uniform(0, took)
        process = start(killed)
        try:
            _, error = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            _, error = process.communicate()
        if process.returncode == 0:
            equal.append(same(whole, killed))
            shutil.rmtree(killed)
            continue
        if process.returncode != -signal.SIGKILL:
            raise SystemExit(f"prefer ended by itself with status {process.returncode}: {error[-2000:]}")
        done = journal.read_bytes().count(b"\n") if journal.exists() else 0
        found.append({"seconds": round(seconds, 2), "prompts_done": done})
        print(f"kill {len(found)}: {found[-1]}", file=sys.stderr, flush=True)
    finish(killed)
    equal.append(same(whole, killed))
    return {
        "prompts": PROMPTS,
        "seconds_undisturbed": round(took, 2),
        "kills": found,
        "runs_ended": len(equal),
        "same_bytes": all(equal),
    }


def main() -> None:
    """Run the campaign and write its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/chaos_prefer"), help="to work in; it is emptied first"
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("prefer.json"))
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    # Restarts compile the same programs: they share them.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(options.folder.resolve() / "compiled")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    results = campaign(options.folder.resolve(), options.kills, options.seed)
    machine = {"python": platform.python_version(), "jax": jax.__version__, "cpus": os.cpu_count()}
    options.output.write_text(json.dumps({"machine": machine, "seed": options.seed, **results}, indent=2) + "\n")
    print(json.dumps({name: value for name, value in results.items() if name != "kills"}, indent=2))
    if not results["same_bytes"]:
        sys.exit("the campaign found a difference")


if __name__ == "__main__":
    main()
