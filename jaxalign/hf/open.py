"""Opening a checkpoint or an adapter to use it: the decoder, its weights, its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jax.sharding import Mesh

from ..data.encode import Encoder
from ..digests import sha256
from ..models.decoder import Model, Params, build
from ..models.families import read_config
from ..models.spec import Spec
from .kept import Kept
from .load import Digest, load_config, weights_fingerprint
from .peft import base_folder, load_merged
from .tokenizer import load_tokenizer, stop_tokens, tokenizer_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Opened(NamedTuple):
    """A model on the devices of a mesh, ready to use."""

    model: Model
    """The decoder, without its weights."""
    params: Params
    """The weights, sharded over the mesh; adapters are merged into them."""
    tokenizer: PreTrainedTokenizerFast
    stop: tuple[int, ...]
    """The ids that end an answer."""


def open_config(folder: Path) -> Spec:
    """The configuration of a checkpoint, or of the base model of an adapter.

    Raises:
      UserError: `config.json` is missing, damaged or not supported.
    """
    base = base_folder(folder)
    return read_config(load_config(base), str(base / "config.json"))


def open_model(
    folder: Path, mesh: Mesh, *, dtype: str = "bfloat16", kept: Kept | None = None
) -> Opened:
    """Open a language model, a reward model, or an adapter with its base model.

    The weights go straight from the files to the devices: every host reads only the parts that its
    devices hold. An adapter is merged into its base model, which is opened from the folder or hub
    name that the adapter's configuration gives; the tokenizer is the base model's.

    Args:
      folder: a Hugging Face checkpoint (`config.json`, safetensors files, `tokenizer.json`), or a
        PEFT adapter (`adapter_config.json`, `adapter_model.safetensors`).
      mesh: the device mesh (data, fsdp, tensor).
      dtype: dtype of the weights and of matrix products, "float32" or "bfloat16".
      kept: weights on the devices, which are taken where they have the bits of the folder.

    Raises:
      UserError: a file is missing, damaged or not supported; names the file and the remedy.
    """
    base = base_folder(folder)
    tokenizer = load_tokenizer(base)
    stop = stop_tokens(base, tokenizer)
    return Opened(*open_weights(folder, mesh, dtype=dtype, kept=kept), tokenizer, stop)


def open_encoder(folder: Path, template: str | None = None) -> Encoder:
    """The tokenizer of a checkpoint, or of the base model of an adapter, with its stop tokens.

    Args:
      folder: the folder of the checkpoint or of the adapter.
      template: a chat template instead of the tokenizer's.

    Raises:
      UserError: a file of the tokenizer is missing or damaged.
    """
    base = base_folder(folder)
    tokenizer = load_tokenizer(base)
    return Encoder(tokenizer, stops=stop_tokens(base, tokenizer), template=template)


def open_weights(
    folder: Path, mesh: Mesh, *, dtype: str, kept: Kept | None = None
) -> tuple[Model, Params]:
    """The decoder and its weights; arguments and errors as for `open_model`."""
    model = build(open_config(folder), mesh, dtype=dtype, param_dtype=dtype)
    own = None if kept is None else kept.of(folder, model)
    return model, load_merged(folder, model) if own is None else own


def fingerprints(folder: Path, digest: Digest = sha256) -> dict[str, str]:
    """What the answers of a model depend on: SHA-256 of its weights, configuration, tokenizer.

    Args:
      folder: the folder of a checkpoint or of an adapter.
      digest: the SHA-256 of a file, which a caller may have kept.
    """
    base = base_folder(folder)
    found = {
        "weights": weights_fingerprint(base, digest),
        "config.json": digest(base / "config.json"),
        "tokenizer": tokenizer_fingerprint(base),
    }
    if base != folder:
        found["adapter"] = " ".join(digest(file) for file in sorted(folder.glob("adapter_*")))
    return found
