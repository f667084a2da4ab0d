"""The index of objectives: one import and one entry each."""

from .bco import bco, bco_pair, bco_udm
from .bnf import bnf, bnf_pair, bnf_pair_batch_min
from .dpo import dpo
from .kto import apo_zero_unpaired, kto
from .sampo import sampo
from .sft import sft
from .simpo import simpo
from .slpo import slpo

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
    )
}
