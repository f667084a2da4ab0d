"""The devices of a command: the mesh, the precision, the failure of other hosts, the console."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
from jax.sharding import Mesh
from rich.console import Console

from .. import settings
from ..collect.statistics import precision
from ..console import Terminal
from ..core.sharding import make_mesh
from . import hosts


@contextlib.contextmanager
def devices(sizes: settings.Mesh, dtype: str) -> Iterator[tuple[Mesh, Console]]:
    """Gives the device mesh and the console, quiet on all hosts but the first.

    Args:
      sizes: sizes of the axes of the mesh.
      dtype: dtype of matrix products, float32 or bfloat16.

    Raises:
      UserError: the mesh does not fit the devices.
    """
    with hosts.together(), precision(dtype):
        yield make_mesh(sizes), Terminal(quiet=jax.process_index() != 0, soft_wrap=True)
