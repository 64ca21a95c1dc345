"""`plamo2 generate` on a run folder."""

import json

import numpy as np
import pytest

from plamo2_jax.checkpoint import save_model
from plamo2_jax.cli.main import main
from plamo2_jax.engine.sampling import SamplingConfig
from plamo2_jax.engine.stop import StopConfig

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
    path.write_text("ab", encoding="utf-8")
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
        (["--stop-id", "999"], "the model has ids from 0 to 287"),
        (["--prompt-file", "/nowhere/prompt.txt"], "/nowhere/prompt.txt"),
        (["--chat", "a", "--prompt", "b"], "cannot be combined"),
        (["--system", "a"], "--system applies only to --chat"),
        (["--template", "chat"], "--template applies only to --chat"),
        (["--chat", "a", "--template", "/nowhere/x.jinja"], "/nowhere/x.jinja does not exist"),
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


def ids_asked(capsys, command):
    """The one row of a command, and what it said."""
    assert main(command) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


@pytest.fixture
def answer(generator, tokenizer):
    """Token ids that the model writes behind given ids."""

    def write(ids):
        options = {"sampling": SamplingConfig(temperature=0.0), "stop": StopConfig(6, ids=())}
        return list(generator.generate([ids], **options)[0].token_ids)

    return write


GREEDY = ["--json", "--temperature", "0", "--max-new-tokens", "6", "--min-new-tokens", "6"]


def test_a_control_string_is_text_with_a_warning(folder, tokenizer, answer, capsys):
    prompt = "<|plamo:op|>a<|plamo:eos|>"
    row, said = ids_asked(capsys, ["generate", folder, "--prompt", prompt, *GREEDY])
    assert row["token_ids"] == answer(tokenizer.encode(prompt, bos=True))
    assert "warning: <|plamo:eos|>, <|plamo:op|> in the prompt is encoded as text" in said
    assert "--allow-control" in said
    row, said = ids_asked(capsys, ["generate", folder, "--prompt", prompt, "--allow-control", *GREEDY])
    assert row["token_ids"] == answer(tokenizer.encode(prompt, bos=True, allow_control=True))
    assert "warning" not in said
    assert "warning" not in ids_asked(capsys, ["generate", folder, "--prompt", "<|plamo:o", *GREEDY])[1]


def test_a_prompt_that_begins_with_bos_has_it_once(folder, tokenizer, answer, capsys):
    with_bos, without = "<|plamo:bos|><|plamo:op|>a", "<|plamo:op|>a"
    wanted = answer(tokenizer.encode(with_bos, allow_control=True))
    for prompt in (with_bos, without):
        row, _ = ids_asked(capsys, ["generate", folder, "--prompt", prompt, "--allow-control", *GREEDY])
        assert row["token_ids"] == wanted


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"a\n", "a\n"),
        (b"a\n\n", "a\n\n"),
        (b"a", "a"),
        (b"\xef\xbb\xbfa\r\nb\r\n", "a\nb\n"),
        (b"a\rb", "a\rb"),
    ],
)
def test_a_prompt_file_is_read_to_the_last_newline(folder, tmp_path, capsys, content, text):
    path = tmp_path / "prompt.txt"
    path.write_bytes(content)
    row, said = ids_asked(capsys, ["generate", folder, "--prompt-file", str(path), *GREEDY])
    assert row["prompt"] == text
    assert ("CRLF line ends" in said) == (b"\r\n" in content)


def test_a_folder_that_does_not_exist_is_reported_once(capsys):
    assert main(["generate", "nowhere", "--chat", "a"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "plamo2 generate: nowhere is not a folder: a model is a run folder or a folder with config.json and safetensors"
    ]


def test_a_message_is_written_into_the_models_template(folder, model, params, tokenizer, answer, tmp_path, capsys):
    row, said = ids_asked(capsys, ["generate", folder, "--chat", "<|plamo:eos|>", "--system", "s", *GREEDY])
    written = "<|plamo:bos|><|plamo:op|>system\ns\n<|plamo:op|>user\n", "<|plamo:eos|>", "\n<|plamo:op|>assistant\n"
    # What a user writes is text.
    ids = [tokenizer.encode(piece, allow_control=i != 1) for i, piece in enumerate(written)]
    assert row["token_ids"] == answer(np.concatenate(ids))
    assert row["prompt"] == "<|plamo:eos|>"
    assert "has no chat template; using the built-in template `chat`" in said
    assert "warning" not in said
    own = tmp_path / "own"
    save_model(own, model.config, params, tokenizer)
    (own / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": "{{ bos_token }}{{ messages[0].content }}!"})
    )
    row, said = ids_asked(capsys, ["generate", str(own), "--chat", "ab", *GREEDY])
    assert row["token_ids"] == answer(tokenizer.encode("ab!", bos=True))
    assert "template" not in said
    row, _ = ids_asked(capsys, ["generate", str(own), "--chat", "ab", "--template", "translate", *GREEDY])
    assert row["token_ids"] != answer(tokenizer.encode("ab!", bos=True))


def test_a_linked_template_is_refused_before_the_model_is_read(folder, tmp_path, capsys):
    own = tmp_path / "own"
    own.mkdir()
    (own / "chat_template.jinja").symlink_to("/etc/hostname")
    assert main(["generate", str(own), "--chat", "a"]) == 2
    assert "is a symbolic link out of its folder" in capsys.readouterr().err


def test_several_devices_write_what_one_does(folder, capsys):
    command = ["generate", folder, "--prompt", "猫は", "--prompt", "ab", "--json", *OPTIONS]
    outputs = []
    for tensor in ("1", "4"):
        assert main([*command, "--mesh.tensor", tensor]) == 0
        outputs.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    for one, divided in zip(*outputs, strict=True):
        assert one.pop("logprobs") == pytest.approx(divided.pop("logprobs"), abs=1e-5)
        assert one == divided


def test_logits_of_several_devices_are_those_of_one(folder, tmp_path):
    np.savez(tmp_path / "in.npz", tokens=np.arange(5, 29).reshape(2, 12))
    found = []
    for tensor in ("1", "8"):
        output = tmp_path / f"out_{tensor}.npz"
        assert (
            main(
                [
                    "logits",
                    folder,
                    "--input",
                    str(tmp_path / "in.npz"),
                    "--output",
                    str(output),
                    "--mesh.tensor",
                    tensor,
                ]
            )
            == 0
        )
        found.append(np.load(output)["logits"])
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)


def test_more_devices_than_there_are_is_refused(folder, capsys):
    assert main(["generate", folder, "--mesh.tensor", "9"]) == 2
    assert "--mesh.tensor 9 is not allowed: it must be from 1 to 8" in capsys.readouterr().err
