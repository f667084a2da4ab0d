"""The paper's formula of every objective, in float64 NumPy, one example after the other.

An oracle is `fn(policy, ref, columns, previous=None, **hyper) -> (loss, gradient)`:

- `policy`, `ref`: {row: list over examples of per-token log-probabilities, float64 [T_i]};
- `columns`: {name: list over examples};
- `previous`: the (policy, ref, columns) of the update before, for objectives with a state;
- `loss`: average over the batch; `gradient`: {row: list of [T_i]} with respect to each token's
  log-probability, by the formula, not by differences.

Nothing here imports the package.
"""

from .bco import bco, bco_pair
from .bnf import bnf, bnf_pair
from .dpo import dpo
from .kto import kto
from .sft import sft
from .simpo import simpo
from .slpo import slpo

ORACLES = {f.__name__: f for f in (sft, dpo, simpo, kto, bco, bco_pair, bnf, bnf_pair, slpo)}
