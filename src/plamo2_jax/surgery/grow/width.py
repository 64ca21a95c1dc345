"""How one axis grows: which old channel each new one is, how loud it is, and with what weight it is read.

Let new activations be G times the old ones, G [new, old] with one entry a row: the gain g of new channel j at its source. What reads
the axis is multiplied by r with the sum of g r over the copies of a source equal to 1, and nothing else changes. Along an axis without
a norm g = 1 and r = 1 / copies do it, whatever is computed channel by channel on the way. An RMS norm wants more: its mean, now over
`new` channels, must stay what it was, so the sum of g² over the copies of each source must be new / old. That gives
g² = new / (old · copies) and r = g · old / new, for any sizes at all. Cloning by a whole factor (HyperCloning, arXiv:2409.12903) is
g = 1, r = 1 / factor; zero padding is one copy of each source, g² = new / old. The norm's epsilon needs no change in either.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

from plamo2_jax.config import ModelConfig
from plamo2_jax.model import axes
from plamo2_jax.surgery.structure import FIXED, SurgeryError, structure

Width = Literal["clone", "tile", "zero"]
"""clone: channels are copied over and over, and the function stays the same, whatever the sizes.
tile: the same, but all channels alike, old / new of their weight read, as Phi-2 took over Phi-1.5's weights. Where the new size is no
multiple of the old one, channels with a copy more count for more, and the function changes.
zero: new channels are silent or unread, and the function stays the same; where training can move them they start at random."""


@dataclasses.dataclass(frozen=True)
class Expansion:
    """One axis's growth.

    Attributes:
        old: size before.
        source: [new] int; the old channel that each new one copies, -1 for one that copies none.
        normed: whether an RMS norm runs over the axis.
        even: whether all channels weigh alike, as in `tile`.
    """

    old: int
    source: np.ndarray
    normed: bool
    even: bool = False

    @property
    def new(self) -> int:
        """Size afterwards."""
        return len(self.source)

    @property
    def copied(self) -> np.ndarray:
        """[new] bool; whether a channel has a source."""
        return self.source >= 0

    @property
    def copies(self) -> np.ndarray:
        """[new] float; how many copies a channel's source has (1 where it has no source)."""
        counts = np.bincount(self.source[self.copied], minlength=self.old)
        return np.where(self.copied, counts[np.maximum(self.source, 0)], 1.0)

    @property
    def gain(self) -> np.ndarray:
        """[new] float; g, 0 for a channel without source."""
        gain = np.sqrt(self.new / (self.old * self.copies)) if self.normed and not self.even else np.ones(self.new)
        return np.where(self.copied, gain, 0.0)

    @property
    def read(self) -> np.ndarray:
        """[new] float; r, 0 for a channel without source."""
        if self.even:
            return np.where(self.copied, self.old / self.new, 0.0)
        return self.gain * self.old / self.new if self.normed else self.gain / self.copies

    def weight(self, declared: axes.Declaration, axis: str) -> np.ndarray:
        """[new] float; what a parameter is multiplied by along the axis, 0 for a channel without source."""
        if declared.offset is None:
            return self.read if axis in declared.reads else self.gain
        # A scale multiplies what the norm makes, which has the gain already. One that stands for a reader without weights (which is itself
        # made with the gain) makes up for both gains.
        factor = self.old / self.new if axis in declared.reads else 1.0
        return np.where(self.copied, factor, 0.0)

    def gradient_weight(self, declared: axes.Declaration, axis: str) -> np.ndarray:
        """[new] float; what the parameter's gradient is multiplied by along the axis: that of `weight`'s transpose."""
        if declared.offset is None:
            return self.gain if axis in declared.reads else self.read
        return self.gain**2 if axis in declared.reads else self.gain * self.read

    def project(self, noise: np.ndarray, position: int, declared: axes.Declaration) -> np.ndarray:
        """Noise of a reader made such that the copies of each source cancel: what is read stays the same.

        Args:
            noise: of the parameter's new shape.
            position: of the axis in it.
            declared: the parameter's declaration.
        """
        heard = self.gain if declared.offset is None else self.gain**2
        matrix = np.zeros((self.new, self.old))
        matrix[np.flatnonzero(self.copied), self.source[self.copied]] = heard[self.copied]
        norms = np.maximum((matrix**2).sum(0), np.finfo(float).tiny)
        moved = np.moveaxis(noise, position, -1)
        moved = np.where(self.copied, moved, 0)
        return np.moveaxis(moved - ((moved @ matrix) / norms) @ matrix.T, -1, position)


def expansions(source: ModelConfig, target: ModelConfig, width: Width) -> dict[str, Expansion]:
    """The growth of every axis whose size differs, or whose groups do.

    Raises:
        SurgeryError: an axis would shrink, or one that is left alone differs, or groups cannot be made of the old ones.
    """
    old, new = structure(source), structure(target)
    # A network of one kind of layer lacks the other's axes.
    names = [name for name in old.sizes if name in new.sizes]
    for name in names:
        before, after = old.sizes[name], new.sizes[name]
        if name in FIXED and before != after:
            raise SurgeryError(
                f"axis {name!r} has size {before} and would have {after}; growing leaves it alone, so it must stay"
            )
        if after < before:
            raise SurgeryError(
                f"axis {name!r} has size {before} and would have {after}; growing cannot shrink it (see plamo2 prune)"
            )
    grouped = {name: part for name, part in axes.GROUPS.items() if name in names}
    result: dict[str, Expansion] = {}
    for shared, member in grouped.items():
        sizes = [(structure.sizes[shared], structure.sizes[member]) for structure in (old, new)]
        if sizes[0] != sizes[1]:
            indices = _group_sources(shared, member, *sizes, width)
            for name, index in zip((shared, member), indices, strict=True):
                result[name] = Expansion(old.sizes[name], index, name in old.normed, width == "tile")
    for name in names:
        before, after = old.sizes[name], new.sizes[name]
        if before == after or name in {*grouped, *grouped.values()}:
            continue
        result[name] = Expansion(before, _sources(before, after, width), name in old.normed, width == "tile")
    return result


def _sources(old: int, new: int, width: Width) -> np.ndarray:
    indices = np.arange(new)
    return np.where(indices < old, indices, -1) if width == "zero" else indices % old


def _group_sources(
    shared: str, member: str, old: tuple[int, int], new: tuple[int, int], width: Width
) -> tuple[np.ndarray, np.ndarray]:
    """Sources of both axes of groups: a new group is a copy of an old one, or of a part of one, filled up with copies of its members."""
    (groups, members), (new_groups, new_members) = old, new
    size, new_size = members // groups, new_members // new_groups
    # Groups that become smaller are cut into parts, each with the shared entry.
    parts = -(-size // new_size)
    if size > new_size and (size % new_size or new_groups < groups * parts):
        raise SurgeryError(
            f"axis {member!r} goes from {groups} groups of {size} to {new_groups} of {new_size}, but {size} members cannot be cut into "
            f"{'whole groups' if size % new_size else 'so few groups'} of {new_size}; keep {member} / {shared} at {size} or more, or make "
            f"it a divisor of {size} with at least {groups} · {size} / ({member} / {shared}) groups"
        )
    pieces = _sources(groups * parts, new_groups, width)
    within = _sources(min(size, new_size), new_size, width)
    kept = np.maximum(pieces, 0)
    start = kept // parts * size + kept % parts * new_size if parts > 1 else kept * size
    inside = start[:, None] + np.maximum(within, 0)
    known = (pieces >= 0)[:, None] & (within >= 0)
    return np.where(pieces >= 0, kept // parts, -1), np.where(known, inside, -1).reshape(-1)
