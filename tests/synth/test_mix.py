"""Mixing: shares, ceilings, originals, determinism; and what mix writes is read by `data prepare` and by sft."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plamo2_jax.align.chat import encode_all, read_conversations
from plamo2_jax.cli.main import main
from plamo2_jax.data.documents import ReadReport
from plamo2_jax.data.shards import open_shards
from plamo2_jax.errors import PlamoError
from plamo2_jax.synth.mix import MixConfig, check_generation, mix
from plamo2_jax.synth.record import GeneratorStamp, RecipeStamp, Record, Source, Usage
from plamo2_jax.tokenizer.chat_template import ChatTemplate
from plamo2_jax.tokenizer.tokenizer import Tokenizer

TOKENIZER = Path(__file__).parents[1] / "golden" / "tokenizer"


def record(id, text=None, messages=None, recipe="r", source=None, generation=1):
    sources = () if source is None else (Source(source, "0" * 64, "CC-BY-4.0"),)
    return Record(
        id=id,
        language="ja",
        kind="text" if messages is None else "messages",
        sources=sources,
        recipe=RecipeStamp(recipe, "1", "0" * 64),
        generator=GeneratorStamp("m", "f", "Apache-2.0"),
        sampling={"temperature": 0.5},
        seed=1,
        sample=0,
        usage=Usage(1, 2, 0.5, 0.25),
        license="CC-BY-4.0",
        generation=generation,
        text=text,
        messages=messages,
        fields={"answer": 5},
    ).to_json()


def chat(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(folder, kind):
    return [
        json.loads(line) for path in sorted((folder / kind).glob("*.jsonl")) for line in path.open(encoding="utf-8")
    ]


@pytest.fixture
def inputs(tmp_path):
    """100 characters each: 20 documents, 40 records of recipe a, 10 of recipe b, 5 conversations."""
    documents = [{"id": f"d{i}", "text": f"{i:04d}" * 25, "language": "ja"} for i in range(20)]
    records = [record(f"a{i}", f"{i:04d}" * 25, recipe="a", source=f"d{i % 20}") for i in range(40)]
    records += [record(f"b{i}", f"b{i:03d}" * 25, recipe="b") for i in range(10)]
    records += [record(f"c{i}", messages=chat("1+4=?", f"答え: {i}"), recipe="c") for i in range(5)]
    return {
        "documents": (write(tmp_path / "documents.jsonl", documents),),
        "records": (write(tmp_path / "records.jsonl", records),),
    }


def ids(folder, kind="text"):
    return [row["id"] for row in read(folder, kind) if row["synthetic"]]


def test_everything_below_the_ceiling_is_written(inputs, tmp_path):
    content = mix(MixConfig(**inputs, max_synthetic_share=0.75), tmp_path / "out")
    rows = read(tmp_path / "out", "text")
    assert [row["id"] for row in rows if not row["synthetic"]] == [f"d{i}" for i in range(20)]
    assert ids(tmp_path / "out") == [f"a{i}" for i in range(40)] + [f"b{i}" for i in range(10)]
    assert content["synthetic"] == {"text": {"a": 4000, "b": 1000}, "messages": {"c": 5 * len("1+4=?\n答え: 0")}}
    assert content["synthetic_share"] == {"text": round(5 / 7, 6), "messages": 1.0}
    assert content["files"] == {"text/00000.jsonl": 70, "messages/00000.jsonl": 5}
    assert json.loads((tmp_path / "out" / "mix.json").read_text()) == json.loads(json.dumps(content))
    assert rows[20]["sources"][0]["license"] == "CC-BY-4.0"


@pytest.mark.parametrize("ceiling", [0.0, 0.1, 1 / 3, 0.5, 0.7])
def test_the_ceiling_holds_and_is_used(inputs, tmp_path, ceiling):
    content = mix(MixConfig(**inputs, max_synthetic_share=ceiling), tmp_path / "out")
    written = sum(content["synthetic"]["text"].values())
    assert written <= ceiling / (1 - ceiling) * 2000 + 1e-6
    # Each of the two recipes may lack less than a record of 100 characters.
    assert written > min(5000, ceiling / (1 - ceiling) * 2000) - 200
    assert sum(row["synthetic"] for row in read(tmp_path / "out", "text")) * 100 == written
    assert content["selection"]["refused"].get("share", 0) == 50 - written // 100


def test_recipes_get_their_shares(inputs, tmp_path):
    shares = {"a": 1.0, "b": 1.0}
    content = mix(MixConfig(**inputs, shares=shares, max_synthetic_share=1.0), tmp_path / "out")
    assert content["synthetic"] == {"text": {"a": 1000, "b": 1000}, "messages": {}}
    assert content["selection"]["refused"] == {"recipe without a share": 5, "share": 30}
    with pytest.raises(PlamoError, match=r"shares\.z: no record has this recipe: the recipes are a, b, c"):
        mix(MixConfig(**inputs, shares={"z": 1.0}), tmp_path / "none")


def test_originals_are_beside_rephrasings(inputs, tmp_path):
    lone = write(tmp_path / "lone.jsonl", [record("x", "文" * 50, source="elsewhere"), record("y", "字" * 50)])
    inputs["records"] += (lone,)
    content = mix(MixConfig(**inputs, max_synthetic_share=1.0), tmp_path / "out")
    assert content["selection"]["refused"] == {"original not in documents": 1}
    assert {"x", "y"} & set(ids(tmp_path / "out")) == {"y"}
    mix(MixConfig(**inputs, max_synthetic_share=1.0, keep_originals=False), tmp_path / "all")
    assert {"x", "y"} <= set(ids(tmp_path / "all"))


def test_generations_have_a_ceiling(inputs, tmp_path):
    inputs["records"] = (write(tmp_path / "g.jsonl", [record(f"g{i}", "文" * 9, generation=i) for i in (1, 2, 3)]),)
    content = mix(MixConfig(**inputs), tmp_path / "out")
    assert content["selection"]["refused"] == {"generation": 2}
    mix(MixConfig(**inputs, max_generation=2), tmp_path / "two")
    assert ids(tmp_path / "two") == ["g1", "g2"]
    assert check_generation([]) == check_generation([0, 0]) == 1
    assert check_generation([0, 1], 2) == 2
    with pytest.raises(
        PlamoError, match="a record of generation 2 is not allowed: it must be at most max_generation=1"
    ):
        check_generation([1])


def test_the_result_depends_on_the_settings_only(inputs, tmp_path):
    config = MixConfig(**inputs, shard_records=16)
    for name in ("one", "two"):
        mix(config, tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.json*"))
    assert len(files) == 5
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    mix(MixConfig(**inputs, seed=1), tmp_path / "three")
    assert set(ids(tmp_path / "three")) != set(ids(tmp_path / "one"))


@settings(max_examples=10)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 40)), min_size=1, max_size=30),
    st.integers(0, 60),
    st.floats(0.05, 0.95),
)
def test_the_ceiling_holds_for_any_lengths(tmp_path_factory, lengths, people, ceiling):
    folder = tmp_path_factory.mktemp("mix")
    documents = (write(folder / "d.jsonl", [{"id": "d", "text": "文" * (people + 1)}]),)
    rows = [record(f"r{i}", "字" * length, recipe=recipe) for i, (recipe, length) in enumerate(lengths)]
    config = MixConfig((write(folder / "r.jsonl", rows),), documents, max_synthetic_share=ceiling)
    content = mix(config, folder / "out")
    synthetic = sum(content["synthetic"]["text"].values())
    assert synthetic <= ceiling * (synthetic + people + 1) + 1e-6


def test_a_ceiling_needs_text_that_people_wrote(inputs, tmp_path):
    with pytest.raises(
        PlamoError, match=r"max_synthetic_share=0\.5 is not possible, because there is no text written by people"
    ):
        mix(MixConfig(inputs["records"], keep_originals=False), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(
        PlamoError, match=r"MixConfig\.max_synthetic_share=2 is not allowed: it must be between 0 and 1"
    ):
        MixConfig(inputs["records"], max_synthetic_share=2)


def test_a_record_needs_an_id_and_one_content(inputs, tmp_path):
    for row, message in (({"text": "文"}, "needs an id"), ({"id": "x"}, "no text")):
        bad = write(tmp_path / "bad.jsonl", [row])
        with pytest.raises(PlamoError, match=f"bad.jsonl, line 1.*{message}"):
            mix(MixConfig((bad,), inputs["documents"]), tmp_path / "out")


def test_prepare_and_sft_read_what_mix_writes(inputs, tmp_path, capsys):
    people = write(tmp_path / "people.jsonl", [{"messages": chat("二足す三は？", "5です。")}])
    tokenizer = Tokenizer.load(TOKENIZER)
    config = MixConfig(**inputs, conversations=(people,), max_synthetic_share=0.75)
    content = mix(config, tmp_path / "out", lambda text: len(tokenizer.encode(text)))
    assert content["unit"] == "tokens"

    text, shards = tmp_path / "out" / "text", tmp_path / "shards"
    command = ("data", "prepare", "--input", text, "--tokenizer", TOKENIZER, "--output", shards)
    assert main([*map(str, command)]) == 0
    assert "read 70 records, 0 bad" in capsys.readouterr().err
    assert open_shards(shards).documents == 70

    report = ReadReport(max_bad_rate=0.0)
    conversations = read_conversations(tmp_path / "out" / "messages", report)
    examples, counts = encode_all(conversations, ChatTemplate.load("chat"), tokenizer, 256, "refuse", report)
    assert (len(examples), counts["whole"], report.bad) == (6, 6, 0)
    trained = [tokenizer.decode(example.ids[example.trained]) for example in examples]
    assert "5です。" in trained[0]
    assert "答え: 4" in trained[5]
