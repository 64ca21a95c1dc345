"""The sizes of the experiments, without training: the settings of `--scale gpu`, and the models that experiments/architecture compares."""

import argparse
import ast
import importlib
import sys
from pathlib import Path

import jax
import pytest

from plamo2_jax.config import LayerKind
from plamo2_jax.config_file import load_config
from plamo2_jax.data.pipeline import DataConfig, MixtureItem
from plamo2_jax.quantize.config import QuantizeConfig, matrix_formats
from plamo2_jax.surgery.extend import extended_config
from plamo2_jax.surgery.grow import grow
from plamo2_jax.surgery.prune import cut, prune
from plamo2_jax.train.build import build_train_program
from plamo2_jax.train.config import RunConfig
from plamo2_jax.train.pretraining import Pretrain
from plamo2_jax.train.schedule import ScheduleConfig

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


@pytest.fixture(scope="module")
def module():
    """A function that imports a file of the experiments, without leaving its generic name to other tests."""
    paths = [str(EXPERIMENTS), str(EXPERIMENTS / "architecture")]
    sys.path[:0] = paths
    known = set(sys.modules)
    yield importlib.import_module
    del sys.path[: len(paths)]
    for name in set(sys.modules) - known:
        if str(EXPERIMENTS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def read_scripts():
    """Return the options of each experiment whose script calls `scales.parse`: keyword arguments by name."""
    found = {}
    for path in EXPERIMENTS.glob("*/*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        options = {
            call.args[0].value.removeprefix("--").replace("-", "_"): {word.arg for word in call.keywords}
            for call in calls
            if getattr(call.func, "attr", None) == "add_argument" and isinstance(call.args[0], ast.Constant)
        }
        # `parse` of experiments/gpu has another second argument.
        parses = [call.args[1] for call in calls if getattr(call.func, "id", None) == "parse"]
        found |= {argument.value: options for argument in parses if isinstance(argument, ast.Constant)}
    return found


def test_every_experiment_with_a_scale_has_its_options(module):
    scales, scripts = module("scales"), read_scripts()
    assert set(scripts) == set(scales.SCALES)
    for experiment, by_name in scales.SCALES.items():
        for scale in by_name.values():
            assert set(scale.options) <= set(scripts[experiment]), experiment
        # A default would hide the value of the scale.
        for name in set().union(*(scale.options for scale in by_name.values())):
            assert "default" not in scripts[experiment][name], (experiment, name)


def test_gpu_scales_have_models_of_at_least_50_million_parameters(module):
    scales = module("scales")
    for experiment, by_name in scales.SCALES.items():
        scale = by_name["gpu"]
        largest = max(scale.models.values(), key=lambda config: config.parameter_count())
        assert largest.parameter_count() >= 50_000_000, experiment
        assert len({config.vocab_size for config in scale.models.values()}) == 1, experiment
        assert all(config.attention_window_size < scale.length for config in scale.models.values()), experiment
        # A training of the largest model takes at most 5 minutes at 100 TFLOP/s, a tenth of an H100's published rate for bfloat16.
        trained = [
            value for name, value in scale.options.items() if name.endswith("steps") or name in ("first", "more")
        ]
        flops = 3 * largest.flops_per_token(scale.length) * scale.tokens * max(trained, default=0)
        assert flops <= 5 * 60 * 100e12, experiment


@pytest.mark.parametrize("experiment", ["fp8_training", "pruning", "weight_reuse"])
def test_train_programs_of_gpu_scales_build(module, experiment):
    """The other experiments train the model of fp8_training, without FP8 or with attention layers alone."""
    scale = module("scales").SCALES[experiment]["gpu"]
    for model in scale.models.values():
        config = RunConfig(
            name=experiment,
            model=model,
            tokenizer=Path("tokenizer.jsonl"),
            data=DataConfig((MixtureItem(Path("data")),), scale.length, scale.rows),
            steps=100,
            task=Pretrain(),
            schedule=ScheduleConfig(learning_rate=scale.learning_rate),
            dtype=scale.dtype,
            linear_type="fp8" if experiment == "fp8_training" else "normal",
        )
        program = build_train_program(config, jax.devices()[:1])
        assert sum(leaf.size for leaf in jax.tree.leaves(program.state.params)) == model.parameter_count()
    # To trace a step takes seconds, and the models differ in widths only.
    if experiment == "fp8_training":
        state, _ = jax.eval_shape(program.step, *program.arguments)
        assert jax.tree.structure(state) == jax.tree.structure(program.state)


def test_models_of_gpu_scales_can_be_changed_as_the_experiments_do(module):
    scales = {name: by_name["gpu"].models for name, by_name in module("scales").SCALES.items()}
    opened = extended_config(scales["full_attention"]["windowed"], full_attention="all", rope_theta=10_000.0)
    assert set(opened.layer_kinds) == {LayerKind.MAMBA, LayerKind.FULL}
    reuse, pruned = scales["weight_reuse"], scales["pruning"]
    for width, depth in (("clone", "identity"), ("clone", "stack"), ("clone", "interleave"), ("zero", "identity")):
        grow.check_target(reuse["small"], reuse["large"], width, depth)
    for shape in prune.schedule(pruned["large"], pruned["small"], rounds=4):
        cut.check_target(pruned["large"], shape)
    # The largest group of the experiment; the others divide it.
    options = QuantizeConfig(bits=4, group_size=128, bits_for=(("mixer/(in|out)_proj", 4),))
    assert matrix_formats(scales["quantization"]["base"], options)


def test_demo_gpu_config_loads(module):
    config = load_config(EXPERIMENTS / "demo_gpu.py")
    assert config.model == module("scales").DEMO_GPU
    assert config.model.parameter_count() >= 50_000_000


def test_gpu_scale_does_not_overwrite_committed_results(module, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scales = module("scales")

    def options(*arguments):
        parser = argparse.ArgumentParser()
        parser.add_argument("--steps", type=int)
        parser.add_argument("--tuning", type=int)
        return scales.parse(parser, "merging", tmp_path, arguments)[0]

    assert options().output == tmp_path
    assert options().work == Path("runs/merging")
    assert options("--steps", "7").steps == 7
    assert capsys.readouterr().out == ""
    large = options("--scale", "gpu")
    assert large.output == large.work == Path("runs/merging_gpu")
    assert large.steps == scales.SCALES["merging"]["gpu"].options["steps"]
    assert "have not run this scale" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_compared_models_match_within_one_percent(module, name):
    scale = module("scales").SCALES["architecture"][name]
    hybrid, *others = module("arms").arms(scale.models["hybrid"], scale.length)
    assert {arm.comparison for arm in others} == {"parameters", "flops"}
    for arm in others:
        wanted = {"window": LayerKind.WINDOW, "full attention": LayerKind.FULL}[arm.kind]
        assert set(arm.model.layer_kinds) == {wanted}
        if arm.comparison == "parameters":
            ratio = arm.model.parameter_count() / hybrid.model.parameter_count()
        else:
            ratio = arm.model.flops_per_token(scale.length) / hybrid.model.flops_per_token(scale.length)
        assert abs(ratio - 1) <= 0.01, arm


def test_page_follows_from_results_and_notes(module):
    page = module("results_page")
    folder = EXPERIMENTS / "architecture"
    written = page.page(page.read(folder, "results.json"), page.read(folder, "speed.json"))
    assert (folder / "README.md").read_text(encoding="utf-8") == written
