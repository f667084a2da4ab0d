"""Random small torch checkpoints of every family, as folders that a user could have downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tokenizers
import torch
import transformers
import yaml
from safetensors.numpy import load_file

from jaxalign.core.sharding import make_mesh
from jaxalign.hf.load import load_params, weight_files
from jaxalign.hf.save import by_tensor, gathered
from jaxalign.hf.weights import weights
from jaxalign.models.decoder import Model, build
from jaxalign.models.families import read_config
from jaxalign.settings import Mesh

torch.set_num_threads(1)  # small products take longer on several threads

SMALL: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EVERY_CONFIG: dict[str, dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parent / "families.yaml").read_text(encoding="utf-8")
)
"""Small configurations of every family, by name: what differs from `SMALL`."""


RELEASE = transformers.__version__.split(".")[:2]
NOTES = ("since", "fails")
"""The keys of a configuration that say which releases of transformers can run it."""


def _runs(raw: dict[str, Any]) -> bool:
    """Whether this release of transformers can run a configuration."""
    since = raw.get("since", "5.0").split(".")
    known = raw["model_type"] in transformers.CONFIG_MAPPING
    recent = [*map(int, RELEASE)] >= [*map(int, since)]
    return known and recent and ".".join(RELEASE) not in raw.get("fails", ())


CONFIGS = {
    name: {key: value for key, value in raw.items() if key not in NOTES}
    for name, raw in EVERY_CONFIG.items()
    if _runs(raw)
}
"""The configurations that this release of transformers can run."""
ONE_PER_FAMILY = list({raw["model_type"]: name for name, raw in reversed(CONFIGS.items())}.values())
"""The first configuration of every family in `CONFIGS`."""
FAST_FAMILIES = ("neox-parallel", "llama-gqa", "qwen2-tied")
FEW_FAMILIES = [
    name if name in FAST_FAMILIES else pytest.param(name, marks=pytest.mark.slow)
    for name in ONE_PER_FAMILY
]
"""`ONE_PER_FAMILY` as parameters of a test, of which `FAST_FAMILIES` are not slow."""


def _loader(config: Any) -> Any:
    """The class of transformers for a configuration: it reads images too if the checkpoint does."""
    images = hasattr(config, "vision_config")
    return transformers.AutoModelForImageTextToText if images else transformers.AutoModelForCausalLM


def torch_model(name: str) -> Any:
    """A random transformers model; every norm and bias is perturbed so that none can be ignored."""
    raw = dict(CONFIGS[name])
    if "text_config" in raw:
        raw["text_config"] = SMALL | raw["text_config"]
    else:
        raw = SMALL | raw
    config = transformers.AutoConfig.for_model(raw.pop("model_type"), **raw)
    torch.manual_seed(0)
    model = _loader(config).from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter.ndim == 1 else 0.15
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("correction_bias"):
                buffer.add_(0.3 * torch.randn(buffer.shape, generator=generator))
    return model.eval()


def checkpoint(folder: Path, name: str, *, dtype: str = "float32", **save: Any) -> Any:
    """Write the checkpoint `name` with its tokenizer to `folder`; returns the torch model."""
    model = torch_model(name).to(getattr(torch, dtype))
    model.save_pretrained(folder, **save)
    write_tokenizer(folder)
    return model


def in_torch(folder: Path) -> Any:
    """A checkpoint in transformers, float32; its faster attention leaves out soft caps."""
    loader = _loader(transformers.AutoConfig.from_pretrained(folder))
    return loader.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def edit_json(file: Path, **changes: Any) -> None:
    """Replace values in a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer for any text: four special tokens, 256 bytes, and the merge '12'."""
    specials = ["<pad>", "<s>", "</s>", "<|user|>"]
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*specials, *alphabet, "12"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[("1", "2")]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "chat_template": "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def small_model(folder: Path, *, mesh: Mesh | None = None, **options: Any) -> Model:
    """The decoder of a checkpoint folder, on one device or on a mesh over all."""
    devices = None if mesh else jax.devices()[:1]
    raw = json.loads((Path(folder) / "config.json").read_text())
    return build(read_config(raw), make_mesh(mesh or Mesh(), devices), **options)


def plain_rows(lengths: list[int], width: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random rows of the given lengths, padded on the right, in the layout of a packed batch."""
    rng = np.random.default_rng(seed)
    real = np.arange(width)[None] < np.array(lengths)[:, None]
    ids = np.where(real, rng.integers(4, SMALL["vocab_size"], real.shape), 0)
    return {
        "ids": ids.astype(np.int32),
        "positions": np.where(real, np.arange(width), 0).astype(np.int32),
        "segment": real.astype(np.int32),
        "branch": np.zeros(real.shape, np.int32),
    }


def logits(model: Model, params: Any, rows: dict[str, np.ndarray]) -> np.ndarray:
    """[K, L, V] float32."""
    args = [rows[key] for key in ("ids", "positions", "segment", "branch")]
    with jax.set_mesh(model.mesh):
        hidden, head, *_ = jax.jit(model.forward)(params, *args)
        return np.asarray(jax.jit(head.logits)(hidden))


def named_slopes(slopes: Any, model: Model, given: Any) -> dict[str, np.ndarray]:
    """The gradient of the parameters, by the `given` names of their tensors in a checkpoint."""
    plan = [w for w in weights(model, given) if w.path[-1] != "correction"]  # not trained
    named = list(by_tensor(plan, len(model.spec.layers)))
    kinds = {tensor: "float32" for tensors, _, _ in named for tensor in tensors}
    return dict(gathered(slopes, model, named, kinds))


def torch_logits(model: Any, rows: dict[str, np.ndarray]) -> np.ndarray:
    """[K, L, V] float32 of rows that are padded on the right.

    Row by row, without padding: LongRoPE chooses frequencies by the longest row of a batch.
    """
    vocab = model.config.get_text_config().vocab_size
    found = np.zeros((*rows["ids"].shape, vocab), np.float32)
    with torch.no_grad():
        for row, (ids, segment) in enumerate(zip(rows["ids"], rows["segment"], strict=True)):
            count = int(segment.sum())
            out = model(torch.tensor(ids[None, :count]).long()).logits
            found[row, :count] = out[0].float().numpy()
    return found


def tensors_of(folder):
    return {k: v for file in weight_files(folder) for k, v in load_file(file).items()}


def load(folder, **options):
    return load_params(folder, small_model(folder, **options))


def classifier(folder, name, scores):
    """A random transformers classifier on the body of `torch_model`, and its folder."""
    body = torch_model(name)
    body.config.num_labels = scores
    for config in (body.config, body.config.get_text_config()):
        config.pad_token_id = 0
    model = transformers.AutoModelForSequenceClassification.from_config(body.config)
    with torch.no_grad():
        model.base_model.load_state_dict(body.base_model.state_dict())
        model.score.weight.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(2))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model.eval()
