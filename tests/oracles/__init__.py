"""The paper's formula of every objective, in float64 NumPy, one example after the other.

An oracle is `fn(policy, ref, columns, previous=None, **hyper) -> (loss, gradient)`:

- `policy`, `ref`: {row: list over examples of per-token log-probabilities, float64 [T_i]};
- `columns`: {name: list over examples}, with `uniform`, what the examples' keys draw, [T] each,
  `start`, like `ref`, under the weights that the stage starts from, and `layers`, {row: list of
  [N, T_i]}, means of the reference's layers;
- `previous`: the (policy, ref, columns) of the update before, for objectives with a state;
- `loss`: average over the batch; `gradient`: {row: list of [T_i]} with respect to each token's
  log-probability, by the formula, not by differences.

A module holds:

- `HYPER`: {name: hyper-parameters to compare it with} of its oracles;
- `WORKED`: values that `worked.py` makes of one pair, (name, hyper-parameters, loss, slope of each
  chosen token, slope of each rejected token);
- `SURROGATES`: oracles whose gradient is not the slope of their value, because a part of the value
  is a constant to the gradient;
- `UNDIRECTED`: oracles whose gradient at the reference need not raise every chosen and lower every
  rejected response.

Nothing here imports the package.
"""

import importlib
import pkgutil

MODULES = [
    importlib.import_module(f"{__name__}.{module.name}")
    for module in pkgutil.iter_modules(__path__)
    if module.name not in ("scalars", "pairs", "worked")
]
HYPER = {name: hyper for module in MODULES for name, hyper in module.HYPER.items()}
ORACLES = {name: getattr(module, name) for module in MODULES for name in module.HYPER}
WORKED = [value for module in MODULES for value in getattr(module, "WORKED", ())]
SURROGATES = {name for module in MODULES for name in getattr(module, "SURROGATES", ())}
UNDIRECTED = {name for module in MODULES for name in getattr(module, "UNDIRECTED", ())}
