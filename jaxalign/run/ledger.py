"""The ledger of a stage: what its result depends on besides the settings of the recipe.

`inputs.json` in the stage's folder has a fingerprint of every input: tokens, starting weights and
configuration, tokenizer, chat template, reference. It is written before the stage computes
anything, and compared whenever the stage is resumed, evaluated or exported.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from jax.experimental import multihost_utils
from rich.console import Console
from rich.text import Text

from ..data.sources import local_files
from ..data.store import Examples
from ..errors import UserError
from ..files import first_process, write_whole
from ..hf import load
from ..hf.tokenizer import tokenizer_fingerprint
from ..models.families import read_config
from ..sealed import read_own, sealed
from .samples import sample_prompts
from .stage import StageRun
from .term import TermRun
from .weights import kept_digest, reference_source

FILE = "inputs.json"
SHOWN = 12
"""Characters of a fingerprint in a message."""


class Input(NamedTuple):
    """Something that the result of a stage depends on."""

    source: str
    """The file or folder that it comes from."""
    fingerprint: str
    """A hexadecimal SHA-256."""


class Change(NamedTuple):
    """An input that is not as the ledger has it."""

    name: str
    source: str
    before: str
    """The fingerprint in the ledger; '' if it has none."""
    now: str


class Accepted(NamedTuple):
    """Changes of inputs with which a stage continued."""

    when: str
    """Local time, ISO 8601."""
    changes: list[Change]


class Ledger(NamedTuple):
    """The content of `inputs.json`."""

    inputs: dict[str, Input]
    accepted: list[Accepted]


def settle(stage: StageRun, console: Console, *, accept_changes: bool) -> None:
    """Write the ledger of a stage that has none, or compare it with the inputs as they are now.

    Args:
      stage: the stage.
      console: where to print.
      accept_changes: write changed inputs down and continue.

    Raises:
      UserError: an input has changed, and `accept_changes` is off; has a table of the changes.
    """
    file, found = stage.folder / FILE, inputs_of(stage)
    held = read_own(file, Ledger) if file.exists() else None
    changed = changes(held.inputs, found) if held else []
    if changed and not accept_changes:
        raise UserError(
            f"stage {stage.name}: its inputs are not those that it began with\n{table(changed)}\n"
            "restore them, choose another --run.dir, or add --accept-changes to continue with the "
            "new ones"
        )
    if not held and (stage.folder / "checkpoints").exists():
        text = f"{stage.name}: an older version began this stage, so its inputs were not compared"
        console.print(Text(text))
    accepted = held.accepted if held else []
    if changed:
        console.print(Text(f"{stage.name}: continues with changed inputs\n{table(changed)}"))
        when = datetime.datetime.now().isoformat(timespec="seconds")
        accepted = [*accepted, Accepted(when, changed)]
    if changed or not held:
        record = {
            "inputs": {name: input_._asdict() for name, input_ in found.items()},
            "accepted": [
                {"when": a.when, "changes": [c._asdict() for c in a.changes]} for a in accepted
            ],
        }
        # Every host has read the ledger before the first one writes.
        multihost_utils.sync_global_devices(f"inputs of {stage.name}")
        write_whole(file, sealed(record))


def accepted_changes(folder: Path) -> list[Accepted]:
    """The changes of inputs with which a stage continued, each with its time."""
    file = folder / FILE
    return read_own(file, Ledger).accepted if file.exists() else []


def changes(before: dict[str, Input], now: dict[str, Input]) -> list[Change]:
    """The inputs whose fingerprints differ."""
    none = Input("", "")
    pairs = {name: (before.get(name, none), now.get(name, none)) for name in {**before, **now}}
    return [
        Change(name, new.source or old.source, old.fingerprint, new.fingerprint)
        for name, (old, new) in pairs.items()
        if old.fingerprint != new.fingerprint
    ]


def table(changed: list[Change]) -> str:
    """One line for each change: its name, the SHA-256 before and now, and its source."""
    width = max(len(c.name) for c in changed)
    return "\n".join(
        f"  {c.name:<{width}}  SHA-256 {c.before[:SHOWN] or 'none':<{SHOWN}} -> "
        f"{c.now[:SHOWN] or 'none':<{SHOWN}}  {c.source}"
        for c in changed
    )


def inputs_of(stage: StageRun) -> dict[str, Input]:
    """All inputs of a stage by name.

    The first process reads large files, unless it has kept their fingerprints; the others wait.
    """
    if first_process():
        _inputs_of(stage)
    multihost_utils.sync_global_devices(f"fingerprints of {stage.name}")
    return _inputs_of(stage)


def _inputs_of(stage: StageRun) -> dict[str, Input]:
    found: dict[str, Input] = {}
    for term in stage.terms:
        found |= _of_term(term, _data_of(term))
    digest = kept_digest(stage)
    found |= _checkpoint("start", stage.source, digest)
    found["tokenizer"] = Input(str(stage.source), tokenizer_fingerprint(stage.source))
    about = [stage.encoder.templates, stage.encoder.all_stops()]
    template = stage.settings.data.chat_template
    found["chat template"] = Input(template or str(stage.source), _sha256(about))
    samples = stage.settings.eval_samples
    if samples is not None and samples.prompts is not None:
        ids = [prompt.ids.tolist() for prompt in sample_prompts(stage)]
        found["prompts of eval_samples"] = Input(samples.prompts, _sha256(ids))
    for term in stage.terms:
        if term.reference_mode is not None and reference_source(term) != stage.source:
            found |= _of_term(term, _checkpoint("reference", reference_source(term), digest))
    return found


def _of_term(term: TermRun, inputs: dict[str, Input]) -> dict[str, Input]:
    """The inputs of a term under their names in the ledger of its stage."""
    return {f"{term.term}: {k}" if term.term else k: v for k, v in inputs.items()}


def _data_of(term: TermRun) -> dict[str, Input]:
    """The data of a term."""
    data = term.settings.data
    train = ", ".join(source.path for source in data.sources)
    found = {"tokens of the training data": Input(train, term.train.fingerprint)}
    if term.stream is not None and (files := local_files(term.recipe.locate(data.path or ""))):
        digests = [kept_digest(term)(file) for file in files]
        found["files of the training data"] = Input(train, _sha256(digests))
    if term.held_out is not None:
        found["tokens of the held-out data"] = _tokens(data.eval_path, term.held_out)
    return found


def _tokens(path: str | None, examples: Examples) -> Input:
    return Input(path or "", examples.fingerprint)


def _given(record: Any) -> Any:
    """The fields of a record without defaults, so that a new field of a later version adds none."""
    if isinstance(record, tuple):
        return [_given(value) for value in record]
    if not dataclasses.is_dataclass(record):
        return repr(record)
    values = {field: getattr(record, field.name) for field in dataclasses.fields(record)}
    return {f.name: _given(value) for f, value in values.items() if value != f.default}


def _checkpoint(name: str, folder: Path, digest: load.Digest) -> dict[str, Input]:
    """The weights and the configuration of a checkpoint."""
    given = _given(read_config(load.load_config(folder)))
    return {
        f"weights of the {name}": Input(str(folder), load.weights_fingerprint(folder, digest)),
        f"config.json of the {name}": Input(str(folder), _sha256(given)),
    }


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
