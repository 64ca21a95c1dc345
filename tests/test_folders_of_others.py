"""Folders of models from elsewhere, through every verb that writes a model from one: their chat templates and their links."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from plamo2_jax.cli.main import main
from plamo2_jax.tokenizer.chat_template import ChatTemplate

GOLDEN = Path(__file__).parent / "golden" / "window"
TEMPLATE = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
NAMED = [{"name": "tool_use", "template": "{{ tools }}"}, {"name": "default", "template": TEMPLATE}]
MODULE, ROWS = "model.layers.layers.0.mixer.in_proj", 384


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the golden model, the same as a run folder, an adapter of it, and a file that is nobody else's."""
    home = tmp_path_factory.mktemp("others")
    (home / "private.txt").write_text("machine example.org login me password secret")
    shutil.copytree(GOLDEN, home / "model")
    (home / "model" / "cases.npz").unlink()
    assert main(["convert", "from-hf", str(home / "model"), str(home / "run")]) == 0
    hidden = json.loads((home / "model" / "config.json").read_text())["hidden_size"]
    adapter = home / "downloads" / "adapter_of_others"
    adapter.mkdir(parents=True)
    factors = {"A": np.zeros((1, hidden), np.float32), "B": np.zeros((ROWS, 1), np.float32)}
    tensors = {f"base_model.model.{MODULE}.lora_{name}.weight": value for name, value in factors.items()}
    save_file(tensors, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1}))
    return home


COMMANDS = {
    "from-hf": lambda home, model, run, out: ["convert", "from-hf", model, out],
    "to-hf": lambda home, model, run, out: ["convert", "to-hf", run, out],
    "merge": lambda home, model, run, out: ["merge", model, run, out, "--method", "linear"],
    "extend": lambda home, model, run, out: ["extend", model, out, "--window", "64"],
    "lora": lambda home, model, run, out: ["lora", model, home / "downloads" / "adapter_of_others", out],
}


def run_verb(verb, home, place, out):
    return main([str(word) for word in COMMANDS[verb](home, place / "model", place / "run", out)])


@pytest.fixture
def place(home, tmp_path):
    """Copies to put something into."""
    for name in ("model", "run"):
        shutil.copytree(home / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_template_inside_tokenizer_config_comes_along(home, place, verb):
    for name in ("model", "run"):
        (place / name / "tokenizer_config.json").write_text(json.dumps({"chat_template": NAMED}))
    assert run_verb(verb, home, place, place / "out") == 0
    assert (place / "out" / "chat_template.jinja").read_text() == TEMPLATE
    # Fine-tuning may name either folder.
    for folder in ("model", "out"):
        assert ChatTemplate.load(place / folder).marks_answers


@pytest.mark.parametrize("verb", COMMANDS)
@pytest.mark.parametrize("kind", ["link", "folder", "list without default"])
def test_a_template_that_may_not_be_read_is_refused_before_anything_is_written(home, place, capsys, verb, kind):
    for name in ("model", "run"):
        path = place / name / "chat_template.jinja"
        if kind == "link":
            path.symlink_to(home / "private.txt")
        elif kind == "folder":
            path.mkdir()
        else:
            (place / name / "tokenizer_config.json").write_text(json.dumps({"chat_template": NAMED[:1]}))
    before = sorted(place.iterdir())
    assert run_verb(verb, home, place, place / "out") == 2
    said = capsys.readouterr().err
    wanted = {"link": "is a symbolic link out of its folder", "folder": "is a folder"}
    assert wanted.get(kind, "has no template named default, but only tool_use") in said
    assert said.count("\n") == 1
    assert sorted(place.iterdir()) == before


def test_a_template_that_is_a_link_within_its_folder_comes_along(home, place):
    (place / "model" / "base.jinja").write_text(TEMPLATE)
    (place / "model" / "chat_template.jinja").symlink_to("base.jinja")
    assert run_verb("from-hf", home, place, place / "out") == 0
    assert (place / "out" / "chat_template.jinja").read_text() == TEMPLATE
    assert not (place / "out" / "chat_template.jinja").is_symlink()


def test_a_snapshot_of_the_hugging_face_cache_is_read(home, tmp_path):
    repository = tmp_path / "hub" / "models--someone--model"
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    files = {path.name: path.read_bytes() for path in (home / "model").iterdir()}
    for number, (name, content) in enumerate({**files, "chat_template.jinja": TEMPLATE.encode()}.items()):
        (repository / "blobs" / f"{number:040x}").write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/{number:040x}")
    assert main(["convert", "from-hf", str(snapshot), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == TEMPLATE


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("verb", ["from-hf", "merge", "extend", "lora"])
def test_a_link_out_of_the_folder_is_refused_whatever_file_it_is(home, place, capsys, verb, file):
    (place / "model" / file).unlink()
    (place / "model" / file).symlink_to(home / "model" / file)
    assert run_verb(verb, home, place, place / "out") == 2
    assert f"{file} is a symbolic link out of its folder" in capsys.readouterr().err
    assert not (place / "out").exists()


@pytest.mark.parametrize("file", ["config.json", "checkpoints", "checkpoints/0/params"])
@pytest.mark.parametrize("verb", ["to-hf", "merge"])
def test_a_link_out_of_a_run_folder_is_refused_too(home, place, capsys, verb, file):
    path = place / "run" / file
    path.unlink() if path.is_file() else shutil.rmtree(path)
    path.symlink_to(home / "run" / file)
    assert run_verb(verb, home, place, place / "out") == 2
    assert "is a symbolic link out of its folder" in capsys.readouterr().err
    assert not (place / "out").exists()


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_linked_file_of_an_adapter_is_refused(home, tmp_path, capsys, file):
    adapter = tmp_path / "adapter"
    shutil.copytree(home / "downloads" / "adapter_of_others", adapter)
    (adapter / file).unlink()
    (adapter / file).symlink_to(home / "downloads" / "adapter_of_others" / file)
    assert main(["lora", str(home / "model"), str(adapter), str(tmp_path / "out")]) == 2
    assert f"{file} is a symbolic link out of its folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_template_beside_a_downloaded_adapter_is_not_the_adapters(home, place):
    """Only the folder `adapter` of a run has its template in the folder above."""
    (home / "downloads" / "chat_template.jinja").write_text("unrelated")
    (place / "model" / "chat_template.jinja").write_text(TEMPLATE)
    assert run_verb("lora", home, place, place / "out") == 0
    assert (place / "out" / "chat_template.jinja").read_text() == TEMPLATE
