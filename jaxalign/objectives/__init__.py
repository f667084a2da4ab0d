"""The index of objectives: one import and one entry each."""

from .aot import aot, aot_unpaired
from .apo import apo_down, apo_zero
from .bco import bco, bco_pair
from .bnf import bnf, bnf_pair
from .cal_dpo import cal_dpo
from .cpo import cpo
from .discopop import discopop
from .dpo import dpo
from .dpop import dpop
from .exo import exo_pair
from .f_dpo import f_dpo
from .flex_dpo import flex_dpo
from .hinge import hinge, slic
from .ipo import ipo
from .kto import kto
from .ld_dpo import ld_dpo
from .nca import nca_pair
from .odpo import odpo
from .orpo import orpo
from .r_dpo import r_dpo
from .robust_dpo import robust_dpo
from .rpo import rpo
from .sft import sft
from .sigmoid_norm import sigmoid_norm
from .simpo import simpo
from .slpo import slpo
from .spce import spce
from .sppo import sppo, sppo_hard

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
        discopop,
        sppo,
        sppo_hard,
        f_dpo,
        dpop,
        r_dpo,
        odpo,
        rpo,
        cpo,
        orpo,
        cal_dpo,
        ld_dpo,
        spce,
        flex_dpo,
        aot,
        aot_unpaired,
        kto,
        bco,
        bco_pair,
        bnf,
        bnf_pair,
        slpo,
    )
}
