"""`import plamo2_jax as plamo2`: the public names, and the examples of docs/python_api.md."""

import ast
import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

import plamo2_jax as plamo2
from plamo2_jax import checkpoint
from plamo2_jax.data.documents import Document
from plamo2_jax.data.shard_writer import write_shards
from support.models import make_params, tiny
from support.tokenizers import byte_tokenizer

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "python_api.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
STABLE = {
    "ChatModel",
    "ChatRequest",
    "CompletionRequest",
    "MergeConfig",
    "ModelConfig",
    "PlamoError",
    "QuantizeConfig",
    "RunConfig",
    "ScoreRequest",
    "ServeConfig",
    "Tokenizer",
    "__version__",
    "chat",
    "convert_model",
    "evaluate_model",
    "generate",
    "load",
    "merge_models",
    "preset",
    "prune_model",
    "quantize_model",
    "serve_model",
    "train_model",
}
"""Users' programs depend on these names. A name may be added; removing one needs a new major version."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder like the one that `make demo` leaves, with a tiny model."""
    home = tmp_path_factory.mktemp("api")
    demo, tokenizer = home / "runs" / "demo", byte_tokenizer()
    config = tiny(
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        intermediate_size=96,
    )
    checkpoint.save_model(demo, config, make_params(config), tokenizer)
    texts = [Document(f"Document {i} of {'MANY ' * (i % 5)}words.", str(i)) for i in range(20)]
    write_shards(texts, tokenizer, demo / "data" / "en" / "train", progress=False)
    write_shards(texts[:4], tokenizer, demo / "data" / "en" / "heldout", progress=False)
    return home


@pytest.fixture
def in_home(home, monkeypatch):
    """Run a test in the folder."""
    monkeypatch.chdir(home)
    return home


def example(call):
    """Return the example that contains a call."""
    (found,) = [code for code in EXAMPLES if call in code]
    return found


def run(code):
    """Run an example, and return its names."""
    names: dict = {}
    exec(compile(code, "docs/python_api.md", "exec"), names)
    return names


def test_the_public_names_are_stable():
    assert set(plamo2.__all__) >= STABLE
    listed = re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)
    assert {name for cell in listed for name in re.findall(r"`(\w+)", cell)} == set(plamo2.__all__)
    assert set(plamo2.__all__) <= set(dir(plamo2))
    for name in plamo2.__all__:
        assert getattr(plamo2, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        _ = plamo2.no_such_name


def test_no_public_name_is_a_module():
    """Importing a sub-package sets an attribute of its name, which would replace the function."""
    folder = Path(plamo2.__file__).parent
    modules = {path.stem for path in folder.iterdir()}
    assert {"train", "convert", "config"} <= modules
    assert modules & set(plamo2.__all__) == set()


def test_type_checkers_see_the_names_that_are_imported():
    tree = ast.parse(Path(plamo2.__file__).read_text(encoding="utf-8"))
    (branch,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: f"{node.module}" for node in branch.body for alias in node.names}
    assert seen == {name: f"plamo2_jax.{module}" for name, module in plamo2._MODULES.items()}
    assert set(plamo2.__all__) == {*seen, "__version__"}


def test_the_import_is_light():
    code = "import sys, plamo2_jax; plamo2_jax.load, dir(plamo2_jax); print(sorted({'jax', 'numpy', 'flax'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_example_is_run_here():
    calls = ["temperature=0)", "texts =", "ScoreRequest", "train_model", "evaluate_model"]
    calls += ["prune_model", "serve_model", "no/such"]
    assert [example(call) for call in calls] == EXAMPLES


def test_generating_scoring_and_chatting(in_home, capsys):
    run(example("temperature=0)"))
    assert len(capsys.readouterr().out.splitlines()) >= 2
    names = run(example("texts ="))
    assert [type(text) for text in names["texts"]] == [str, str]
    assert isinstance(names["answer"], str)
    scored = run(example("ScoreRequest"))
    assert scored["best"].logprob == max(score.logprob for score in scored["scores"]) < 0
    # A name is opened for this call only.
    text = plamo2.generate("runs/demo", "The window", temperature=0.7, seed=1)
    assert text == names["texts"][0]


def test_what_cannot_be_generated_is_refused(in_home):
    with plamo2.load("runs/demo", max_prompt_tokens=16) as model:
        with pytest.raises(plamo2.PlamoError, match=r"prompt 1: .* exceed the model's maximum"):
            plamo2.generate(model, ["short", "x" * 3000])
        with pytest.raises(plamo2.PlamoError, match="max_prompt_tokens=16 are allowed"):
            plamo2.chat(model, "x" * 100)
        with pytest.raises(plamo2.PlamoError, match="top_p=0"):
            plamo2.generate(model, "x", top_p=0)
    with pytest.raises(plamo2.PlamoError, match="model='demo' is not allowed with the folder"):
        plamo2.load("runs/demo", model="demo")
    with pytest.raises(plamo2.PlamoError, match="layout='xml' is not allowed"):
        plamo2.convert_model("runs/demo", "out", "xml")
    with pytest.raises(plamo2.PlamoError, match="data names 'jmmlu', which is not one of the tasks"):
        plamo2.evaluate_model("runs/demo", data={"jmmlu": "x"})
    run(example("no/such"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: plamo2.convert_model("runs/demo", "out", dtype="int8"),
            "dtype int8 is not allowed: it must be float32 or",
        ),
        (lambda: plamo2.convert_model("runs/demo", "out", "run", dtype="foo"), "dtype foo is not allowed"),
        (lambda: plamo2.serve_model("runs/demo", dtype="float16"), "dtype float16 is not allowed"),
        (lambda: plamo2.prune_model("runs/demo", "out", {}, calibration="x"), "target={} is not allowed"),
        (
            lambda: plamo2.prune_model("runs/demo", "out", {"intermediate_size": 64}, calibration="x", method="foo"),
            "method='foo' is not allowed: it must be one of activation, taylor, magnitude, random",
        ),
        (lambda: plamo2.evaluate_model("runs/demo"), "there is nothing to evaluate"),
        (lambda: plamo2.evaluate_model("runs/demo", tasks=["cloze"], limit=-1), "limit=-1 is not allowed"),
        (lambda: plamo2.evaluate_model("runs/demo", tasks="cloze"), "tasks must be a list of names"),
        (lambda: plamo2.load("runs/demo", api_key_env="X"), "api_key_env='X' is not allowed with the folder"),
        (
            lambda: plamo2.load("http://h/v1", model="m", dtype="bfloat16"),
            "dtype='bfloat16' is not allowed with the server",
        ),
        (lambda: plamo2.load("runs/demo", batch_size=2.5), "batch_size=2.5 is not allowed"),
        (lambda: plamo2.Tokenizer.load("nosuch"), "nosuch does not exist"),
        (lambda: plamo2.serve_model("runs/demo", api_key_file="nosuch"), "nosuch is not a file"),
        (
            lambda: plamo2.serve_model("runs/demo", plamo2.ServeConfig(slots=2.5)),
            "slots=2.5 is not allowed: it must be an integer",
        ),
        (lambda: plamo2.preset("tiny", foo=3), "ModelConfig has no field 'foo'"),
        (
            lambda: plamo2.merge_models(["runs/demo"], "out", "linear"),
            "config='linear' is not allowed: it must be of type MergeConfig",
        ),
        (lambda: plamo2.merge_models("runs/demo", "out"), "is one path: it must be a list of models"),
        (lambda: plamo2.quantize_model("runs/demo", "out", "int8"), "it must be of type QuantizeConfig"),
        (
            lambda: plamo2.quantize_model("runs/demo", "out", budget="1GB"),
            "budget='1GB' is not allowed: it must be of type int",
        ),
    ],
)
def test_values_of_other_kinds_are_one_sentence(in_home, call, message):
    with pytest.raises(plamo2.PlamoError, match=re.escape(message)):
        call()
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "settings", [{"max_new_tokens": 1.5}, {"max_new_tokens": "4"}, {"temperature": "1"}, {"stop": [1]}, {"seed": 1.5}]
)
def test_settings_of_other_types_are_refused(in_home, settings):
    with pytest.raises(plamo2.PlamoError, match=f"{next(iter(settings)).replace('stop', 'strings')}="):
        plamo2.generate("runs/demo", "x", **settings)


def test_training_and_evaluating(in_home, capsys):
    names = run(example("train_model").replace("num_hidden_layers=2", "num_hidden_layers=1"))
    assert names["result"].step == 2
    assert plamo2.train_model(names["config"]).step == 2
    assert (names["config"].folder / "tensorboard").is_dir()
    without = dataclasses.replace(names["config"], name="without")
    with pytest.raises(plamo2.PlamoError, match="metrics='wandb' is not allowed: it must be a list of"):
        plamo2.train_model(without, metrics="wandb")
    assert not without.folder.exists()
    assert plamo2.train_model(without, metrics=()).step == 2
    assert (without.folder / "metrics.jsonl").exists()
    assert not (without.folder / "tensorboard").exists()
    results = run(example("evaluate_model"))["results"]
    assert 0 < results["en"]["bits_per_byte"] < 30
    assert results["cloze"]["n"] == 4


def test_changing_and_exporting(in_home, capsys):
    smaller = run(example("prune_model"))["smaller"]
    assert smaller.intermediate_size == 64
    assert "model" in capsys.readouterr().out
    assert (in_home / "merged" / "model.safetensors").exists()
    assert "compressed-tensors" in (in_home / "exported" / "config.json").read_text()
    shape = plamo2.convert_model("merged", "runs/merged", "run")
    assert shape == plamo2.convert_model("runs/merged", "again", dtype="bfloat16")


def test_serving(in_home):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = []

    def ask_and_stop():
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not answers:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=10) as response:
                    answers.append(response.read().decode())
            except OSError:
                time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    asking = threading.Thread(target=ask_and_stop)
    asking.start()
    run(example("serve_model").replace("port=8000", f"port={port}, warm_up=False"))
    asking.join()
    assert '"id":"demo"' in answers[0].replace(" ", "")
