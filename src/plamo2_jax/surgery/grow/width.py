"""Growing in width: for each new channel of an axis, its source channel, its gain, and the weight with which it is read.

The new activations are G times the old ones. Row j of G [new, old] has one nonzero entry: the gain g of channel j, in the column of its
source. A matrix that contracts the axis is multiplied by r. The function stays the same if g·r sums to 1 over the copies of each source.

* Without a norm along the axis, g = 1 and r = 1 / copies, whatever elementwise function lies between.
* An RMS norm must also keep its mean square, now over `new` channels: g² must sum to new / old over the copies of each source. So
  g² = new / (old · copies) and r = g · old / new, for any sizes. The epsilon of the norm stays the same.

Cloning by an integer factor (HyperCloning, arXiv:2409.12903) is g = 1, r = 1 / factor. Zero padding is one copy of each source,
g² = new / old.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from plamo2_jax.config import ModelConfig
from plamo2_jax.model import axes
from plamo2_jax.surgery.structure import FIXED, SurgeryError, structure

Width = Literal["clone", "tile", "zero"]
"""How channels are added.
clone: channels are copied; the function stays the same for any sizes.
tile: channels are copied and all read with weight old / new, as Phi-2 reused the weights of Phi-1.5. If the new size is not a multiple
of the old size, the function changes, since some channels have more copies than others.
zero: new channels have zero output or are read with weight zero, so the function stays the same. The other side of the product starts
with random values, so that new channels have a gradient."""


@dataclasses.dataclass(frozen=True)
class Expansion:
    """The growth of one axis.

    Attributes:
        old: Size of the axis in the source.
        source: [new] int; the source channel that each channel copies, -1 for a channel without source.
        normed: Whether an RMS norm runs over the axis.
        even: Whether all channels are read with the same weight, as in `tile`.
    """

    old: int
    source: np.ndarray
    normed: bool
    even: bool = False

    @property
    def new(self) -> int:
        """Size of the axis in the target."""
        return len(self.source)

    @property
    def copied(self) -> np.ndarray:
        """[new] bool; True for channels with a source."""
        return self.source >= 0

    @property
    def copies(self) -> np.ndarray:
        """[new] float; number of copies of each channel's source, 1 for a channel without source."""
        counts = np.bincount(self.source[self.copied], minlength=self.old)
        return np.where(self.copied, counts[np.maximum(self.source, 0)], 1.0)

    @property
    def gain(self) -> np.ndarray:
        """[new] float; the gain g of each channel, 0 without source."""
        gain = np.sqrt(self.new / (self.old * self.copies)) if self.normed and not self.even else np.ones(self.new)
        return np.where(self.copied, gain, 0.0)

    @property
    def read(self) -> np.ndarray:
        """[new] float; the weight r with which each channel is read, 0 without source."""
        if self.even:
            return np.where(self.copied, self.old / self.new, 0.0)
        return self.gain * self.old / self.new if self.normed else self.gain / self.copies

    def weight(self, declared: axes.Declaration, axis: str) -> np.ndarray:
        """Return the factor of a parameter along the axis: [new] float, 0 for channels without source."""
        if declared.norm_offset is None:
            return self.read if axis in declared.contracts else self.gain
        # The norm's input already has the gain, so a norm scale needs no factor. A scale whose output is contracted without a weight
        # (B and C) compensates for the gains of both sides.
        factor = self.old / self.new if axis in declared.contracts else 1.0
        return np.where(self.copied, factor, 0.0)

    def gradient_weight(self, declared: axes.Declaration, axis: str) -> np.ndarray:
        """Return the factor of a parameter's gradient along the axis: [new] float, the transpose of `weight`."""
        if declared.norm_offset is None:
            return self.gain if axis in declared.contracts else self.read
        return self.gain**2 if axis in declared.contracts else self.gain * self.read

    def project(self, noise: np.ndarray, position: int, declared: axes.Declaration) -> np.ndarray:
        """Project noise of a contracting parameter such that it cancels over the copies of each source: the function stays the same.

        Args:
            noise: Array of the parameter's new shape.
            position: Position of the axis in that shape.
        """
        gain = self.gain if declared.norm_offset is None else self.gain**2
        matrix = np.zeros((self.new, self.old))
        matrix[np.flatnonzero(self.copied), self.source[self.copied]] = gain[self.copied]
        norms = np.maximum((matrix**2).sum(0), np.finfo(float).tiny)
        moved = np.moveaxis(noise, position, -1)
        moved = np.where(self.copied, moved, 0)
        return np.moveaxis(moved - ((moved @ matrix) / norms) @ matrix.T, -1, position)


def expansions(source: ModelConfig, target: ModelConfig, width: Width) -> dict[str, Expansion]:
    """Return the expansion of every axis whose size or number of groups differs, by axis name.

    Raises:
        SurgeryError: An axis would shrink, a fixed axis differs, or the groups cannot be extended to the groups of the target.
    """
    old, new = structure(source), structure(target)
    # A network of one kind of layer lacks the other's axes.
    names = [name for name in old.sizes if name in new.sizes]
    for name in names:
        before, after = old.sizes[name], new.sizes[name]
        if name in FIXED and before != after:
            raise SurgeryError(
                f"axis {name!r} has size {before} and would have {after}: growing does not change this axis. Use the same size"
            )
        if after < before:
            raise SurgeryError(
                f"axis {name!r} has size {before} and would have {after}: growing cannot shrink it. Use plamo2 prune"
            )
    changed = [name for name in names if old.sizes[name] != new.sizes[name]]
    sources = {name: _sources(old.sizes[name], new.sizes[name], width) for name in changed}
    for shared, member in axes.GROUPS.items():
        if shared in changed or member in changed:
            sizes = [(structure.sizes[shared], structure.sizes[member]) for structure in (old, new)]
            sources[shared], sources[member] = _group_sources(shared, member, *sizes, width)
    return {
        name: Expansion(old.sizes[name], source, name in old.normed, width == "tile")
        for name, source in sources.items()
    }


def _sources(old: int, new: int, width: Width) -> np.ndarray:
    indices = np.arange(new)
    return np.where(indices < old, indices, -1) if width == "zero" else indices % old


def _group_sources(
    shared: str, member: str, old: tuple[int, int], new: tuple[int, int], width: Width
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sources of a group axis and of its member axis.

    A new group copies an old group, or a part of one, and is filled up with copies of its members.
    """
    (groups, members), (new_groups, new_members) = old, new
    size, new_size = members // groups, new_members // new_groups
    # Groups that become smaller are split into parts; each part copies the shared entry.
    parts = -(-size // new_size)
    if size > new_size and (size % new_size or new_groups < groups * parts):
        raise SurgeryError(
            f"axis {member!r} goes from {groups} groups of {size} to {new_groups} of {new_size}, but {size} members cannot be split into "
            f"{'whole groups' if size % new_size else 'so few groups'} of {new_size}. Keep {member} / {shared} at {size} or more, or use "
            f"a divisor of {size} with at least {groups} · {size} / ({member} / {shared}) groups"
        )
    pieces = _sources(groups * parts, new_groups, width)
    within = _sources(min(size, new_size), new_size, width)
    kept = np.maximum(pieces, 0)
    start = kept // parts * size + kept % parts * new_size if parts > 1 else kept * size
    inside = start[:, None] + np.maximum(within, 0)
    known = (pieces >= 0)[:, None] & (within >= 0)
    return np.where(pieces >= 0, kept // parts, -1), np.where(known, inside, -1).reshape(-1)
