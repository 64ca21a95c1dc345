"""compressed-tensors exports: vLLM computes what plamo2-jax computes for the same quantized weights and activations."""

import numpy as np
import pytest

from engines import Reference, differences, engine, greedy, log_softmax
from test_float32 import BOUND


def measure(model, *references, **options):
    """Return the differences of a model from each reference, and check that a request gives the same tokens again.

    A function of its own frees the engine at its end. An older engine that is freed later takes vLLM's process groups from a newer one.
    """
    with engine(model, **options) as llm:
        found = [differences(llm, reference) for reference in references]
        texts = greedy(llm, references[0].prompts, 16)
        assert greedy(llm, references[0].prompts, 16) == texts
    return found


def test_float_activations(folder):
    """4-bit weights. vLLM has no float32 kernel for them on CPUs, so the difference is compared with the noise of bfloat16."""
    base, reference = Reference(folder, "base"), Reference(folder, "w4a16")
    (noise,) = measure(base.model, base, dtype="bfloat16")
    errors, from_base = measure(reference.model, reference, base, dtype="bfloat16")
    noise = np.concatenate(noise).mean()
    assert np.concatenate(errors).mean() < 1.3 * noise
    # The comparison would notice weights that are not the quantized ones.
    assert np.concatenate(from_base).mean() > 2 * noise


@pytest.mark.parametrize("name", ["w8a8", "fp8"])
def test_quantized_activations(folder, name):
    """In float32 most tokens of some row are equal to rounding errors.

    They are not so in every row: where a rounding error moves an activation over the bound between two quantized values, all later tokens
    differ by the distance of these values. Other weights, scales or schemes would change every token of every row.
    """
    reference = Reference(folder, name)
    (errors,) = measure(reference.model, reference)
    assert min(np.median(error) for error in errors) < BOUND
    (errors,) = measure(reference.model, reference, dtype="bfloat16")
    # Quantization turns rounding errors of bfloat16 into errors several times as large. plamo2-jax in bfloat16 has them too.
    ours = log_softmax(np.load(folder / f"{name}_bfloat16.npz")["logits"])
    noise = []
    for row, exact, rounded in zip(reference.rows, reference.logprobs, ours, strict=True):
        places = np.arange(len(row) - 1), row[1:]
        noise.append(np.abs(exact[places] - rounded[places]))
    assert np.concatenate(errors).mean() < 1.3 * np.concatenate(noise).mean()
