"""Reading a Hugging Face folder: configuration, weights by shards, fingerprint."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from ..digests import sha256
from ..documents import refuse_pointer
from ..errors import UserError
from ..files import read_json
from ..models.decoder import Model, Params
from ..models.spec import Spec
from ..shown import shown
from .kinds import kind, require
from .mxfp4 import BLOCKS, SCALES, Packed
from .weights import Weight, heads, hf_shape, names_of, read_part, weights

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DOWNLOADED = (
    *("*.json", "*.jinja", "*.safetensors", "tokenizer.model", "merges.txt"),
    "README.md",
)
LONGEST_PATH = 1024  # characters, four bytes each at most: over it no system call takes one
FLOATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

Digest = Callable[[Path], str]
"""A file -> the hexadecimal SHA-256 of its bytes."""
Keep = Callable[[tuple[str, ...], jax.Array], Any]
"""(path, parameter) -> the parameter in the form in which it is kept, such as `Quantized`."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of an open safetensors file; slicing it reads that slice."""

    name: str
    file: Path
    slices: Any
    """An object that gives a numpy array of a part when indexed by slices."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the file."""
        return tuple(self.slices.get_shape())

    @property
    def dtype(self) -> str:
        """Dtype in the file, in safetensors notation: F32, F16, BF16, ..."""
        return self.slices.get_dtype()


def resolve(path: str, setting: str = "model.path") -> Path:
    """A local folder, or a snapshot of the hub repository of that name.

    Args:
      path: a folder, or a name on the hub.
      setting: name of the setting, for messages.

    Raises:
      UserError: neither exists, or the hub cannot be reached.
    """
    folder = Path(path).expanduser()
    if len(path) > LONGEST_PATH:
        raise UserError(f"{setting}: got a path of {len(path):,} characters; give a shorter one")
    if folder.is_dir():
        return folder
    if folder.is_file():
        about = kind(folder) or f"give the folder of the checkpoint, as {folder.parent}"
        raise UserError(f"{setting}: {path} is a file; {about}")
    if folder.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1:
        raise UserError(f"{setting}: no folder {path}; give a checkpoint folder or a hub name")
    try:
        return Path(snapshot_download(path, allow_patterns=list(DOWNLOADED)))
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{setting}: '{path}' is neither a folder here nor a repository that the hub gives "
            f"({reason}); check the name, the network and your access"
        ) from error


def load_config(folder: Path) -> dict[str, Any]:
    """The contents of `config.json`, for `read_config`.

    Raises:
      UserError: the file is missing or damaged.
    """
    file = Path(folder) / "config.json"
    require(file)
    return read_json(file)


def has_weights(folder: Path) -> bool:
    """Whether a folder has weights, if not all of their files."""
    return (folder / INDEX).is_file() or (folder / SINGLE).is_file()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, sorted by name.

    As in transformers, `model.safetensors` comes first where there is an index too.

    Raises:
      UserError: there are none, or a file that the index names is missing.
    """
    folder = Path(folder)
    if (folder / INDEX).is_file() and not (folder / SINGLE).is_file():
        files = [folder / name for name in _indexed(folder / INDEX)]
    else:
        files = [folder / SINGLE]
    for file in files:
        require(file)
    return files


def _indexed(index: Path) -> list[str]:
    """The names of the files in an index of tensors, sorted; the files are next to it."""
    named = read_json(index).get("weight_map")
    wanted = '{"name of a tensor": "name of a file"}; download it again'
    if not isinstance(named, dict) or not named:
        raise UserError(f"{index}: weight_map: got {shown(named)}, wanted {wanted}")
    for tensor, name in named.items():
        if not isinstance(name, str) or not 0 < len(Path(name).name) < 256:
            got = f"got {shown(name)} for {shown(tensor)}"
            raise UserError(f"{index}: weight_map: {got}, wanted {wanted}")
    return sorted({Path(name).name for name in named.values()})


@contextlib.contextmanager
def open_tensors(files: Iterable[Path]) -> Iterator[dict[str, Tensor]]:
    """All tensors of safetensors files by name, readable until the context ends.

    Raises:
      UserError: a file is missing or damaged.
    """
    with contextlib.ExitStack() as stack:
        tensors = {}
        for file in files:
            try:
                refuse_pointer(file)
                handle = stack.enter_context(safe_open(file, framework="np"))
                names = handle.keys()
                found = {name: Tensor(name, file, handle.get_slice(name)) for name in names}
            except UserError:
                raise
            except (SafetensorError, OSError, ValueError) as error:
                raise UserError(
                    f"{file}: not readable as safetensors ({error}); download it again"
                ) from error
            if twice := tensors.keys() & found.keys():
                raise UserError(
                    f"{file}: tensor {shown(min(twice))} is also in "
                    f"{tensors[min(twice)].file}; keep one of them"
                )
            tensors |= found
        yield _unpacked(tensors)


def _unpacked(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same, with one tensor in place of numbers in MXFP4 and their scales."""
    found = dict(tensors)
    for name in tensors:
        whole = name.removesuffix(BLOCKS)
        if whole != name and whole + SCALES in tensors:
            blocks, scales = found.pop(name), found.pop(whole + SCALES)
            found[whole] = Tensor(whole, blocks.file, Packed(whole, blocks.slices, scales.slices))
    return found


@contextlib.contextmanager
def open_checkpoint(folder: Path, spec: Spec) -> Iterator[dict[str, Tensor]]:
    """All tensors of a checkpoint of a decoder, by the names that an export gives them.

    Args:
      folder: a checkpoint with one or several safetensors files.
      spec: the decoder's configuration.

    Raises:
      UserError: see `open_tensors`; or a tensor is there under two names.
    """
    names = names_of(spec)
    with open_tensors(weight_files(folder)) as tensors:
        found: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            written = names.written(name)
            if written in found:
                raise UserError(
                    f"{tensor.file}: tensor '{name}' is also in {found[written].file}, under "
                    "another name; keep one of them"
                )
            found[written] = dataclasses.replace(tensor, name=written)
        yield found


def load_params(
    folder: Path,
    model: Model,
    keep: Keep | None = None,
    made: Params | None = None,
) -> Params:
    """Parameters from a checkpoint; each host reads only the shards of its devices.

    Tensors are read and converted to the model's parameter dtype slice by slice.

    Args:
      folder: a checkpoint with one or several safetensors files.
      model: the decoder of the weights.
      keep: function that each parameter on the mesh is replaced by; None: no replacement.
      made: parameters that the checkpoint lacks, such as `{"head": ...}`.

    Returns:
      A nested dict of the form of `model.abstract`.

    Raises:
      UserError: a file is missing or damaged; a tensor is missing, unexpected, not of floats, or
        has another shape than config.json gives.
    """
    made = made or {}
    with _tensors_of(folder, model, made) as found:
        return placed(found, model, keep or (lambda path, leaf: leaf)) | made


def check_weights(folder: Path, model: Model, made: Collection[str] = ()) -> None:
    """Refuse what `load_params` would refuse, by the headers of the files alone.

    Args:
      folder: a checkpoint with one or several safetensors files.
      model: the decoder of the weights.
      made: first keys of parameters that the checkpoint lacks.

    Raises:
      UserError: see `load_params`.
    """
    with _tensors_of(folder, model, made):
        pass


@contextlib.contextmanager
def _tensors_of(
    folder: Path, model: Model, made: Collection[str]
) -> Iterator[dict[Weight, list[Tensor]]]:
    """The tensors of each parameter of a checkpoint, checked, readable until the context ends."""
    with open_checkpoint(folder, model.spec) as tensors:
        plan = [w for w in weights(model, tensors) if w.path[0] not in made]
        found = {w: tensors_of(w, tensors, model, Path(folder)) for w in plan}
        _refuse_unexpected(tensors, {t.name for ts in found.values() for t in ts}, model)
        yield found


def placed(found: dict[Weight, list[Tensor]], model: Model, keep: Keep) -> Params:
    """Parameters on the mesh, from all tensors of each."""
    leaves = {
        w.path: keep(w.path, place(w, parts, w.of(model.abstract), model))
        for w, parts in found.items()
    }
    return unflatten_dict(leaves)


def tensors_of(
    weight: Weight, tensors: dict[str, Tensor], model: Model, folder: Path
) -> list[Tensor]:
    """The tensors of one parameter, in the order of `names`, checked against the configuration."""
    wanted = hf_shape(weight, weight.of(model.abstract).shape[len(weight.stacks) :])
    found = []
    for name in weight.names:
        tensor = next((tensors[n] for n in (name, *weight.other_names) if n in tensors), None)
        if tensor is None:
            raise UserError(
                f"{folder}: tensor '{name}' is missing; got {len(tensors)} tensors; "
                "does config.json belong to these weights?"
            )
        if tensor.shape != wanted:
            raise UserError(
                f"{tensor.file}: tensor '{name}': got shape {tensor.shape}, wanted {wanted} by "
                "config.json; does it belong to these weights?"
            )
        if tensor.dtype not in FLOATS:
            raise UserError(
                f"{tensor.file}: tensor '{name}': got dtype {tensor.dtype}, wanted one of "
                f"{', '.join(FLOATS)}; use the unquantized checkpoint"
            )
        found.append(tensor)
    return found


def _refuse_unexpected(tensors: dict[str, Tensor], used: set[str], model: Model) -> None:
    for name, tensor in tensors.items():
        if name in used or _left_out(name, model.spec):
            continue
        unembedding = name in heads(model.spec)
        if model.spec.scores and unembedding:
            continue  # the reward head replaces it
        embed = tensors[weights(model)[0].name]
        if model.spec.tied and unembedding and _equal(tensor, embed):
            continue
        tied = " (config.json ties the head to the embedding)" if model.spec.tied else ""
        raise UserError(
            f"{tensor.file}: tensor '{name}' {tensor.shape} has no place in model_type "
            f"'{model.spec.family}'{tied}; does config.json belong to these weights?"
        )


def _left_out(name: str, spec: Spec) -> bool:
    """Whether a tensor has no parameter: a buffer, a copy, unused, or in a layer after the last."""
    names = names_of(spec)
    if name.endswith(names.buffers) or name.startswith((*names.copied, *names.unused)):
        return True
    number = name.removeprefix(names.layer.partition("{}")[0]).partition(".")[0]
    return names.more_layers and number.isdecimal() and int(number) >= len(spec.layers)


def _equal(a: Tensor, b: Tensor, rows: int = 8192) -> bool:
    if a.shape != b.shape:
        return False
    parts = (slice(i, min(i + rows, a.shape[0])) for i in range(0, a.shape[0], rows))
    return all(np.array_equal(a.slices[part], b.slices[part]) for part in parts)


def place(
    weight: Weight, tensors: list[Tensor], leaf: jax.ShapeDtypeStruct, model: Model
) -> jax.Array:
    """One parameter on the mesh, read by shards.

    Args:
      weight: the parameter.
      tensors: its tensors, in the order of its names.
      leaf: shape, dtype and sharding of the parameter.
      model: the decoder.
    """

    @functools.cache  # devices with the same part share one read
    def read(*bounds: tuple[int, int]) -> np.ndarray:
        index = tuple(slice(*b) for b in bounds)
        depth = len(weight.stacks)
        numbers = np.arange(len(tensors)).reshape([len(stack) for stack in weight.stacks])
        chosen = numbers[index[:depth]]
        out = np.empty([b - a for a, b in bounds], leaf.dtype)
        for place, number in np.ndenumerate(chosen):
            out[place] = read_part(weight, tensors[number].slices, index[depth:])
        return out

    def callback(index: Any) -> np.ndarray:
        ranges = (s.indices(size) for s, size in zip(index, leaf.shape, strict=True))
        return read(*((start, stop) for start, stop, _ in ranges))

    return jax.make_array_from_callback(leaf.shape, leaf.sharding, callback)


def weights_fingerprint(folder: Path, digest: Digest = sha256) -> str:
    """SHA-256 over the safetensors files, sorted by name; hexadecimal.

    Args:
      folder: the checkpoint.
      digest: the SHA-256 of a file, which a caller may have kept.
    """
    total = hashlib.sha256()
    for file in weight_files(folder):
        total.update(bytes.fromhex(digest(file)))
    return total.hexdigest()
