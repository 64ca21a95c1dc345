"""`LocalChatModel`: responses, scores, and errors that stay with their request."""

import jax
import numpy as np
import pytest

from plamo2_jax import models
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.models import ChatRequest, CompletionRequest, RequestError, ScoreRequest, Usage
from plamo2_jax.models.scoring import split_texts

GREEDY, SIX = SamplingConfig(0.0), StopConfig(max_new_tokens=6)


def ask(text, **fields):
    return ChatRequest(text, [{"role": "user", "content": text}], **{"stop": SIX, **fields})


def test_a_response_says_what_it_cost_and_how_it_ended(model):
    [[response]] = model.chat([ask("あ？", sampling=GREEDY)])
    ids = model.template.encode(model.tokenizer, ask("あ？").messages, add_generation_prompt=True).ids
    assert response.usage == Usage(len(ids), 6)
    assert (response.finish_reason, response.retries, len(response.token_ids)) == ("length", 0, 6)
    # The same prompt as ids, and cut where a text of the answer says.
    [[whole]] = model.complete([CompletionRequest(ids, sampling=GREEDY, stop=SIX)])
    assert whole.text == response.text
    stop = StopConfig(6, strings=(response.text[2],))
    [[cut]] = model.complete([CompletionRequest(ids, sampling=GREEDY, stop=stop)])
    assert (cut.text, cut.finish_reason) == (response.text[: response.text.index(response.text[2])], "stop")


def test_requests_of_different_settings_are_answered_as_alone(model):
    requests = [ask("あ？"), ask("い？", seed=1, n=3), ask("う？"), ask("え？", sampling=GREEDY), ask("お？", n=2)]
    together = model.chat(requests)
    assert [len(some) for some in together] == [1, 3, 1, 1, 2]
    alone = [model.chat([request])[0] for request in requests]
    assert [[one.text for one in some] for some in together] == [[one.text for one in some] for some in alone]


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (CompletionRequest([]), "it must be at least one token id"),
        (CompletionRequest([[1, 2]]), "it must be at least one token id"),
        (CompletionRequest([1, 5000]), "the model has ids from 0 to 863"),
        (CompletionRequest("\ud800"), "the prompt is neither text nor"),
        (CompletionRequest([[1], [2, 3]]), "the prompt is neither text nor a list of token ids"),
        (CompletionRequest("a", n=0), "n=0: it must be at least 1"),
        (CompletionRequest("a", seed=-1), "seed=-1: it must be from 0 to 4294967295"),
        (CompletionRequest("a", stop=StopConfig(4, ids=(5000,))), "the model has ids from 0 to 863"),
        (CompletionRequest("a", stop=StopConfig(20_000_000)), "max_new_tokens=20000000 exceed the model's maximum"),
    ],
)
def test_an_error_stays_with_its_request(model, request_, reason):
    good = CompletionRequest("ab", sampling=GREEDY, stop=SIX)
    first, error, last = model.complete([good, request_, good])
    assert isinstance(error, RequestError)
    assert reason in error.reason
    assert first == last != []


def test_bos_is_explicit(model):
    settings = {"sampling": GREEDY, "stop": SIX}
    (text,), (without,) = model.complete(
        [CompletionRequest("ab", **settings), CompletionRequest("ab", bos=False, **settings)]
    )
    ids = model.tokenizer.encode("ab", bos=True)
    assert (text.usage.prompt_tokens, without.usage.prompt_tokens) == (len(ids), len(ids) - 1)
    assert model.complete([CompletionRequest(ids, **settings)])[0][0].text == text.text


def test_scores_are_those_of_the_whole_text(model):
    """Several contexts, of several candidates each, more than fit a batch, one empty: each as in one forward pass over all."""
    candidates = ("です。", "でした", "x", "", "ますか？")
    requests = [
        ScoreRequest("猫は", candidates),
        ScoreRequest("The cat", ("!",)),
        # Some differ in their last token only, and are read once.
        ScoreRequest([1, 5, 9], ([7, 8], list(range(30, 50)), [7, 9], [3], [7])),
    ]
    found = model.score(requests)
    assert [len(scores) for scores in found] == [5, 1, 5]
    network, params = model.generator.model, model.generator.params
    forward = jax.jit(lambda tokens, segments: network.apply({"params": params}, tokens, segments)[0])
    for request, scores in zip(requests, found, strict=True):
        if isinstance(request.context, str):
            context, continuations = split_texts(model.tokenizer, request.context, request.continuations)
        else:
            context, continuations = np.array(request.context), list(map(np.array, request.continuations))
        for ids, score in zip(continuations, scores, strict=True):
            whole = np.concatenate([context, ids]).astype(np.int32)
            padded = np.pad(whole, (0, 32 - len(whole)))[None]
            logits = forward(padded, (np.arange(32) < len(whole))[None].astype(np.int32))[0]
            places = np.arange(len(context) - 1, len(whole) - 1)
            expected = np.asarray(jax.nn.log_softmax(logits))[places, ids]
            assert score.token_logprobs == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-5)
            assert score.logprob == pytest.approx(expected.sum(), rel=1e-4, abs=1e-5)
            assert score.is_greedy == bool((np.argmax(logits, axis=-1)[places] == ids).all())


def test_greedy_text_is_found_greedy(model):
    [[response]] = model.complete([CompletionRequest("ab", sampling=GREEDY, stop=SIX)])
    ids, other = response.token_ids, (*response.token_ids[:-1], response.token_ids[-1] ^ 1)
    [[same, changed]] = model.score([ScoreRequest(model.tokenizer.encode("ab", bos=True), (ids, other))])
    assert (same.is_greedy, changed.is_greedy) == (True, False)
    assert same.logprob > changed.logprob


def test_a_token_across_the_boundary_is_scored(model):
    """Every cut of a text leaves the tokens of the whole text, and the context ends where all encodings begin to differ."""
    text = "0g f1 0字学東3学 c2c 京大学"
    whole = model.tokenizer.encode(text, bos=True).tolist()
    crossed = 0
    for cut in range(1, len(text)):
        context, [rest] = split_texts(model.tokenizer, text[:cut], [text[cut:]])
        assert [*context, *rest] == whole
        crossed += len(context) < len(model.tokenizer.encode(text[:cut], bos=True))
    assert crossed > 0


def test_a_score_that_cannot_be_is_an_error(model):
    mixed, first, good = model.score(
        [ScoreRequest("a", ([1],)), ScoreRequest("", ("a",), bos=False), ScoreRequest("a", ("b",))]
    )
    assert "all texts or all token ids" in mixed.reason
    assert "no token comes before" in first.reason
    assert good[0].logprob < 0
    wrong = [ScoreRequest([1, 2], [ids]) for ids in ([2**33], [6.5], [[1]], [[1], [2, 3]])]
    found = model.score([*wrong, ScoreRequest("a", ("b",))])
    assert all(isinstance(each, RequestError) for each in found[:4])
    assert found[4] == good
    with pytest.raises(ValueError, match=r"ScoreRequest\.continuations is one text"):
        ScoreRequest("a", "bc")


def test_a_server_needs_the_name_of_a_model(folder):
    with pytest.raises(ValueError, match="give the name of the model there as `model`"):
        models.open("http://localhost:1/v1")
    with pytest.raises(ValueError, match="is not a folder"):
        models.open(folder / "nowhere")
