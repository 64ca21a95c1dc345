"""The forms of records: conversations, pairs and prompts as public data sets have them, each example in the documentation, and Parquet."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plamo2_jax.align.chat import encode_all, encode_conversation, read_conversations, to_conversation
from plamo2_jax.align.forms import ANSWERS, CONTEXTS, CONVERSATIONS, LABELS, QUESTIONS, SYSTEMS
from plamo2_jax.align.messages import SPEAKERS, TRAIN_MARKS
from plamo2_jax.align.pairs import encode_pair, read_pairs, to_pair
from plamo2_jax.align.post_training import log_record_counts
from plamo2_jax.align.preference_data.prompts import read_prompts, to_prompt
from plamo2_jax.align.sft import ChatConfig
from plamo2_jax.data.documents import ReadReport, TooManyBadRecordsError, UnreadableRecord

CASES = Path(__file__).parent / "cases"
DOCUMENT = Path(__file__).parents[2] / "docs" / "post_training.md"
USER = {"role": "user", "content": "Which port is north of Osaka?"}
PLAIN = [USER, {"role": "assistant", "content": "Maizuru."}]
LAMP = {"role": "user", "content": "Why does the lamp turn?"}
CHOSEN = {"role": "assistant", "content": "So that ships see a flash."}
REJECTED = {"role": "assistant", "content": "Because it is round."}


def lines(name):
    return [json.loads(line) for line in (CASES / name).read_text(encoding="utf-8").splitlines()]


def examples(section):
    """Name and example of each row of a section's table in the documentation."""
    text = DOCUMENT.read_text(encoding="utf-8").split(f"\n### {section}\n")[1].split("\n#")[0]
    rows = re.findall(r"^\| (.+?) \| `(\{.+\})` \|$", text, re.MULTILINE)
    assert len(rows) > 3
    return [(name, json.loads(example)) for name, example in rows]


def tokens(record, tokenizer, template):
    example, _ = encode_conversation(to_conversation(record, "x"), template, tokenizer, 10_000, "refuse")
    return example.ids.tolist()


def refusal(read, *record):
    with pytest.raises(UnreadableRecord) as raised:
        read(*record)
    return f"{raised.value.reason} ({raised.value.detail})"


def test_forms_of_public_sets_give_the_tokens_of_the_plain_one(tokenizer, template):
    records = {record["name"]: record for record in lines("common_chat_forms.jsonl")}
    assert "part 2: 'image_url'" in refusal(to_conversation, records.pop("image_part"), "x")
    other = {
        "developer": [{"role": "system", "content": "Answer with a name."}, *PLAIN],
        "empty_tool_result": [
            {"role": "user", "content": "Delete the draft."},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "delete", "arguments": {}}}]},
            {"role": "tool", "content": ""},
            {"role": "assistant", "content": "Done."},
        ],
        "function_call": [
            {"role": "user", "content": "Tide in Kobe?"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "tide", "arguments": {"port": "Kobe"}}}]},
            {"role": "tool", "content": "06:12"},
            {"role": "assistant", "content": "6:12."},
        ],
    }
    for name, record in records.items():
        expected = {"messages": other.get(name, PLAIN)}
        assert tokens(record, tokenizer, template) == tokens(expected, tokenizer, template), name


def test_the_documentation_lists_conversations_that_are_read():
    for name, record in examples("Conversations"):
        conversation = to_conversation(record, "x")
        assert list(conversation.messages) == PLAIN, name


def test_the_documentation_lists_tools_that_are_read(tokenizer, template):
    (_, first), *others = examples("Tools and marks")
    for name, record in others:
        assert tokens(record, tokenizer, template) == tokens(first, tokenizer, template), name


def test_the_documentation_lists_preferences_that_are_read():
    for name, record in examples("Preferences"):
        pair = to_pair(record, "x")
        rejected = () if "single" in name else (REJECTED,)
        assert (pair.prompt, pair.chosen, pair.rejected) == ((LAMP,), (CHOSEN,), rejected), name


def test_the_documentation_names_every_field_and_speaker():
    text = DOCUMENT.read_text(encoding="utf-8").split("\n## Data formats\n")[1]
    fields = (*CONVERSATIONS, *QUESTIONS, *CONTEXTS, *ANSWERS, *SYSTEMS, *LABELS, *TRAIN_MARKS, "masked")
    assert [name for name in (*fields, *SPEAKERS) if f"`{name}`" not in text and f'"{name}":' not in text] == []


def test_the_questions_of_all_forms_are_prompts():
    for section, question in (("Conversations", USER), ("Preferences", LAMP)):
        for name, record in examples(section):
            if name in ("ichikara", "whole conversations", "HH: texts with named speakers"):
                assert "no prompt" in refusal(to_prompt, record, "x", {})
            else:
                assert to_prompt(record, "x", {}).messages == (question,), name


def test_pairs_of_public_sets_are_read_or_refused_with_a_reason():
    expected = {one["name"]: one for one in lines("preference_forms_expected.jsonl")}
    for record in lines("preference_forms.jsonl"):
        if record["name"] == "common_beginning":
            assert "give the field prompt, or name the speakers in both texts" in refusal(to_pair, record, "x")
            continue
        pair, one = to_pair(record, "x"), expected[record["name"]]
        found = [list(messages) for messages in (pair.prompt, pair.chosen, pair.rejected)]
        assert found == [one["prompt"], one["chosen"], one["rejected"]], record["name"]
        assert "system" not in pair.variables


SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize("field", ["system", "system_prompt", "system_message"])
@pytest.mark.parametrize(
    "record",
    [
        {"messages": PLAIN},
        {"messages": [SYSTEM, *PLAIN]},
        {"messages": [{"role": "system", "content": " "}, *PLAIN]},
        {"conversations": [{"from": "human", "value": USER["content"]}, {"from": "gpt", "value": "Maizuru."}]},
        {"instruction": USER["content"], "output": "Maizuru."},
        {"prompt": [USER], "completion": "Maizuru."},
        {"prompt": USER["content"], "completion": [SYSTEM, *PLAIN]},
    ],
)
def test_a_system_field_is_the_first_message_of_every_form(field, record):
    conversation = to_conversation(record | {field: "Be brief."}, "x")
    assert list(conversation.messages) == [SYSTEM, *PLAIN]
    assert conversation.variables == {}
    assert to_prompt(record | {field: "Be brief."}, "x", {}).messages == (SYSTEM, USER)


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        (
            {"prompt": LAMP["content"], "chosen": [SYSTEM, LAMP, CHOSEN], "rejected": [SYSTEM, LAMP, REJECTED]},
            [SYSTEM, LAMP],
        ),
        ({"prompt": [SYSTEM, LAMP], "chosen": [LAMP, CHOSEN], "rejected": [LAMP, REJECTED]}, [SYSTEM, LAMP]),
        (
            {"system": "Be brief.", "prompt": [LAMP], "chosen": [LAMP, CHOSEN], "rejected": [LAMP, REJECTED]},
            [SYSTEM, LAMP],
        ),
        (
            {"prompt": LAMP["content"], "chosen": [*PLAIN, LAMP, CHOSEN], "rejected": [*PLAIN, LAMP, REJECTED]},
            [*PLAIN, LAMP],
        ),
        ({"prompt": [*PLAIN, LAMP], "chosen": [*PLAIN, LAMP, CHOSEN], "rejected": REJECTED["content"]}, [*PLAIN, LAMP]),
        ({"instruction": "Why does", "input": "the lamp turn?", "chosen": CHOSEN, "rejected": REJECTED}, None),
        (
            {
                "messages": [LAMP, CHOSEN],
                "prompt": LAMP["content"],
                "chosen": [LAMP, CHOSEN],
                "rejected": [LAMP, REJECTED],
            },
            [LAMP],
        ),
        ({"messages": [LAMP, CHOSEN], "chosen": [LAMP, CHOSEN], "rejected": [LAMP, REJECTED]}, [LAMP]),
        ({"messages": [LAMP], "input": "column", "chosen": CHOSEN, "rejected": REJECTED}, [LAMP]),
        (
            {
                "prompt": "\n\nHuman: Why does the lamp turn?\n\nAssistant:",
                "chosen": " So that ships see a flash.",
                "rejected": " Because it is round.",
            },
            [LAMP],
        ),
        ({"chosen": json.dumps([LAMP, CHOSEN]), "rejected": json.dumps([LAMP, REJECTED]), "prompt": ""}, [LAMP]),
    ],
)
def test_prompts_and_whole_conversations_fit_together(record, prompt):
    pair = to_pair(record, "x")
    expected = [{"role": "user", "content": "Why does\n\nthe lamp turn?"}] if prompt is None else prompt
    assert list(pair.prompt) == expected
    assert (pair.chosen, pair.rejected) == ((CHOSEN,), (REJECTED,))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "Other?", "chosen": [LAMP, CHOSEN], "rejected": [LAMP, REJECTED]}, "remove the prompt"),
        ({"prompt": "Other?", "chosen": [LAMP, CHOSEN], "rejected": REJECTED}, "chosen must begin with the prompt"),
        ({"chosen": [LAMP, CHOSEN], "rejected": [USER, REJECTED]}, "no prompt"),
        (
            {"chosen": [LAMP, CHOSEN, USER, CHOSEN], "rejected": [LAMP, CHOSEN, LAMP, REJECTED]},
            "differ before an answer",
        ),
        ({"chosen": "a", "rejected": "b"}, "give the field prompt"),
        (
            {"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: b"},
            "chosen must begin and end with a message of the assistant",
        ),
        ({"prompt": "a", "chosen": "b"}, "no value in the field rejected"),
        ({"prompt": "a", "question": "b", "chosen": "c", "rejected": "d"}, "prompt and question are different"),
        ({"system": "a", "prompt": [SYSTEM, LAMP], "chosen": CHOSEN, "rejected": REJECTED}, "system and message 1"),
        ({"system": 3, "prompt": "a", "chosen": "b", "rejected": "c"}, "content not a string"),
        ({"conversations": [LAMP, CHOSEN], "chosen": "b", "rejected": "c"}, "conversations ends with an answer"),
        ({"prompt": "a", "chosen": {"role": ["x"]}, "rejected": "c"}, "unknown role"),
        ({"prompt": 5, "chosen": "b", "rejected": "c"}, "the field prompt holds 5"),
        (
            {"prompt": [LAMP, CHOSEN], "chosen": [LAMP, CHOSEN], "rejected": REJECTED},
            "chosen must begin with the prompt",
        ),
        ({"image": "a.png", "prompt": "a", "chosen": "b", "rejected": "c"}, "the field image holds 'a.png'"),
    ],
)
def test_other_pairs_are_refused(record, message):
    found = refusal(to_pair, record, "x")
    assert message in found
    assert len(found) < 300


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "a"}, "no conversation (it has text; it must have one of messages, conversations, instruction"),
        ({}, "it has no field"),
        ({"messages": "Hello"}, "messages is the text 'Hello'; it must be a list"),
        ({"messages": []}, "messages must be a list"),
        ({"messages": 5}, "messages must be a list"),
        ({"conversations": {"a": 1}}, "unknown role"),
        ({"instruction": "a", "output": "b", "response": "c"}, "output and response are different"),
        ({"instruction": "a", "question": "b", "output": "c"}, "instruction and question are different"),
        ({"instruction": "a", "input": 5, "output": "c"}, "the field input holds 5"),
        ({"instruction": "a", "output": 5}, "the field output holds 5"),
        ({"instruction": "a"}, "the field output must be text"),
        ({"prompt": "a", "completion": "b", "label": False}, "can only be used with plamo2 dpo"),
        ({"prompt": "a", "completion": "b", "label": 0}, "can only be used with plamo2 dpo"),
        ({"prompt": "a", "completion": "b", "label": "false"}, "can only be used with plamo2 dpo"),
        ({"messages": PLAIN, "kto_tag": False}, "only be used with plamo2 dpo"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "train on them with plamo2 dpo"),
        ({"messages": PLAIN, "system": ["x"]}, "only text is read"),
        ({"messages": [SYSTEM, *PLAIN], "system": "Be long."}, "system and message 1 are different"),
        ({"messages": PLAIN, "tools": 5}, "tools is 5"),
        ({"messages": PLAIN, "images": ["a.png"]}, "the field images holds"),
        ({"instruction": "a", "output": "b", "history": "a, b"}, "history is the text 'a, b'"),
        ({"instruction": "a", "output": "b", "history": [["c", 5]]}, "holds 5"),
        ({"prompt": "a", "completion": [USER, {"role": "assistant", "content": "b"}]}, "remove the prompt"),
    ],
)
def test_other_conversations_are_refused(record, message):
    found = refusal(to_conversation, record, "x")
    assert message in found
    assert len(found) < 300


def test_a_record_that_repeats_its_question_is_read_once():
    record = {"instruction": "Which port?", "question": "Which port?", "output": "Kobe.", "answer": "Kobe."}
    assert [m["content"] for m in to_conversation(record, "x").messages] == ["Which port?", "Kobe."]


def test_columns_of_any_name_are_variables_or_left_out(tokenizer, template):
    names = (
        "self",
        "range",
        "namespace",
        "loop",
        "raise_exception",
        "tokenizer",
        "add_generation_prompt",
        "bos_token",
        "a b",
        "documents",
    )
    expected = tokens({"messages": PLAIN}, tokenizer, template)
    assert tokens({"messages": PLAIN, **dict.fromkeys(names, True)}, tokenizer, template) == expected
    report = ReadReport(max_bad_rate=0.6)
    found, counts = encode_all(
        read_conversations(CASES / "odd_fields.jsonl", report), template, tokenizer, 100, "refuse", report
    )
    assert (len(found), counts["whole"], report.reasons) == (2, 2, {"unknown role": 2})
    assert found[0].ids.tolist() == found[1].ids.tolist()
    assert [place_of(record) for record in report.first] == ["line 3", "line 4"]
    report = ReadReport(max_bad_rate=0.0)
    pairs = read_pairs(CASES / "odd_fields_pairs.jsonl", report)
    found, counts = encode_all(pairs, template, tokenizer, 100, "refuse", report, encode_pair)
    assert (len(found), counts["whole"], report.bad) == (2, 2, 0)


def place_of(record):
    """The line of a bad record in a report: "FILE, line 3: REASON"."""
    return record.partition(": ")[0].rpartition(", ")[2]


def test_speakers_and_histories_of_other_types_are_bad_records():
    report = ReadReport(max_bad_rate=1.0)
    assert len(list(read_conversations(CASES / "unhashable.jsonl", report))) == 1
    assert report.reasons == {"unknown role": 3, "bad history": 3}
    assert [place_of(record) for record in report.first] == [f"line {i}" for i in range(2, 8)]


def test_bad_records_are_counted_up_to_a_limit(write_lines, tokenizer, template, capsys):
    good, bad = {"prompt": "a", "completion": "b"}, {"conversations": [{"from": 3, "value": "a"}]}
    path = write_lines([*[good] * 99, bad])
    report = ChatConfig().report()
    found, counts = encode_all(read_conversations(path, report), template, tokenizer, 100, "refuse", report)
    log_record_counts(path, "conversations", counts, report)
    assert (len(found), report.records, report.bad) == (99, 100, 1)
    said = capsys.readouterr().err
    assert "99 conversations, 1 bad" in said
    assert "data.jsonl, line 100: unknown role (message 1 is from 3; it must be" in said
    path = write_lines([*[good] * 90, *[bad] * 10])
    with pytest.raises(TooManyBadRecordsError, match=r"line 91: unknown role .* one of 10 bad records among 100"):
        list(read_conversations(path, ChatConfig().report()))


def test_a_record_that_the_template_refuses_is_counted_once(write_lines, tokenizer, template):
    path = write_lines([{"prompt": "a", "completion": "\ufdd0"}, {"prompt": "a", "completion": "b"}])
    report = ReadReport(max_bad_rate=0.5)
    found, _ = encode_all(read_conversations(path, report), template, tokenizer, 100, "refuse", report)
    assert (len(found), report.records, report.bad) == (1, 2, 1)


@pytest.fixture
def write_table(tmp_path):
    def write(records):
        path = tmp_path / "data.parquet"
        names = dict.fromkeys(name for record in records for name in record)
        pq.write_table(pa.table({name: [record.get(name) for record in records] for name in names}), path)
        return path

    return write


def test_parquet_gives_what_json_lines_give(write_table, write_lines, tokenizer, template):
    tools = [{"type": "function", "function": {"name": "tide", "parameters": {"type": "object"}}}]
    call = {"function": {"name": "tide", "arguments": {"port": "Kobe"}}}
    other = {"function": {"name": "wind", "arguments": {"height": 3}}}
    calling = [USER, {"role": "assistant", "content": None, "tool_calls": [call, other]}]
    records = [
        {"messages": PLAIN, "language": "en"},
        {"messages": [*calling, {"role": "tool", "content": ""}, *PLAIN[1:]], "tools": tools},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 1}]},
        {"instruction": "a", "input": "b", "output": "c", "history": [["d", "e"]], "system": "f"},
        {"messages": [*PLAIN[:1], {"role": "assistant", "content": "", "tool_calls": [], "weight": 0}, *PLAIN[1:]]},
    ]
    records[4]["messages"][1]["content"] = "Osaka."
    table, jsonl = write_table(records), write_lines(records)
    found = [list(read_conversations(path, ReadReport(max_bad_rate=0.0, judge_after=1))) for path in (table, jsonl)]
    assert [one.place for one in found[0]] == [f"{table}, row {i}" for i in range(1, 6)]
    for one, two in zip(*found, strict=True):
        a, b = (encode_conversation(x, template, tokenizer, 10_000, "refuse")[0] for x in (one, two))
        assert a.ids.tolist() == b.ids.tolist()
        assert a.trained.tolist() == b.trained.tolist()
    # A struct has every field in every row; what is null is absent.
    assert '"arguments": {"port": "Kobe"}}' in tokenizer.decode(
        a := encode_conversation(found[0][1], template, tokenizer, 10_000, "refuse")[0].ids
    )
    assert "null" not in tokenizer.decode(a)


def test_parquet_of_pairs_and_of_prompts(write_table):
    whole = [LAMP, CHOSEN], [LAMP, REJECTED]
    records = [
        {"prompt": LAMP["content"], "chosen": whole[0], "rejected": whole[1], "score_chosen": 9.0},
        {"prompt": None, "chosen": whole[0], "rejected": whole[1], "completion": None, "label": None},
    ]
    path = write_table(records)
    pairs = list(read_pairs(path, ReadReport(max_bad_rate=0.0, judge_after=1)))
    assert [(one.prompt, one.chosen, one.rejected) for one in pairs] == [((LAMP,), (CHOSEN,), (REJECTED,))] * 2
    path = write_table([{"id": "a", "prompt": "a?", "rules": None}, {"id": "b", "prompt": "b?", "rules": None}])
    assert [prompt.id for prompt in read_prompts([path], {})] == ["a", "b"]


def test_compressed_lines_and_columns_of_json_text(tmp_path, write_table):
    text = json.dumps(PLAIN)
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"messages": text}).encode()))
    table = write_table([{"messages": text, "tools": "[]"}])
    for file in (path, table):
        (conversation,) = read_conversations(file, ReadReport(max_bad_rate=0.0, judge_after=1))
        assert list(conversation.messages) == PLAIN
        assert conversation.variables == {}


def test_files_of_other_formats_are_refused(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("a")
    with pytest.raises(ValueError, match=r"data\.txt .* JSON lines"):
        list(read_conversations(path, ReadReport()))


ODD = [
    None,
    True,
    0,
    0.5,
    10**30,
    "",
    " ",
    "x",
    "[]",
    "{}",
    "[1]",
    "null",
    "\ufdd0",
    [],
    {},
    [[]],
    [{}],
    [None],
    [1],
    ["x"],
    [USER],
]
NAMES = (
    *CONVERSATIONS,
    *QUESTIONS,
    *CONTEXTS,
    *ANSWERS,
    *SYSTEMS,
    *LABELS,
    *TRAIN_MARKS,
    "role",
    "from",
    "content",
    "value",
    "tools",
)


def mutated(record, rng):
    """A record in which a value somewhere is replaced, wrapped, written as text or removed, or a field is added."""
    record = json.loads(json.dumps(record))
    places, found = [], [record]
    while found:
        node = found.pop()
        keys = node.keys() if isinstance(node, dict) else range(len(node))
        places += [(node, key) for key in keys]
        found += [node[key] for key in keys if isinstance(node[key], dict | list)]
    node, key = places[rng.integers(len(places))]
    match rng.integers(6):
        case 0:
            del node[key]
        case 1:
            node[key] = json.dumps(node[key])
        case 2:
            node[key] = [node[key]]
        case 3:
            record[NAMES[rng.integers(len(NAMES))]] = ODD[rng.integers(len(ODD))]
        case _:
            node[key] = ODD[rng.integers(len(ODD))]
    return record


def test_every_record_is_read_or_refused(tokenizer, template):
    rng = np.random.default_rng(0)
    seeds = [
        record for section in ("Conversations", "Tools and marks", "Preferences") for _, record in examples(section)
    ]
    read = refused = longest = 0
    for _ in range(1200):
        record = mutated(seeds[rng.integers(len(seeds))], rng)
        for reader in (
            lambda record: tokens(record, tokenizer, template),
            lambda record: encode_pair(to_pair(record, "x"), template, tokenizer, 1000, "refuse"),
            lambda record: to_prompt(record, "x", {}),
        ):
            try:
                reader(record)
                read += 1
            except UnreadableRecord as error:
                refused += 1
                longest = max(longest, len(f"{error.reason} ({error.detail})"))
    assert min(read, refused) > 500
    assert longest < 300
