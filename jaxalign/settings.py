"""Frozen dataclasses for every part of a recipe; one per subsystem, each field with its unit.

They hold plain values and import nothing of jax, so that data code can read them too. `config.py`
reads YAML and flags into them. The string under a field is its help on the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, MinLen

Text = Annotated[str, MinLen(1)]
Count = Annotated[int, Gt(0)]
WholeNumber = Annotated[int, Ge(0)]
Rate = Annotated[float, Ge(0)]
Decay = Annotated[float, Interval(ge=0, lt=1)]
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a run lives and what it reports."""

    dir: Text
    """Folder of the run: resolved recipe, metrics, checkpoints, exported models."""
    seed: int = 0
    """Seed of the data order and of sampling."""
    log_every: Count = 1
    """Updates between two lines of metrics."""
    tensorboard: bool = False
    """Also write TensorBoard event files to each stage's folder."""
    wandb: str | None = None
    """Also log to this Weights & Biases project (needs the extra `wandb`)."""
    distributed: bool = False
    """Join the other hosts of a pod with `jax.distributed.initialize` before anything else."""
    compile_cache: str | None = None
    """Folder of compiled programs, or `off`; none: $JAX_COMPILATION_CACHE_DIR, or beside `dir`."""


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Sizes of the mesh axes; one of them may be -1, which takes the devices that are left."""

    data: int = -1
    """Replicas: each holds all parameters and a share of the batch."""
    fsdp: int = 1
    """Shards of the parameters, each with its share of the batch."""
    tensor: int = 1
    """Shards of heads, feed-forward width and vocabulary."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """The starting checkpoint and how to compute with it."""

    path: Text
    """Hugging Face checkpoint: a local folder or a hub repository."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of activations and matrix products; statistics and losses are float32."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype in which parameters and optimizer moments are kept; those of adapters are float32."""
    remat: Literal["none", "full", "dots"] = "full"
    """What the backward pass computes again: nothing, whole layers, or all but matrix products and
    attention."""
    export_dtype: Dtype | None = None
    """Dtype of the exported checkpoint; none: that of the starting checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """A data set and how its text becomes tokens."""

    path: Text
    """A .jsonl, .jsonl.gz or .parquet file, or a data set of the hub."""
    split: str = "train"
    """Split to read, where `path` is on the hub."""
    eval_path: str | None = None
    """Held-out data in the same form; none: no evaluation."""
    eval_split: str = "test"
    """Split of `eval_path` to read, where it is on the hub."""
    limit: Count | None = None
    """Read at most this many rows of each file; none: all."""
    max_length: Count = 1024
    """Longest prompt + response, tokens; the response is cut on the right."""
    max_prompt: Count = 512
    """Longest prompt, tokens; it is cut on the left."""
    too_long: Literal["truncate", "drop", "error"] = "truncate"
    """What to do with a prompt or response over its limit."""
    skip_empty: bool = False
    """Drop rows with an empty response instead of stopping at them."""
    row_length: Count = 2048
    """Longest packed rows, tokens, of which shorter ones are made where less is padding; doubled,
    and doubled again, where an example needs it."""
    shapes: Count = 4
    """Shapes of batches; each is compiled, and the more there are, the less is padding."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The update rule, from optax."""

    name: Literal["adamw", "lion", "adafactor", "sgd"] = "adamw"
    """Update rule."""
    learning_rate: Rate = 1e-6
    """Peak learning rate."""
    b1: Decay | None = None
    """Decay of the first moment (adamw, lion) or momentum (sgd); none: optax's default."""
    b2: Decay | None = None
    """Decay of the second moment (adamw) or of the update's average (lion); none: optax's."""
    eps: Rate | None = None
    """Added to the root of the second moment (adamw); none: optax's default."""
    moment_dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of the first moment (adamw, lion); none: that of the parameters."""
    weight_decay: Rate = 0.0
    """Decoupled weight decay of matrices, times the learning rate; never of biases and norms."""
    clip_norm: Annotated[float, Gt(0)] | None = 1.0
    """Largest global gradient norm; none: no clipping."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Shape of the learning rate after warm-up."""
    warmup: WholeNumber = 0
    """Updates over which the learning rate rises from 0 to its peak."""
    final: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Learning rate at the last update as a fraction of the peak."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The model that the policy is compared with: frozen, or following it at a distance."""

    mode: Literal["cached", "live"] = "cached"
    """`cached`: its statistics are computed once, on disk; `live`: a second model in memory."""
    path: str | None = None
    """Its checkpoint; none: the weights the stage starts from."""
    every: WholeNumber = 0
    """Updates after which its weights move towards the policy's (TR-DPO); 0: never."""
    mix: Annotated[float, Interval(gt=0, le=1)] = 0.6
    """Share of the policy's weights in those it then has; 1: it becomes the policy."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters beside the frozen matrices of the starting checkpoint."""

    rank: Count = 16
    """Width of an adapter."""
    alpha: Annotated[float, Gt(0)] = 32.0
    """What an adapter adds is multiplied by alpha / rank."""
    rank_stabilized: bool = False
    """Multiply by alpha / sqrt(rank) instead."""
    targets: tuple[Text, ...] | None = None
    """Linear layers with an adapter, named as here (query) or in PEFT (q_proj); none: all."""
    quantize: Literal["int8", "nf4"] | None = None
    """Keep the layers' frozen matrices in 8 or 4 bits (extra `quantize`); none: as they are."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training run of a recipe; it starts from the weights of the stage before it."""

    objective: Any
    """Name and hyper-parameters of the objective, a record made by `config.section`."""
    data: Data
    optimizer: Optimizer = field(default_factory=Optimizer)
    reference: Reference = field(default_factory=Reference)
    lora: Lora | None = None
    """Train adapters alone, merged at the end of the stage; none: train all parameters."""
    batch_size: Count = 64
    """Examples per update, all devices and microbatches together."""
    microbatches: Count | Literal["auto"] = 1
    """Forward and backward passes per update, which never change the result; `auto`: the fewest
    that fit in the devices' memory."""
    epochs: Annotated[float, Gt(0)] = 1.0
    """Passes over the data."""
    steps: Count | None = None
    """Updates; none: as many as `epochs` gives."""
    eval_every: WholeNumber = 0
    """Updates between two evaluations; 0: only at the end."""
    save_every: WholeNumber = 0
    """Updates between two checkpoints; 0: only at the end."""
    keep: Count = 2
    """Checkpoints kept."""
    diagnostics: tuple[Text, ...] = ()
    """What else to measure on the held-out data, by name: ranking, calibration, ..."""


@dataclass(frozen=True, kw_only=True)
class World:
    """The synthetic questions and answers of the quickstart, made in the folder of the run."""

    seed: int = 0
    """Seed of the questions and answers."""
    train: Count = 4096
    """Preference pairs to train on."""
    held_out: Count = 256
    """Preference pairs to evaluate on."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A run: a starting checkpoint, and the stages that turn it into an aligned one.

    A path in it may begin with `{world}`, the folder of the synthetic data.
    """

    run: Run
    model: Model
    mesh: Mesh = field(default_factory=Mesh)
    stages: dict[str, Stage]
    """The stages by name, in order."""
    world: World | None = None
    """Synthetic data to make first; none: the data is the user's."""

    @property
    def world_dir(self) -> str:
        """The folder that `{world}` stands for."""
        return f"{self.run.dir}/world"

    def locate(self, path: str) -> str:
        """A path as written in the recipe -> the path to open."""
        return path.replace("{world}", self.world_dir)
