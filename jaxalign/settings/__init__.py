"""Every value of a recipe: one frozen dataclass per section, each field with its unit.

The records hold plain values and this module never imports jax, so that data code can read them.
`recipe/` fills them from YAML and flags. The string under a field is its help on the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal

from annotated_types import Gt, Interval

from .evaluating import EvalSamples, KeepBest
from .pair import Pair
from .sample import Sample
from .score import Score
from .types import Count, Decay, Dtype, Rate, Text, WholeNumber
from .world import World


@dataclass(frozen=True, kw_only=True)
class Run:
    """The folder of the run, its seed and its logs."""

    dir: Text
    """Folder for the resolved recipe, the metrics, the checkpoints and the exported models."""
    seed: int = 0
    """Seed of the data order and of sampling."""
    log_every: Count = 1
    """Log the training metrics every this many updates."""
    tensorboard: bool = False
    """Also write TensorBoard event files to the folder of each stage."""
    wandb: str | None = None
    """Also log to this Weights & Biases project (needs the extra `wandb`)."""
    distributed: bool = False
    """Join the other hosts with `jax.distributed.initialize` first."""
    heartbeat: Count = 20
    """Seconds of silence after which a host counts as dead; then all others end too."""
    compile_cache: str | None = None
    """Folder for compiled programs, or `off`; none: $JAX_COMPILATION_CACHE_DIR if set, else
    `compile_cache` next to `dir`."""
    token_store: str | None = None
    """Folder for tokenized data sets, which runs share; none: `token_store` next to `dir`."""


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """Sizes of the axes of the device mesh; one may be -1: all remaining devices."""

    data: int = -1
    """Data parallelism: each replica has all parameters and a part of the batch."""
    fsdp: int = 1
    """Fully sharded data parallelism: each shard has a part of the parameters and of the batch."""
    tensor: int = 1
    """Tensor parallelism: attention heads, feed-forward width and vocabulary are sharded."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """The starting checkpoint, its dtypes and its memory."""

    path: Text
    """Hugging Face checkpoint: a local folder or a repository on the hub."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of activations and matrix products; log-probabilities and losses are float32."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the stored parameters and optimizer moments; adapters are always float32."""
    remat: Literal["none", "full", "dots"] = "full"
    """Rematerialization: the backward pass recomputes nothing (`none`), whole layers (`full`), or
    everything except matrix products and attention (`dots`). Less memory costs more time."""
    export_dtype: Dtype | None = None
    """Dtype of the exported checkpoint; none: the dtype of the starting checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One of the data sets of a mixture.

    An epoch has all of its examples, or as many as `rows` or `share` say.
    """

    path: Text
    """A data set, as in `data.path`."""
    share: Annotated[float, Interval(gt=0, le=1)] | None = None
    """Fraction of the examples of an epoch. If every source has one they sum to 1, and the epoch is
    the largest that repeats no example."""
    rows: Count | None = None
    """Number of examples in an epoch; more than the source has: some are repeated."""
    split: Text | None = None
    """Split to read if `path` is on the hub; none: `data.split`."""
    limit: Count | None = None
    """Maximum number of rows to read; none: `data.limit`."""
    columns: Mapping[str, Text] | None = None
    """Columns of the file under other names; none: `data.columns`."""
    roles: Mapping[str, Text] | None = None
    """Roles of messages under other names; none: `data.roles`."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """A data set, or a mixture of several, and how to tokenize and pack it."""

    path: Text | None = None
    """A .jsonl, .jsonl.gz or .parquet file, or a data set on the hub; none: give a mixture."""
    mixture: tuple[Source, ...] | None = None
    """Data sets that an epoch mixes, as [{path: a.jsonl, share: 0.7}, {path: b.jsonl, share: 0.3}];
    instead of `path`."""
    streaming: bool = False
    """Tokenize while training and keep no tokens on disk, for data too large for it. Rows are
    shuffled within parts of 4,096; the number of `steps` must be given."""
    split: str = "train"
    """Split to read if `path` is on the hub."""
    eval_path: str | None = None
    """Held-out data in the same format; none: no evaluation."""
    eval_split: str = "test"
    """Split to read if `eval_path` is on the hub."""
    limit: Count | None = None
    """Maximum number of rows to read from each file; none: all."""
    max_line: Count = 2**26
    """Maximum length of a line of a data file and of a text, in characters; a longer one is an
    error."""
    columns: Mapping[str, Text] = field(default_factory=dict)
    """Columns of the file under other names, as {prompt: question}; as a flag: `prompt question`,
    or `--....columns.prompt question` if the recipe renames columns."""
    roles: Mapping[str, Text] = field(default_factory=dict)
    """Roles of messages under other names, as {bot: assistant}; flags are as for columns."""
    turns: Literal["all", "last"] = "all"
    """Turns of the assistant that are scored, of a response or of `messages`."""
    chat_template: str | None = None
    """File with a chat template; none: the tokenizer's."""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Values that the chat template reads, as {enable_thinking: false}; a column of this name
    overrides them, and so does a flag, if the recipe has the value."""
    generation_prompt: Literal["match", "rendered"] | None = None
    """What precedes a scored answer where the chat template opens its answers (`<think>`) but
    renders them without: `match`, the generation prompt, as for a sampler; `rendered`, the text
    as it is rendered; none: such a row is an error."""
    max_length: Count = 1024
    """Maximum length of prompt + response, in tokens."""
    max_prompt: Count | None = None
    """Maximum length of the prompt, in tokens; it is cut on the left. None: half of max_length."""
    min_response: Count = 2
    """Minimum number of scored tokens that a cut leaves of a response; otherwise the row is
    dropped."""
    too_long: Literal["cut_response", "cut_prompt", "drop", "error"] = "cut_response"
    """What to do with a row over max_length: cut the response on the right, cut the prompt on the
    left, drop the row, or stop."""
    skip_empty: bool = False
    """Drop rows with an empty response; otherwise such a row is an error."""
    row_length: Count = 2048
    """Maximum length of a packed row, in tokens. Shorter rows are used if they waste less padding;
    doubled automatically until the longest example fits."""
    shapes: Count = 4
    """Maximum number of batch shapes. Each is compiled once; more shapes mean less padding."""

    @property
    def sources(self) -> tuple[Source, ...]:
        """The sources of the mixture; `path` alone is one."""
        return self.mixture or (Source(path=self.path or ""),)

    def of(self, source: Source) -> Data:
        """The settings with which to read one of the sources."""
        names = ("path", "split", "limit", "columns", "roles")
        given = {name: getattr(source, name) for name in names}
        own = {name: value for name, value in given.items() if value is not None}
        return replace(self, mixture=None, **own)


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The optimizer, from optax, and its learning rate."""

    name: Literal["adamw", "lion", "adafactor", "sgd"] = "adamw"
    """Optimizer."""
    learning_rate: Rate = 1e-6
    """Peak learning rate."""
    b1: Decay | None = None
    """Decay of the first moment (adamw, lion) or momentum (sgd); none: the default of optax."""
    b2: Decay | None = None
    """Decay of the second moment (adamw), or of the momentum (lion); none: the default of optax."""
    eps: Rate | None = None
    """Added to the root of the second moment (adamw); none: the default of optax."""
    moment_dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of the first moment (adamw, lion); none: the dtype of the parameters."""
    weight_decay: Rate = 0.0
    """Decoupled weight decay of matrices, multiplied by the learning rate; biases and norms have
    none."""
    clip_norm: Annotated[float, Gt(0)] | None = 1.0
    """Maximum global norm of the gradient; none: no clipping."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Decay of the learning rate after the warm-up."""
    warmup: WholeNumber = 0
    """Warm-up updates. The learning rate rises linearly, from peak / warmup at the first update to
    the peak at update number `warmup`."""
    final: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """End of the decay, as a fraction of the peak; it is reached one update after the last."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The model that the objective compares the policy with: frozen, or updated from the policy."""

    mode: Literal["cached", "live"] = "cached"
    """`cached`: compute its log-probabilities once and store them on disk; `live`: keep a second
    model in memory."""
    path: str | None = None
    """Checkpoint of the reference; none: the starting weights of the stage."""
    every: WholeNumber = 0
    """Update the reference from the policy every this many updates (TR-DPO); 0: never."""
    mix: Annotated[float, Interval(gt=0, le=1)] = 0.6
    """Fraction of the policy in the updated reference; 1: a copy of the policy."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters on the frozen matrices of the starting checkpoint."""

    rank: Count = 16
    """Rank of the adapters."""
    alpha: Annotated[float, Gt(0)] = 32.0
    """Scale of the adapters: their output is multiplied by alpha / rank."""
    rank_stabilized: bool = False
    """Multiply by alpha / sqrt(rank) instead (rsLoRA)."""
    targets: tuple[Text, ...] | None = None
    """Linear layers with an adapter, by the names here (query) or in PEFT (q_proj); none: all."""
    quantize: Literal["int8", "nf4"] | None = None
    """Store the frozen matrices of the layers in 8 or 4 bits (needs the extra `quantize`); none: no
    quantization."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """An objective, its data and its reference."""

    objective: Any
    """Name and hyper-parameters of the objective, a record made by `recipe.schema.section`."""
    data: Data
    reference: Reference = field(default_factory=Reference)
    batch_size: Count = 64
    """Examples per update, over all devices and microbatches."""
    diagnostics: tuple[Text, ...] = ()
    """Additional measurements on the held-out data, by name: ranking, calibration, ..."""


@dataclass(frozen=True, kw_only=True)
class Term(Goal):
    """One of the objectives of a stage with several."""

    weight: float = 1.0
    """Factor of its loss in the loss of the stage."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """The settings of a stage that do not depend on its objectives."""

    optimizer: Optimizer = field(default_factory=Optimizer)
    lora: Lora | None = None
    """Train adapters only and merge them at the end of the stage; none: train all parameters."""
    microbatches: Count | Literal["auto"] = 1
    """Gradient accumulation: forward and backward passes per update; the result does not depend on
    it. `auto`: the smallest number that fits in memory."""
    router_balance: Rate = 0.0
    """Weight of a loss that spreads tokens evenly over the experts of a mixture (transformers:
    router_aux_loss_coef); the training loss includes it, and so does the loss of each term."""
    epochs: Annotated[float, Gt(0)] = 1.0
    """Passes over the data, of the first term if there are several."""
    steps: Count | None = None
    """Number of updates; none: computed from `epochs`."""
    eval_every: WholeNumber = 0
    """Evaluate every this many updates; 0: only at the end."""
    save_every: WholeNumber = 0
    """Save a checkpoint every this many updates; 0: only at the end."""
    keep: Count = 2
    """Number of checkpoints to keep."""
    keep_best: KeepBest | None = None
    """Export the best update by a held-out metric, and stop early; none: export the last."""
    eval_samples: EvalSamples | None = None
    """Measure answers of the model at each evaluation; none: held-out data alone."""


@dataclass(frozen=True, kw_only=True)
class Stage(Training, Goal):
    """One stage of training; it starts from the model of the previous stage."""

    def goals(self) -> dict[str, Stage]:
        """The objectives of the stage by name, each as a stage; the only one has the name ""."""
        return {"": self}


@dataclass(frozen=True, kw_only=True)
class Combined(Training):
    """A stage that trains a weighted sum of objectives, each on its own data."""

    terms: dict[str, Term]
    """The objectives by name; the data of the first one measure `epochs`."""

    def goals(self) -> dict[str, Stage]:
        """The objectives of the stage by name, each as a stage."""
        common = {f.name: getattr(self, f.name) for f in fields(Training)}
        return {
            name: Stage(**common, **{f.name: getattr(term, f.name) for f in fields(Goal)})
            for name, term in self.terms.items()
        }


@dataclass(frozen=True, kw_only=True)
class SampleStage:
    """A stage in which the model answers prompts."""

    sample: Sample


@dataclass(frozen=True, kw_only=True)
class ScoreStage:
    """A stage in which answers get scores."""

    score: Score


@dataclass(frozen=True, kw_only=True)
class PairStage:
    """A stage that makes training data of scored answers."""

    pair: Pair


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Stages that are repeated; each round starts from the model of the round before."""

    repeat: Count
    """Number of rounds."""
    stages: Mapping[str, Any]
    """The stages of a round by name, in order."""


TrainingStage = Stage | Combined
"""A stage that trains a model, `model` in its folder."""
DataStage = SampleStage | ScoreStage | PairStage
"""A stage that makes data, `data.jsonl` in its folder."""
AnyStage = TrainingStage | DataStage


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A run: a starting checkpoint, and the stages that train it, in order.

    A path in it may begin with `{world}`, the folder of the synthetic data, or with the name of an
    earlier stage, as `{answers}`: the data that it makes, or the model that it trains.
    """

    run: Run
    model: Model
    mesh: Mesh = field(default_factory=Mesh)
    stages: dict[str, Any]
    """The stages by name, in order; the stages of a round have names such as `round-1/dpo`."""
    world: World | None = None
    """Synthetic data to make before training; none: use your own data."""

    @property
    def world_dir(self) -> str:
        """The folder of the synthetic data."""
        return f"{self.run.dir}/world"

    @property
    def training(self) -> dict[str, TrainingStage]:
        """The stages that train, by name, in order."""
        return {
            name: stage for name, stage in self.stages.items() if isinstance(stage, TrainingStage)
        }

    def before(self, name: str) -> str | None:
        """The last stage before this one that trains; None: there is none."""
        names = list(self.stages)
        earlier = [n for n in self.training if names.index(n) < names.index(name)]
        return earlier[-1] if earlier else None

    def product(self, name: str) -> str:
        """The result of a stage: its model, or its data; it exists only once it is complete."""
        file = "model" if name in self.training else "data.jsonl"
        return f"{self.run.dir}/{name}/{file}"

    def locate(self, path: str) -> str:
        """Replace `{world}`, or the name of a stage, at the beginning of a path of the recipe."""
        places = {"world": self.world_dir} | {name: self.product(name) for name in self.stages}
        name, end, rest = path.removeprefix("{").partition("}")
        if not path.startswith("{") or not end or name not in places:
            return path
        return f"{places[name]}{rest}"
