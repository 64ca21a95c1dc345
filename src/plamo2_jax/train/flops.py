"""Model FLOPs utilization (MFU), and the peak FLOP/s of devices."""

from __future__ import annotations

from collections.abc import Sequence

from plamo2_jax.config import ModelConfig

# Peak bfloat16 FLOP/s of one jax.Device, by device_kind. TPU: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, "peak compute per chip
# (bf16)"; on tpu7x, a device is one of the two cores of a chip. NVIDIA: data sheets of A100, H100, H200 and B200, SXM, without sparsity.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 2307e12 / 2,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def model_flops_utilization(
    config: ModelConfig,
    sequence_length: int,
    tokens_per_second: float,
    device_kind: str,
    devices: int,
    forward_only: Sequence[ModelConfig] = (),
) -> float | None:
    """Return the model FLOPs utilization (PaLM, arXiv:2204.02311, appendix B): FLOP/s of the model over peak FLOP/s of the devices.

    A training step costs three forward passes; rematerialization is not counted. The peak is always the bfloat16 peak.

    Args:
        config: Trained model.
        sequence_length: Positions per row.
        tokens_per_second: Tokens that the model reads per second, without padding.
        device_kind: `jax.Device.device_kind`.
        devices: Number of devices.
        forward_only: Models that read the same tokens without a backward pass, such as a teacher.

    Returns:
        A fraction, or None if the peak of the device is not known.
    """
    if device_kind not in PEAK_FLOPS:
        return None
    flops = 3 * config.flops_per_token(sequence_length)
    flops += sum(other.flops_per_token(sequence_length) for other in forward_only)
    return flops * tokens_per_second / (PEAK_FLOPS[device_kind] * devices)
