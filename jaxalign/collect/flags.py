"""The flags of `sample`, `score`, `pair` and `compare`: their settings, and where they write."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from .. import settings
from ..data.turns import read_json
from ..documents import from_yaml
from ..errors import UserError
from ..files import read_text
from ..settings.compare import Compare
from ..settings.endpoint import Endpoint
from ..settings.pair import Pair
from ..settings.sample import Sample
from ..settings.score import Score
from ..settings.types import Text, WholeNumber

_JSON = tyro.constructors.PrimitiveConstructorSpec[Mapping[str, Any]](
    nargs=1,
    metavar="JSON",
    instance_from_str=lambda args: read_json(args[0], dict, "--chat-template-kwargs"),
    is_instance=lambda found: isinstance(found, Mapping),
    str_from_instance=lambda found: [str(dict(found))],
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Endpoint(Endpoint):
    """An OpenAI-compatible endpoint that answers instead of MODEL (needs the extra `endpoint`)."""

    endpoint: Text = ""
    """URL of the endpoint, such as http://localhost:8000/v1; none: MODEL answers."""
    model: Text = ""
    """Name of the model at the endpoint."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleFlags(Sample):
    """Prompts, what answers them, and the file of the answers."""

    model: Annotated[Text | None, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = None
    """Hugging Face folder or hub repository, of a model or of an adapter; none: the endpoint."""
    endpoint: _Endpoint = dataclasses.field(default_factory=_Endpoint)
    chat_template_kwargs: Annotated[Mapping[str, Any], _JSON] = dataclasses.field(
        default_factory=dict
    )
    """Values that the chat template reads, as JSON: '{"enable_thinking": false}'."""
    seed: WholeNumber = 0
    """Seed of the first answer, and of the choice of prompts."""
    out: str
    """File to write, JSON lines; it must not exist."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of parameters and matrix products."""
    mesh: settings.Mesh = dataclasses.field(default_factory=settings.Mesh)
    """Devices to spread the model and the prompts over."""
    accept_changes: bool = False
    """Make the parts of an unfinished file again that were made from other inputs."""

    def arguments(self) -> dict[str, Any]:
        """The arguments of `jaxalign.sample`."""
        values = _values(self)
        given = dataclasses.asdict(self.endpoint)
        plain = dataclasses.asdict(_Endpoint())
        differs = {name: value for name, value in given.items() if value != plain[name]}
        return values | {"endpoint": differs or None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreFlags(Score):
    """Rows, their scorers, and the file of the scored rows."""

    data: Annotated[Text, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Rows with prompt and responses, a pair or a completion: a file, or a data set on the hub."""
    by: str
    """The scorer, or a list of scorers: YAML, as 'numeric: {answer: answer}', or a .yaml file."""
    out: str
    """File to write, JSON lines; it must not exist."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of models and matrix products."""
    mesh: settings.Mesh = dataclasses.field(default_factory=settings.Mesh)
    """Devices to spread models and rows over."""
    accept_changes: bool = False
    """Make the parts of an unfinished file again that were made from other inputs."""

    def arguments(self) -> dict[str, Any]:
        """The arguments of `jaxalign.score`.

        Raises:
          UserError: `by` is no YAML, or its file cannot be read.
        """
        return _values(self) | {"by": _read_by(self.by)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairFlags(Pair):
    """Scored answers, how they become training data, and the file of these data."""

    data: Annotated[Text, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """File of scored answers: rows of prompt, responses and scores, one row per prompt."""
    out: str
    """File to write, JSON lines; it must not exist."""
    seed: WholeNumber = 0
    """Seed of the random choices."""

    def arguments(self) -> dict[str, Any]:
        """The arguments of `jaxalign.pair`."""
        return _values(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareFlags(Compare, Sample):
    """Models, the prompts that they answer, and the folder of the comparison."""

    models: Annotated[tuple[Text, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Two or more: folders of models, adapters or finished runs, or hub repositories. The first is
    the baseline; each other one is compared with it."""
    by: str
    """The scorer, or a list of scorers: YAML, as 'numeric: {answer: answer}', or a .yaml file."""
    model: tyro.conf.Suppress[None] = None
    endpoint: tyro.conf.Suppress[None] = None
    chat_template_kwargs: Annotated[Mapping[str, Any], _JSON] = dataclasses.field(
        default_factory=dict
    )
    """Values that the chat template reads, as JSON: '{"enable_thinking": false}'."""
    seed: WholeNumber = 0
    """Seed of the first answer of each model, and of the choice of prompts."""
    out: str
    """Folder to write; a second call with the same settings draws nothing again."""
    json: bool = False
    """Print one JSON object."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of parameters and matrix products."""
    mesh: settings.Mesh = dataclasses.field(default_factory=settings.Mesh)
    """Devices to spread the models and the prompts over."""
    accept_changes: bool = False
    """Make the files and parts again that were made from other inputs."""

    def arguments(self) -> dict[str, Any]:
        """The arguments of `jaxalign.compare`.

        Raises:
          UserError: `by` is no YAML, or its file cannot be read.
        """
        values = _values(self) | {"by": _read_by(self.by)}
        return {k: v for k, v in values.items() if k not in ("model", "endpoint", "json")}


def _values(flags: Any) -> dict[str, Any]:
    return {field.name: getattr(flags, field.name) for field in dataclasses.fields(flags)}


def _read_by(by: str) -> Any:
    """The plain values of YAML text, or of a file in it."""
    file = by.endswith((".yaml", ".yml"))
    try:
        return from_yaml(read_text(Path(by)) if file else by)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(
            f"--by: {by if file else 'no YAML'}: {error}; give a scorer such as "
            "'numeric: {answer: answer}', or the path of a .yaml file"
        ) from None
