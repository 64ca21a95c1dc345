"""RUN@STEP in every verb that names a model: it does with the checkpoint what it does with a folder of that checkpoint alone."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from plamo2_jax import checkpoint
from plamo2_jax.adapters.open import open_model
from plamo2_jax.cli.main import main
from plamo2_jax.convert.load import load_model, read_shape
from plamo2_jax.convert.names import ModelName
from plamo2_jax.model import Plamo2, abstract_params
from plamo2_jax.train.trainable import load_params

VERBS = {
    "generate": ["generate", "MODEL", "--prompt", "ab", "--temperature", "0", "--max-new-tokens", "4", "--json"],
    "logits": ["logits", "MODEL", "--input", "IN/tokens.npz", "--output", "OUT/logits.npz"],
    "evaluate": [
        *("evaluate", "MODEL", "--heldout", "en=IN/text.txt", "--output", "OUT/figures.json"),
        *("--sequence-length", "32", "--batch-size", "1"),
    ],
    "probe": [
        *("probe", "MODEL", "--output", "OUT/probe", "--lengths", "128", "--depths", "1", "--samples", "1"),
        *("--language", "en", "--digits", "2", "--candidates", "2"),
    ],
    "convert": ["convert", "to-hf", "MODEL", "OUT/public"],
    "merge": ["merge", "MODEL", "MODEL", "OUT/merged"],
    "extend": ["extend", "MODEL", "OUT/run", "--window", "4096"],
    "grow": ["grow", "MODEL", "MODEL", "OUT/grown", "--set", "intermediate_size=48", "--noise", "0"],
    "prune": ["prune", "MODEL", "MODEL", "OUT/pruned", "--set", "intermediate_size=16", "--plan"],
    "inspect": ["inspect", "MODEL", "--json"],
}


@pytest.fixture(scope="module")
def folders(folder, tmp_path_factory):
    """One checkpoint alone, and a run that has it as step 3 and another, which is the newest."""
    home = tmp_path_factory.mktemp("names")
    loaded = load_model(folder)
    other = {**loaded.params, "embedding": loaded.params["embedding"][::-1]}
    checkpoint.save_model(home / "later", loaded.config, other, loaded.tokenizer)
    shutil.copytree(folder, home / "alone")
    shutil.copytree(folder, home / "run")
    shutil.move(home / "run/checkpoints/0", home / "run/checkpoints/3")
    shutil.copytree(home / "later/checkpoints/0", home / "run/checkpoints/9")
    np.savez(home / "tokens.npz", tokens=np.arange(1, 17, dtype=np.int32)[None])
    (home / "text.txt").write_text("The cat sat.\n" * 20)
    return home


def outcome(home, out, command, model, capsys):
    """What a command prints and writes, with the model's name taken out."""
    out.mkdir()
    words = [word.replace("MODEL", str(model)).replace("IN/", f"{home}/").replace("OUT", str(out)) for word in command]
    capsys.readouterr()
    assert main(words) in (0, None), capsys.readouterr().err
    written = {}
    for path in sorted(out.rglob("*")):
        if path.suffix == ".npz":
            written[path.name] = np.load(path)["logits"].tobytes()
        elif path.suffix in (".safetensors", ".json", ".jsonl"):
            written[path.name] = path.read_bytes()
    if (out / "run").is_dir():
        written["params"] = [
            leaf.tobytes() for leaf in map(np.asarray, jax.tree.leaves(load_model(out / "run").params))
        ]
    clean = json.dumps({name: str(content) for name, content in written.items()}, sort_keys=True)
    printed = capsys.readouterr().out
    for name in (str(model), str(out)):
        clean, printed = clean.replace(name, "NAME"), printed.replace(name, "NAME")
    return clean, printed


@pytest.mark.parametrize("verb", VERBS)
def test_a_step_is_named_in_every_verb(folders, tmp_path, capsys, verb):
    alone = outcome(folders, tmp_path / "a", VERBS[verb], folders / "alone", capsys)
    named = outcome(folders, tmp_path / "b", VERBS[verb], f"{folders / 'run'}@3", capsys)
    if verb == "inspect":
        described = [json.loads(text) for _, text in (alone, named)]
        assert [one["checkpoint"] for one in described] == [0, 3]
        assert described[0]["parameters"] == described[1]["parameters"]
        return
    if verb == "merge":  # merge.json names its sources.
        alone, named = (tuple(text.replace("NAME@0", "NAME") for text in one) for one in (alone, named))
    assert named == alone
    if verb in (
        "prune",
        "probe",
    ):  # --plan reads the shape alone; a probe of so small a model says the same of any weights.
        return
    newest = outcome(folders, tmp_path / "c", VERBS[verb], folders / "run", capsys)
    assert newest != alone


def test_training_starts_from_a_step(folders):
    """`init_from`, a reference and a teacher are read by these."""
    run, config = f"{folders / 'run'}@3", read_shape(f"{folders / 'run'}@3")
    expected = load_model(folders / "alone").params
    assert config == read_shape(folders / "alone")
    shardings = jax.tree.map(
        lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), abstract_params(Plamo2(config))
    )
    for params in (load_model(run).params, open_model(run).params, load_params(Path(run), config, shardings)):
        jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_what_a_name_says():
    assert ModelName.parse("runs/x@12", ema=True) == ModelName.parse("runs/x@12,ema")
    assert ModelName.parse("runs/x@ema", step=12) == ModelName.parse("runs/x@12,ema")
    with pytest.raises(ValueError, match="runs/x@12 already names a checkpoint: remove --step 3, or write runs/x"):
        ModelName.parse("runs/x@12", step=3)


def test_a_step_that_is_not_there(folders, capsys):
    assert main(["generate", f"{folders / 'run'}@4", "--prompt", "a"]) == 2
    assert "no finished checkpoint of step 4" in capsys.readouterr().err
