"""DeepSeek-V3 and R1 (DeepSeek-AI 2024, arXiv:2412.19437), and models of their form."""

from __future__ import annotations

import dataclasses

from ..spec import Layer, Spec
from ._experts import corrected, experts, mixed, number
from ._family import Family
from ._fields import Fields
from ._latent import NAMES, latent
from ._parts import count, decoder, dense, rms


def read(f: Fields) -> Spec:
    """The first layers are dense; others have experts and a feed-forward of every token."""
    norm, mlp = rms(f), dense(f)
    mixer = latent(f, interleaved=f.get("rope_interleave", bool, True))
    inner = f.get("moe_intermediate_size", int, 2048)
    always = dataclasses.replace(mlp, width=inner * f.get("n_shared_experts", int, 1))
    chooses = corrected(f, scale=2.5, groups=8, kept=4)
    mixture = experts(f, number(f, 256), chooses, mlp, inner, shared=always)
    first = f.number("first_k_dense_replace", 3)
    # Of pretraining, or not read by transformers either.
    f.read |= {
        "scoring_func",
        "moe_layer_freq",
        "aux_loss_alpha",
        "seq_aux",
        "ep_size",
        "topk_method",
    }
    f.read |= {"num_nextn_predict_layers", "num_mtp_layers"}
    layers = mixed(Layer(mixer, mlp, norm), mixture, [i >= first for i in range(count(f))])
    return decoder(f, layers, norm)


FAMILY = Family(
    "deepseek_v3",
    read,
    NAMES,
    classifier="DeepseekV3ForSequenceClassification",
    checkpoints="DeepSeek-V3 and R1",
    refused="the original files in FP8",
)
