"""The weights that a run has exported last, on the devices for the stages that read them next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from ..core.types import Array
from ..models.decoder import Model, Params
from ..models.rounded import Rounded
from .rounding import exported


class Kept:
    """Weights on the devices that have the bits of a folder, from which nobody loads them then.

    It holds one model at most, which takes the memory of its parameters until `drop`.
    """

    def __init__(self):
        self._folder: Path | None = None
        self._params: Params = {}

    def keep(
        self,
        folder: Path,
        params: Params,
        model: Model,
        kinds: Mapping[tuple[str, ...], str],
    ) -> None:
        """Take the weights of a folder in place of the ones before.

        Args:
          folder: the folder that they were exported to.
          params: parameters as in `model.abstract`; arrays that need no rounding are not copied.
          model: the decoder.
          kinds: {path of a parameter: dtype of its tensor}, where the export rounds it (`lossy`).
        """
        self._folder, self._params = folder, _in_dtypes_of(model, exported(params, kinds))

    def of(self, folder: Path, model: Model) -> Params | None:
        """The weights in a folder, as `load_params` reads them.

        They may be the arrays that are kept: whoever donates them takes a copy.

        Args:
          folder: a checkpoint.
          model: its decoder, in any dtype.

        Returns:
          None if another folder is kept, or parameters of other shapes or on another mesh.
        """
        if folder != self._folder or not _same_form(self._params, model.abstract):
            return None
        return _in_dtypes_of(model, self._params)

    def drop(self) -> None:
        """Let go of the weights."""
        self._folder, self._params = None, {}


def _in_dtypes_of(model: Model, params: Params) -> Params:
    def cast(leaf: Array | Rounded, like: jax.ShapeDtypeStruct) -> Array:
        if not isinstance(leaf, Rounded) and leaf.dtype == like.dtype:
            return leaf
        return _cast(leaf, like.dtype)

    return jax.tree.map(cast, params, model.abstract, is_leaf=lambda x: isinstance(x, Rounded))


_cast = jax.jit(lambda x, dtype: x.astype(dtype), static_argnums=1)


def _same_form(params: Params, abstract: Any) -> bool:
    """Whether parameters have the names, shapes and shardings of a model."""
    if jax.tree.structure(params) != jax.tree.structure(abstract):
        return False
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(abstract), strict=True)
    return all(
        leaf.shape == like.shape and leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)
        for leaf, like in pairs
    )
