"""The options of `plamo2 evaluate`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Evaluate a model on benchmark tasks and on held-out data.

    Tasks: each task writes its metrics, their standard errors and all answers to a folder, and report.html shows them. To resume an
    interrupted evaluation, run the same command again. Stored answers are reused unless the model, the prompt or a setting has changed.

    Held-out data: bits per byte and perplexity, and for comparison the bits per byte of `xz -9e` on the same text. Bits per byte are the
    sum of -log2 p divided by the number of UTF-8 bytes, so models with different vocabularies can be compared; lower is better. Text: one
    pass over all documents, including their end-of-document tokens. Conversations: only the assistant's tokens count, each predicted from
    all text before it.
    """

    model: Annotated[str | None, tyro.conf.Positional] = None
    """Run folder, RUN@STEP or RUN@ema, folder in Hugging Face format, or folder of adapters. With --tasks, it may also be the address of an
    OpenAI-compatible server, such as http://localhost:8000/v1."""
    tasks: tuple[str, ...] = ()
    """Names of tasks (--list prints them), or YAML files that define tasks on your own JSON lines."""
    heldout: tuple[str, ...] = ()
    """Held-out data as NAME=PATH, for instance ja=runs/demo/data/ja/heldout news=news.txt chat=conversations.jsonl. PATH is a folder of
    shards, or text or conversations in any format that plamo2 data prepare or plamo2 sft reads; files are tokenized on the fly. A file
    counts as text if its first record has the field `text`."""
    output: Path | None = None
    """With --tasks or --lm-eval: folder for the results, default runs/evaluation/MODEL. Otherwise: JSON file for the metrics."""
    list: bool = False
    """Print the tasks, their licences, and sources of data that are not part of this package."""
    compare: tuple[Path, Path] | None = None
    """Two folders with results. Print for each task the mean difference, second minus first, on the items that both have, with a 95 %
    confidence interval. --output writes the comparison to a JSON file."""
    answers: Path | None = None
    """File with stored answers to score; no model runs, and --output is a file. Only for the task pfgen."""

    lm_eval: tuple[str, ...] = ()
    """Names of tasks or groups of lm-evaluation-harness (extra eval). --mode chat uses the chat template; --shots, --limit and --seed
    apply."""
    include_path: Path | None = None
    """Folder with tasks of your own for --lm-eval, as YAML files."""
    training_data: tuple[str, ...] = ()
    """Training data of the model, to find contaminated items: folders of shards, or text in any format that plamo2 data prepare reads.
    Answers to contaminated items are marked, and the result has separate metrics for contaminated and clean items."""

    path: tuple[str, ...] = ()
    """Data of tasks, as NAME=PATH, or only PATH if a single task needs data."""
    pfgen: Path | None = None
    """Folder of pfgen-bench: the same as --path pfgen=DIR."""
    jmmlu: Path | None = None
    """Folder of JMMLU: the same as --path jmmlu=DIR."""
    limit: int | None = None
    """Maximum number of items of each task, the same number from each group. Default: all."""
    mode: str | None = None
    """Form of the prompts, for instance completion or chat. Default: set by the task."""
    shots: int | None = None
    """Number of few-shot examples in a prompt. Default: set by the task."""
    trials: int | None = None
    """Number of answers to each question. Default: set by the task."""
    max_new_tokens: int | None = None
    """Maximum number of tokens of an answer. Default: set by the task."""
    lengths: tuple[int, ...] = ()
    """Lengths of generated contexts, in tokens. Default: set by the task."""
    depths: int | None = None
    """Number of positions of a fact in generated contexts. Default: set by the task."""
    kinds: tuple[str, ...] = ()
    """Kinds of generated questions. Default: all kinds of the task."""
    seed: int = 0
    """Random seed for sampled answers and generated questions."""
    judge: str | None = None
    """Judge model, for tasks that need one: a model folder or the address of a server."""
    judge_model: str | None = None
    """Name of the judge on its server. Default: the first model that the server lists."""
    judge_api_key_env: str | None = None
    """Environment variable with the API key of the judge's server."""
    baseline: Path | None = None
    """Results of another model (a folder that --output wrote). The judge then compares each answer with the answer of that model, in both
    orders."""
    allow_unisolated_code: bool = False
    """Run model-written programs even if this system cannot isolate them. They can then read and change your files."""
    processes: int | None = None
    """Number of processes that score answers. Default: one for each core."""

    served_model: str | None = None
    """Name of the model on its server. Default: the first model that the server lists."""
    api_key_env: str | None = None
    """Environment variable with the API key of the server."""
    concurrency: int = 8
    """Number of concurrent requests to a server."""
    timeout: float = 300.0
    """Maximum time of one request to a server, in seconds."""

    step: int | None = None
    """Step of a run folder's checkpoint, instead of RUN@STEP. Default: the newest."""
    template: str | None = None
    """Chat template for conversations: chat, translate, a Jinja file or a folder. Default: the template of the model, otherwise chat."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations."""
    batch_size: int | None = None
    """Batch size of a local model. Default: 64 sequences for tasks, 8 rows for held-out data."""
    tokenizer: Path | None = None
    """Tokenizer for --heldout and --training-data if the model has none: tokenizer.jsonl, or the folder that contains it."""
    sequence_length: int | None = None
    """Held-out data: positions per row; longer documents are cut. Default: the sequence length of the run, otherwise 2048."""
