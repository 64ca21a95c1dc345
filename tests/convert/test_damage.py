"""What is wrong with a folder is said in one sentence that names the tensor or file, and nothing is left behind."""

import dataclasses
import json
import struct
import subprocess

import numpy as np
import pytest
from safetensors.numpy import save_file

from plamo2_jax.cli.main import main
from plamo2_jax.convert.errors import ConvertError
from plamo2_jax.convert.hf import from_public, to_public
from support.checkpoints import CONFIG, random_tensors, write_public

D = "model.layers.layers.0.mixer.D"


def rewrite_header(path, change):
    """Change the JSON of a safetensors header, leaving the data where it is."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    text = change(header) or json.dumps(header)
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + data[8 + length :])


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def without(tensors, *names):
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def resave(folder, tensors):
    save_file(tensors, folder / "model.safetensors")


def truncate(path, size):
    path.write_bytes(path.read_bytes()[:size])


def edit_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def link_out(path):
    outside = path.parent.parent / "outside"
    path.rename(outside)
    path.symlink_to(outside)


SINGLE = {
    "missing tensor": (lambda f, t: resave(f, without(t, D)), rf"does not have 1 tensor\(s\) .*: {D}"),
    "extra tensor": (lambda f, t: resave(f, {**t, "mixer.E": np.ones(2)}), "dtype F64"),
    "unknown tensor": (
        lambda f, t: resave(f, {**t, "mixer.E": np.ones(2, np.float32)}),
        r"has 1 tensor\(s\) that the model .*: mixer\.E",
    ),
    "misshapen tensor": (
        lambda f, t: resave(f, {**t, D: np.ones(9, np.float32)}),
        rf"tensor {D} has shape \[9\]; config.json requires \[8\]",
    ),
    "transposed tensor": (
        lambda f, t: resave(f, {**t, "model.embed_tokens.weight": t["model.embed_tokens.weight"].T.copy()}),
        r"model.embed_tokens.weight has shape \[32, 864\]; config.json requires \[864, 32\]",
    ),
    "wrong dtype": (
        lambda f, t: resave(f, {**t, D: np.ones(8, np.int32)}),
        rf"tensor {D} has dtype I32: it must be one of F32, BF16, F16",
    ),
    "truncated file": (lambda f, t: truncate(f / "model.safetensors", 50_000), "model.safetensors is damaged"),
    "truncated header": (lambda f, t: truncate(f / "model.safetensors", 100), "model.safetensors is damaged"),
    "empty file": (lambda f, t: truncate(f / "model.safetensors", 0), "model.safetensors is damaged"),
    "bytes too many": (
        lambda f, t: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes() + b"0"),
        "model.safetensors is damaged",
    ),
    "header is no JSON": (
        lambda f, t: rewrite_header(f / "model.safetensors", lambda h: "{]"),
        "model.safetensors is damaged",
    ),
    "huge header": (
        lambda f, t: (f / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}"),
        "model.safetensors is damaged",
    ),
    "offsets overlap": (
        lambda f, t: rewrite_header(f / "model.safetensors", lambda h: h[D].update(data_offsets=[0, 32])),
        "model.safetensors is damaged",
    ),
    "shape beyond its bytes": (
        lambda f, t: rewrite_header(f / "model.safetensors", lambda h: h[D].update(shape=[800])),
        "model.safetensors is damaged",
    ),
    "tensor twice in a header": (
        lambda f, t: rewrite_header(
            f / "model.safetensors", lambda h: json.dumps(h)[:-1] + f', "{D}": {json.dumps(h[D])}' + "}"
        ),
        f"{D}.* twice|damaged",
    ),
    "weights linked out of the folder": (
        lambda f, t: link_out(f / "model.safetensors"),
        "model.safetensors is a symbolic link out of",
    ),
    "config linked out of the folder": (
        lambda f, t: link_out(f / "config.json"),
        "config.json is a symbolic link out of",
    ),
    "no config": (lambda f, t: (f / "config.json").unlink(), "has no file config.json"),
    "config no JSON": (lambda f, t: (f / "config.json").write_text("{"), "config.json is not valid JSON"),
    "config no object": (
        lambda f, t: (f / "config.json").write_text("[]"),
        "config.json must hold a JSON object, not list",
    ),
    "another architecture": (lambda f, t: change_config(f, model_type="llama"), "model_type='llama' is not supported"),
    "config of another size": (
        lambda f, t: change_config(f, num_hidden_layers=6, layers_block_type=None),
        r"does not have: .*layers\.6\.",
    ),
    "config with other layers": (
        lambda f, t: change_config(f, num_hidden_layers=6),
        "must be a list with one name for each of 6 layers",
    ),
    "config out of range": (lambda f, t: change_config(f, hidden_size=-1), "hidden_size=-1 is not allowed"),
    "config of a wrong type": (
        lambda f, t: change_config(f, rms_norm_eps="x"),
        "config.json: ModelConfig.rms_norm_eps='x' is not allowed",
    ),
    "tied by config, untied file of another width": (
        lambda f, t: change_config(f, vocab_size=800),
        r"embed_tokens.weight has shape \[864, 32\]; config.json requires \[800, 32\]",
    ),
    "only a pickle": (
        lambda f, t: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        r"only pickled weights \(pytorch_model.bin\): they are refused, because loading a pickle can run code",
    ),
    "no weights": (
        lambda f, t: (f / "model.safetensors").unlink(),
        "neither model.safetensors nor model.safetensors.index.json",
    ),
    "single file and index": (
        lambda f, t: (f / "model.safetensors.index.json").write_text("{}"),
        "has both model.safetensors and model.safetensors.index.json",
    ),
    "tokenizer linked out": (
        lambda f, t: (f / "tokenizer.jsonl").symlink_to("/etc/hostname"),
        "tokenizer.jsonl is a symbolic link out of",
    ),
    "tokenizer damaged": (lambda f, t: (f / "tokenizer.jsonl").write_text("[1]\n"), "tokenizer.jsonl, line 1"),
}
FIRST, SECOND = "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"
SHARDED = {
    "missing shard": (lambda f, t: (f / SECOND).unlink(), f"has no file {SECOND}"),
    "shard linked out": (lambda f, t: link_out(f / SECOND), f"{SECOND} is a symbolic link out of"),
    "truncated shard": (lambda f, t: truncate(f / SECOND, 5_000), f"{SECOND} is damaged"),
    "index outside": (
        lambda f, t: edit_index(f, lambda w: w.update({D: "../x.safetensors"})),
        r"outside the folder, '\.\./x",
    ),
    "index absolute": (
        lambda f, t: edit_index(f, lambda w: w.update({D: "/x.safetensors"})),
        "outside the folder, '/x",
    ),
    "index names a number": (
        lambda f, t: edit_index(f, lambda w: w.update({D: 3})),
        f"the file of tensor '{D}' must be a file name",
    ),
    "index empty": (lambda f, t: (f / "model.safetensors.index.json").write_text("{}"), 'has no object "weight_map"'),
    "index no JSON": (
        lambda f, t: (f / "model.safetensors.index.json").write_text("{"),
        "index.json is not valid JSON",
    ),
    "tensor in two shards": (
        lambda f, t: save_file({**dict(list(t.items())[0::3]), D: t[D]}, f / FIRST),
        f"tensor {D} is in two files, {FIRST} and model-0000",
    ),
    "tensor the index lacks": (
        lambda f, t: edit_index(f, lambda w: w.pop(D)),
        f"has the tensor {D}, which model.safetensors.index.json does not list",
    ),
    "tensor a shard lacks": (
        lambda f, t: save_file(without(dict(list(t.items())[0::3]), "model.embed_tokens.weight"), f / FIRST),
        f"{FIRST} does not have the tensor model.embed_tokens.weight, but model.safetensors.index.json lists it there",
    ),
    "index misplaces a tensor": (
        lambda f, t: edit_index(f, lambda w: w.update({D: next(x for x in (FIRST, SECOND) if x != w[D])})),
        f"tensor {D} is in .*, but model.safetensors.index.json lists it in",
    ),
}


def assert_refused(folder, message):
    before = {path: path.lstat().st_mtime_ns for path in folder.parent.rglob("*")}
    with pytest.raises(ValueError, match=message):
        from_public(folder, folder.parent / "run")
    assert {path: path.lstat().st_mtime_ns for path in folder.parent.rglob("*")} == before


@pytest.mark.parametrize("case", SINGLE)
def test_a_damaged_folder(public, tensors, case):
    damage, message = SINGLE[case]
    damage(public, tensors)
    assert_refused(public, message)


@pytest.mark.parametrize("case", SHARDED)
def test_a_damaged_sharded_folder(sharded, tensors, case):
    damage, message = SHARDED[case]
    damage(sharded, tensors)
    assert_refused(sharded, message)


def test_a_tokenizer_with_more_rows_than_the_model(tmp_path, golden_tokenizer):
    config = dataclasses.replace(CONFIG, vocab_size=400)
    folder = write_public(tmp_path / "public", random_tensors(config), config)
    (folder / "tokenizer.jsonl").write_bytes(golden_tokenizer.read_bytes())
    assert_refused(folder, "861 rows: at most the model's vocab_size=400")


def test_an_output_in_use_is_not_touched(public, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes").write_text("mine")
    with pytest.raises(ValueError, match="already exists"):
        from_public(public, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes"]


def test_a_write_that_fails_midway_leaves_nothing(public, tmp_path):
    from_public(public, tmp_path / "run")

    def full_disk(done, total):
        if done:
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="the disk is full"):
        to_public(tmp_path / "run", tmp_path / "back", on_write=full_disk)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["public", "run"]


def test_folders_of_the_other_kind_are_named(public, tmp_path):
    with pytest.raises(ConvertError, match="is already a folder in Hugging Face format"):
        to_public(public, tmp_path / "out")
    from_public(public, tmp_path / "run")
    with pytest.raises(ConvertError, match="is already a run folder"):
        from_public(tmp_path / "run", tmp_path / "out")
    with pytest.raises(ConvertError, match="is not a folder"):
        from_public(tmp_path / "nowhere", tmp_path / "out")


def test_the_command_says_it_in_one_line(sharded, tmp_path, capfd):
    (sharded / SECOND).unlink()
    assert main(["convert", "from-hf", str(sharded), str(tmp_path / "run")]) == 2
    assert capfd.readouterr().err == f"plamo2 convert: {sharded} has no file {SECOND}\n"


@pytest.mark.parametrize("size", ["0", "5 apples", "-1GB", "GB", ""])
def test_sizes_that_are_none(tmp_path, public, size, capfd):
    from_public(public, tmp_path / "run")
    arguments = ["convert", "to-hf", str(tmp_path / "run"), str(tmp_path / "back"), f"--max-shard-size={size}"]
    assert main(arguments) == 2
    assert "is not a size: it must be like 5GB" in capfd.readouterr().err


@pytest.mark.parametrize("write", [from_public, to_public], ids=["from-hf", "to-hf"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(public, tmp_path, write):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        source = public
        if write is to_public:
            source = tmp_path / "run"
            from_public(public, source)
        with pytest.raises(OSError, match=r"disk/out could not be written: the disk is full"):
            write(source, disk / "out")
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)
