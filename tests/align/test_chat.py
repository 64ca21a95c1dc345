"""Reading conversations and making ids of them: three formats, what is trained on, truncation, bad lines."""

import numpy as np
import pytest

from plamo2_jax.align.chat import Conversation, encode_all, encode_conversation, first_fit, read_conversations
from plamo2_jax.data.documents import ReadReport, TooManyBadRecordsError
from plamo2_jax.tokenizer.chat_template import ChatTemplate, ChatTemplateError, ChatTemplateOverrun

MESSAGES = [
    {"role": "system", "content": "短く。"},
    {"role": "user", "content": "Name?"},
    {"role": "assistant", "content": "None yet."},
    {"role": "tool", "content": "42"},
    {"role": "assistant", "content": "吾輩は<|plamo:eos|>猫"},
]


def read(path, **fields):
    return list(read_conversations(path, ReadReport(**{"max_bad_rate": 0.0, "judge_after": 1} | fields)))


def test_the_three_formats_are_one(write_lines):
    alpaca = {"instruction": "Add.", "input": "1 2", "output": "3", "system": "短く。", "history": [["Hi", "Yes?"]]}
    path = write_lines(
        [
            {"messages": MESSAGES, "source_language": "Japanese"},
            alpaca,
            {
                "conversations": [
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "Yes?"},
                    {"from": "human", "value": "Add.\n\n1 2"},
                    {"from": "gpt", "value": "3"},
                ],
                "system": "短く。",
            },
            {"instruction": "Hi", "output": "Yes?"},
        ]
    )
    first, second, third, fourth = read(path)
    assert list(first.messages) == MESSAGES
    assert first.variables == {"source_language": "Japanese"}
    assert second.messages == third.messages
    assert [m["role"] for m in second.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert fourth.messages == ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"})
    assert third.place == f"{path}, line 3"


def test_exactly_the_assistants_tokens_are_trained(tokenizer, template):
    example, what = encode_conversation(Conversation(tuple(MESSAGES), "x"), template, tokenizer, 10_000, "refuse")
    assert what == "whole"
    assert tokenizer.decode(example.ids[example.trained]) == (
        "None yet.<|plamo:eos|>吾輩は<|plamo:eos|>猫<|plamo:eos|>"  # the second one is text
    )
    rest = tokenizer.decode(example.ids[~example.trained])
    assert rest == (
        "<|plamo:bos|><|plamo:op|>system\n短く。\n<|plamo:op|>user\nName?\n<|plamo:op|>assistant\n\n"
        "<|plamo:op|>tool\n42\n<|plamo:op|>assistant\n\n"
    )
    assert np.count_nonzero(example.ids == tokenizer.eos_id) == 2


LONG = [
    {"role": "system", "content": "S" * 10},
    {"role": "user", "content": "a" * 40},
    {"role": "assistant", "content": "b" * 40},
    {"role": "user", "content": "c" * 40},
    {"role": "assistant", "content": "東" * 40},
]


@pytest.mark.parametrize(
    ("truncate", "there", "gone"),
    [("last", "Sab", "c東"), ("first", "Sc東", "ab"), ("end", "Sab", "c東")],
)
def test_long_conversations_lose_whole_messages(tokenizer, template, truncate, there, gone):
    conversation = Conversation(tuple(LONG), "x")
    whole, _ = encode_conversation(conversation, template, tokenizer, 10_000, truncate)
    for limit in (len(whole.ids), len(whole.ids) - 1):
        example, what = encode_conversation(conversation, template, tokenizer, limit, truncate)
        assert what == ("whole" if limit == len(whole.ids) else "truncated")
        assert len(example.ids) <= limit
    text = tokenizer.decode(example.ids)
    assert all(letter * 10 in text for letter in there)
    assert not any(letter * 10 in text for letter in gone)
    assert example.trained.any()


@pytest.mark.parametrize("limit", range(20, 80, 7))
def test_an_only_answer_is_cut_between_characters(tokenizer, template, limit):
    # 🦊 is outside the vocabulary: four byte tokens.
    messages = ({"role": "user", "content": "?"}, {"role": "assistant", "content": "🦊" * 40})
    example, what = encode_conversation(Conversation(messages, "x"), template, tokenizer, limit, "end")
    if example is None:
        assert what == "too long"  # not even the question fits
        return
    assert limit - 4 < len(example.ids) <= limit
    assert set(tokenizer.decode(example.ids[example.trained])) == {"🦊"}
    for rule in ("last", "first", "refuse"):
        assert encode_conversation(Conversation(messages, "x"), template, tokenizer, limit, rule) == (None, "too long")


def test_what_happened_is_counted(tokenizer, template):
    short = ({"role": "user", "content": "?"}, {"role": "assistant", "content": "!"})
    conversations = [Conversation(tuple(LONG), "x"), Conversation(tuple(LONG[3:]), "y"), Conversation(short, "z")]
    limit = len(encode_conversation(conversations[0], template, tokenizer, 10_000, "last")[0].ids) - 1
    examples, counts = encode_all(conversations, template, tokenizer, limit, "last", ReadReport())
    assert (len(examples), counts) == (3, {"truncated": 1, "whole": 2})
    examples, counts = encode_all(conversations, template, tokenizer, 40, "refuse", ReadReport())
    assert (len(examples), counts) == (1, {"too long": 2, "whole": 1})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "not an object"),
        ('{"text": "x"}', "no conversation"),
        ({"messages": []}, "no messages"),
        ({"messages": [{"role": "user", "content": "x"}]}, "no answer"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "answer without a question"),
        (
            {"messages": [{"role": "bos", "content": "x"}]},
            r"unknown role \(message 1 has 'bos'; it must be one of system",
        ),
        ({"messages": [MESSAGES[1], {"role": "assistant", "content": " "}]}, "empty message .message 2"),
        ({"messages": [MESSAGES[1], {"role": "assistant", "content": 3}]}, "content not a string"),
        ({"messages": [MESSAGES[1], MESSAGES[0], MESSAGES[2]]}, "system message not first"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "lone surrogate"),
        ({"instruction": "x", "output": ""}, "the field output must be text"),
        ({"instruction": "x", "output": "y", "history": [["z"]]}, "bad history"),
        ({"conversations": [{"from": "moderator", "value": "x"}]}, "unknown role .message 1 is from 'moderator'"),
    ],
)
def test_bad_lines_are_named(write_lines, line, message):
    good = {"messages": MESSAGES}
    path = write_lines([good, line, good])
    with pytest.raises(TooManyBadRecordsError, match=rf"data.jsonl, line 2: .*{message}"):
        read(path)
    assert len(read(path, max_bad_rate=0.5, judge_after=1000)) == 2


def test_a_template_has_to_mark_answers(tokenizer):
    with pytest.raises(ChatTemplateError, match="put it between"):
        encode_all([], ChatTemplate("{{ messages }}"), tokenizer, 9, "last", ReadReport())


def test_an_end_outside_of_the_marks_is_reported(tokenizer, capsys):
    """The model would not learn it."""
    marked = "{% for m in messages %}{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    for end in ("{{ eos_token }}{% endgeneration %}\n", "{% endgeneration %}{{ eos_token }}\n"):
        template = ChatTemplate(marked + end + "{% else %}{{ m.content }}\n{% endif %}{% endfor %}")
        encode_all([], template, tokenizer, 9, "last", ReadReport())
    error = capsys.readouterr().err
    assert error.count("outside of the generation marks") == 1
    encode_all([], ChatTemplate.load("chat"), tokenizer, 9, "last", ReadReport())
    assert capsys.readouterr().err == ""


def test_the_first_that_fits_is_found_in_few_encodings():
    for size in range(1, 40):
        for limit in range(size + 1):
            tried = []
            found = first_fit(
                range(size, 0, -1), lambda n, tried=tried: tried.append(n) or n, lambda n, limit=limit: n <= limit
            )
            assert found == ((size - limit, limit) if limit else (None, 1))
            assert len(tried) <= 2 + size.bit_length()


def test_a_template_that_exceeds_the_limits_ends_the_run_at_once(tokenizer):
    """To try it on every conversation of a file could take hours."""
    template = ChatTemplate("{% generation %}{% endgeneration %}{{ messages[0].content.center(10 ** 10) }}")
    conversations = [Conversation(tuple(MESSAGES), f"a.jsonl, line {line}") for line in (1, 2)]
    report = ReadReport(max_bad_rate=1.0)
    with pytest.raises(ChatTemplateOverrun, match=r"a.jsonl, line 1: chat_template.jinja fails .* MiB of memory"):
        encode_all(conversations, template, tokenizer, 100, "refuse", report)
    assert report.records == 0
