"""The index of objectives: one import and one entry each."""

from .asft import asft
from .bco import bco, bco_pair, bco_udm
from .beta_dpo import beta_dpo
from .bnf import bnf, bnf_pair, bnf_pair_batch_min
from .cpl import cpl, cpl_kl
from .dco import dco
from .dpo import dpo
from .egpo import egpo
from .f_dpg import f_dpg
from .flat import flat
from .gpo import gpo
from .hypo import hypo_kl
from .implicit_prm import implicit_prm
from .kto import apo_zero_unpaired, kto
from .npo import npo
from .sampo import sampo
from .sft import sft
from .simpo import simpo
from .slpo import slpo
from .spa import spa

OBJECTIVES = {
    o.name: o
    for o in (
        sft,
        dpo,
        simpo,
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
