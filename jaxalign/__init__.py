"""Offline preference alignment of causal language models in JAX.

    import jaxalign

    run = jaxalign.train("recipe.yaml", {"stages.slpo.steps": 100})
    model = jaxalign.open(run.model("slpo"))
    model.generate(["What is 2 + 2?"])

Importing the package loads nothing else; each name below is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import (
        compare,
        density,
        evaluate,
        export,
        generate,
        inspect,
        inspect_row,
        open,
        pair,
        reference,
        sample,
        score,
        sweep,
        train,
    )
    from .core.objective import Objective, objective
    from .core.stats import response
    from .core.types import Loss, Pairs
    from .errors import RunError, UserError
    from .language_model import LanguageModel
    from .run.folder import Run
    from .run.train import Stopped

    __version__: str

_HOME = {
    "LanguageModel": "language_model",
    "Loss": "core.types",
    "Objective": "core.objective",
    "Pairs": "core.types",
    "Run": "run.folder",
    "RunError": "errors",
    "Stopped": "run.train",
    "UserError": "errors",
    "compare": "api",
    "density": "api",
    "evaluate": "api",
    "export": "api",
    "generate": "api",
    "inspect": "api",
    "inspect_row": "api",
    "objective": "core.objective",
    "open": "api",
    "pair": "api",
    "reference": "api",
    "response": "core.stats",
    "sample": "api",
    "score": "api",
    "sweep": "api",
    "train": "api",
}
"""Name -> the module that defines it."""

__all__ = [
    "LanguageModel",
    "Loss",
    "Objective",
    "Pairs",
    "Run",
    "RunError",
    "Stopped",
    "UserError",
    "__version__",
    "compare",
    "density",
    "evaluate",
    "export",
    "generate",
    "inspect",
    "inspect_row",
    "objective",
    "open",
    "pair",
    "reference",
    "response",
    "sample",
    "score",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a name of the package on first use (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        found: Any = version("jaxalign")
    elif name in _HOME:
        found = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    else:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
