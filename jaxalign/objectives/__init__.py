"""The index of objectives: one import and one entry each."""

from .aot import aot, aot_unpaired
from .apo import apo_down, apo_zero
from .asft import asft
from .bco import bco, bco_pair, bco_udm
from .beta_dpo import beta_dpo
from .bnf import bnf, bnf_pair, bnf_pair_batch_min
from .cal_dpo import cal_dpo
from .cpl import cpl, cpl_kl
from .cpo import cpo
from .dco import dco
from .discopop import discopop
from .dpo import dpo
from .dpop import dpop
from .egpo import egpo
from .exo import exo_pair
from .f_dpg import f_dpg
from .f_dpo import f_dpo
from .flat import flat
from .flex_dpo import flex_dpo
from .gpo import gpo
from .hinge import hinge, slic
from .hypo import hypo_kl
from .implicit_prm import implicit_prm
from .ipo import ipo
from .kto import apo_zero_unpaired, kto
from .ld_dpo import ld_dpo
from .nca import nca_pair
from .npo import npo
from .odpo import odpo
from .orpo import orpo
from .r_dpo import r_dpo
from .robust_dpo import robust_dpo
from .rpo import rpo
from .sampo import sampo
from .sft import sft
from .sigmoid_norm import sigmoid_norm
from .simpo import simpo
from .slpo import slpo
from .spa import spa
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
        sampo,
        bco,
        bco_pair,
        bnf,
        bnf_pair,
        slpo,
        apo_zero_unpaired,
        bco_udm,
        bnf_pair_batch_min,
        npo,
        asft,
        cpl,
        cpl_kl,
        egpo,
        gpo,
        flat,
        implicit_prm,
        dco,
        spa,
        hypo_kl,
        f_dpg,
        beta_dpo,
    )
}
