"""Weights & Biases in offline mode: the file that `wandb sync` uploads has the lines of metrics.jsonl."""

import json
import struct

import pytest

from plamo2_jax.train.metrics import MetricsLog, read_metrics

pytestmark = pytest.mark.peer
pytest.importorskip("wandb", reason="wandb is not installed (make peers installs it)")


BLOCK, HEADER = 32768, 7


def records(data):
    """Yield the records of a .wandb file: a log of LevelDB (blocks; CRC, length and type before each part) after a header of 7 bytes."""
    assert data[:4] == b":W&B"
    at, whole = 7, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # Padding at the end of a block.
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # A whole record, or the last part of one.
            yield whole
            whole = b""


def logged(folder):
    """Return the lines in all offline files of a run folder, and the ids of their runs."""
    from wandb.proto import wandb_internal_pb2

    lines, ids = [], set()
    for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        for data in records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                ids.add(record.run.run_id)
            if record.HasField("history"):
                items = {one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in record.history.item}
                lines.append({name: value for name, value in items.items() if not name.startswith("_")})
    return lines, ids


def test_the_offline_run_has_the_lines_of_the_log(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    about = {"name": "demo", "config": {"steps": 4}}
    with MetricsLog(tmp_path, writers=("tensorboard", "wandb"), about=about) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": 1 / step, "heldout/ja/bits_per_byte": 1.5})
        log.flush()
    # The run resumes from step 2: it continues the same run, and repeats step 3.
    with MetricsLog(tmp_path, 2, writers=("tensorboard", "wandb"), about=about) as log:
        log.write(3, {"loss": 0.25})
    lines, ids = logged(tmp_path)
    assert len(ids) == 1
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 0.5), (3, 1 / 3), (3, 0.25)]
    assert lines[0]["heldout/ja/bits_per_byte"] == 1.5
    assert [line["loss"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1.0, 0.5, 0.25]
    assert list((tmp_path / "tensorboard").iterdir())
