"""The index of objectives: one import and one entry each."""

from .apo import apo_down, apo_zero
from .bco import bco, bco_pair
from .bnf import bnf, bnf_pair
from .dpo import dpo
from .exo import exo_pair
from .hinge import hinge, slic
from .ipo import ipo
from .kto import kto
from .nca import nca_pair
from .robust_dpo import robust_dpo
from .sft import sft
from .sigmoid_norm import sigmoid_norm
from .simpo import simpo
from .slpo import slpo

OBJECTIVES = {
    o.name: o
    for o in (
        sft,
        dpo,
        simpo,
        robust_dpo,
        sigmoid_norm,
        hinge,
        slic,
        ipo,
        exo_pair,
        nca_pair,
        apo_zero,
        apo_down,
        kto,
        bco,
        bco_pair,
        bnf,
        bnf_pair,
        slpo,
    )
}
