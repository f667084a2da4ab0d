"""Writes docs/objectives.md and docs/models.md from the records of objectives and model families.

python docs/build.py
"""

from __future__ import annotations

import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import annotated_types
import jax
import jax.numpy as jnp
import yaml

from jaxalign.core.objective import Objective
from jaxalign.models.attention.api import backend
from jaxalign.models.attention.cudnn import cudnn
from jaxalign.models.attention.splash import splash
from jaxalign.models.families import FAMILIES, Family, read_config
from jaxalign.models.spec import Delta, Dense, Experts, Latent, Layer, ShortConv, Softmax, Spec
from jaxalign.objectives import OBJECTIVES

DOCS = Path(__file__).parent
PUBLISHED: dict[str, dict[str, Any]] = yaml.safe_load(
    (DOCS.parent / "tests" / "models" / "published.yaml").read_text(encoding="utf-8")
)
HEAD = """\
# Objectives

`docs/build.py` writes this page from the docstrings of the objectives. [Choosing](choosing.md) says
which objective suits which data; [Coming from TRL](coming-from-trl.md) lists the names of other
libraries.

A recipe names an objective under `objective.name`; the other keys of that section are its
hyper-parameters. From Python:

```python
from jaxalign.objectives import OBJECTIVES

loss_fn = OBJECTIVES["dpo"].bind(beta=0.1)
loss, metrics = loss_fn(policy=policy, ref=ref)
```

x is the prompt, y a response, y_w the chosen and y_l the rejected one; pi and pi_ref are policy and
reference. Log-probabilities are sums over scored tokens, in nats. A loss is averaged over the
examples of the whole batch, for any number of microbatches and devices, unless its section says
otherwise.

"""
SECTIONS = ("Args", "Returns", "Raises", "Source")
MODELS = """\
# Models

`docs/build.py` writes this page from the index of families and from {count} published checkpoints,
whose `config.json` the tests read and whose parameters they count. The `model_type` of a checkpoint
names its family. The tests compare logits, gradients and greedy text of each with transformers.

A key of `config.json` that would change the model and is not implemented is refused by its name; so
are quantized weights, except MXFP4 of gpt-oss, and heads for other tasks than language and rewards.
Dropout is off.

Every family packs rows, shares a prompt among its responses there, and trains whole or with
adapters.

- beyond Llama: what its layers have that Llama's have not; "some" is some layers or checkpoints.
- reward: whether transformers has a reward model of the family, without which none can be exported.
- TPU, NVIDIA: the attention of pairs there, in half precision and rows as long as the context of
  the checkpoint. "blocks" is the implementation in plain JAX, which serves everything; next to
  another one it serves the layers with windows. [Design](design.md#attention) has the conditions.

"""
FEATURES: dict[str, Callable[[Layer], Any]] = {
    "latent attention": lambda layer: isinstance(layer.attention, Latent),
    "gated delta nets": lambda layer: isinstance(layer.attention, Delta),
    "short convolutions": lambda layer: isinstance(layer.attention, ShortConv),
    "windows": lambda layer: of_attention(layer, "window"),
    "chunks of positions": lambda layer: of_attention(layer, "chunk"),
    "capped scores": lambda layer: of_attention(layer, "softcap"),
    "clipped queries, keys and values": lambda layer: of_attention(layer, "clip"),
    "norms of queries and keys": lambda layer: of_attention(layer, "qk_norm"),
    "gated attention": lambda layer: of_attention(layer, "gate"),
    "no rotation": lambda layer: attends(layer) and not of_rope(layer, "frequencies"),
    "partly rotated heads": lambda layer: rotated(layer) < 1,
    "rotation of neighbors": lambda layer: of_rope(layer, "interleaved"),
    "queries that grow with positions": lambda layer: of_rope(layer, "query_slope"),
    "sinks": lambda layer: of_attention(layer, "sinks"),
    "biases": lambda layer: (
        any(of_attention(layer, name) for name in ("qkv_bias", "out_bias", "bias"))
        or dense(layer).bias
    ),
    "layer norms": lambda layer: layer.norm.centered,
    "norms on outputs": lambda layer: layer.places != "before",
    "parallel parts": lambda layer: layer.parallel != "no",
    "no gate": lambda layer: not dense(layer).gated,
    "limited feed-forwards": lambda layer: dense(layer).limit,
    "experts": lambda layer: isinstance(layer.mlp, Experts),
    "shared experts": lambda layer: isinstance(layer.mlp, Experts) and layer.mlp.shared,
    "scaled residuals": lambda layer: layer.residual_scale != 1,
}
"""What a layer can have that no layer of Llama has."""
BACKENDS = {
    "splash": (splash, SimpleNamespace(platform="tpu")),
    "cuDNN": (cudnn, SimpleNamespace(platform="gpu", compute_capability="8.0")),
    "cuDNN from Hopper on": (cudnn, SimpleNamespace(platform="gpu", compute_capability="9.0")),
}
"""The fused attention backends, each with a device."""


def objectives_page() -> str:
    """The whole page of objectives."""
    rows = [["name", "data", "reference", "token statistics", "columns", "couples examples"]]
    rows += [row(o) for o in OBJECTIVES.values()]
    return HEAD + table(rows) + "".join(section(o) for o in OBJECTIVES.values())


def models_page() -> str:
    """The whole page of models."""
    heading = ["`model_type`", "checkpoints", "beyond Llama", "refused", "reward", "TPU", "NVIDIA"]
    rows = [heading, *(family_row(family) for family in FAMILIES.values())]
    known = [entry for entry in PUBLISHED.values() if entry["config"]["model_type"] in FAMILIES]
    return MODELS.format(count=len(known)) + table(rows)


PAGES = {"objectives.md": objectives_page, "models.md": models_page}


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first row is the heading."""
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines) + "\n"


def family_row(family: Family) -> list[str]:
    """A family, a row of the table."""
    configs = [entry["config"] for entry in PUBLISHED.values()]
    specs = [read_config(c) for c in configs if c["model_type"] == family.model_type]
    reward = "yes" if family.classifier else "no"
    backends = [served(specs, names) for names in (("splash",), ("cuDNN", "cuDNN from Hopper on"))]
    beyond = ", ".join(features(specs))
    return [f"`{family.model_type}`", family.checkpoints, beyond, family.refused, reward, *backends]


def features(specs: Sequence[Spec]) -> list[str]:
    """The features of a family beyond those of Llama, in words."""
    layers = [layer for spec in specs for layer in spec.layers]
    found = []
    for name, has in FEATURES.items():
        count = sum(bool(has(layer)) for layer in layers)
        if count:
            found.append(name if count == len(layers) else f"{name} (some)")
    scaled = any(spec.embed_scale != 1 or spec.logit_scale != 1 for spec in specs)
    found += ["scaled embeddings or logits"] if scaled else []
    found += ["learned positions"] if any(spec.positions for spec in specs) else []
    found += ["capped logits"] if any(spec.logit_softcap for spec in specs) else []
    return found


def dense(layer: Layer) -> Dense:
    """The feed-forward of a layer, or of one of its experts."""
    return layer.mlp.expert if isinstance(layer.mlp, Experts) else layer.mlp


def of_attention(layer: Layer, name: str) -> Any:
    """A field of the attention of a layer; None if its kind has no such field."""
    return getattr(layer.attention, name, None)


def of_rope(layer: Layer, name: str) -> Any:
    """A field of the rotary embedding of a layer; None if it has none."""
    return getattr(of_attention(layer, "rope"), name, None)


def attends(layer: Layer) -> bool:
    """Whether a layer has attention, and no recurrence in its place."""
    return isinstance(layer.attention, Softmax | Latent)


def head_width(layer: Layer) -> int:
    """The width of the heads, as the attention backends have it."""
    kind = layer.attention
    if isinstance(kind, Latent):
        return max(kind.plain_width + kind.rope_width, kind.value_width)
    assert isinstance(kind, Softmax)
    return kind.head_width


def rotated(layer: Layer) -> float:
    """The rotated fraction of a head; 1 without rotation."""
    frequencies = of_rope(layer, "frequencies")
    return 2 * len(frequencies) / head_width(layer) if frequencies else 1.0


def served(specs: Sequence[Spec], names: Sequence[str]) -> str:
    """The first of these backends that serves all layers with attention; or the best, for some."""
    layers = {
        (layer, spec.max_positions // 128 * 128)
        for spec in specs
        for layer in spec.layers
        if attends(layer)
    }
    some = ""
    for name in names:
        count = sum(serves(name, *layer) for layer in layers)
        if count == len(layers):
            return name
        some = some or (f"{name}, blocks" if count else "")
    return some or "blocks"


def serves(name: str, layer: Layer, length: int) -> bool:
    """Whether a backend serves a layer in rows of this length."""
    run, device = BACKENDS[name]
    shape = (1, length, of_attention(layer, "heads"), head_width(layer))
    window = of_attention(layer, "window")
    window = window if (window or 0) < length else None
    chunk = of_attention(layer, "chunk")
    mask: Any = SimpleNamespace(
        window=window,
        chunk=chunk if (chunk or 0) < length else None,
        softcap=of_attention(layer, "softcap"),
        branches=2,
    )
    queries = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    return backend(device, queries, mask, bool(of_attention(layer, "sinks"))) is run


def row(o: Objective[...]) -> list[str]:
    """The requirements of an objective, a row of the table."""
    meet = "yes" if o.couples_examples and not o.init_state else ""
    meet = "through its running state" if o.init_state else meet
    columns = ", ".join(f"`{c}`" for c in o.columns if c != "weight")
    needs = ", ".join(f"`{s.name}`" for s in (*o.needs, *o.layers))
    link = f"[`{o.name}`](#{o.name})"
    return [link, data(o), "yes" if o.uses_ref else "no", needs, columns, meet]


def data(o: Objective[...]) -> str:
    """The name of the kind of data in the table."""
    return o.layout.kind


def section(o: Objective[...]) -> str:
    """The docstring without its array arguments."""
    parts = docstring(o)
    hyper = ""
    if o.hyper:
        told = dict(re.findall(r"^(\w+): (.*(?:\n  .*)*)", parts["Args"], re.M))
        lines = [
            f"| `{name}` | `{p.default!r}` | {allowed(o, name)} | {one_line(told[name])} |"
            for name, p in o.hyper.items()
        ]
        hyper = "\n| | default | values | |\n|---|---|---|---|\n" + "\n".join(lines) + "\n"
    facts = "\n".join(f"- {one_line(s)}" for s in re.split(r"\n(?=[A-Z]\w+: )", parts["Source"]))
    raises = f"\nRaises: {one_line(parts['Raises'])}\n" if parts.get("Raises") else ""
    return f"\n## {o.name}\n\n{parts['']}\n{hyper}\n{facts}\n{raises}"


def docstring(o: Objective[...]) -> dict[str, str]:
    """The sections of a docstring, dedented; '' is the text before them."""
    pieces = re.split(
        rf"^({'|'.join(SECTIONS)}):\n", inspect.cleandoc(o.fn.__doc__ or ""), flags=re.M
    )
    named = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    return {"": pieces[0].strip()} | {k: textwrap.dedent(v).strip() for k, v in named.items()}


def allowed(o: Objective[...], name: str) -> str:
    """The values of a hyper-parameter, in words."""
    return in_words(typing.get_type_hints(o.fn, include_extras=True)[name])


def in_words(kind: Any) -> str:
    """An annotation, in words."""
    arguments = typing.get_args(kind)
    match typing.get_origin(kind):
        case typing.Literal:
            return ", ".join(f"`{a}`" for a in arguments)
        case typing.Annotated:
            return ", ".join(bound(m) for m in arguments[1:])
        case None:
            return "`null`" if kind is type(None) else kind.__name__
    return " or ".join(in_words(a) for a in arguments)


def bound(limits: Any) -> str:
    """A range, in words."""
    limits = [limits] if not isinstance(limits, annotated_types.GroupedMetadata) else list(limits)
    signs = {"Gt": ">", "Ge": ">=", "Lt": "<", "Le": "<="}
    return " and ".join(
        f"a multiple of {m.multiple_of}"
        if isinstance(m, annotated_types.MultipleOf)
        else f"{signs[type(m).__name__]} {getattr(m, type(m).__name__.lower())}"
        for m in limits
    )


def one_line(text: str) -> str:
    """The text without line breaks, and with its bars escaped for a table cell."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page())
