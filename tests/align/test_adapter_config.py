"""adapter_config.json and the tensors beside it: plain LoRA is read, everything else is refused in one sentence."""

import json
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

from plamo2_jax.adapters import peft
from plamo2_jax.adapters.adapter_config import AdapterError, read_adapter_config
from plamo2_jax.cli.main import main
from plamo2_jax.convert.hf import write_public

MODULE = "model.layers.layers.1.mixer.o_proj"
# As PEFT 0.21 writes it.
CONFIG = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": None,
    "base_model_name_or_path": "base",
    "bias": "none",
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "kasa_config": None,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 4,
    "lora_bias": False,
    "lora_dropout": 0.05,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "peft_type": "LORA",
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "r": 2,
    "rank_pattern": {},
    "revision": None,
    "target_modules": ["o_proj"],
    "target_parameters": None,
    "task_type": "CAUSAL_LM",
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
}


@pytest.fixture
def write(model, tmp_path):
    """Write an adapter of rank 2 of one matrix, with some fields changed."""
    c = model.config
    rng = np.random.default_rng(0)
    a = rng.normal(size=(2, c.num_attention_heads * c.hidden_size_per_head)).astype(np.float32)
    b = rng.normal(size=(c.hidden_size, 2)).astype(np.float32)

    def write(text=None, tensors=None, **fields):
        given = {f"base_model.model.{MODULE}.lora_{name}.weight": value for name, value in (("A", a), ("B", b))}
        save_file({**given, **(tensors or {})}, tmp_path / peft.WEIGHTS)
        (tmp_path / peft.CONFIG).write_text(json.dumps({**CONFIG, **fields}) if text is None else text)
        return tmp_path

    return write


def scale(folder):
    """What the adapter is multiplied by."""
    return read_adapter_config(folder / peft.CONFIG).ranks_and_scales([MODULE])[MODULE][1]


SCALES = {
    "alpha over rank": ({}, 2.0),
    "rank-stabilized": ({"use_rslora": True}, 4 / 2**0.5),
    "an escaped name": ({"alpha_pattern": {MODULE.replace(".", r"\."): 8}}, 4.0),
    "any layer": ({"alpha_pattern": {r"layers\.\d+\.mixer\.o_proj": 8}}, 4.0),
    "alternatives": ({"alpha_pattern": {r"q_proj|o_proj": 6.0}}, 3.0),
    "the first that matches": ({"alpha_pattern": {"o_proj": 6.0, ".*": 8}}, 3.0),
    "a part of a name": ({"alpha_pattern": {"proj": 6.0, r"layers\.1": 6}}, 2.0),
    "another layer": ({"alpha_pattern": {r"layers\.2\.mixer\.o_proj": 8}}, 2.0),
    "another rank": ({"rank_pattern": {"o_proj": 4}, "alpha_pattern": {"o_proj": 16}}, 4.0),
    "targets as a pattern": ({"target_modules": r".*\.(o|q)_proj"}, 2.0),
    "all targets": ({"target_modules": "all-linear", "init_lora_weights": "gaussian"}, 2.0),
    "an unknown field that is off": ({"of_the_future": None, "and_another": []}, 2.0),
}


@pytest.mark.parametrize("case", SCALES)
def test_what_an_adapter_is_multiplied_by(write, case):
    fields, expected = SCALES[case]
    folder = write(**fields)
    assert scale(folder) == pytest.approx(expected)


REFUSED = {
    "a list": ({"text": "[]"}, "must hold a JSON object, not list"),
    "cut short": ({"text": '{"peft_type": "LORA", "r": 2,'}, "is not valid JSON"),
    "nested": ({"text": "[" * 5000 + "]" * 5000}, "nests more than"),
    "another method": ({"peft_type": "IA3"}, "peft_type='IA3'"),
    "no alpha": ({"lora_alpha": None}, "lora_alpha=None.*a finite number"),
    "alpha in words": ({"lora_alpha": "four"}, "lora_alpha='four'"),
    "alpha of many digits": ({"lora_alpha": 10**400}, "lora_alpha=1000"),
    "rank zero": ({"r": 0}, "r=0.*an integer from 1"),
    "a rank of many digits": ({"r": 10**30}, "r=1000"),
    "another rank than the tensors": ({"r": 4}, "o_proj have shapes .* by rank 4"),
    "biases": ({"bias": "all"}, "bias='all'"),
    "biases of adapters": ({"lora_bias": True}, "lora_bias=True"),
    "transposed": ({"fan_in_fan_out": True}, "fan_in_fan_out=True"),
    "DoRA": ({"use_dora": True}, "use_dora=True is not supported"),
    "activated LoRA": ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens="),
    "whole modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save="),
    "tokens": ({"trainable_token_indices": [1]}, "trainable_token_indices="),
    "repeated layers": ({"layer_replication": [[0, 2]]}, "layer_replication="),
    "an unknown field": ({"of_the_future": 1}, "of_the_future=1 is not supported"),
    "a long value": ({"of_the_future": "x" * 100_000}, "of_the_future='xxx"),
    **{
        f"a base changed by {start}": (
            {"init_lora_weights": start},
            f"init_lora_weights='{start}'.* base with modified weights",
        )
        for start in ("pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga")
    },
    "an unknown start": ({"init_lora_weights": "new"}, "init_lora_weights='new'"),
    "modules left out": (
        {"target_modules": ["q_proj"]},
        "o_proj, which target_modules in adapter_config.json does not include",
    ),
    "targets of numbers": ({"target_modules": [3]}, r"target_modules=\[3\]"),
    **{
        f"pattern {number}": ({"alpha_pattern": {pattern: 4.0}}, "alpha_pattern: .* is not a regular expression")
        for number, pattern in enumerate(
            ("*.o_proj", "[", "(?P<a>x)(?P=b)", "a{9999999999}", "(" * 3000 + ")" * 3000, ")(")
        )
    },
    **{
        f"alpha {number}": ({"alpha_pattern": {".*": value}}, r"alpha_pattern\['\.\*'\]=")
        for number, value in enumerate(("x", None, [1], {"a": 1}, True))
    },
    "patterns as a number": ({"alpha_pattern": 3}, "alpha_pattern=3"),
    "patterns as a list": ({"rank_pattern": [1]}, r"rank_pattern=\[1\]"),
    "a rank in words": ({"rank_pattern": {"o_proj": "x"}}, r"rank_pattern\['o_proj'\]='x'"),
    "half of an adapter": (
        {
            "tensors": {
                "base_model.model.model.layers.layers.1.mlp.down_proj.lora_A.weight": np.ones((2, 32), np.float32)
            }
        },
        "has only the tensor .*down_proj.lora_A.weight of an adapter",
    ),
    "an adapter of nothing": ({"tensors": {"x" * 5000: np.ones(2, np.float32)}}, "does not belong to a matrix"),
    "not finite": (
        {"tensors": {f"base_model.model.{MODULE}.lora_B.weight": np.full((32, 2), np.nan, np.float32)}},
        "the adapter of model.layers.layers.1.mixer.o_proj holds NaN or infinity",
    ),
    "a scale beyond float32": ({"lora_alpha": 1e300}, "holds NaN or infinity"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_plain_lora_is_refused(model, write, case):
    changes, message = REFUSED[case]
    folder = write(**changes)
    with pytest.raises(AdapterError, match=message) as refusal:
        peft.read_peft(folder, model.config)
    assert str(folder) in str(refusal.value)
    assert len(str(refusal.value)) < 450


@pytest.mark.parametrize("pattern", ["([a-z_.0-9]+)+X", "(.*)*(.*)*(.*)*Y"])
def test_a_pattern_without_end_ends(model, write, pattern):
    start = time.monotonic()
    for fields in ({"alpha_pattern": {pattern: 4.0}}, {"target_modules": pattern}):
        with pytest.raises(AdapterError, match=r"adapter_config.json: \w+: .* takes longer than"):
            peft.read_peft(write(**fields), model.config)
    assert time.monotonic() - start < 60


def test_the_command_refuses_in_one_line_and_leaves_nothing(model, params, write, tmp_path, capfd):
    write_public(tmp_path / "base", model.config, params, None)
    folder = write(alpha_pattern={"*": 4.0})
    assert main(["lora", str(tmp_path / "base"), str(folder), str(tmp_path / "out")]) == 2
    error = capfd.readouterr().err
    assert error.startswith("plamo2 lora: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert main(["lora", str(tmp_path / "base"), str(write()), str(tmp_path / "out")]) == 0


def test_a_base_that_is_not_finite_is_refused(model, params, write, tmp_path):
    import jax

    broken = jax.tree.map(np.array, params)
    broken["run_0"]["layer_0"]["mixer"]["in_proj"][0, 0, 0, 0, 0] = np.inf
    write_public(tmp_path / "base", model.config, broken, None)
    with pytest.raises(ValueError, match=r"base: parameter run_0/layer_0/mixer/in_proj holds NaN or infinity"):
        peft.merged_model(tmp_path / "base", write())
