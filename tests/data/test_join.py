"""Fields of other records are added by id; and the command for a cluster is complete."""

import shlex

import pytest

from plamo2_jax.cli.main import main
from plamo2_jax.data.join import JoinConfig, JoinReport, join
from plamo2_jax.errors import PlamoError


def test_fields_are_added_to_the_record_with_the_same_id():
    report = JoinReport()
    others = [{"id": "a", "score": 0.5, "text": "other"}, {"id": "c", "score": 1}, {"id": "a", "score": 0.5}]
    records = [{"id": "b", "text": "B"}, {"id": "a", "text": "A", "score": 0}]
    joined = list(join(records, others, JoinConfig(("score",)), report))
    assert joined == [{"id": "b", "text": "B"}, {"id": "a", "text": "A", "score": 0.5}]
    assert report == JoinReport(asked=2, missing=1)


def test_fields_are_added_to_sources():
    record = {"id": "x", "source": [{"id": "a", "sha256": "0"}, {"id": "b"}, {"id": "a"}]}
    (joined,) = join([record], [{"id": "a", "license": "CC0"}], JoinConfig(("license", "url"), "source"))
    assert joined["source"] == [
        {"id": "a", "sha256": "0", "license": "CC0"},
        {"id": "b"},
        {"id": "a", "license": "CC0"},
    ]
    assert list(join([{"id": "y"}], [], JoinConfig(("license",), "source"))) == [{"id": "y"}]


def test_records_that_cannot_be_joined_are_named():
    with pytest.raises(PlamoError, match="several records to join have the id 'a' and differ"):
        list(join([], [{"id": "a", "score": 1}, {"id": "a", "score": 2}], JoinConfig(("score",))))
    with pytest.raises(PlamoError, match="record x: the field source must be a list of objects with an id"):
        list(join([{"id": "x", "source": ["a"]}], [], JoinConfig(("score",), "source")))
    with pytest.raises(PlamoError, match="fields"):
        JoinConfig(())


def test_the_command_for_a_cluster_has_all_options(capsys):
    options = [
        "--input",
        "in put/*.jsonl",
        "--output",
        "gs://b/out",
        "--stages",
        "clean",
        "score",
        "--model",
        "q.safetensors",
    ]
    options += ["--min-chars", "10", "--max-bad-rate", "0.1"]
    assert main(["data", "beam", *options, "--beam-options", "project=p", "flink_master=h:1", "--dry-run"]) == 0
    dataflow, flink = map(shlex.split, capsys.readouterr().out.splitlines())
    for command in (dataflow, flink):
        pairs = [command[i : i + 2] for i in range(len(command))]
        assert all(options[i : i + 2] in pairs for i in range(len(options)) if options[i].startswith("--"))
        assert "project=p" in command
        assert "--dry-run" not in command
    assert {"region=REGION", "sdk_container_image=IMAGE"} <= set(dataflow)
    assert "project=PROJECT" not in dataflow
    assert {"environment_type=DOCKER", "flink_master=h:1"} <= set(flink)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stages", "score"], "the stage score needs --model"),
        (["--stages", "clean", "clean"], "--stages must name at least one stage, and each stage only once"),
        (["--beam-options", "project"], "--beam-options project is not allowed"),
        (["--runner", "dataflow"], "--runner dataflow needs --beam-options project=PROJECT region=REGION"),
    ],
)
def test_bad_options_are_named(options, message, capsys):
    assert main(["data", "beam", "--input", "x.jsonl", "--output", "out", *options]) == 2
    assert message in capsys.readouterr().err
