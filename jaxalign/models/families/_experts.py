"""Mixtures of experts, as many families read them from `config.json` and name their tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ...errors import UserError
from ..spec import Dense, Experts, Layer, Router
from ._family import ExpertNames
from ._fields import Fields

NUMBERS = ("num_experts", "num_local_experts", "n_routed_experts")
GATES = ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj", "mlp.experts.{}.down_proj")
"""The modules of an expert, as most families name them."""


def router(f: Fields, **own: Any) -> Router:
    """A softmax over all experts unless `own`, further fields of `Router`, says otherwise.

    `chosen` among them is the number of experts if the file gives none.

    The loss that balances the load of the experts and the noise on their inputs belong to
    pretraining.
    """
    f.read |= {"router_aux_loss_coef", "output_router_logits", "router_jitter_noise"}
    default = {"default": own.pop("chosen")} if "chosen" in own else {}
    chosen = f.get("num_experts_per_tok", int, **default)
    return Router(**({"chosen": chosen, "score": "softmax"} | own))


def corrected(f: Fields, scale: float = 1.0, groups: int = 1, kept: int = 1) -> Router:
    """Sigmoids, and a correction of the scores to choose (DeepSeek-AI 2024, arXiv:2412.19437).

    Args:
      f: the raw configuration.
      scale: factor of the factors if the file gives none.
      groups: number of groups of experts if the file gives none.
      kept: number of groups from which experts are chosen if the file gives none.
    """
    return router(
        f, chosen=8, score="sigmoid", correction=True,
        normalized=f.get("norm_topk_prob", bool, True),
        scale=f.get("routed_scaling_factor", float, scale),
        groups=f.get("n_group", int, groups), kept_groups=f.get("topk_group", int, kept),
        group_score="largest two",
    )  # fmt: skip


def number(f: Fields, default: int) -> int:
    """The number of experts, under any name that transformers has for it.

    Raises:
      UserError: two names have different numbers.
    """
    given = {f.get(key, int, None) for key in NUMBERS} - {None}
    if len(given) > 1:
        raise UserError(f"{f.where}: {', '.join(NUMBERS)}: got {given}; keep one of them")
    return next((count for count in given if count), default)


def experts(f: Fields, count: int, router: Router, mlp: Dense, width: int, **own: Any) -> Experts:
    """A mixture of `count` experts, each the feed-forward `mlp` of another width.

    Raises:
      UserError: more experts are chosen than there are, or groups do not divide them.
    """
    kept = count * router.kept_groups // router.groups
    if router.chosen > kept or count % router.groups:
        raise UserError(
            f"{f.where}: num_experts_per_tok {router.chosen} of {count} experts in "
            f"{router.groups} groups; restore the original file"
        )
    return Experts(count, router, dataclasses.replace(mlp, width=width), **own)


def sparse_layers(f: Fields, layers: int) -> list[bool]:
    """Whether each layer has experts, by `decoder_sparse_step` and `mlp_only_layers`."""
    step = f.get("decoder_sparse_step", int, 1)
    only = f.get("mlp_only_layers", list, None) or ()
    return [i not in only and (i + 1) % step == 0 for i in range(layers)]


def mixed(dense: Layer, experts: Experts, sparse: Sequence[bool]) -> list[Layer]:
    """Layers of which some have experts in place of their feed-forward."""
    with_experts = dataclasses.replace(dense, mlp=experts)
    return [with_experts if one else dense for one in sparse]


def names(
    each: tuple[str, str, str] = GATES,
    stacked: str = "mlp.experts",
    routers: tuple[str, str] = ("mlp.gate", "mlp.gate"),
    shared: str | None = None,
) -> tuple[ExpertNames, ExpertNames]:
    """Both forms of a mixture: a tensor for each expert, and one for all, as transformers has them.

    Args:
      each: the modules gate, up and down of an expert.
      stacked: the module of all experts.
      routers: the module of the router in both forms.
      shared: the module of the shared feed-forward.
    """
    common = {}
    if shared is not None:
        common = {
            **{("mlp", "shared", k, "kernel"): f"{shared}.{k}_proj.weight" for k in PARTS},
            ("mlp", "shared_gate", "kernel"): f"{shared}_gate.weight",
        }

    def form(router: str, matrices: Sequence[str]) -> ExpertNames:
        own = {("mlp", k, "kernel"): name for k, name in zip(PARTS, matrices, strict=True)}
        routed = {
            ("mlp", "router", "kernel"): f"{router}.weight",
            ("mlp", "correction"): f"{router}.e_score_correction_bias",
        }
        return ExpertNames(routed | own | common)

    fused, down = f"{stacked}.gate_up_proj", f"{stacked}.down_proj"
    return (
        form(routers[0], [f"{name}.weight" for name in each]),
        form(routers[1], [fused, fused, down]),
    )


PARTS = ("gate", "up", "down")
