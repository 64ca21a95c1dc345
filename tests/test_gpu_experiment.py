"""experiments/gpu on a CPU, with tiny sizes: every part runs and measures, and the script merges what they leave."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.scripts import check_bash

FOLDER = Path(__file__).parents[1] / "experiments" / "gpu"


@pytest.fixture
def module(monkeypatch):
    """Import a file of the experiment by name, without leaving its generic names to other tests."""
    monkeypatch.syspath_prepend(str(FOLDER))
    known = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - known:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def run(module, name, tmp_path, *options):
    path = tmp_path / f"{name}.json"
    assert module(name).main(["--dry-run", "--output", str(path), *options]) == 0
    part = json.loads(path.read_text())
    assert part["complete"]
    assert part["dry_run"]
    assert str(tmp_path) not in path.read_text()
    return part["figures"]


def test_kernels_are_right_and_a_wrong_one_is_found(module, tmp_path, monkeypatch):
    figures = run(module, "kernels", tmp_path)
    checked = {(each["kernel"], each["implementation"], each["dtype"]) for each in figures if each["passed"]}
    assert {("scan", "pallas_gpu", "bfloat16"), ("scan", "pallas_gpu", "float32")} <= checked
    assert {("attention", "xla", "float32"), ("convolution", "xla", "float32")} <= checked
    assert {each["implementation"] for each in figures if each["passed"] is None} == {"cudnn"}
    kernels = module("kernels")
    right = kernels.ssd
    first = next(kernels.cases(True))
    monkeypatch.setattr(kernels, "cases", lambda dry_run: [first])

    def wrong(**arguments):
        y, state = right(**arguments)
        return (y * 1.1 if arguments["implementation"] == "xla" else y), state

    monkeypatch.setattr(kernels, "ssd", wrong)
    assert kernels.main(["--dry-run", "--output", str(tmp_path / "wrong.json")]) == 1
    figures = json.loads((tmp_path / "wrong.json").read_text())["figures"]
    assert [each["passed"] for each in figures] == [False, True]


def test_scan_train_step_and_decoding_are_measured_and_merged(module, tmp_path):
    scans = run(module, "scan", tmp_path)
    assert {(each["implementation"], each["kind"]) for each in scans} == {
        (implementation, kind) for implementation in ("xla", "pallas_gpu") for kind in ("forward", "both")
    }
    (step,) = run(module, "train_step", tmp_path)
    assert step["losses"][0] == pytest.approx(5.77, abs=0.3)  # ln 320: random tokens, a model that knows nothing
    (decoded,) = run(module, "decode", tmp_path)
    assert decoded["tokens_per_second"] == pytest.approx(decoded["rows"] / decoded["step_seconds"]["median"], rel=1e-3)
    summarize = module("summarize")
    ended = ["--ended", "train_step_pallas=124:95", "--ended", "decode=0:9"]
    assert summarize.main(["--parts", str(tmp_path), *ended]) == 0
    merged = json.loads((tmp_path / "results_dry_run.json").read_text())
    assert set(merged["parts"]) == {"scan", "train_step", "train_step_pallas", "decode"}
    text = summarize.page("# Title\n<!-- tables -->\nend\n", [merged])
    assert f"| xla | 2 × 32, remat dots | {1e3 * step['seconds']['median']:.1f} (" in text
    assert "| pallas_gpu | not measured: stopped after 95 s |" in text
    assert "| mamba_ssm (Triton) | not measured |" in text
    assert f"| 2 | {decoded['tokens_per_second']:,.0f} |" in text


def test_weights_of_the_decoding_part_are_those_of_the_model(module):
    import jax
    import jax.numpy as jnp
    import numpy as np

    from plamo2_jax.config import preset
    from plamo2_jax.engine.weights import abstract_weights
    from plamo2_jax.model import Plamo2

    decode = module("decode")
    config = preset("tiny", hidden_size=32, intermediate_size=32, mamba_num_heads=2, vocab_size=320)
    model = Plamo2(config, dtype=jnp.dtype(jnp.bfloat16), scan_layers=False)
    weights = decode.random_weights(model)
    assert jax.tree.structure(weights) == jax.tree.structure(abstract_weights(model))
    assert weights["embedding"].dtype == jnp.bfloat16
    periods = [np.asarray(jax.tree.leaves(weights[f"run_0_period_{i}"])[-1], np.float32) for i in range(2)]
    assert (periods[0] != periods[1]).any()
    sizes = decode.step_bytes(model, weights, rows=3, length=64)
    # Two layers of each kind: 64 keys and values of 2 heads of 32, and a state of 2 × 32 × 16 float32 with 3 inputs of the convolution.
    assert sizes["states"] == 2 * 2 * 3 * (2 * 32 * 16 * 4 + 3 * 2 * 32 * 2)
    assert sizes["keys_and_values"] == 2 * 3 * (2 * 64 * 2 * 32 * 2 + 2 * 64 * 4)


def test_a_machine_without_torch_or_mamba_ssm_gets_a_sentence_from_the_script(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable}
    command = [FOLDER / "run.sh", "--dry-run", "--only", "mamba_ssm", "--output", tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "mamba_ssm: status 0 after" in done.stdout
    part = json.loads((tmp_path / "mamba_ssm.json").read_text())
    assert part["skipped"].startswith("The scan of mamba_ssm was not measured")
    assert f"| mamba_ssm (Triton) | not measured: {part['skipped']} |" in done.stdout
    unknown = subprocess.run([FOLDER / "run.sh", "--dry"], capture_output=True, text=True, check=False)
    assert unknown.returncode == 2
    assert "unknown option --dry" in unknown.stderr


@pytest.mark.parametrize("script", ["run.sh", "wheels.sh"])
def test_bash_reads_the_scripts(script):
    check_bash((FOLDER / script).read_text())


def test_the_readme_is_made_of_the_notes_and_the_results(module):
    summarize = module("summarize")
    results = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("results_*.json"))]
    assert (FOLDER / "README.md").read_text() == summarize.page((FOLDER / "notes.md").read_text(), results)
