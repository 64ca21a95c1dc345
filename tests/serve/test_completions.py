"""`/v1/completions` over real HTTP, asked by the `openai` client."""

import numpy as np
import openai
import pytest

from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig

TEXT = "吾輩は猫である。\n ab the"


def complete(client, prompt=TEXT, **options):
    return client.completions.create(model="tiny", prompt=prompt, **options)


def test_a_completion_is_what_the_generator_writes(client, generator):
    answer = complete(client, max_tokens=20, seed=5, n=2)
    expected = generator.generate([TEXT], stop=StopConfig(20), seed=5, samples=2)
    assert [choice.text for choice in answer.choices] == [each.text for each in expected]
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.usage.completion_tokens == sum(len(each.token_ids) for each in expected)
    assert answer.usage.prompt_tokens == len(generator.tokenizer.encode(TEXT, bos=True))
    assert answer.seed == 5
    assert answer.system_fingerprint.startswith("fp_")


def test_stream_and_answer_are_the_same(client):
    """Characters of byte tokens are split in streams (mlx-vlm#1076, tensai#110) or cut at the end (imp#1310)."""
    for seed in range(4):
        options = {"max_tokens": 30, "seed": seed, "n": 2, "logprobs": 2, "echo": seed % 2 == 1}
        whole = complete(client, **options)
        text, logprobs, reasons = ["", ""], [[], []], [None, None]
        for chunk in complete(client, stream=True, **options):
            for choice in chunk.choices:
                text[choice.index] += choice.text
                logprobs[choice.index] += choice.logprobs.token_logprobs if choice.logprobs else []
                reasons[choice.index] = choice.finish_reason or reasons[choice.index]
        assert text == [choice.text for choice in whole.choices]
        assert logprobs == [choice.logprobs.token_logprobs for choice in whole.choices]
        assert reasons == [choice.finish_reason for choice in whole.choices]


def test_prompts_as_texts_and_ids(client, tokenizer):
    texts = ["ab", "猫", TEXT]
    ids = [tokenizer.encode(text, bos=True).tolist() for text in texts]
    options = {"max_tokens": 6, "temperature": 0}
    single = [complete(client, text, **options).choices[0].text for text in texts]
    assert [choice.text for choice in complete(client, texts, **options).choices] == single
    assert [choice.text for choice in complete(client, ids, **options).choices] == single
    assert complete(client, ids[2], **options).choices[0].text == single[2]


def test_without_a_seed_requests_differ_and_report_theirs(client):
    """No seed was given, and every request was identical (mlx-vlm#1818)."""
    answers = [complete(client, max_tokens=12) for _ in range(4)]
    assert len({answer.seed for answer in answers}) == 4
    assert len({answer.choices[0].text for answer in answers}) > 1
    again = complete(client, max_tokens=12, seed=answers[0].seed)
    assert again.choices[0].text == answers[0].choices[0].text


def test_echo_scores_the_prompt(client, generator, tokenizer):
    """Echo returned the scores of the continuation alone, and lm-eval scored chance (llama.cpp#27174, lm-eval#4158)."""
    prompts = [tokenizer.encode(TEXT * times, bos=True).tolist() for times in (1, 4)]
    answer = complete(client, prompts, max_tokens=1, temperature=0, logprobs=1, echo=True, seed=1)
    for prompt, choice in zip(prompts, answer.choices, strict=True):
        logprobs = choice.logprobs
        assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(prompt) + 1
        assert logprobs.token_logprobs[0] is logprobs.top_logprobs[0] is None
        for value, top in zip(logprobs.token_logprobs[1:], logprobs.top_logprobs[1:], strict=True):
            assert value <= max(top.values())
        # The continuation is greedy, so its value is the largest, bit for bit.
        assert logprobs.token_logprobs[-1] == max(logprobs.top_logprobs[-1].values())
        assert choice.text.startswith(tokenizer.decode(prompt, skip_control=True))


def test_one_entry_is_generated_even_if_it_ends_the_text(client, tokenizer):
    stop = {str(tokenizer.eos_id): 100}
    answer = complete(client, [5, 6, 7], max_tokens=1, logprobs=1, echo=True, logit_bias=stop, temperature=0)
    logprobs = answer.choices[0].logprobs
    assert logprobs.tokens[-1] == "<|plamo:eos|>"
    assert len(logprobs.tokens) == 4
    assert answer.choices[0].finish_reason == "stop"


def test_best_of_returns_the_likeliest(client):
    every = complete(client, max_tokens=8, n=6, best_of=6, seed=9, logprobs=0)
    best = complete(client, max_tokens=8, n=2, best_of=6, seed=9, logprobs=0)

    def mean(choice):
        values = choice.logprobs.token_logprobs
        return sum(values) / len(values)

    expected = sorted(every.choices, key=mean, reverse=True)[:2]
    assert [choice.text for choice in best.choices] == [choice.text for choice in expected]
    assert [choice.index for choice in best.choices] == [0, 1]


def test_the_best_of_equal_samples_without_tokens_is_the_first(client):
    answer = complete(client, max_tokens=0, echo=True, n=2, best_of=3, logprobs=0)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].text == answer.choices[1].text


def test_stop_strings_are_cut_off(client, generator):
    """A stop string across tokens leaks its beginning (vllm#3574, SwiftLM#133, mlx-knife#68)."""
    text = complete(client, max_tokens=40, seed=3).choices[0].text
    stop = text[10:13]
    answer = complete(client, max_tokens=40, seed=3, stop=[stop, "never there"])
    assert answer.choices[0].text == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    streamed = "".join(c.choices[0].text for c in complete(client, max_tokens=40, seed=3, stop=stop, stream=True))
    assert streamed == answer.choices[0].text


def test_held_back_text_is_neither_lost_nor_repeated(client):
    """Text that might begin a stop string is lost or repeated when it is released (llama.cpp#9867, #10914)."""
    random = np.random.default_rng(0)
    for seed in range(12):
        options = {"max_tokens": int(random.integers(5, 40)), "seed": seed}
        free = complete(client, **options).choices[0].text
        start, length = random.integers(0, len(free)), random.integers(1, 5)
        # Some stop strings occur, some begin at the end of the text, some begin everywhere.
        stops = [free[start : start + length], free[-2:] + "\x00", free[start] + free[start : start + 1] + "\x00"]
        stops = [stops[int(i)] for i in random.permutation(3)[: random.integers(1, 4)]]
        ends = [(free.index(stop) + len(stop), free.index(stop)) for stop in stops if stop in free]
        expected = free[: min(ends)[1]] if ends else free
        whole = complete(client, stop=stops, **options).choices[0]
        streamed = [chunk.choices[0].text for chunk in complete(client, stop=stops, stream=True, **options)]
        assert whole.text == "".join(streamed) == expected
        assert whole.finish_reason == "stop" if ends else whole.finish_reason in ("stop", "length")


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10_000}, "prompt"),
        ({"n": 0}, "n"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": 21}, "logprobs"),
        ({"stop": [""]}, "stop"),
        ({"seed": 1.5}, "seed"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"9999": 1}}, "logit_bias"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, 99999]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"extra_body": {"top_k": "x"}}, "top_k"),
        ({"extra_body": {"min_p": 2}}, "min_p"),
        ({"extra_body": {"stream_options": {}}}, "stream_options"),
    ],
)
def test_wrong_values_are_refused_by_name(client, options, param):
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, **options)
    body = caught.value.body
    assert body["param"] == param
    assert body["type"] == "invalid_request_error"
    assert param in body["message"] or body["code"] == "context_length_exceeded"


def test_an_unknown_model_is_404(client):
    with pytest.raises(openai.NotFoundError, match="must be one of tiny"):
        client.completions.create(model="huge", prompt="a")


def test_unknown_fields_are_ignored_and_named(client):
    raw = client.completions.with_raw_response.create(
        model="tiny",
        prompt="a",
        max_tokens=1,
        extra_body={"frobnicate": 1, "é\n": 2, "response_format": {"type": "json_object"}},
    )
    assert raw.headers["X-Ignored-Fields"] == "frobnicate, ??, response_format"


def test_sampling_settings_reach_the_engine(client, generator):
    sampling = SamplingConfig(0.7, 12, 0.9, 0.02, 1.3, 0.5, 0.25)
    expected = generator.generate([TEXT], sampling=sampling, stop=StopConfig(16), seed=4)[0].text
    extra = {"top_k": 12, "min_p": 0.02, "repetition_penalty": 1.3}
    answer = complete(
        client, seed=4, temperature=0.7, top_p=0.9, presence_penalty=0.5, frequency_penalty=0.25, extra_body=extra
    )
    assert answer.choices[0].text == expected
