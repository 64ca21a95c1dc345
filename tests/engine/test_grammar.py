"""Structured output: what ends by itself is always valid, and rows without a grammar do not notice."""

import json
import re
import subprocess
import sys
import time

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plamo2_jax.engine.engine import Engine
from plamo2_jax.engine.grammar import MAX_SOURCE, Grammar, compile_grammar
from plamo2_jax.engine.request import Request
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.scheduler import Scheduler
from plamo2_jax.engine.speculation import SpeculationConfig
from plamo2_jax.engine.stop import StopConfig
from plamo2_jax.errors import PlamoError
from plamo2_jax.tokenizer.tokenizer import Tokenizer

LENGTH, SIZE, VOCABULARY = 256, 16, 288
PROMPT = np.arange(5, 25, dtype=np.int32)


@pytest.fixture(scope="session")
def compiled(tokenizer):
    def compiled(grammar):
        return compile_grammar(grammar, tokenizer, vocab_size=VOCABULARY, stop_ids=(tokenizer.eos_id, tokenizer.op_id))

    return compiled


def ids_of(bits):
    return np.flatnonzero(np.unpackbits(bits.astype("<u4").view(np.uint8), bitorder="little"))


def walk(constraint, tokenizer, rng, limit=400):
    """The bytes of a random text that a constraint allows; None if it does not end. After a while it ends where it may."""
    text = b""
    for step in range(limit):
        allowed = ids_of(constraint.allowed())
        assert allowed.max() < tokenizer.vocab_size
        ends = {tokenizer.eos_id, tokenizer.op_id}
        assert ends.issubset(allowed) or ends.isdisjoint(allowed)
        assert not any(tokenizer.is_special(int(id)) for id in allowed if id not in ends)
        token = tokenizer.eos_id if step > limit // 2 and tokenizer.eos_id in allowed else int(rng.choice(allowed))
        constraint.push(token)
        if token in ends:
            return text
        text += tokenizer.token_bytes(token)
    return None


scalars = st.one_of(
    st.fixed_dictionaries({"type": st.just("integer"), "minimum": st.integers(-50, 0), "maximum": st.integers(1, 999)}),
    st.fixed_dictionaries({"type": st.just("string"), "minLength": st.integers(0, 2), "maxLength": st.integers(2, 4)}),
    st.fixed_dictionaries({"type": st.sampled_from(["boolean", "null"])}),
    st.fixed_dictionaries({"enum": st.lists(st.sampled_from(["猫", 1, None, 'a"b', 2.5]), min_size=1, unique=True)}),
    st.fixed_dictionaries({"type": st.just("string"), "pattern": st.sampled_from(["^[a-f]{2,4}$", "^猫[0-9]$"])}),
)


def containers(inner):
    names = st.dictionaries(st.sampled_from(["a", "b", "吾輩", "x y", '"']), inner, max_size=3)
    objects = names.flatmap(
        lambda properties: st.fixed_dictionaries(
            {
                "type": st.just("object"),
                "properties": st.just(properties),
                "required": st.lists(st.sampled_from(sorted(properties)), unique=True) if properties else st.just([]),
                "additionalProperties": st.just(False),
            }
        )
    )
    arrays = st.fixed_dictionaries({"type": st.just("array"), "items": inner, "maxItems": st.integers(0, 3)})
    return st.one_of(objects, arrays, st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=2)}))


@given(st.recursive(scalars, containers, max_leaves=5), st.integers(0, 1 << 30))
def test_texts_of_a_schema_are_valid(tokenizer, compiled, schema, seed):
    make = compiled(Grammar.of_json_schema(schema))
    for more in range(3):
        text = walk(make(), tokenizer, np.random.default_rng(seed + more))
        if text is not None:
            # Every byte sequence is UTF-8, though most characters have no token of their own.
            jsonschema.validate(json.loads(text.decode()), schema)


def test_the_end_is_allowed_where_the_text_is_complete_and_nothing_else_after_it(tokenizer, compiled):
    constraint = compiled(Grammar.of_regex("ab(ab)?"))()
    ends = {tokenizer.eos_id, tokenizer.op_id}
    assert not ends & set(ids_of(constraint.allowed()))
    constraint.push(tokenizer.id_of("ab"))
    assert ends < set(ids_of(constraint.allowed()))
    constraint.push(tokenizer.id_of("ab"))
    assert set(ids_of(constraint.allowed())) == ends


def test_stop_ids_are_control_tokens(tokenizer):
    for ids, message in (((), "there is no stop id"), ((tokenizer.id_of("ab"),), "is text. Give control tokens")):
        with pytest.raises(PlamoError, match=message):
            compile_grammar(Grammar.of_regex("a"), tokenizer, vocab_size=VOCABULARY, stop_ids=ids)


def test_text_without_choice_has_the_tokens_of_the_tokenizer(tokenizer, compiled):
    constraint = compiled(Grammar.of_regex("abaである。\n"))()
    for token in tokenizer.encode("abaである。\n"):
        assert ids_of(constraint.allowed()).tolist() == [token]
        constraint.push(int(token))


@pytest.mark.parametrize("size", [287, 288, 289])
def test_vocabularies_of_any_size(size):
    """llguidance packs 32 ids into a word."""
    rows = [
        [f"<|plamo:{name}|>", 0.0, "UNKNOWN" if name == "unk" else "CONTROL"] for name in ("unk", "bos", "eos", "pad")
    ]
    rows += [[f"<0x{value:02X}>", -20.0, "BYTE"] for value in range(256)]
    rows += [[f"w{i}x", -1.0, "NORMAL"] for i in range(size - len(rows))]
    tokenizer = Tokenizer.from_rows([[*row, 0, 0, 0, 0] for row in rows])
    make = compile_grammar(Grammar.of_regex("[0-9]"), tokenizer, vocab_size=size, stop_ids=(tokenizer.eos_id,))
    constraint = make()
    digits = [tokenizer.id_of(f"<0x{value:02X}>") for value in b"0123456789"]
    np.testing.assert_array_equal(ids_of(constraint.allowed()), digits)
    constraint.push(digits[0])
    np.testing.assert_array_equal(ids_of(constraint.allowed()), [tokenizer.eos_id])


def test_whitespace_is_bounded(tokenizer, compiled):
    """vllm#55313: 250,000 spaces after the value."""
    constraint = compiled(Grammar.of_json_schema({"type": "array", "items": {"type": "integer"}}))()
    for token in tokenizer.encode("[\n" + 32 * " "):
        constraint.push(int(token))
    allowed = {tokenizer.token_bytes(int(id)) for id in ids_of(constraint.allowed())}
    assert allowed == {*(b"%d" % digit for digit in range(10)), b"-", b"]"}
    constraint.push(tokenizer.encode("]")[0])
    assert set(ids_of(constraint.allowed())) == {tokenizer.eos_id, tokenizer.op_id}


def test_byte_tokens_make_whole_characters(tokenizer, compiled):
    make = compiled(Grammar.of_regex("[一-龥🐈]{3}"))
    for seed in range(5):
        text = walk(make(), tokenizer, np.random.default_rng(seed)).decode()
        assert re.fullmatch("[一-龥🐈]{3}", text)


def test_choices_are_literal(tokenizer, compiled):
    choices = ['a\n"b"', "猫", "x ::= y", "/.*/"]
    make = compiled(Grammar.of_choice(choices))
    texts = {walk(make(), tokenizer, np.random.default_rng(seed)).decode() for seed in range(40)}
    assert texts == set(choices)


@pytest.mark.parametrize(
    "text", ['start: "a" item+\nitem: "b" | "c"\n', 'root ::= "a" item+\nitem ::= "b" | "c"\n'], ids=["lark", "gbnf"]
)
def test_grammars(tokenizer, compiled, text):
    made = walk(compiled(Grammar.of_lark(text))(), tokenizer, np.random.default_rng(0)).decode()
    assert re.fullmatch("a[bc]+", made)


def test_a_grammar_cannot_allow_control_tokens(tokenizer, compiled):
    """Text of a request never becomes control tokens; a grammar that needs one fails instead of looping."""
    constraint = compiled(Grammar.of_lark('start: "a" <|plamo:bos|>'))()
    constraint.push(tokenizer.encode("a")[0])
    with pytest.raises(PlamoError, match="the grammar allows no token here"):
        constraint.allowed()


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (lambda: Grammar.of_regex("(a", "guided_regex"), "guided_regex is not allowed: .*unclosed group"),
        (lambda: Grammar.of_json_schema({"type": "strin"}), "the JSON schema is not allowed: Invalid type: strin"),
        (lambda: Grammar.of_json_schema({"uniqueItems": True, "type": "array"}), "Unimplemented keys"),
        (lambda: Grammar.of_json_schema(False), "the JSON schema is not allowed: "),
        (lambda: Grammar.of_json_schema({"const": float("nan")}), "must be a JSON value"),
        (lambda: Grammar.of_json_schema({"$ref": "http://127.0.0.1:1/x"}), "does not fetch resources"),
        (lambda: Grammar.of_json_schema({"$ref": "file:///etc/passwd"}), "does not fetch resources"),
        (lambda: Grammar.of_lark("start: @other"), "the grammar is not allowed: unknown grammar"),
        (lambda: Grammar.of_lark(""), "Empty grammar"),
        (lambda: Grammar.of_lark("start: start\n"), "NoExtension"),
        (lambda: Grammar.of_lark("root ::= ("), "the grammar is not allowed"),
        (lambda: Grammar.of_choice([]), "the choice is not allowed: it must be one or more texts"),
        (lambda: Grammar.of_regex("\ud800"), "lone surrogate"),
        (lambda: Grammar.of_regex("a" * MAX_SOURCE), "the regular expression is too large"),
    ],
)
def test_a_wrong_grammar_is_one_sentence(compiled, grammar, message):
    with pytest.raises(PlamoError, match=message) as caught:
        compiled(grammar())
    assert "\n" not in str(caught.value)


def test_lenient_schemas_ignore_what_cannot_be_enforced(tokenizer, compiled):
    make = compiled(Grammar.of_json_schema({"type": "string", "format": "unheard-of", "maxLength": 2}, strict=False))
    assert len(json.loads(walk(make(), tokenizer, np.random.default_rng(0)))) <= 2


def test_a_grammar_that_compiles_for_minutes_is_refused_in_seconds(compiled):
    schema = {"allOf": [{"type": "string", "pattern": f"a.{{{i}}}b{i}"} for i in range(40)]}
    begun = time.monotonic()
    with pytest.raises(PlamoError, match="the JSON schema is too complex: it must compile within 3 s"):
        compiled(Grammar.of_json_schema(schema))
    assert time.monotonic() - begun < 30


def test_llguidance_is_needed_only_for_grammars(monkeypatch):
    code = "import sys, plamo2_jax.engine.grammar; assert 'llguidance' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(
        PlamoError, match=r"need llguidance, which is not installed: install this project with the extra serve"
    ):
        Grammar.of_regex("a")


@pytest.fixture(scope="module")
def start(generator):
    """Makes schedulers."""

    def start(speculation=None):
        engine = Engine(
            generator.model,
            generator.params,
            slots=4,
            max_length=LENGTH,
            prefill_size=SIZE,
            usable=generator.tokenizer.vocab_size,
            speculation=speculation,
        )
        return Scheduler(engine, generator.tokenizer)

    return start


def request(tokenizer, constraint=None, prompt=PROMPT, seed=0, count=120, **sampling):
    return Request(
        prompt, SamplingConfig(**sampling), StopConfig(count), (tokenizer.eos_id,), seed, 0, constraint=constraint
    )


def rows_of(scheduler, requests):
    jobs = [scheduler.submit([each])[0] for each in requests]
    while scheduler.busy:
        scheduler.run_round()
    assert not any(job.error for job in jobs)
    return [(job.row.completion().text, job.row.token_ids, job.row.finish_reason) for job in jobs]


SCHEMA = {
    "type": "object",
    "properties": {
        "名前": {"type": "string", "maxLength": 4},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["猫", "犬"]}, "maxItems": 2},
    },
    "required": ["名前", "age", "tags"],
    "additionalProperties": False,
}


def test_a_crowd_with_and_without_grammars(start, tokenizer):
    make = compile_grammar(
        Grammar.of_json_schema(SCHEMA), tokenizer, vocab_size=VOCABULARY, stop_ids=(tokenizer.eos_id,)
    )
    constrained = [request(tokenizer, make, seed=seed) for seed in range(6)]
    free = [request(tokenizer, prompt=PROMPT[: 5 + seed], seed=seed, count=20) for seed in range(4)]
    mixed = [each for pair in zip(constrained, [*free, *free[:2]], strict=True) for each in pair]
    together = rows_of(start(), mixed)
    finished = [text for text, _, reason in together[::2] if reason == "stop_id"]
    assert len(finished) >= 4
    for text in finished:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert together[::2] == rows_of(start(), constrained)
    for row, wanted in zip(together[1::2], mixed[1::2], strict=True):
        assert [row] == rows_of(start(), [wanted])


def test_speculation_and_grammars_together(start, tokenizer):
    """vllm#36138, #15554: with drafts the grammar was ignored or lost its place."""
    make = compile_grammar(Grammar.of_regex("(ab){30}"), tokenizer, vocab_size=VOCABULARY, stop_ids=(tokenizer.eos_id,))
    repeating = np.tile(PROMPT[:4], 8)
    requests = [
        request(tokenizer, make, prompt=repeating, temperature=0.0),
        request(tokenizer, prompt=repeating, temperature=0.0, count=60),
    ]
    plain = rows_of(start(), requests)
    assert plain[0][0] == "ab" * 30
    assert rows_of(start(SpeculationConfig()), requests) == plain


def test_a_constraint_that_fails_ends_only_its_row(start, tokenizer):
    make = compile_grammar(
        Grammar.of_lark('start: "ab" <|plamo:bos|>'), tokenizer, vocab_size=VOCABULARY, stop_ids=(tokenizer.eos_id,)
    )
    scheduler = start()
    (bad,) = scheduler.submit([request(tokenizer, make)])
    (good,) = scheduler.submit([request(tokenizer, count=10)])
    errors = []
    while scheduler.busy:
        errors += [delta.error for delta in scheduler.run_round() if delta.job is bad and delta.error]
    assert errors == ["the grammar allows no token here: it must not need control tokens"]
    assert bad.done
    (alone,) = rows_of(start(), [request(tokenizer, count=10)])
    assert alone[1] == good.row.token_ids
    # The slot is of use again.
    rows_of(scheduler, [request(tokenizer, count=3) for _ in range(5)])


class Broken:
    """A constraint with a defect: one of its methods raises."""

    def __init__(self, method):
        self.method = method

    def allowed(self):
        if self.method == "allowed":
            raise ValueError("bad bits")
        return np.full(VOCABULARY // 32, 0xFFFFFFFF, np.uint32)

    def push(self, token):
        if self.method == "push":
            raise ValueError("bad bits")


@pytest.mark.parametrize("method", ["allowed", "push"])
def test_a_constraint_with_a_defect_ends_only_its_row(start, tokenizer, method, caplog):
    scheduler = start()
    (bad,) = scheduler.submit([request(tokenizer, lambda: Broken(method))])
    (good,) = scheduler.submit([request(tokenizer, count=10)])
    while scheduler.busy:
        scheduler.run_round()
    assert bad.error == "the answer cannot be continued: ValueError: bad bits"
    assert "Traceback" in caplog.text
    (alone,) = rows_of(start(), [request(tokenizer, count=10)])
    assert alone[1] == good.row.token_ids
