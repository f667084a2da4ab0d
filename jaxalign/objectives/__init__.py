"""The index of objectives: one import and one entry per objective."""

from .aot import aot, aot_unpaired
from .apo import apo_down, apo_zero
from .asft import asft
from .bco import bco, bco_pair, bco_udm
from .beta_dpo import beta_dpo
from .bnf import bnf, bnf_pair, bnf_pair_batch_min
from .bradley_terry import adaptive_margin, bradley_terry
from .cal_dpo import cal_dpo
from .cpl import cpl, cpl_kl
from .cpo import cpo
from .d2o import d2o
from .dco import dco
from .discopop import discopop
from .dpo import dpo
from .dpop import dpop
from .egpo import egpo
from .emo import emo
from .exo import exo_pair
from .f_dpg import f_dpg
from .f_dpo import f_dpo
from .flat import flat
from .flex_dpo import flex_dpo
from .gpm import gpm
from .gpo import gpo
from .hinge import hinge, slic
from .hypo import hypo_kl
from .implicit_prm import implicit_prm
from .info_nca import info_nca, nca
from .inpo import inpo
from .ipo import ipo
from .kto import apo_zero_unpaired, kto
from .ld_dpo import ld_dpo
from .nca_pair import nca_pair
from .npo import npo
from .odpo import odpo
from .orpo import orpo
from .plackett_luce import plackett_luce
from .r_dpo import r_dpo
from .rdpo import rdpo
from .robust_dpo import robust_dpo
from .rpo import rpo
from .sampo import sampo
from .sft import sft
from .sigmoid_norm import sigmoid_norm
from .simpo import simpo
from .slpo import slpo
from .spa import spa
from .sparse_po import sparse_po
from .spce import spce
from .sppo import sppo, sppo_hard
from .srpo import srpo
from .tdpo import tdpo1, tdpo2
from .wpo import wpo

OBJECTIVES = {
    o.name: o
    for o in (
        sft,
        dco,
        emo,
        dpo,
        spce,
        robust_dpo,
        sigmoid_norm,
        f_dpo,
        dpop,
        r_dpo,
        ld_dpo,
        sampo,
        wpo,
        tdpo1,
        tdpo2,
        sparse_po,
        odpo,
        flex_dpo,
        rpo,
        rdpo,
        cal_dpo,
        beta_dpo,
        spa,
        hinge,
        slic,
        ipo,
        egpo,
        inpo,
        srpo,
        exo_pair,
        nca_pair,
        apo_zero,
        apo_down,
        discopop,
        sppo,
        sppo_hard,
        gpo,
        aot,
        aot_unpaired,
        simpo,
        cpo,
        orpo,
        asft,
        cpl,
        cpl_kl,
        flat,
        bnf_pair,
        bnf_pair_batch_min,
        bco_pair,
        slpo,
        kto,
        apo_zero_unpaired,
        bco,
        bco_udm,
        bnf,
        implicit_prm,
        npo,
        d2o,
        info_nca,
        nca,
        plackett_luce,
        hypo_kl,
        f_dpg,
        bradley_terry,
        adaptive_margin,
        gpm,
    )
}
