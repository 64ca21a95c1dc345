"""PEFT itself reads the adapters that we write, and its sums of weights are ours. It needs torch and peft: `make peers` installs both."""

import flax.traverse_util
import jax
import numpy as np
import pytest

from plamo2_jax.adapters.attach import Adapters
from plamo2_jax.adapters.config import LoraConfig
from plamo2_jax.adapters.peft import write_peft
from plamo2_jax.config import preset
from plamo2_jax.convert.layout import public_tensors
from plamo2_jax.model import Plamo2, abstract_params

pytestmark = pytest.mark.peer

CONFIG = preset("tiny", hidden_size=32, intermediate_size=48, num_hidden_layers=4, mamba_num_heads=2, vocab_size=64)


def public(params):
    """Matrices [out, in] of the public layout, by name."""
    leaves, tensors = flax.traverse_util.flatten_dict(params, sep="/"), {}
    for tensor in public_tensors(CONFIG):
        parts = [leaves[p.path] if p.period is None else leaves[p.path][p.period] for p in tensor.parts]
        flat = [np.asarray(a).transpose(p.inverse).reshape(-1) for a, p in zip(parts, tensor.parts, strict=True)]
        tensors[tensor.name] = np.concatenate(flat).reshape(tensor.shape)
    return {name: value for name, value in tensors.items() if value.ndim == 2 and "proj" in name}


@pytest.mark.parametrize(
    "lora",
    [LoraConfig(rank=3, alpha=6.0), LoraConfig(rank=4, rank_stabilized=True, targets=("/q_proj ", "b_proj", "/up "))],
)
def test_peft_adds_what_we_add(lora, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed (make peers installs it)")
    peft = pytest.importorskip("peft", reason="peft is not installed (make peers installs it)")
    rng = np.random.default_rng(0)
    params, adapters = (
        jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), tree)
        for tree in (abstract_params(Plamo2(CONFIG)), Adapters(CONFIG, lora).abstract)
    )
    write_peft(tmp_path / "adapter", CONFIG, lora, adapters)

    root = torch.nn.Module()
    root.prepare_inputs_for_generation = None  # PEFT looks for it in causal language models
    for name, weight in public(params).items():
        *path, leaf, _ = name.split(".")
        place = root
        for part in path:
            if not hasattr(place, part):
                place.add_module(part, torch.nn.Module())
            place = getattr(place, part)
        linear = torch.nn.Linear(*weight.shape[::-1], bias=False)
        linear.weight.data = torch.tensor(weight)
        place.add_module(leaf, linear)
    merged = peft.PeftModel.from_pretrained(root, str(tmp_path / "adapter")).merge_and_unload().state_dict()
    for name, weight in public(Adapters(CONFIG, lora).merge(params, adapters)).items():
        np.testing.assert_allclose(merged[name].numpy(), weight, rtol=1e-4, atol=1e-4, err_msg=name)
