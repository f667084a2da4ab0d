"""The index of objectives: one import and one entry each."""

from .bco import bco, bco_pair
from .bnf import bnf, bnf_pair
from .dpo import dpo
from .info_nca import info_nca, nca
from .kto import kto
from .npo import npo
from .plackett_luce import plackett_luce
from .sampo import sampo
from .sft import sft
from .simpo import simpo
from .slpo import slpo
from .tdpo import tdpo1, tdpo2
from .wpo import wpo

OBJECTIVES = {
    o.name: o
    for o in (
        sft,
        dpo,
        simpo,
        kto,
        sampo,
        info_nca,
        nca,
        plackett_luce,
        npo,
        bco,
        bco_pair,
        bnf,
        bnf_pair,
        slpo,
        wpo,
        tdpo1,
        tdpo2,
    )
}
