"""Tasks of lm-evaluation-harness on `LmEvalModel`: in process, through our server, and on our own task runner. `make peers` installs it."""

import json
import math
import sys

import numpy as np
import pytest

from plamo2_jax import checkpoint, models
from plamo2_jax.cli.main import main
from plamo2_jax.data.documents import Document
from plamo2_jax.data.in_memory import TokenizedText
from plamo2_jax.engine.generator import Generator
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.errors import PlamoError
from plamo2_jax.eval.heldout import compare, text_set
from plamo2_jax.eval.metrics import mean_metrics
from plamo2_jax.eval.run import answer_items
from plamo2_jax.eval.task import Item
from plamo2_jax.journal import Journal
from plamo2_jax.models import ChatRequest, CompletionRequest, ScoreRequest
from plamo2_jax.models.local import LocalChatModel
from plamo2_jax.tokenizer.chat_template import ChatTemplate
from support.http_server import running
from support.tiny_generator import generator, model, params, tokenizer

__all__ = ["generator", "model", "params", "tokenizer"]

pytestmark = pytest.mark.peer

# The tokenizer merges across most cuts of such texts.
PIECES = ["ab", "ba", "a", "b", " the", "ing", "猫", "吾輩", "は", "で", "である", "。", "\n"]


@pytest.fixture(scope="module")
def adapter():
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (make peers installs it)")
    from plamo2_jax.eval import lm_eval

    return lm_eval


@pytest.fixture(scope="module")
def local(generator):
    return LocalChatModel(generator, ChatTemplate.load("chat"), {"model": "tiny"})


@pytest.fixture(scope="module")
def server(generator):
    with running(generator) as server:
        yield server


@pytest.fixture(scope="module")
def remote(server):
    with models.open(f"{server.url}/v1", model="tiny") as client:
        yield client


def questions(end):
    rng = np.random.default_rng(0)
    return [
        {
            "question": "".join(rng.choice(PIECES, rng.integers(2, 30))) + end,
            "choices": list(dict.fromkeys("".join(rng.choice(PIECES, rng.integers(1, 12))) for _ in range(4))),
            "answer": 0,
        }
        for _ in range(40)
    ]


def write_task(folder, name, rows, **fields):
    """Write a task of the harness as a user does, a YAML file with its data."""
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
        "test_split": "test",
        **fields,
    }
    (folder / f"{name}.yaml").write_text(json.dumps(task))


CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "answer",
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}


class Choice:
    """The same questions as a task of our own."""

    name, metric, provenance = "choice", "acc", {}

    def __init__(self, rows):
        self.items = [Item(str(i), row["question"], row) for i, row in enumerate(rows)]

    def requests(self, item):
        scores = yield ScoreRequest(item.question, item.reference["choices"])
        return {"logprobs": [score.logprob for score in scores]}

    def score(self, items, answers):
        return [
            {
                "acc": float(np.argmax(answer["logprobs"]) == 0),
                "acc_norm": float(
                    np.argmax(np.array(answer["logprobs"]) / list(map(len, item.reference["choices"]))) == 0
                ),
            }
            for item, answer in zip(items, answers, strict=True)
        ]

    summarize = staticmethod(mean_metrics)


def numbers(results, name="choice"):
    return {
        key.removesuffix(",none"): value for key, value in results["results"][name].items() if key.startswith("acc")
    }


def logprobs(results, name="choice"):
    return [value for sample in results["samples"][name] for value, _ in sample["filtered_resps"]]


@pytest.mark.parametrize("end", ["", "?"])
def test_accuracies_agree_in_process_through_the_server_and_on_our_own_runner(
    adapter, local, remote, server, tmp_path, end
):
    rows = questions(end)
    write_task(tmp_path, "choice", rows, **CHOICE)
    ours, through = (adapter.evaluate(each, ["choice"], include_path=str(tmp_path)) for each in (local, remote))
    assert numbers(ours) == numbers(through)
    np.testing.assert_allclose(logprobs(ours), logprobs(through), atol=1e-4)
    task = Choice(rows)
    answers = answer_items(task, local)
    metrics = task.summarize(task.items, task.score(task.items, answers))
    assert {name: metric.value for name, metric in metrics.items()} == {
        name: value for name, value in numbers(ours).items() if "stderr" not in name
    }
    np.testing.assert_allclose([one for answer in answers for one in answer["logprobs"]], logprobs(ours), atol=1e-5)
    assert len(set(logprobs(ours))) > 100
    assert "torch" not in sys.modules

    # The harness's own client cuts at the length of the context alone. This is right only where no token crosses the cut.
    from lm_eval import simple_evaluate
    from lm_eval.models.openai_completions import LocalCompletionsAPI
    from lm_eval.tasks import TaskManager

    class WithBos(LocalCompletionsAPI):
        """The harness's client, which puts no beginning-of-document id before a text if the server tokenizes it."""

        def tok_encode(self, string, **kwargs):
            return [local.tokenizer.bos_id, *super().tok_encode(string, **kwargs)]

    client = WithBos(model="tiny", base_url=f"{server.url}/v1/completions", tokenizer_backend="remote", max_length=256)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    stock = logprobs(simple_evaluate(model=client, tasks=["choice"], task_manager=manager, bootstrap_iters=0))
    if end:
        assert stock == logprobs(through)
    else:
        assert np.mean(~np.isclose(stock, logprobs(through), atol=1e-3)) > 0.2


def test_rolling_bits_per_byte_are_those_of_held_out_text(adapter, generator, local, remote, tmp_path):
    rng = np.random.default_rng(1)
    texts = ["".join(rng.choice(PIECES, n)) for n in (3, 40, 70)]
    rolling = {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    write_task(tmp_path, "rolling", [{"text": text} for text in texts], **rolling)

    def bits(model, **options):
        results = adapter.evaluate(model, ["rolling"], include_path=str(tmp_path), **options)
        return results["results"]["rolling"]["bits_per_byte,none"]

    text = TokenizedText([Document(text, str(i)) for i, text in enumerate(texts)], generator.tokenizer, "texts")
    heldout = text_set(text, generator.tokenizer, sequence_length=256, batch_size=2)
    found = compare(
        generator.model, generator.params, generator.tokenizer, {"texts": heldout}, sequence_length=256, batch_size=2
    )["texts"].model
    assert bits(local, score_end=True) == pytest.approx(found.bits_per_byte, rel=1e-6)
    ends = local.score(
        [ScoreRequest(generator.tokenizer.encode(text, bos=True), [[generator.tokenizer.eos_id]]) for text in texts]
    )
    nats = found.nats + math.fsum(score.logprob for (score,) in ends)
    without_ends = pytest.approx(nats / math.log(2) / found.bytes, rel=1e-6)
    assert bits(local) == without_ends
    assert bits(remote) == without_ends
    # A text that is longer than a window is scored in windows, each token once: most tokens then have less context.
    assert bits(local, rolling_length=16) == pytest.approx(bits(local), rel=0.02)
    assert bits(local, rolling_length=16) != pytest.approx(bits(local), rel=1e-6)


def instance(*arguments, **fields):
    from lm_eval.api.instance import Instance

    return Instance("generate_until", {}, arguments, 0, metadata=("task", 0, 1), **fields)


@pytest.mark.parametrize("name", ["local", "remote"])
def test_generation(adapter, local, remote, name):
    chat_model = {"local": local, "remote": remote}[name]
    greedy, stop = SamplingConfig(0.0), StopConfig(24)
    [[whole]] = chat_model.complete([CompletionRequest("吾輩は", sampling=greedy, stop=stop)])
    lm = adapter.LmEvalModel(chat_model)
    settings = {"until": ["never there"], "max_gen_toks": 24, "do_sample": False}
    cut = {**settings, "until": whole.text[6:8]}
    assert lm.generate_until([instance("吾輩は", settings), instance("吾輩は", cut)]) == [
        whole.text,
        whole.text[: whole.text.index(whole.text[6:8])],
    ]
    sampled = {"until": [], "max_gen_toks": 24, "do_sample": True, "temperature": 1.0}
    assert len(set(lm.generate_until([instance("吾輩は", sampled)] * 3))) == 3
    with pytest.raises(PlamoError, match=r"generation_kwargs\.best_of of the task is not supported"):
        lm.generate_until([instance("吾輩は", {"until": [], "best_of": 2})])


@pytest.mark.parametrize("name", ["local", "remote"])
def test_conversations(adapter, local, remote, name):
    chat_model = {"local": local, "remote": remote}[name]
    lm = adapter.LmEvalModel(chat_model)
    messages = [{"role": "user", "content": "<|plamo:op|>吾輩は"}]
    text = lm.apply_chat_template(messages)
    settings = {"until": [], "max_gen_toks": 12}
    [[expected]] = chat_model.chat([ChatRequest("0", messages, sampling=SamplingConfig(0.0), stop=StopConfig(12))])
    assert lm.generate_until([instance(text, settings)]) == [expected.text]
    prefilled = lm.apply_chat_template(
        [*messages, {"role": "assistant", "content": "である"}], add_generation_prompt=False
    )
    if name == "remote":
        with pytest.raises(PlamoError, match="open the model folder without a server"):
            lm.generate_until([instance(prefilled, settings)])
        with pytest.raises(PlamoError, match="open the model folder without a server"):
            lm.loglikelihood([instance(text, "ab")])
        return
    assert local.template.source == lm.chat_template(True)
    ids = local.template.encode(local.tokenizer, messages, add_generation_prompt=True).ids
    assert text == local.tokenizer.decode(ids)
    [(logprob, _)] = lm.loglikelihood([instance(text, "ab")])
    [[score]] = local.score([ScoreRequest(ids, [local.tokenizer.encode("ab")])])
    assert logprob == pytest.approx(score.logprob, rel=1e-6)
    [answer] = lm.generate_until([instance(prefilled, settings)])
    ids = [*ids, *local.tokenizer.encode("である")]
    [[continued]] = local.complete(
        [CompletionRequest(ids, sampling=SamplingConfig(0.0), stop=StopConfig(12, ids=lm._stop_ids))]
    )
    assert answer == continued.text


def test_a_long_context_loses_its_beginning(adapter, generator):
    short = Generator(generator.model, generator.params, generator.tokenizer, prefill_size=16, max_length=40)
    local = LocalChatModel(short, ChatTemplate.load("chat"), {"model": "tiny"})
    lm = adapter.LmEvalModel(local, rolling_length=64)
    ids = generator.tokenizer.encode("吾輩は" * 30 + "?", bos=True)
    [(logprob, _)] = lm.loglikelihood([instance("吾輩は" * 30 + "?", "ab")])
    [[score]] = local.score([ScoreRequest(ids[-39:], [generator.tokenizer.encode("ab")])])
    assert (logprob, lm.truncated) == (pytest.approx(score.logprob, rel=1e-6), 1)
    [text] = lm.generate_until([instance("吾輩は" * 30 + "?", {"until": [], "max_gen_toks": 8})])
    [[expected]] = local.complete([CompletionRequest(ids[-32:], sampling=SamplingConfig(0.0), stop=StopConfig(8))])
    assert text == expected.text
    [total] = lm.loglikelihood_rolling([instance("吾輩は" * 30)])
    assert -math.inf < total < 0


def test_stored_responses_are_not_asked_again(adapter, local, tmp_path):
    write_task(tmp_path, "choice", questions("?")[:6], **CHOICE)
    asked = []

    class Counting(LocalChatModel):
        def score(self, requests):
            asked.extend(requests)
            return super().score(requests)

    counting = Counting(local.generator, local.template, local.description)
    results = []
    for _ in range(2):
        journal = Journal(tmp_path / "journal.jsonl", lambda entry: "values" in entry)
        results.append(adapter.evaluate(counting, ["choice"], include_path=str(tmp_path), journal=journal))
        journal.close()
    assert len(asked) == 6
    assert logprobs(results[0]) == logprobs(results[1])
    with pytest.raises(PlamoError, match="lm-evaluation-harness has no task 'chioce'"):
        adapter.evaluate(counting, ["chioce"], include_path=str(tmp_path))


def test_the_verb_writes_results_that_can_be_compared(adapter, model, params, tokenizer, tmp_path, capsys):
    checkpoint.save_model(tmp_path / "model", model.config, params, tokenizer)
    write_task(tmp_path, "choice", questions("?")[:6], **CHOICE)
    command = ["evaluate", str(tmp_path / "model"), "--lm-eval", "choice", "--include-path", str(tmp_path)]
    for output in ("a", "b"):
        assert main([*command, "--limit", "4", "--output", str(tmp_path / output)]) == 0
    assert "lm-eval-choice  acc" in capsys.readouterr().out
    result = json.loads((tmp_path / "a" / "lm-eval-choice" / "result.json").read_text())
    assert (result["n"], len(result["provenance"]["data_sha256"])) == (4, 64)
    assert result["model"]["fingerprint"]
    assert "lm-eval-choice" in (tmp_path / "a" / "report.html").read_text()
    # The journal has all responses, so a second run writes the same answers.
    answers = (tmp_path / "a" / "lm-eval-choice" / "answers.jsonl").read_bytes()
    entries = (tmp_path / "a" / "lm_eval_journal.jsonl").read_bytes()
    assert main([*command, "--limit", "4", "--output", str(tmp_path / "a")]) == 0
    assert (tmp_path / "a" / "lm-eval-choice" / "answers.jsonl").read_bytes() == answers
    assert (tmp_path / "a" / "lm_eval_journal.jsonl").read_bytes() == entries
    capsys.readouterr()
    assert main(["evaluate", "--compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "+0.0000" in capsys.readouterr().out
    assert main([*command[:3], "nothing", *command[4:], "--output", str(tmp_path / "c")]) == 2
    assert "lm-evaluation-harness has no task 'nothing'" in capsys.readouterr().err
