"""What plamo2-jax computes, and engines of vLLM in this process to compare with."""

import contextlib
import gc
import json
from pathlib import Path

import numpy as np


class Reference:
    """What plamo2-jax computes with a model.

    Attributes:
        rows: Token ids of each row: prompts with their continuations, then texts longer than the window.
        prompts: Token ids of the prompts, for the first rows.
        generated: Lines of `plamo2 generate --json`.
        logprobs: For each row, log-probabilities [t, vocab_size] of the next token, float64.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.model = folder / name
        stored = np.load(folder / f"{name}.npz")
        self.rows = [ids[:n].tolist() for ids, n in zip(stored["tokens"], stored["lengths"], strict=True)]
        self.generated = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()]
        self.prompts = [
            row[: len(row) - len(g["token_ids"])] for row, g in zip(self.rows, self.generated, strict=False)
        ]
        self.logprobs = log_softmax(stored["logits"])


def log_softmax(logits):
    """Log-probabilities in float64, one array for each row."""
    logits = logits.astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return list(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))


@contextlib.contextmanager
def engine(model, **options):
    """Yield an engine for a model on the CPU, float32 and without compilation unless `options` say otherwise."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    defaults = {"dtype": "float32", "enforce_eager": True, "max_model_len": 1024, "max_num_seqs": 8}
    defaults["enable_prefix_caching"] = False
    llm = LLM(model=str(model), **(defaults | options))
    try:
        yield llm
    finally:
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def as_prompts(rows):
    """Token ids as prompts of vLLM."""
    from vllm.inputs import TokensPrompt

    return [TokensPrompt(prompt_token_ids=row) for row in rows]


def differences(llm, reference, **options):
    """For each row, |log-probability of each token by vLLM − by plamo2-jax| [t - 1]."""
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False)
    results = llm.generate(as_prompts(reference.rows), sampling, use_tqdm=False, **options)
    found = []
    for result, row, wanted in zip(results, reference.rows, reference.logprobs, strict=True):
        theirs = [result.prompt_logprobs[i][row[i]].logprob for i in range(1, len(row))]
        ours = wanted[np.arange(len(row) - 1), row[1:]]
        found.append(np.abs(np.array(theirs) - ours))
    return found


def greedy(llm, prompts, tokens, **options):
    """Greedy continuations of prompts: token ids."""
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, detokenize=False)
    results = llm.generate(as_prompts(prompts), sampling, use_tqdm=False, **options)
    return [list(result.outputs[0].token_ids) for result in results]
