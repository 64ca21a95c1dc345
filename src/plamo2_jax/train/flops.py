"""Peak speed of devices, and the share of it that a model uses."""

from __future__ import annotations

from collections.abc import Sequence

from plamo2_jax.config import ModelConfig

# Dense bfloat16 FLOP/s of one jax.Device, by device_kind. TPU: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, "peak compute
# per chip (bf16)"; on v2 and v3 a device is one of a chip's two cores, and on tpu7x too. NVIDIA: the data sheets of A100, H100, H200 and
# B200, SXM, without sparsity.
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
    """Model FLOPs utilization (PaLM, arXiv:2204.02311, appendix B): FLOPs the model needs, over what the devices could do.

    A training step costs three forward passes; what rematerialisation adds is not counted. The peak is that of bfloat16 whatever the
    run's dtype.

    Args:
        config: the trained model.
        sequence_length: positions in a row.
        tokens_per_second: tokens that the model reads per second, without padding.
        device_kind: `jax.Device.device_kind`.
        devices: number of devices.
        forward_only: models that read the same tokens without a backward pass, such as a reference or a teacher.

    Returns:
        The share, or None where the device's peak is not known.
    """
    if device_kind not in PEAK_FLOPS:
        return None
    flops = 3 * config.flops_per_token(sequence_length)
    flops += sum(other.flops_per_token(sequence_length) for other in forward_only)
    return flops * tokens_per_second / (PEAK_FLOPS[device_kind] * devices)
