"""Writing a complete Hugging Face folder that transformers loads without changes."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import save_file

from ..core.sharding import replicated
from ..core.types import Array
from ..errors import UserError
from ..files import read_json, whole_folder
from ..models.decoder import Model, Params
from ..models.families import FAMILIES, read_config
from ..models.spec import Spec
from .load import FLOATS, INDEX, SINGLE, has_weights, load_config, open_checkpoint
from .reward import classifier_keys
from .weights import Weight, hf_shape, names_of, weights, write_tensor

COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "preprocessor_config.json",
    "processor_config.json",
)

NAMED_TEMPLATES = "additional_chat_templates"
"""The folder of the chat templates that have other names than `default`."""

PADDED = ("tokenizer_config.json", "special_tokens_map.json")
"""The copied files that name the pad token."""

EVERY = FLOATS | {"F64": "float64", "I64": "int64", "I32": "int32", "U8": "uint8", "BOOL": "bool"}
"""Dtypes of tensors that are trained, or only copied."""

Named = tuple[tuple[str, ...], int, list[Weight]]
"""Tensors of a file, one unless each expert of a layer has its own: their names, the place of the
layer in its stack, and the parameters in them, several if fused."""


def save_checkpoint(
    folder: Path,
    params: Params,
    model: Model,
    *,
    source: Path,
    dtype: str | None = None,
    card: str,
    pad: tuple[str, int] | None = None,
    stops: Collection[int] = (),
    template: str | None = None,
    max_shard_bytes: float = 5e9,
) -> None:
    """Write parameters as a Hugging Face checkpoint.

    All files go to a sibling folder that then replaces `folder`: after a kill or on a full disk, an
    older checkpoint of that name is still complete. Every process of a run must call this; the
    first process writes, and holds the tensors of one file at a time.

    Args:
      folder: folder to write; replaced if it exists.
      params: parameters as in `model.abstract`; matrices may be `Merged`.
      model: the decoder.
      source: the checkpoint that the run started from; its configuration, tokenizer and generation
        settings are copied.
      dtype: dtype of all tensors: float32, bfloat16 or float16; None keeps the dtype of each tensor
        in `source`.
      card: text of the model card, README.md.
      pad: pad token and its id, for the configuration and the tokenizer; None keeps the old ones.
      stops: ids at which generation stops, for the generation settings; none: the old ones.
      template: chat template for the tokenizer; None keeps the old one.
      max_shard_bytes: maximum size of a file, bytes.

    Raises:
      RunError: the folder cannot be written.
      UserError: a value is not finite in `dtype`.
    """
    source = Path(source)
    with whole_folder(folder) as partial:
        if partial:
            _write_texts(partial, source, model.spec, dtype, pad)
            if stops:
                _write_stops(partial, stops)
            if template is not None:
                (partial / "chat_template.jinja").write_text(template, encoding="utf-8")
            elif (source / NAMED_TEMPLATES).is_dir():
                shutil.copytree(source / NAMED_TEMPLATES, partial / NAMED_TEMPLATES)
            (partial / "README.md").write_text(card, encoding="utf-8")
        _write_weights(partial, params, model, source, dtype, max_shard_bytes)


def _write_texts(
    folder: Path, source: Path, model: Spec, dtype: str | None, pad: tuple[str, int] | None
) -> None:
    config = load_config(source)
    if model.scores and not read_config(config).scores:
        config |= classifier_keys(model)
    text = FAMILIES[model.family].text
    if pad is not None:
        config["pad_token_id"] = pad[1]
        if text is not None:
            config[text.key] = config.get(text.key, {}) | {"pad_token_id": pad[1]}
    config.pop("quantization_config", None)  # tensors are written dequantized
    if dtype is not None:
        config.setdefault("dtype" if "torch_dtype" not in config else "torch_dtype", dtype)
        for part in (config, *(part for part in config.values() if isinstance(part, dict))):
            part |= {key: dtype for key in ("dtype", "torch_dtype") if key in part}
    _write_json(folder / "config.json", config)
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
        if pad is not None and name in PADDED and (source / name).is_file():
            _write_json(folder / name, read_json(source / name) | {"pad_token": pad[0]})


def _write_stops(folder: Path, stops: Collection[int]) -> None:
    """Name all stop tokens in the generation settings, where transformers would not use them."""
    file = folder / "generation_config.json"
    settings = read_json(file) if file.exists() else {}
    read = settings if "eos_token_id" in settings else read_json(folder / "config.json")
    named = read.get("eos_token_id")
    if set(stops) != set(named if isinstance(named, list) else [named]):
        _write_json(file, settings | {"eos_token_id": sorted(stops)})


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    text = json.dumps(values, indent=2, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")


def _write_weights(
    folder: Path | None,
    params: Params,
    model: Model,
    source: Path,
    dtype: str | None,
    max_shard_bytes: float,
) -> None:
    """Gather each tensor, on all processes; write it if `folder` is given."""
    plan = export_plan(model, source, dtype)
    files = _split({n: math.prod(s) * np.dtype(d).itemsize for n, s, d in plan}, max_shard_bytes)
    kinds = {name: kind for name, _, kind in plan}
    # Tensors of the source that it writes decide the form of all.
    named = by_tensor(weights(model, kinds), len(model.spec.layers))
    copies = _copies(source, model.spec, plan) if has_weights(source) else ()
    tensors = itertools.chain(gathered(params, model, named, kinds), copies)
    weight_map = {}
    for number, names in enumerate(files, 1):
        file = SINGLE
        if len(files) > 1:
            file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        held = {name: tensor for name, tensor in (next(tensors) for _ in names) if folder}
        if folder:
            save_file(held, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if folder and len(files) > 1:
        size = sum(math.prod(s) * np.dtype(d).itemsize for _, s, d in plan)
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        _write_json(folder / INDEX, index)


def by_tensor(plan: Iterable[Weight], layers: int) -> Iterator[Named]:
    """All tensors to write, in order."""
    groups: dict[str, list[Weight]] = {}
    for weight in plan:
        groups.setdefault(f"{weight.name} {weight.stacks[:1]}", []).append(weight)
    whole = [parts for parts in groups.values() if not parts[0].stacks]
    stacked = [(parts[0].stacks[0], parts) for parts in groups.values() if parts[0].stacks]
    for parts in whole[:1]:
        yield parts[0].names, 0, parts
    for layer in range(layers):
        for numbers, parts in stacked:
            if layer in numbers:
                place = numbers.index(layer)
                yield parts[0].layer(place).names, place, parts
    for parts in whole[1:]:
        yield parts[0].names, 0, parts


def export_plan(model: Model, source: Path, dtype: str | None) -> list[tuple[str, tuple, Any]]:
    """Name, shape and dtype of every tensor to write, in order; at the end those that are copied.

    Args:
      model: the decoder.
      source: the checkpoint that the run started from.
      dtype: dtype of all tensors; None keeps the dtype of each tensor in `source`. With a dtype,
        `source` may have no weights.
    """
    needed = dtype is None or has_weights(source)
    plan = []
    with open_checkpoint(source, model.spec) if needed else contextlib.nullcontext({}) as kept:
        whole = weights(model, kept)
        for names, _, parts in by_tensor(whole, len(model.spec.layers)):
            shape = hf_shape(parts[0], parts[0].of(model.abstract).shape[len(parts[0].stacks) :])
            for name in names:
                # A head that is not in the source gets the dtype of the embedding.
                known = (name, *parts[0].other_names, whole[0].name)
                kind = dtype or next(FLOATS[kept[n].dtype] for n in known if n in kept)
                plan.append((name, shape, jax.numpy.dtype(kind)))
        for name, tensor in kept.items():
            if name.startswith(names_of(model.spec).copied):
                kind = dtype if dtype and tensor.dtype in FLOATS else EVERY[tensor.dtype]
                plan.append((name, tensor.shape, jax.numpy.dtype(kind)))
    return plan


def _copies(
    source: Path, spec: Spec, plan: Iterable[tuple[str, tuple, Any]]
) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a plan that are copied from the source."""
    with open_checkpoint(source, spec) as tensors:
        for name, _, kind in plan:
            if name.startswith(names_of(spec).copied):
                yield name, _finite(name, tensors[name].slices[...].astype(kind))


def _split(sizes: dict[str, int], limit: float) -> list[list[str]]:
    """Names in order, in groups of at most `limit` bytes (a larger tensor is a group)."""
    files: list[list[str]] = []
    room = 0.0
    for name, size in sizes.items():
        if size > room:
            files.append([])
            room = limit
        files[-1].append(name)
        room -= size
    return files


@functools.cache  # every call on a mesh shares the compiled programs
def _gatherers(mesh: Mesh) -> tuple[Callable[..., Array], Callable[..., Array]]:
    """(parameter, layer, dtype) or (parameter, dtype) -> the whole array on every device."""
    whole = replicated(mesh)
    cut = jax.jit(lambda x, i, kind: x[i].astype(kind), static_argnums=2, out_shardings=whole)
    cast = jax.jit(lambda x, kind: x.astype(kind), static_argnums=1, out_shardings=whole)
    return cut, cast


def gathered(
    params: Params, model: Model, named: Iterable[Named], kinds: Mapping[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    """All tensors in the form of the file; a collective: every process must iterate to the end.

    Raises:
      UserError: a value is not finite in the dtype that `kinds` gives for its tensor.
    """
    cut, cast = _gatherers(model.mesh)
    for names, layer, parts in named:
        kind = kinds[names[0]]
        arrays = [
            cut(w.of(params), layer, kind) if w.stacks else cast(w.of(params), kind) for w in parts
        ]
        tensors = write_tensor(parts, [np.asarray(a.addressable_data(0)) for a in arrays])
        own = [tensors] if len(parts[0].stacks) < 2 else tensors
        for name, tensor in zip(names, own, strict=True):
            yield name, _finite(name, np.ascontiguousarray(tensor))


def _finite(name: str, tensor: np.ndarray) -> np.ndarray:
    if not np.isfinite(tensor).all():
        raise UserError(
            f"tensor '{name}': got values that are not finite in {tensor.dtype.name}; "
            "export in another dtype, or from an earlier checkpoint"
        )
    return tensor
