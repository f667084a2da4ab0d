"""A term of a stage ready to run: one objective, its data and its task.

A stage with one objective has one term, whose name is "".
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jax.sharding import Mesh
from transformers import PreTrainedTokenizerFast

from .. import settings
from ..core.sharding import batch_shards, held_shards
from ..data.encode import Encoder
from ..data.examples import RowCounts
from ..data.loader import Batches, Loader
from ..data.mixture import Mixture
from ..data.pack import CachedStats, cell_size, head_chunks
from ..data.store import ROWS, Examples
from ..data.stream import Stream
from ..hf.kept import Kept
from ..models.adapted import Adapted
from ..models.decoder import Model
from ..models.quantized import Kind
from ..recipe.schema import reference_mode
from ..update.forward import Task
from .sizes import first_sizes, sizes_before


@dataclasses.dataclass(frozen=True, kw_only=True)
class TermRun:
    """A term with its data read and the model of its stage described."""

    recipe: settings.Recipe
    name: str
    """The name of the stage."""
    term: str = ""
    """The name of the term; "": the only one of its stage."""
    mesh: Mesh
    source: Path
    """Folder of the checkpoint that the stage starts from."""
    model: Model
    adapted: Adapted | None
    """The model with the stage's adapters; none: all parameters are trained."""
    tokenizer: PreTrainedTokenizerFast
    encoder: Encoder
    """The tokenizer with its chat template and stop tokens."""
    task: Task
    train: Examples
    read: tuple[Examples, ...]
    """The sources of `train`."""
    mixture: Mixture
    """How many examples of each source of `train` an epoch has."""
    held_out: Examples | None
    stream: Stream | None = None
    """All training data, if they are not kept; `train` is their first part then."""
    kept: Kept = dataclasses.field(default_factory=Kept)
    """The weights that the stages before have left on the devices."""

    @property
    def settings(self) -> settings.Stage:
        """The stage's section of the recipe, with the objective and the data of this term."""
        return self.recipe.stages[self.name].goals()[self.term]

    @property
    def where(self) -> str:
        """The dotted path of the objective's section in the recipe, without `objective`."""
        return f"stages.{self.name}" + (f".terms.{self.term}" if self.term else "")

    @property
    def label(self) -> str:
        """The beginning of a line of output about this term."""
        return f"{self.name} {self.term}" if self.term else self.name

    @property
    def folder(self) -> Path:
        """The stage's folder in the folder of the run."""
        return Path(self.recipe.run.dir) / self.name

    @property
    def quantized(self) -> Kind | None:
        """How the frozen matrices under adapters are stored; none: as they are."""
        return self.settings.lora and self.settings.lora.quantize

    @property
    def reference_mode(self) -> str | None:
        """`cached` or `live`; none: the objective has no reference."""
        return reference_mode(self.settings)

    @property
    def moving(self) -> bool:
        """Whether the reference follows the policy, and so is part of the training state."""
        return self.settings.reference.every > 0

    @property
    def policy(self) -> Task:
        """The task as it is trained: with adapters, `forward` takes the base first."""
        if self.adapted is None:
            return self.task
        return dataclasses.replace(self.task, forward=self.adapted.forward, trains_head=False)

    def tables(self) -> list[tuple[str, RowCounts]]:
        """Title and row counts of each data set."""
        of = f"{self.term}: " if self.term else ""
        first = f", the first {ROWS:,} rows" if self.settings.data.streaming else ""
        found = [(f"{of}training data{first}", self.train.counts)]
        if len(self.read) > 1:
            sources = zip(self.settings.data.sources, self.read, self.mixture.draws, strict=True)
            found = [
                (f"{of}training data, {source.path}, {count:,} examples an epoch", examples.counts)
                for source, examples, count in sources
            ]
        if self.held_out is not None:
            found.append((f"{of}held out data", self.held_out.counts))
        return found

    def sets(self) -> dict[str, Examples]:
        """The data sets by name: train, and held_out if there is one."""
        found = {"train": self.train, "held_out": self.held_out}
        return self.task.named({k: v for k, v in found.items() if v is not None})

    def training_loader(self, cached: CachedStats | None = None) -> Loader:
        """Batches of the training data, in the epochs of their mixture."""
        return self.loader(self.train, cached, self.mixture)

    def batches(self, loader: Loader, start: int, stop: int) -> Batches:
        """The batches of the updates from `start` to `stop`, by the training loader."""
        if self.stream is None:
            return loader.batches(start, stop)
        examples = self.stream.examples(start * self.settings.batch_size)
        return loader.streamed(examples, start, stop)

    def loader(
        self,
        examples: Examples,
        cached: CachedStats | None = None,
        mixture: Mixture | None = None,
    ) -> Loader:
        """Batches of a data set, cut for this stage's mesh, microbatches and vocabulary."""
        size, microbatches = self.settings.batch_size, self.settings.microbatches
        assert microbatches != "auto", "plan.settled comes first"
        shards, spec = batch_shards(self.mesh), self.model.spec
        cell = cell_size(size, microbatches, shards)
        scored = examples.responses * spec.scores or examples.offsets[-1] / len(examples)
        known = sizes_before(self.recipe, self.name)
        data_set = next((name for name, own in self.sets().items() if own is examples), "")
        return Loader(
            examples,
            batch_size=size,
            microbatches=microbatches,
            shards=shards,
            chunks=head_chunks(cell, scored, spec.scores or spec.vocab),
            scores=spec.scores,
            row_length=self.settings.data.row_length,
            shapes=self.settings.data.shapes,
            seed=self.recipe.run.seed,
            cached=cached,
            mixture=mixture,
            held=held_shards(self.mesh),
            before=known.get(data_set) or first_sizes(self.name, examples.max_scored),
            updates=self.settings.steps,
            epochs=self.settings.epochs,
        )
