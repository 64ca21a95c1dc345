"""`plamo2 generate` on a run folder."""

import json

import pytest

from plamo2_jax.checkpoint import save_model
from plamo2_jax.cli.main import main
from plamo2_jax.infer.sampling import SamplingConfig
from plamo2_jax.infer.stop import StopConfig

OPTIONS = ["--max-new-tokens", "12", "--temperature", "1", "--top-p", "0.9", "--seed", "7"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model, params, tokenizer):
    folder = tmp_path_factory.mktemp("generate") / "model"
    save_model(folder, model.config, params, tokenizer)
    return str(folder)


@pytest.fixture(scope="module")
def expected(generator):
    return generator.generate(
        ["猫は", "ab"],
        sampling=SamplingConfig(top_p=0.9),
        stop=StopConfig(12),
        seed=7,
        samples=2,
    )


def test_json_lines_hold_every_row_in_order(folder, expected, tmp_path, capsys):
    path = tmp_path / "prompt.txt"
    path.write_text("ab\n", encoding="utf-8")
    command = ["generate", folder, "--prompt", "猫は", "--prompt-file", str(path), "--samples", "2", "--json", *OPTIONS]
    assert main(command) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["prompt"], row["sample"]) for row in rows] == [("猫は", 0), ("猫は", 1), ("ab", 0), ("ab", 1)]
    for row, completion in zip(rows, expected, strict=True):
        assert (row["text"], tuple(row["token_ids"])) == (completion.text, completion.token_ids)
        assert row["finish_reason"] == completion.finish_reason


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_a_single_row_is_printed_as_text(folder, expected, capsys, stream):
    assert main(["generate", folder, "--prompt", "猫は", stream, *OPTIONS]) == 0
    assert capsys.readouterr().out == expected[0].text + "\n"


def test_stop_strings_and_ids_end_a_row(folder, expected, capsys):
    token = expected[0].token_ids[5]
    command = ["generate", folder, "--prompt", "猫は", "--json", *OPTIONS]
    assert main([*command, "--stop-id", str(token)]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["finish_reason"], row["token_ids"][-1]) == ("stop_id", token)
    string = expected[0].text[4:6]
    assert main([*command, "--stop", "never there", "--stop", string]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["finish_reason"], row["text"]) == ("stop_string", expected[0].text.split(string)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "-1"], "temperature=-1"),
        (["--max-new-tokens", "0"], "max_new_tokens=0"),
        (["--stop-id", "999"], "go from 0 to 287"),
        (["--prompt-file", "/nowhere/prompt.txt"], "/nowhere/prompt.txt"),
    ],
)
def test_bad_options_are_one_line(folder, capsys, options, message):
    assert main(["generate", folder, *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_model_without_a_tokenizer_asks_for_one(model, params, tokenizer, tmp_path, capsys):
    save_model(tmp_path / "bare", model.config, params)
    command = ["generate", str(tmp_path / "bare"), "--prompt", "ab", "--no-stream", *OPTIONS]
    assert main(command) == 2
    assert "--tokenizer" in capsys.readouterr().err
    path = tokenizer.save(tmp_path / "tokenizer.jsonl")
    assert main([*command, "--tokenizer", str(path)]) == 0
