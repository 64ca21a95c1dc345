"""`plamo2 logits` on golden checkpoints, from both kinds of folder."""

from pathlib import Path

import numpy as np
import pytest

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
        "no tokens": ({"ids": tokens}, "in.npz has no array tokens; it has ids"),
        "floats": ({"tokens": tokens.astype(np.float32)}, "tokens must be integers, not float32"),
        "float segments": (
            {"tokens": tokens, "segment_ids": segment_ids * 1.0},
            "segment_ids must be integers, not float64",
        ),
        "one axis": ({"tokens": tokens[0]}, "tokens must have two axes [b, t], neither empty, not shape (61,)"),
        "empty": ({"tokens": tokens[:0]}, "neither empty, not shape (0, 61)"),
        "other shape": (
            {"tokens": tokens, "segment_ids": segment_ids[:, :60]},
            "segment_ids has shape (4, 60); tokens has (4, 61)",
        ),
        "id too large": (
            {"tokens": at(tokens, 256)},
            "tokens[2, 5] is 256; it must be from 0 to 255 (1 value(s) are not)",
        ),
        "id negative": ({"tokens": at(tokens, -1)}, "tokens[2, 5] is -1; it must be from 0 to 255"),
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
