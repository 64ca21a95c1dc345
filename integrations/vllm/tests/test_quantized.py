"""compressed-tensors exports: log-probabilities are those of plamo2-jax for the same quantized weights and activations.

vLLM computes in bfloat16 here, plamo2-jax in float32. The difference of the model that is not quantized is the noise of bfloat16.
"""

import numpy as np
import pytest

from engines import Reference, differences, engine, greedy


@pytest.fixture(scope="module")
def noise(folder):
    """Mean difference of the model that is not quantized, bfloat16 in vLLM."""
    reference = Reference(folder, "base")
    with engine(reference.model, dtype="bfloat16") as llm:
        return np.concatenate(differences(llm, reference)).mean()


# Noise moves activations over the bounds between two quantized values, which are further apart than bfloat16 numbers.
@pytest.mark.parametrize(("name", "factor"), [("w4a16", 1.3), ("w8a8", 3), ("fp8", 6)])
def test_quantized_model(folder, noise, name, factor):
    reference, base = Reference(folder, name), Reference(folder, "base")
    with engine(reference.model, dtype="bfloat16") as llm:
        errors = differences(llm, reference)
        assert np.concatenate(errors).mean() < factor * noise
        for error, again in zip(errors, differences(llm, reference), strict=True):
            np.testing.assert_allclose(again, error, atol=factor * noise)
        texts = greedy(llm, reference.prompts, 16)
        assert greedy(llm, reference.prompts * 8, 4) == [ids[:4] for ids in texts] * 8
    quantization = [
        np.abs(ours[: len(row)] - theirs[: len(row)]).mean()
        for row, ours, theirs in zip(base.rows, base.logprobs, reference.logprobs, strict=True)
    ]
    # The comparison would notice weights that are not those of the quantized model.
    assert np.mean(quantization) > 2 * np.concatenate(errors).mean() or name != "w4a16"
