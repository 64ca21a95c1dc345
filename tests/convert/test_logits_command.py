"""`plamo2 logits` on golden checkpoints, from both kinds of folder."""

import io
import json
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from plamo2_jax.cli.logits import read_input
from plamo2_jax.cli.main import main
from plamo2_jax.convert.hf import from_public

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ("single", "packed", "left_padded", "packed_right_padded")


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "window" / "cases.npz", allow_pickle=False) as cases:
        return {
            key: np.stack([cases[f"{case}.{key}"] for case in CASES]) for key in ("tokens", "segment_ids", "logits")
        }


def run(model, arrays, folder, *options):
    np.savez(folder / "in.npz", **arrays)
    return main(
        ["logits", str(model), "--input", str(folder / "in.npz"), "--output", str(folder / "out.npz"), *options]
    )


def distance(folder, golden):
    with np.load(folder / "out.npz", allow_pickle=False) as out:
        assert out.files == ["logits"]
        logits = out["logits"]
    assert logits.dtype == np.float32
    assert logits.shape == golden["logits"].shape
    real = golden["segment_ids"] != 0
    return np.linalg.norm(logits[real] - golden["logits"][real]) / np.linalg.norm(golden["logits"][real])


def test_both_kinds_of_folder_give_the_golden_logits(golden, tmp_path):
    arrays = {"tokens": golden["tokens"].astype(np.int64), "segment_ids": golden["segment_ids"]}
    from_public(GOLDEN / "window", tmp_path / "run")
    # Three rows at a time leave one for the last batch.
    for model, options in ((GOLDEN / "window", ["--batch-size", "3"]), (tmp_path / "run", ["--step", "0"])):
        assert not run(model, arrays, tmp_path, *options)
        assert distance(tmp_path, golden) <= 2e-5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npz", "out.npz", "run"]


def test_without_segment_ids_a_row_is_one_document(golden, tmp_path):
    first = {key: value[:1] for key, value in golden.items()}
    assert not run(GOLDEN / "window", {"tokens": first["tokens"]}, tmp_path)
    assert distance(tmp_path, first) <= 2e-5


def test_bfloat16_is_near_but_not_the_same(golden, tmp_path):
    arrays = {key: golden[key] for key in ("tokens", "segment_ids")}
    assert not run(GOLDEN / "window", arrays, tmp_path, "--dtype", "bfloat16")
    assert 1e-4 < distance(tmp_path, golden) < 0.1


def test_long_rows_are_projected_in_blocks(golden, tmp_path, monkeypatch):
    monkeypatch.setattr("plamo2_jax.cli.logits._BLOCK", 16)
    arrays = {key: golden[key] for key in ("tokens", "segment_ids")}
    assert not run(GOLDEN / "window", arrays, tmp_path)
    assert distance(tmp_path, golden) <= 2e-5


def bad(tokens, segment_ids):
    def at(array, value):
        array = array.copy()
        array[2, 5] = value
        return array

    return {
        "no tokens": ({"ids": tokens}, "in.npz has no array tokens: its arrays are ids"),
        "floats": ({"tokens": tokens.astype(np.float32)}, "tokens must be integers, not float32"),
        "float segments": (
            {"tokens": tokens, "segment_ids": segment_ids * 1.0},
            "segment_ids must be integers, not float64",
        ),
        "one axis": ({"tokens": tokens[0]}, "tokens must have two axes [b, t], neither empty, not shape (61,)"),
        "empty": ({"tokens": tokens[:0]}, "neither empty, not shape (0, 61)"),
        "other shape": (
            {"tokens": tokens, "segment_ids": segment_ids[:, :60]},
            "segment_ids has shape (4, 60): it must be (4, 61)",
        ),
        "id too large": (
            {"tokens": at(tokens, 256)},
            "tokens[2, 5] is 256: it must be from 0 to 255 (1 value(s) are out of range)",
        ),
        "id negative": ({"tokens": at(tokens, -1)}, "tokens[2, 5] is -1: it must be from 0 to 255"),
        "segment negative": ({"tokens": tokens, "segment_ids": at(segment_ids, -1)}, "segment_ids[2, 5] is -1"),
        "pickled": ({"tokens": np.array([[None]])}, "in.npz is not a readable .npz file of plain arrays"),
    }


@pytest.mark.parametrize("case", list(bad(np.zeros((4, 61), np.int32), np.zeros((4, 61), np.int32))))
def test_bad_input_is_one_sentence(case, golden, tmp_path, capfd):
    arrays, message = bad(golden["tokens"], golden["segment_ids"])[case]
    assert run(GOLDEN / "window", arrays, tmp_path) == 2
    error = capfd.readouterr().err
    assert error.startswith("plamo2 logits: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.npz").exists()


def test_files_that_are_no_archive(tmp_path, capfd):
    for content in (b"", b"PK\x03\x04 broken", b"text"):
        (tmp_path / "in.npz").write_bytes(content)
        arguments = ["--input", str(tmp_path / "in.npz"), "--output", str(tmp_path / "out.npz")]
        assert main(["logits", str(GOLDEN / "window"), *arguments]) == 2
        assert "is not a readable .npz" in capfd.readouterr().err
    assert main(["logits", str(GOLDEN / "window"), "--input", str(tmp_path / "no.npz"), *arguments[2:]]) == 2
    assert "no.npz" in capfd.readouterr().err


def test_rope_as_transformers_5_writes_it(tmp_path, capfd):
    """The base inside of rope_parameters gives the golden logits; a second one at the top, which disagrees, is refused."""
    folder = shutil.copytree(GOLDEN / "full", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    newer = {key: value for key, value in config.items() if key not in ("rope_theta", "torch_dtype")}
    newer |= {"dtype": "float32", "rope_parameters": {"rope_type": "default", "rope_theta": config["rope_theta"]}}
    with np.load(GOLDEN / "full" / "cases.npz", allow_pickle=False) as cases:
        full = {key: cases[f"packed.{key}"][None] for key in ("tokens", "segment_ids", "logits")}
    arrays = {key: full[key] for key in ("tokens", "segment_ids")}
    (folder / "config.json").write_text(json.dumps(newer))
    assert not run(folder, arrays, tmp_path)
    assert distance(tmp_path, full) <= 2e-5
    (folder / "config.json").write_text(json.dumps({**newer, "rope_theta": 10000.0}))
    assert run(folder, arrays, tmp_path) == 2
    assert (
        "config.json: rope_theta=10000.0 and rope_parameters.rope_theta=1000000.0 contradict" in capfd.readouterr().err
    )


def member(shape, data, dtype="<i8"):
    """A .npy file whose header claims a shape."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + data


def archive(path, compression=zipfile.ZIP_DEFLATED, **members):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


def claim_size(path, size):
    """Let the zip directory and the local header say that the first array has another size."""
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = content[22:26] = struct.pack("<I", size)
    path.write_bytes(content)


ARCHIVES = {
    "a shape of exabytes": (
        lambda path: archive(path, tokens=member((2**40, 2**20), b"")),
        "at most 256 MiB are allowed",
    ),
    "more data than the header says": (
        lambda path: archive(path, tokens=member((1, 2), bytes(1 << 20))),
        "does not fit the size of its data",
    ),
    "less data": (lambda path: archive(path, tokens=member((4, 4), bytes(8))), "does not fit the size of its data"),
    "a bomb": (
        lambda path: archive(path, tokens=member((1, 2**26), bytes(1 << 22))),
        "at most 256 MiB are allowed",
    ),
    "a negative shape": (
        lambda path: archive(path, tokens=member((-1, 2), bytes(16))),
        "at most|not a readable",
    ),
    "objects": (
        lambda path: archive(path, tokens=member((1, 1), bytes(8), "|O")),
        "not a readable .npz file of plain arrays",
    ),
    "another format": (lambda path: archive(path, tokens=b"\x93NUMPY\x09\x00" + bytes(100)), "not a readable .npz"),
    "a header of Python": (
        lambda path: archive(path, tokens=b"\x93NUMPY\x01\x00\x40\x00" + b"(" * 64),
        "not a readable .npz",
    ),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives_that_unfold(case, tmp_path, capfd):
    write, message = ARCHIVES[case]
    write(tmp_path / "in.npz")
    paths = ["--input", str(tmp_path / "in.npz"), "--output", str(tmp_path / "out.npz")]
    assert main(["logits", str(GOLDEN / "window"), *paths]) == 2
    error = capfd.readouterr().err
    assert any(part in error for part in message.split("|")), error
    assert error.count("\n") == 1
    assert len(error) < 400


def test_other_arrays_are_not_unpacked(golden, tmp_path):
    tokens = io.BytesIO()
    np.save(tokens, golden["tokens"][:1, :3])
    archive(tmp_path / "in.npz", bomb=member((1, 2**26), bytes(1 << 22)), tokens=tokens.getvalue())
    found, segments = read_input(tmp_path / "in.npz")
    np.testing.assert_array_equal(found, golden["tokens"][:1, :3])
    assert segments.tolist() == [[1, 1, 1]]


def test_a_size_that_the_directory_makes_up(tmp_path):
    path = archive(tmp_path / "in.npz", tokens=member((1, 1000), bytes(8000)))
    claim_size(path, 200)
    with pytest.raises(ValueError, match=r"in.npz"):
        read_input(path)
