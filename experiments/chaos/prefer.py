"""Kill `plamo2 preference-data` at moments all over its work, and compare what it ends in with an undisturbed run, byte by byte."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
from killing import Command, main

from plamo2_jax import checkpoint
from plamo2_jax.config import preset
from plamo2_jax.data.corpus import documents
from plamo2_jax.model import Plamo2, init_params
from plamo2_jax.tokenizer.tokenizer import Tokenizer

FILES = ("answers.jsonl", "pairs.jsonl", "heldout.jsonl", "config.json", "report.json")
PROMPTS, GROUP = 48, 2
STARTS = 2
"""Kills that fall into starting."""
CONFIG = """
from pathlib import Path

from plamo2_jax.align.preference_data.pairing import PairingConfig
from plamo2_jax.align.preference_data.config import PreferenceDataConfig
from plamo2_jax.models import ChatModelConfig
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig

config = PreferenceDataConfig(
    output=Path("out"),
    prompts=(Path("../prompts.jsonl"),),
    policy=ChatModelConfig("../model", batch_size=8),
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


def lines(folder: Path) -> int:
    """Prompts in the journal."""
    journal = folder / "out" / "journal.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def differing(left: Path, right: Path) -> list[str]:
    """Files that have other bytes in one run than in the other, and the journal where it names a prompt twice."""
    ids = [json.loads(line)["id"] for line in (right / "out" / "journal.jsonl").read_bytes().splitlines()]
    repeated = ["journal.jsonl"] if len(ids) > len(set(ids)) else []
    return repeated + [
        name for name in FILES if (left / "out" / name).read_bytes() != (right / "out" / name).read_bytes()
    ]


def campaign(folder: Path, kills: int, rng: random.Random) -> dict:
    """All of it, in an empty folder."""
    prepare(folder)
    whole, warm, killed = (
        Command(folder / name, ("preference-data", "config.py"), folder / "compiled")
        for name in ("whole", "warm", "killed")
    )
    for command in (whole, warm, killed):
        command.folder.mkdir()
        (command.folder / "config.py").write_text(CONFIG, encoding="utf-8")
    whole.finish()
    began = time.time()
    warm.finish()
    if differing(whole.folder, warm.folder):
        raise SystemExit("two undisturbed runs differ")
    # The first file is written when the model is loaded, the last one when all is done.
    first, last = ((warm.folder / "out" / name).stat().st_mtime for name in ("config.json", "report.json"))
    starting, group = first - began, (last - first) / PROMPTS * GROUP
    found, ends = [], []
    while len(found) < kills:
        left, there = kills - len(found), lines(killed.folder)
        if len(found) < STARTS:
            goal, seconds = 0, rng.uniform(0, starting)
        else:  # Within the next of as many equal parts of what is not done as there are kills to come.
            goal, seconds = there + rng.randint(1, max(1, (PROMPTS - there) // left)), rng.uniform(0, group)
        if killed.kill(lambda goal=goal: lines(killed.folder) >= goal, seconds):
            found.append({"lines": goal, "seconds": round(seconds, 2), "hit": lines(killed.folder)})
            print(f"kill {len(found)}: {found[-1]}", file=sys.stderr, flush=True)
        else:
            ends.append({"differ": differing(whole.folder, killed.folder)})
            shutil.rmtree(killed.folder / "out")
    killed.finish()
    ends.append({"differ": differing(whole.folder, killed.folder)})
    times = {"starting": starting, "group": group, "work": last - first}
    return {
        "prompts": PROMPTS,
        "seconds": {name: round(value, 2) for name, value in times.items()},
        "kills": found,
        "ends": ends,
    }


if __name__ == "__main__":
    main(__doc__, "prefer", campaign)
