"""Compile matrix products of known cost with libtpu and compare the plan with the known cost."""

import importlib.util
import json
import subprocess
import sys

import pytest

from plamo2_jax.cli.main import main
from plamo2_jax.plan.compiler import environment
from support import products

pytestmark = pytest.mark.tpu
SLICES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
BLOCKS = {"a": 256 * 1024 * 2, "b": 1024 * 256 * 2, "o": 256 * 256 * 4}


@pytest.fixture(scope="module", params=SLICES)
def chip(request):
    return request.param


@pytest.fixture(scope="module")
def kernels(chip, tmp_path_factory):
    """Return the costs that support/products.py prints."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("the TPU compiler comes with the tpu extra")
    folder = tmp_path_factory.mktemp("dump")
    command = [sys.executable, products.__file__, str(folder), SLICES[chip]]
    done = subprocess.run(command, env=environment(folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_the_matrix_units_need_what_the_product_needs(kernels, chip):
    """The cycles are exactly 256·1024·256 multiply-adds over the rate of the units."""
    needed = {"v5e": 1024, "v5p": 1024, "v6e": 256, "tpu7x": 256}[chip]
    assert kernels["plain 64"]["mxu_cycles"] == 64 * needed
    assert kernels["looped 10"]["mxu_cycles"] == 640 * needed
    assert kernels["branched 64"]["mxu_cycles"] == 65 * needed


def test_a_step_is_scheduled_near_what_the_units_need(kernels, chip):
    """On v5 the schedule issues products a little faster than the units compute; on later chips loads and stores take longer."""
    least, most = {"v5e": (850, 1100), "v5p": (850, 1100), "v6e": (256, 640), "tpu7x": (256, 640)}[chip]
    assert least <= kernels["plain 64"]["step_bundles"] <= most


def test_bundles_grow_with_the_grid(kernels):
    small, large = kernels["plain 64"], kernels["plain 96"]
    assert small["step_bundles"] == large["step_bundles"]
    assert large["bundles"] - small["bundles"] == 32 * small["step_bundles"]


def test_bundles_of_a_loop_are_its_body_times_its_rounds(kernels):
    two, six, ten = (kernels[f"looped {rounds}"]["step_bundles"] for rounds in (2, 6, 10))
    assert ten - six == six - two
    body = (six - two) / 4
    assert 0.8 < body / kernels["plain 64"]["step_bundles"] < 1.6


def test_a_branch_counts_where_it_is_taken(kernels):
    """Only the first step has a second product."""
    small, large = kernels["branched 64"], kernels["branched 96"]
    assert small["assumed_branches"] == 0
    assert large["bundles"] - small["bundles"] == 32 * small["step_bundles"]
    extra = (
        small["bundles"]
        - kernels["plain 64"]["bundles"]
        - 64 * (small["step_bundles"] - kernels["plain 64"]["step_bundles"])
    )
    assert 0.5 * kernels["plain 64"]["step_bundles"] < extra < 2 * kernels["plain 64"]["step_bundles"]


def moved(name, chip):
    """Count the bytes of a kernel's blocks by hand. On TPU7x XLA places the matrix, which all steps share, in VMEM before the call."""
    steps = 64 if "looped" in name else int(name.split()[1])
    return steps * (BLOCKS["a"] + BLOCKS["o"]) + (0 if chip == "tpu7x" else BLOCKS["b"])


def test_the_cores_of_v5p_share_a_parallel_axis(kernels, chip):
    alone, shared = kernels["plain 64"], kernels["parallel 64"]
    assert shared["mxu_cycles"] == alone["mxu_cycles"] / (2 if chip == "v5p" else 1)
    # Both cores fetch the matrix.
    again = BLOCKS["b"] if chip == "v5p" else 0
    assert shared["transferred_bytes"] == moved("parallel 64", chip) + again


def test_the_block_specs_tell_what_the_schedule_transfers(kernels, chip):
    for name, kernel in kernels.items():
        assert kernel["hbm_bytes"] == moved(name, chip)
        if "parallel" not in name:
            assert kernel["transferred_bytes"] == kernel["hbm_bytes"]


def test_the_command_prints_a_table_and_writes_json(tmp_path, capsys):
    argv = [
        "plan",
        "kernel",
        "ssd",
        "--topology",
        "v5e:2x2",
        "--preset",
        "plamo-2-1b",
        "--tokens",
        "512",
        "--implementation",
        "xla",
    ]
    output = tmp_path / "plan.json"
    assert main([*argv, "--direction", "forward", "--layouts", "default", "--breakdown", "--output", str(output)]) == 0
    text = capsys.readouterr().out
    assert "not measured time" in text
    assert "| xla " in text
    (program,) = json.loads(output.read_text())["programs"]
    assert program["cycles_per_token"] > program["bundles_per_token"] > 0
    assert program["hbm_bytes_per_token"] > 32 * 128 * 2


def test_a_slice_that_is_not_there_is_refused_with_examples(capsys):
    assert main(["plan", "kernel", "ssd", "--topology", "v5p:3"]) == 2
    error = capsys.readouterr().err
    assert "'v5p:3' is not a TPU slice: names look like v5e:2x2" in error
