"""Write models and what plamo2-jax computes with them. Runs in the environment of plamo2-jax: `python reference.py OUT`.

With PLAMO2_MODEL, the path of a run folder, `trained` and `trained_w4a16` are this model and its quantization.

OUT gets a folder in Hugging Face format for each model (`adapter` is a folder of adapters), and for each of them NAME.npz with tokens
[rows, t], lengths [rows], and logits [rows, t, vocab_size] of `plamo2 logits`, and NAME.jsonl of `plamo2 generate --json`. The rows are
PROMPTS with their greedy continuations, and two texts longer than the window. Quantized models have the rows of `base`, and
NAME_bfloat16.npz if their activations are quantized. chat.jsonl holds the answers to MESSAGES.
"""

import contextlib
import functools
import io
import json
import os
import shutil
import sys
from pathlib import Path

import jax
import numpy as np

from plamo2_jax import checkpoint
from plamo2_jax.adapters.attach import Adapters
from plamo2_jax.adapters.config import LoraConfig
from plamo2_jax.adapters.peft import write_peft
from plamo2_jax.cli.main import main
from plamo2_jax.config import preset
from plamo2_jax.model import Plamo2, init_params
from plamo2_jax.tokenizer.template_files import FILE_NAME, built_in_template
from plamo2_jax.tokenizer.tokenizer import BOS, EOS, OP, PAD, UNK, Tokenizer

PROMPTS = ("The window", "吾輩は猫である。", "1, 2, 3, 4,", "\n\n", "a b c d e f g. " * 20)
MESSAGES = ("Name three rivers.", "猫は好きですか。")
NEW_TOKENS = 48
TEXTS = (
    "The quick brown fox jumps over the lazy dog. " * 12,
    "いろはにほへと ちりぬるを わかよたれそ つねならむ\n" * 15,
)
MAX_TOKENS = 400

# On CPUs, vLLM multiplies float activations by 4-bit weights only, and quantized activations by 8-bit weights only. It never quantizes
# embedding and head.
QUANTIZED = {
    "w4a16": ("--bits", 4, "--bits-for", "mixer/in_proj=4", "mixer/out_proj=4"),
    "w8a8": ("--bits", 8, "--activations", "int8"),
    "fp8": ("--bits", "float8", "--activations", "float8"),
}
KEEP_FLOAT = ("--float", "embedding|lm_head")

CHARACTERS = [chr(code) for code in range(32, 127)] + ["\n", *map(chr, range(0x3041, 0x3094)), *"吾輩猫好。、"]
ROWS = [
    [UNK, 0.0, "UNKNOWN"],
    *([name, 0.0, "CONTROL"] for name in (BOS, EOS, PAD, OP)),
    *([f"<0x{value:02X}>", -20.0, "BYTE"] for value in range(256)),
    *([character, -8.0, "NORMAL"] for character in CHARACTERS),
    *([pair, -9.0, "NORMAL"] for pair in ("th", "he", "the", "ow", "br", "いろ", "では")),
]
CONFIG = preset(
    "tiny",
    hidden_size=256,
    num_hidden_layers=4,
    intermediate_size=512,
    num_attention_heads=4,
    num_key_value_heads=2,
    hidden_size_per_head=64,
    mamba_num_heads=8,
    mamba_d_state=16,
    attention_window_size=128,
    vocab_size=len(ROWS),
    tie_word_embeddings=False,
)


def random_params(config):
    """Return parameters that all differ from their initial values. The head prefers characters and never ends a text."""
    params = jax.jit(functools.partial(init_params, Plamo2(config)))(jax.random.key(0))
    rng = np.random.default_rng(0)

    def change(path, leaf):
        leaf = np.asarray(leaf)
        name = path[-1].key
        if name == "lm_head":
            leaf = 0.06 * rng.standard_normal(leaf.shape).astype(np.float32)
            leaf[: 5 + 256] = 0
            return leaf
        # Initial matrices of this width would give logits that hardly depend on the context.
        gain = 1.3 if leaf.ndim >= 2 and name != "conv" else 1.0
        return gain * leaf + 0.05 * rng.standard_normal(leaf.shape).astype(np.float32) * (leaf.ndim < 3)

    return jax.tree_util.tree_map_with_path(change, params)


def plamo2(*arguments) -> str:
    """Run `plamo2 ARGUMENTS` in this process and return what it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main([str(argument) for argument in arguments])
    if code:
        raise SystemExit(f"plamo2 {' '.join(map(str, arguments))} failed")
    return out.getvalue()


def write_reference(out: Path, name: str, model: Path, tokenizer: Tokenizer) -> None:
    """Write NAME.jsonl and NAME.npz for a model."""
    prompts = [argument for prompt in PROMPTS for argument in ("--prompt", prompt)]
    rows = plamo2("generate", model, *prompts, "--max-new-tokens", NEW_TOKENS, "--temperature", 0, "--json")
    (out / f"{name}.jsonl").write_text(rows, encoding="utf-8")
    tokens = []
    for row in map(json.loads, rows.splitlines()):
        tokens.append([*tokenizer.encode(row["prompt"], bos=True), *row["token_ids"]])
    tokens += [list(tokenizer.encode(text, bos=True))[:MAX_TOKENS] for text in TEXTS]
    lengths = np.array([len(row) for row in tokens])
    padded = np.zeros((len(tokens), lengths.max()), np.int32)
    for row, length, ids in zip(padded, lengths, tokens, strict=True):
        row[:length] = ids
    write_logits(out, name, model, padded, lengths)


def write_logits(
    out: Path, name: str, model: Path, tokens: np.ndarray, lengths: np.ndarray, dtype: str = "float32"
) -> None:
    """Write NAME.npz for a model and rows of tokens, or NAME_bfloat16.npz."""
    segment_ids = (np.arange(tokens.shape[1]) < lengths[:, None]).astype(np.int32)
    np.savez(out / "input.npz", tokens=tokens, segment_ids=segment_ids)
    plamo2("logits", model, "--input", out / "input.npz", "--output", out / "logits.npz", "--dtype", dtype)
    name = name if dtype == "float32" else f"{name}_{dtype}"
    np.savez(out / f"{name}.npz", tokens=tokens, lengths=lengths, logits=np.load(out / "logits.npz")["logits"])


def write_all(out: Path) -> None:
    """Write all models and references."""
    tokenizer = Tokenizer.from_rows(ROWS)
    template = built_in_template("chat").source.encode()
    runs = out / "runs"
    runs.mkdir(parents=True)
    checkpoint.save_model(runs / "base", CONFIG, random_params(CONFIG), tokenizer, files={FILE_NAME: template})
    options = ("--full-attention", 3, "--rope-theta", 1e5, "--rope-local-theta", 2e4)
    plamo2("extend", runs / "base", runs / "extended", *options)
    for name in ("base", "extended"):
        plamo2("convert", "to-hf", runs / name, out / name)
        write_reference(out, name, out / name, tokenizer)

    lora = LoraConfig(rank=4, alpha=8.0)
    rng = np.random.default_rng(1)
    adapters = jax.tree.map(
        lambda leaf: 0.05 * rng.standard_normal(leaf.shape).astype(np.float32), Adapters(CONFIG, lora).abstract
    )
    write_peft(out / "adapter", CONFIG, lora, adapters, str(out / "base"))
    write_reference(out, "adapter", out / "adapter", tokenizer)

    base = np.load(out / "base.npz")
    for name, options in QUANTIZED.items():
        plamo2("quantize", runs / "base", runs / name, *options, *KEEP_FLOAT)
        plamo2("convert", "to-hf", runs / name, out / name)
        write_logits(out, name, runs / name, base["tokens"], base["lengths"])
        if "--activations" in options:
            write_logits(out, name, runs / name, base["tokens"], base["lengths"], "bfloat16")
        shutil.copy(out / "base.jsonl", out / f"{name}.jsonl")

    if trained := os.environ.get("PLAMO2_MODEL"):
        write_trained(out, Path(trained))

    chats = [argument for message in MESSAGES for argument in ("--chat", message)]
    answers = plamo2("generate", out / "base", *chats, "--max-new-tokens", NEW_TOKENS, "--temperature", 0, "--json")
    (out / "chat.jsonl").write_text(answers, encoding="utf-8")


def write_trained(out: Path, model: Path) -> None:
    """Write `trained` and `trained_w4a16` for a run folder."""
    plamo2("convert", "to-hf", model, out / "trained")
    write_reference(out, "trained", out / "trained", Tokenizer.load(model / "tokenizer.jsonl"))
    quantized = out / "runs" / "trained_w4a16"
    plamo2("quantize", model, quantized, *QUANTIZED["w4a16"], *KEEP_FLOAT)
    plamo2("convert", "to-hf", quantized, out / quantized.name)
    rows = np.load(out / "trained.npz")
    write_logits(out, quantized.name, quantized, rows["tokens"], rows["lengths"])
    shutil.copy(out / "trained.jsonl", out / f"{quantized.name}.jsonl")


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
