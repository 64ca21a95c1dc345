"""lm-evaluation-harness against a real server: `local-completions` and `local-chat-completions`. `make peers` installs it.

A server that returned the scores of the continuation alone scored chance, silently (llama.cpp#27174, lm-eval#4158).
"""

import json

import numpy as np
import pytest

from plamo2_jax.engine.engine import Engine
from plamo2_jax.models.chat_model import ScoreRequest
from plamo2_jax.models.local import LocalChatModel
from plamo2_jax.tokenizer.chat_template import ChatTemplate
from support.http_server import LENGTH, running
from support.tiny_generator import generator, model, params, tokenizer

__all__ = ["generator", "model", "params", "tokenizer"]

pytestmark = pytest.mark.peer

WORDS = ["ab", "ba", "aba", " the", "ing", "猫", "吾輩", "は", "である", "。\n"]


@pytest.fixture(scope="module")
def lm_eval():
    return pytest.importorskip("lm_eval", reason="lm-eval is not installed (make peers installs it)")


@pytest.fixture(scope="module")
def server(generator):
    with running(generator) as server:
        yield server


@pytest.fixture(scope="module")
def client(lm_eval, server):
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    return LocalCompletionsAPI(
        model="tiny",
        base_url=f"{server.url}/v1/completions",
        tokenizer_backend="remote",
        max_length=256,
        batch_size=8,
        num_concurrent=3,
    )


@pytest.fixture(scope="module")
def task(lm_eval, tmp_path_factory):
    """Questions with four random answers each."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("task")
    rows = [
        {
            "question": "".join(rng.choice(WORDS, rng.integers(2, 30))),
            "choices": ["".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(4)],
            "answer": int(rng.integers(4)),
        }
        for _ in range(25)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {
        "task": "tiny",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }


def in_process(lm_eval, generator, score):
    """Our own scores of the same tokens, as a model of lm-eval.

    Args:
        lm_eval: the package.
        generator: the model.
        score: returns log-probability and whether the continuation is greedy, from a list of pairs (context, continuation) of token ids.
    """
    from lm_eval.api.model import TemplateLM

    class InProcess(TemplateLM):
        backend = "causal"
        eot_token_id = generator.tokenizer.eos_id

        def tok_encode(self, string, **kwargs):
            return generator.tokenizer.encode(string).tolist()

        def _loglikelihood_tokens(self, requests, disable_tqdm=False, **kwargs):
            return score([(context, continuation) for _, context, continuation in requests])

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            raise NotImplementedError

        def generate_until(self, requests, disable_tqdm=False):
            raise NotImplementedError

    return InProcess()


def scored_by_the_engine(generator):
    """The function that the server calls too, with a server's sizes."""
    engine = Engine(
        generator.model,
        generator.params,
        slots=1,
        max_length=LENGTH,
        prefill_size=16,
        usable=generator.tokenizer.vocab_size,
    )

    def one(context, continuation):
        scorer = engine.start_scoring(np.array([*context, *continuation], np.int32), 1)
        while not scorer.done:
            scorer.read_piece()
        scores, first = scorer.scores(), len(context) - 1
        # lm-eval adds the numbers of the response in this way.
        return sum(scores.logprobs[first:].tolist()), bool(
            np.array_equal(scores.logprobs[first:], scores.top_logprobs[first:, 0])
        )

    return lambda pairs: [one(*pair) for pair in pairs]


def scored_in_batches(generator):
    """`LocalChatModel.score`, which pads several texts to one length: sums have another order, so the last bits differ."""
    ours = LocalChatModel(generator, ChatTemplate.load("chat"), {})

    def score(pairs):
        asked = [ScoreRequest(context, [continuation]) for context, continuation in pairs]
        return [(score.logprob, score.is_greedy) for (score,) in ours.score(asked)]

    return score


def test_scores_through_http_equal_scores_in_process(lm_eval, client, generator, task):
    def evaluate(model):
        return lm_eval.simple_evaluate(model=model, tasks=[dict(task)], bootstrap_iters=0, log_samples=True)

    http, engine, batches = (
        evaluate(model)
        for model in (
            client,
            in_process(lm_eval, generator, scored_by_the_engine(generator)),
            in_process(lm_eval, generator, scored_in_batches(generator)),
        )
    )
    assert http["results"] == engine["results"] == batches["results"]
    values, exact, close = (
        [pair for sample in each["samples"]["tiny"] for pair in sample["filtered_resps"]]
        for each in (http, engine, batches)
    )
    # Chance would be one value for all.
    assert len({value for value, _ in values}) > 50
    assert values == exact
    assert [greedy for _, greedy in values] == [greedy for _, greedy in close]
    np.testing.assert_allclose([value for value, _ in values], [value for value, _ in close], atol=1e-4)


def test_generation_until_a_stop_string(lm_eval, client, generator, server):
    from lm_eval.api.instance import Instance

    def ask(prompt, **options):
        arguments = (prompt, {"max_gen_toks": 24, **options})
        return Instance(request_type="generate_until", doc={}, arguments=arguments, idx=0)

    (free,) = client.generate_until([ask("吾輩は", until=["never there"])])
    stop = free[6:8]
    assert client.generate_until([ask("吾輩は", until=[stop])]) == [free[: free.index(stop)]]


def test_chats(lm_eval, server):
    from lm_eval.api.instance import Instance
    from lm_eval.models.api_models import JsonChatStr
    from lm_eval.models.openai_completions import LocalChatCompletion

    chat = LocalChatCompletion(model="tiny", base_url=f"{server.url}/v1/chat/completions", max_length=256)
    message = JsonChatStr(json.dumps([{"role": "user", "content": "吾輩は"}]))
    asked = [
        Instance(request_type="generate_until", doc={}, arguments=(message, {"until": ["x"], "max_gen_toks": 8}), idx=0)
    ]
    (text,) = chat.generate_until(asked)
    assert isinstance(text, str)
    assert text
