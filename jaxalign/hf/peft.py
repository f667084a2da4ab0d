"""Low-rank adapters in the files of PEFT: `adapter_config.json`, `adapter_model.safetensors`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from ..core.sharding import RULES
from ..errors import UserError, near_miss
from ..files import read_json, whole_folder
from ..models.adapted import Adapted, adapt, materialized
from ..models.decoder import Model, Params
from ..models.layers.block import Block
from ..models.lora import LowRank, part_of
from ..models.spec import Spec
from ..settings import Lora
from ..shown import listed, shown
from .load import load_params, open_tensors, placed, resolve, tensors_of
from .save import by_tensor, gathered
from .weights import Weight, fused_rows, names_of, stacks

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
TENSOR = {"lora_a": "lora_A", "lora_b": "lora_B"}
READ = ("r", "lora_alpha", "use_rslora", "base_model_name_or_path")
INITS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Initializations that do not change the base model; pissa, olora and others change it."""
HARMLESS = (
    # Identity and bookkeeping.
    *("auto_mapping", "inference_mode", "peft_version", "revision", "task_type"),
    # The matrices that have adapters, which the names of the tensors give.
    *("target_modules", "exclude_modules", "layers_pattern", "ensure_weight_tying"),
    # How the adapters were trained.
    *("lora_dropout", "eva_config", "runtime_config"),
    # The axes of the matrices, which PEFT too takes from the base model.
    "fan_in_fan_out",
    # Layers and methods that are not used; the other keys show it.
    *("megatron_core", "qalora_group_size"),
)


def low_rank(settings: Lora, spec: Spec, where: str) -> LowRank:
    """The adapters of a decoder that a recipe asks for.

    Args:
      settings: LoRA settings of the recipe.
      spec: the decoder's configuration.
      where: dotted path of the settings, for messages.

    Raises:
      UserError: a target is no linear layer of this decoder, or only a part of a fused layer.
    """
    known: dict[str, list[tuple[str, ...]]] = {}
    names, linears = names_of(spec), adaptable(spec)
    for path, module in linears.items():
        for name in (path[-1], module.rpartition(".")[-1]):
            known.setdefault(name, []).append(path)
    chosen: set[tuple[str, ...]] = set()
    for target in known if settings.targets is None else settings.targets:
        if target not in known:
            found = "has no linear layer"
            others = [m for path, m in names.linears.items() if path[0] == "mlp"]
            if target in [m.rpartition(".")[-1] for m in others]:
                found = "has experts, so that only attention can have adapters, not"
            raise UserError(
                f"{where}.targets: model_type '{spec.family}' {found} '{target}'; "
                f"{near_miss(target, known)}"
            )
        chosen |= set(known[target])
    for path in sorted(chosen):
        together = names.together(path)
        if missing := [other[-1] for other in together if other not in chosen]:
            module = names.linears[path].rpartition(".")[-1]
            raise UserError(
                f"{where}.targets: model_type '{spec.family}' fuses "
                f"{listed([other[-1] for other in together], quote='')} in one matrix, and "
                f"{missing[0]} is not named; name {module}"
            )
    targets = tuple(path for path in linears if path in chosen)
    return adapters(spec, targets, settings.rank, settings.alpha, settings.rank_stabilized)


def adaptable(spec: Spec) -> dict[tuple[str, ...], str]:
    """The linear layers that can have adapters, and their modules.

    With experts these are the layers of attention: PEFT takes other feed-forwards
    for experts, by their names.
    """
    sparse = bool(spec.routers)
    # Shapes alone, with a mesh or without.
    with nnx.use_eager_sharding(False), nnx.logical_axis_rules(tuple(RULES.items())):
        blocks = [
            nnx.eval_shape(lambda layer=layer: Block(layer, spec.width, nnx.Rngs(0), jnp.float32))
            for layer in set(spec.layers)
        ]
    return {
        path: module
        for path, module in names_of(spec).linears.items()
        if not (sparse and path[0] == "mlp") and any(part_of(block, path) for block in blocks)
    }


def adapters(
    spec: Spec, targets: tuple[tuple[str, ...], ...], rank: int, alpha: float, stabilized: bool
) -> LowRank:
    """Adapters of these layers, which share an A where the checkpoint fuses their matrices."""
    groups = dict.fromkeys(names_of(spec).together(path) for path in targets)
    shared = tuple(group for group in groups if len(group) > 1)
    return LowRank(rank, alpha, stabilized, targets, shared)


def weights(model: Adapted) -> tuple[Weight, ...]:
    """All adapters and their tensors in PEFT's file."""
    spec, found = model.base.spec, []
    order = {path: i for i, path in enumerate(names_of(spec).linears)}
    names, shared = names_of(spec), {g[0][:-1]: g for g in model.low_rank.shared}
    for key, numbers in stacks(spec).items():
        block: dict[tuple[str, ...], Any] = flatten_dict(model.abstract["layers"].get(key, {}))
        for path in sorted(block, key=lambda p: order.get(p[:-1], -1)):
            owner, leaf = path[:-1], path[-1]
            group = shared[owner] if owner in shared else names.together(owner)
            name = f"{PREFIX}{names.adapted}{names.linears[group[0]]}.{TENSOR[leaf]}.weight"
            rows = None
            if leaf == "lora_b":
                widths = [block[(*other, leaf)].shape[-1] for other in group]
                rows = fused_rows(spec, numbers[0], owner, widths)
            full = ("layers", key, *path)
            found.append(Weight(full, name, "transposed", rows, stacks=(numbers,)))
    return tuple(found)


def save_adapter(folder: Path, params: Params, model: Adapted, *, base: str, card: str) -> None:
    """Write adapters so that PEFT loads them; every process of a run must call this.

    Args:
      folder: folder to write; replaced if it exists.
      params: adapters as in `model.abstract`.
      model: the decoder with its adapters.
      base: folder or hub name of the frozen checkpoint.
      card: text of the model card, README.md.

    Raises:
      RunError: the folder cannot be written.
      UserError: a value is not finite.
    """
    settings, spec = model.low_rank, model.base.spec
    named = list(by_tensor(weights(model), len(spec.layers)))
    with whole_folder(folder) as partial:
        kinds = {name: "float32" for names, _, _ in named for name in names}
        tensors = gathered(params, model.whole, named, kinds)
        held = {name: tensor for name, tensor in tensors if partial}
        if partial:
            save_file(held, partial / TENSORS, metadata={"format": "pt"})
            text = json.dumps(_config(settings, spec, base), indent=2)
            (partial / CONFIG).write_text(text + "\n", encoding="utf-8")
            (partial / "README.md").write_text(card, encoding="utf-8")


def _config(low_rank: LowRank, spec: Spec, base: str) -> dict[str, Any]:
    names = names_of(spec)
    linears, others = names.linears, "|".join(re.escape(part) for part in names.copied)
    return {
        "base_model_name_or_path": base,
        "bias": "none",
        # Other parts of the model have linear layers of the same names.
        "exclude_modules": f".*({others}).*" if others else None,
        "fan_in_fan_out": names.matrices == "[in, out]",
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": low_rank.alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": low_rank.rank,
        "target_modules": sorted({linears[path].rpartition(".")[-1] for path in low_rank.targets}),
        "task_type": "CAUSAL_LM",
        "use_rslora": low_rank.rank_stabilized,
    }


def base_folder(folder: Path) -> Path:
    """The folder of a checkpoint, or of the base checkpoint of an adapter.

    Raises:
      UserError: the base of the adapter is neither a folder nor on the hub.
    """
    if not (folder / CONFIG).is_file():
        return folder
    name = read_json(folder / CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str):
        raise UserError(
            f"{folder / CONFIG}: base_model_name_or_path: got {shown(name)}; name the base"
        )
    return resolve(name, f"{folder / CONFIG}: base_model_name_or_path")


def load_merged(folder: Path, model: Model) -> Params:
    """The parameters of a checkpoint, or of an adapter merged into its base checkpoint.

    Raises:
      UserError: see `load_params` and `load_adapter`.
    """
    params = load_params(base_folder(folder), model)
    if not (folder / CONFIG).is_file():
        return params
    adapted, low = load_adapter(folder, model)
    return materialized(adapted.merged(params, low), model)


def load_adapter(folder: Path, model: Model) -> tuple[Adapted, Params]:
    """Read adapters that PEFT or this library wrote.

    Args:
      folder: a folder with `adapter_config.json` and `adapter_model.safetensors`.
      model: the base decoder of the adapters.

    Returns:
      The decoder with adapters, and the adapters in the form of its `abstract`.

    Raises:
      UserError: a file is missing or damaged, the kind of adapter is not implemented, or the
        tensors do not belong to this decoder.
    """
    settings = _checked(read_json(folder / CONFIG), folder / CONFIG)
    file = folder / TENSORS
    if not file.is_file():
        raise UserError(f"{file}: missing; save the adapter as safetensors")
    with open_tensors([file]) as tensors:
        targets = _targets(tensors, model.spec, file)
        adapted = adapt(model, adapters(model.spec, targets, **settings))
        found = {w: tensors_of(w, tensors, adapted.whole, folder) for w in weights(adapted)}
        return adapted, placed(found, adapted.whole, lambda path, leaf: leaf)


def _checked(raw: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Rank and scale for `adapters`; refuses keys that may change the mathematics."""
    wanted = {"peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": INITS}
    for key, value in raw.items():
        known = not value or key in READ or key in HARMLESS
        if value not in wanted[key] if key in wanted else not known:
            raise UserError(
                f"{file}: {key} = {shown(value)} is not implemented; merge the adapter with "
                "PEFT and give the merged checkpoint"
            )
    for key, kinds in (("r", (int,)), ("lora_alpha", (int, float))):
        value: Any = raw.get(key)
        if type(value) not in kinds or value <= 0:
            raise UserError(f"{file}: {key}: got {shown(value)}, wanted a positive number")
    stabilized = bool(raw.get("use_rslora"))
    return {"rank": raw["r"], "alpha": raw["lora_alpha"], "stabilized": stabilized}


def _targets(tensors: Iterable[str], spec: Spec, file: Path) -> tuple[tuple[str, ...], ...]:
    """The linear layers that the named tensors adapt."""
    names, modules = names_of(spec), set(adaptable(spec).values())
    start, end = (re.escape(part) for part in (PREFIX + names.adapted).split("{}"))
    pattern = re.compile(rf"{start}(\d+){end}(.+)\.lora_[AB]\.weight")
    found = set()
    for name in tensors:
        match = pattern.fullmatch(name)
        module = match and int(match[1]) < len(spec.layers) and match[2]
        if module not in modules:
            raise UserError(
                f"{file}: tensor '{name}' is no adapter of a linear layer of model_type "
                f"'{spec.family}' with {len(spec.layers)} layers; does it belong to this base?"
            )
        found.add(module)
    return tuple(path for path, module in names.linears.items() if module in found)
