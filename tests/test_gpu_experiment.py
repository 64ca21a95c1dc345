"""experiments/gpu on a CPU: the script, its summary, and the weights for decoding. tests/peer runs the measurements."""

import json
import os
import subprocess
import sys

import pytest

from support.gpu_experiment import FOLDER, importing
from support.scripts import check_bash


@pytest.fixture
def module():
    with importing() as load:
        yield load


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
    periods = [jax.tree.leaves(weights[f"run_0_period_{i}"]) for i in range(2)]
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in zip(*periods, strict=True))
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
