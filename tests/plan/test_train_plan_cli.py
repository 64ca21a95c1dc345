"""`plamo2 plan CONFIG.py`: errors, and the changes and meshes that it tries, without compiling."""

import dataclasses
from pathlib import Path

import jax
import pytest

from plamo2_jax.cli.plan import main
from plamo2_jax.config_file import load_config
from plamo2_jax.plan.memory import chip_bytes
from plamo2_jax.plan.program import train_program
from plamo2_jax.plan.steps import changes
from plamo2_jax.sharding.mesh import MeshConfig
from plamo2_kernels.attention import splash

CONFIGS = Path(__file__).parent.parent.parent / "configs"
CONFIG = str(CONFIGS / "pretrain_8b.py")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "needs either --topology SLICE"),
        (["--topology", "v5e:2x2", "--gpu", "h100x8"], "needs either --topology SLICE"),
        (["--topology", "v5e:2x2", "--prefill", "8", "--decode", "8"], "--prefill and --decode cannot be combined"),
        (["--gpu", "h100"], "--gpu h100 is not allowed"),
        # Options that would be ignored are refused.
        (["--topology", "v5e:2x2", "--prefill", "0"], "--prefill 0 is not allowed: it must be at least 1"),
        (["--topology", "v5e:2x2", "--decode", "-1"], "--decode -1 is not allowed"),
        (["--topology", "v5e:2x2", "--decode", "8", "--rows", "0"], "--rows 0 is not allowed"),
        (["--topology", "v5e:2x2", "--rows", "4"], "--rows is not allowed without --prefill or --decode"),
        (["--topology", "v5e:2x2", "--sweep", "--decode", "8"], "--sweep is not allowed with --prefill or --decode"),
        (["--topology", "v5e:2x2", "--sweep", "--longest"], "--longest is not allowed with --sweep"),
        (["--gpu", "h100x8", "--prefill", "8"], "are not allowed with --gpu"),
        (["--gpu", "h100x8", "--sweep"], "are not allowed with --gpu"),
        (["--gpu", "h100x8", "--longest"], "are not allowed with --gpu"),
        (["--topology", "v5e:2x2", "--json", "nowhere/at/all.json"], "the folder nowhere/at does not exist"),
        (["--topology", "v5e", "--sweep"], "'v5e' is not a TPU slice"),
        (["--topology", "v5p-63"], "--topology v5p-63 is not available: this generation has v5p-8, "),
        (["--topology", "v5litepod-4", "--sweep"], "no candidate on v5e:2x2: all .* need more HBM than a chip has"),
        (["--topology", "v5p:4x4x4", "--points", "4"], "--points is not allowed without --sweep"),
        (["--topology", "v5p:4x4x4", "--minutes", "4"], "--minutes is not allowed without --sweep"),
        (
            ["--topology", "v5p:4x4x4", "--sweep", "--minutes", "nan"],
            "--minutes nan is not allowed: it must be positive",
        ),
        (["--topology", "v5p:4x4x4", "--sweep", "--points", "0"], "--points 0 is not allowed: it must be at least 1"),
        (["--topology", "v5e:2x2", "--sweep"], "no candidate on v5e:2x2: all .* need more HBM than a chip has"),
        (
            ["--topology", "v5p:4x4x4", "--sweep", "--data.batch-size", "2", "--accumulation", "1"],
            "no mesh divides data.batch_size=2",
        ),
    ],
)
def test_it_refuses_in_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        main([CONFIG, *options])


def test_changes_go_from_the_nearest_to_the_farthest():
    config = load_config(Path(CONFIG))
    config = dataclasses.replace(config, mesh=MeshConfig(data=4), accumulation=2, loss_chunk=None)
    options = [change for change, _ in changes(config, 64)]
    policies = ["dots_except_up", "dots_except_gate_up", "outputs", "block"]
    others = ["--loss-chunk 512", "--accumulation 4", "--accumulation 8", "--mesh.data 2"]
    assert options[:8] == [f"--remat {policy}" for policy in policies] + others
    *_, (_, last) = changes(config, 64)
    assert (last.remat, last.accumulation, last.mesh.data) == ("block", 8, 1)


@pytest.mark.parametrize("name", ["pretrain_1b", "pretrain_8b", "pretrain_31b", "pretrain_8b_32k", "pretrain_8b_128k"])
def test_the_ready_configurations_load(name):
    config = load_config(CONFIGS / f"{name}.py")
    assert config.name == name
    assert config.steps * config.data.batch_size * config.data.sequence_length > 1e10


def test_a_train_step_is_described_as_the_loop_compiles_it():
    config = dataclasses.replace(load_config(CONFIGS / "demo.py"), mesh=MeshConfig(fsdp=1))
    program = train_program(config, jax.devices()[:1], "xla")
    assert chip_bytes(program.parts["parameters"]) == 4 * config.model.parameter_count()
    # Two moments, and step counts.
    assert chip_bytes(program.parts["optimizer"]) == pytest.approx(8 * config.model.parameter_count(), abs=64)
    assert program.trace().out_info[0].step.shape == ()


def test_the_kernels_trace_without_rematerialization():
    """Splash attention keeps tables in a cache, which must not belong to the trace of a `shard_map`."""
    config = dataclasses.replace(load_config(CONFIGS / "demo.py"), mesh=MeshConfig(fsdp=1), remat="none")
    splash._kernel.cache_clear()
    program = train_program(config, jax.devices()[:1], "pallas")
    assert "splash_mha" in str(program.trace().jaxpr)
