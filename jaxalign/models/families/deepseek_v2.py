"""DeepSeek-V2 (DeepSeek-AI 2024, arXiv:2405.04434): latent attention, shared experts."""

from __future__ import annotations

import dataclasses

from ...errors import UserError
from ..spec import Layer, Spec
from ._experts import experts, mixed, number, router
from ._family import Family
from ._fields import Fields
from ._latent import NAMES, latent
from ._parts import count, decoder, dense, rms


def read(f: Fields) -> Spec:
    """The first layers are dense; others have experts and a feed-forward of every token."""
    norm, mlp = rms(f), dense(f)
    mixer = latent(f, interleaved=True)
    inner = f.get("moe_intermediate_size", int, 1407)
    always = dataclasses.replace(mlp, width=inner * f.get("n_shared_experts", int, 2))
    chooses = router(
        f, scale=f.get("routed_scaling_factor", float, 1.0), **_groups(f),
    )  # fmt: skip
    f.get("norm_topk_prob", bool, None)  # transformers does not read it either
    mixture = experts(f, number(f, 64), chooses, mlp, inner, shared=always)
    first = f.number("first_k_dense_replace", 0)
    # Of pretraining, or not read by transformers either.
    f.read |= {"scoring_func", "moe_layer_freq", "aux_loss_alpha", "seq_aux", "ep_size"}
    f.read |= {"num_nextn_predict_layers", "num_mtp_layers"}
    layers = mixed(Layer(mixer, mlp, norm), mixture, [i >= first for i in range(count(f))])
    return decoder(f, layers, norm)


def _groups(f: Fields) -> dict[str, int]:
    """The limit of the groups from which experts are chosen, if any."""
    method = f.get("topk_method", str, "greedy")
    groups, kept = f.get("n_group", int, None), f.get("topk_group", int, None)
    if method == "greedy":
        return {}
    if method != "group_limited_greedy" or groups is None or kept is None:
        raise UserError(
            f"{f.where}: topk_method '{method}' with n_group {groups} and topk_group {kept} is not "
            "implemented; wanted 'greedy', or 'group_limited_greedy' with both"
        )
    return {"groups": groups, "kept_groups": kept}


FAMILY = Family(
    "deepseek_v2",
    read,
    NAMES,
    classifier="DeepseekV2ForSequenceClassification",
    checkpoints="DeepSeek-V2, V2-Lite and V2.5",
)
