"""How fast the tokenizer is: MB/s on Japanese and English prose, linearity in one long string, loading, memory.

    python experiments/bench/tokenizer.py TOKENIZER [--text FILES] [--output results.json]

MB are 10^6 UTF-8 bytes; times are CPU seconds of one core, the best of `--repeats`. Each size is one string: the documents in
a seeded order, over again where they are too few.
"""

from __future__ import annotations

import json
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numba
import numpy as np
import tyro

from plamo2_jax.data.corpus import documents
from plamo2_jax.data.sources import read_documents
from plamo2_jax.tokenizer import tokenizer as tokenizer_module
from plamo2_jax.tokenizer.tokenizer import Tokenizer

PLAIN_PYTHON_MEGABYTES = 0.3


def main(
    tokenizer: Annotated[Path, tyro.conf.Positional],
    *,
    text: tuple[Path, ...] = (),
    megabytes: tuple[float, ...] = (1, 3, 10),
    repeats: int = 3,
    output: Path | None = None,
) -> None:
    """Measures one tokenizer.

    Args:
        tokenizer: A tokenizer.jsonl, or the folder that holds it.
        text: Files or folders of text; left out, the bundled corpus, Japanese and English apart.
        megabytes: Lengths of the single strings.
        repeats: Runs of which the fastest counts.
        output: Where to write the numbers as JSON.
    """
    loaded, load_seconds = timed(lambda: Tokenizer.load(tokenizer))
    _, first_seconds = timed(lambda: loaded.encode("最初の文"))
    results = {
        "machine": f"{platform.machine()}, Python {platform.python_version()}, numba {numba.__version__}",
        "rows": loaded.vocab_size,
        "load_seconds": round(load_seconds, 3),
        "first_encode_seconds": round(first_seconds, 3),
    }
    print(
        f"{loaded.vocab_size} rows: loaded in {load_seconds:.2f} s, first encode (trie, compiled code) {first_seconds:.2f} s"
    )
    texts = (
        {"text": [document.text for document in read_documents(text)]}
        if text
        else {language: [document["text"] for document in documents(language)] for language in ("ja", "en")}
    )
    for name, prose in texts.items():
        results[name] = measure(loaded, prose, sorted(megabytes), repeats, name)
    if output is not None:
        output.write_text(json.dumps(results, indent=2) + "\n")


def measure(loaded: Tokenizer, prose: list[str], megabytes: list[float], repeats: int, name: str) -> dict:
    """Encodes, decodes and prints one language; returns its figures."""
    figures: dict = {"megabytes": {}}
    for size in megabytes:
        string = one_string(prose, size)
        length = len(string.encode()) / 1e6
        grown = peak_growth_mib(lambda s=string: loaded.encode(s))
        ids, seconds = best(lambda s=string: loaded.encode(s), repeats)
        back, decode_seconds = best(lambda i=ids: loaded.decode(i), repeats)
        if back != string:
            raise ValueError(f"{name}: {size} MB did not survive encoding and decoding")
        figures["megabytes"][size] = {
            "encode_mb_per_s": round(length / seconds, 2),
            "decode_mb_per_s": round(length / decode_seconds, 2),
            "bytes_per_token": round(length * 1e6 / len(ids), 3),
            "peak_memory_growth_mib": round(grown, 1),
        }
        print(
            f"{name} {size:g} MB in one string: encode {length / seconds:.1f} MB/s, decode {length / decode_seconds:.1f} MB/s,"
            f" {length * 1e6 / len(ids):.2f} bytes a token, peak memory +{grown:.0f} MiB"
        )
    rates = [figure["encode_mb_per_s"] for figure in figures["megabytes"].values()]
    figures["slowest_over_fastest"] = round(min(rates) / max(rates), 3)
    figures["plain_python_mb_per_s"] = plain_python_rate(loaded, one_string(prose, PLAIN_PYTHON_MEGABYTES))
    print(
        f"{name}: rate at the slowest length / at the fastest {figures['slowest_over_fastest']:.2f};"
        f" without numba {figures['plain_python_mb_per_s']:.2f} MB/s"
    )
    return figures


def peak_growth_mib(function: Callable) -> float:
    """How far resident memory rises during one call, in MiB; NaN where the kernel cannot tell (not Linux)."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return float("nan")

    def kib(field: str) -> int:
        return int(status.read_text().split(f"{field}:")[1].split()[0])

    reset.write_text("5")  # sets the high-water mark back to the present size
    before = kib("VmRSS")
    function()
    return (kib("VmHWM") - before) / 1024


def plain_python_rate(loaded: Tokenizer, string: str) -> float:
    """MB/s as on a machine without numba; the ids must be the same."""
    expected = loaded.encode(string)
    compiled = tokenizer_module.compiled_encoder
    tokenizer_module.compiled_encoder = lambda: None
    try:
        loaded.encode("表")  # makes the lists once
        ids, seconds = timed(lambda: loaded.encode(string))
    finally:
        tokenizer_module.compiled_encoder = compiled
    if not np.array_equal(ids, expected):
        raise ValueError("the encoder without numba gives other ids")
    return round(len(string.encode()) / 1e6 / seconds, 3)


def one_string(prose: list[str], megabytes: float) -> str:
    """Documents in a seeded order until there are `megabytes` of UTF-8, cut at the last character."""
    draw, parts, size = random.Random(0), [], 0
    while size < megabytes * 1e6:
        for text in draw.sample(prose, len(prose)):
            parts.append(text)
            size += len(text.encode())
            if size >= megabytes * 1e6:
                break
    return "".join(parts).encode()[: int(megabytes * 1e6)].decode(errors="ignore")


def best(function: Callable, repeats: int) -> tuple:
    """Result and CPU seconds of the fastest of `repeats` calls."""
    runs = [timed(function) for _ in range(repeats)]
    return runs[0][0], min(seconds for _, seconds in runs)


def timed(function: Callable) -> tuple:
    """Result and CPU seconds of one call."""
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


if __name__ == "__main__":
    tyro.cli(main)
