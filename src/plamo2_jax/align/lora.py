"""LoRA (arXiv:2106.09685): train low-rank adapters to a model whose own parameters are frozen.

The model multiplies by base and adapter one after the other (`model.low_rank`): no gradient and no copy of the model's size is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax

from plamo2_jax.adapters.attach import Adapters
from plamo2_jax.checkpoint import BASE_FINGERPRINT, fingerprint
from plamo2_jax.model.axes import is_matrix, map_with_axes
from plamo2_jax.model.plamo2 import Plamo2, logical_axes
from plamo2_jax.train.objective import Batch, Metrics, Objective


class WithAdapters:
    """An objective of the model's parameters as one of adapters to them; the parameters are frozen.

    Args:
        inner: `(params, batch, rng[, frozen])`; its frozen arrays, `extra`, `over`, `forward_only`, `augment` and `evaluate` are kept.
            With `inner.reference_is_start`, its frozen arrays are None and it is given the parameters themselves instead.
        adapters: the trained parameters.
        params: the model's parameters.
    """

    def __init__(self, inner: Objective, adapters: Adapters, params: Any):
        self._inner, self.trained = inner, adapters
        self.extra, self.over = getattr(inner, "extra", {}), getattr(inner, "over", {})
        self.forward_only = getattr(inner, "forward_only", ())
        if hasattr(inner, "augment"):
            self.augment = inner.augment
        # A fingerprint picks values of whole arrays, which no process of several has.
        alone = jax.process_count() == 1
        self.description = {BASE_FINGERPRINT: fingerprint(adapters.config, params)} if alone else {}
        self.frozen = {"params": cast_base(adapters, params), "inner": getattr(inner, "frozen", None)}

    def __call__(self, params: Any, batch: Batch, rng: jax.Array, frozen: Any = None) -> tuple[jax.Array, Metrics]:
        """Return the inner objective's loss and metrics with the adapters attached."""
        frozen = self.frozen if frozen is None else frozen
        for_adapters, for_inner = jax.random.split(rng)
        attached = self.trained.attach(frozen["params"], params, for_adapters)
        return self._inner(attached, batch, for_inner, *self._inner_frozen(frozen))

    def whole(self, params: Any) -> Any:
        """Return the model's parameters with the adapters attached."""
        return self.trained.attach(self.frozen["params"], params)

    def evaluate(self, params: Any, batches: Iterable[Mapping[str, jax.Array]]) -> Any:
        """Return the inner objective's figures with the adapters attached."""
        return self._inner.evaluate(self.whole(params), batches, *self._inner_frozen(self.frozen))

    def _inner_frozen(self, frozen: Any) -> tuple:
        if getattr(self._inner, "reference_is_start", False):
            return (frozen["params"],)
        return () if frozen["inner"] is None else (frozen["inner"],)


def cast_base(adapters: Adapters, params: Any) -> Any:
    """Return the base with its matrices in the dtype that the configuration of the adapters says."""
    dtype = adapters.lora.base_dtype
    return map_with_axes(
        lambda names, leaf: leaf.astype(dtype) if is_matrix(names) else leaf,
        logical_axes(Plamo2(adapters.config)),
        params,
    )
