"""RMS norms, computed in float32."""

import torch
from torch import nn

PRE, POST_MIXER, POST_MLP = 1.0, 1 / 5, 1 / 5**1.5
"""Offsets of the norms before a branch, after the mixer and after the MLP (public PLaMo 2 code)."""


def rms_normalize(x: torch.Tensor, eps: float) -> torch.Tensor:
    """Return x / sqrt(mean(x²) + eps) over the last axis, computed in float32, in the dtype of x."""
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def float_parameter(*shape: int) -> nn.Parameter:
    """Return a float32 parameter that is not trained, whatever the dtype of the model."""
    return nn.Parameter(torch.zeros(shape, dtype=torch.float32), requires_grad=False)


class OffsetRMSNorm(nn.Module):
    """RMS norm multiplied by offset + stored weight.

    The sum is kept in float32. In bfloat16, 1 + w would lose all but the first two digits of a small w.
    """

    def __init__(self, size: int, eps: float, offset: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = float_parameter(size)
        self.weight.weight_loader = lambda parameter, stored: parameter.data.copy_(stored.float() + offset)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normalized x [..., size], in its dtype."""
        return (rms_normalize(x, self.eps).float() * self.weight).to(x.dtype)
