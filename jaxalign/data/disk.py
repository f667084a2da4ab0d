"""Flat arrays in files, read slice by slice, so that they take no memory."""

from __future__ import annotations

import dataclasses
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import numpy as np

LOCAL_HEADER = 30
"""Bytes of a zip member before its name; the last four are the lengths of name and extra field."""


@dataclasses.dataclass(frozen=True)
class OnDisk:
    """A flat array in a file."""

    path: Path
    dtype: np.dtype
    offset: int
    """Bytes before its first element."""
    length: int
    """Elements."""

    @classmethod
    def npy(cls, path: Path) -> OnDisk:
        """The array of a .npy file.

        Raises:
          OSError: the file cannot be read.
          ValueError: the file is damaged.
        """
        mapped = cast(np.memmap, npy_array(path, "r"))
        return cls(path, mapped.dtype, mapped.offset, mapped.size)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, at: slice) -> np.ndarray:
        start, stop, _ = at.indices(self.length)
        offset = self.offset + start * self.dtype.itemsize
        return np.fromfile(self.path, self.dtype, max(stop - start, 0), offset=offset)


class Joined:
    """Flat arrays on disk, one after another, as one."""

    def __init__(self, arrays: Sequence[OnDisk]):
        """Join arrays of one dtype, at least one."""
        self._arrays = arrays
        self._starts = np.cumsum([0, *map(len, arrays)])

    @property
    def shape(self) -> tuple[int]:
        """The number of elements."""
        return (int(self._starts[-1]),)

    def __getitem__(self, at: slice) -> np.ndarray:
        start, stop, _ = at.indices(int(self._starts[-1]))
        first = int(np.searchsorted(self._starts[:-1], start, side="right")) - 1
        pieces = []
        for array, begin in zip(self._arrays[first:], self._starts[first:], strict=False):
            if begin >= stop and pieces:
                break
            pieces.append(array[max(start - int(begin), 0) : max(stop - int(begin), 0)])
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def npy_array(path: Path, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """The array of a .npy file; arguments and errors as for `np.load` and `OnDisk.npy`."""
    try:
        return np.load(path, mmap_mode, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # numpy has several for a damaged header
        raise ValueError(f"{path.name}: {error}") from error


def npz_arrays(path: Path) -> dict[str, OnDisk]:
    """The flat arrays of a file that `np.savez` wrote, after a check of their CRC-32.

    Raises:
      OSError: the file cannot be read.
      ValueError: the file is damaged.
    """
    try:
        return _npz_arrays(path)
    except OSError:
        raise
    except Exception as error:  # `zipfile` has a dozen of its own for damaged files
        raise ValueError(str(error)) from error


def _npz_arrays(path: Path) -> dict[str, OnDisk]:
    found = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        if bad := archive.testzip():
            raise ValueError(f"wrong CRC-32 of {bad}")
        for member in archive.infolist():
            file.seek(member.header_offset)
            name, extra = struct.unpack("<HH", file.read(LOCAL_HEADER)[-4:])
            file.seek(name + extra, 1)
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            held = OnDisk(path, dtype, file.tell(), int(np.prod(shape)))
            found[member.filename.removesuffix(".npy")] = held
    return found
