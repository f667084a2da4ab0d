"""Flat arrays on disk."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.data.disk import Joined, OnDisk, npz_arrays

WHOLE = np.arange(24, dtype=np.float32)


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    folder = tmp_path_factory.mktemp("joined")
    pieces = np.split(WHOLE, [7, 7, 16])
    for i, piece in enumerate(pieces):
        np.savez(folder / f"{i}.npz", other=np.zeros(3), logp=piece)
    return Joined([npz_arrays(folder / f"{i}.npz")["logp"] for i in range(len(pieces))])


@given(st.integers(0, 24), st.integers(0, 24))
@settings(max_examples=100, deadline=None)
def test_a_slice_over_pieces_is_that_of_the_whole(joined, start, stop):
    assert joined[start:stop].tolist() == WHOLE[start:stop].tolist()


def test_the_pieces_are_joined_whole(joined):
    assert joined.shape == WHOLE.shape
    assert joined[:].dtype == np.float32
    assert joined[:].tolist() == WHOLE.tolist()


def test_a_slice_of_an_array_on_disk_is_a_copy(tmp_path):
    np.save(tmp_path / "x.npy", WHOLE)
    found = OnDisk.npy(tmp_path / "x.npy")[3:5]
    assert not isinstance(found, np.memmap)
    assert found.tolist() == [3, 4]


def test_a_changed_byte_is_found_or_changes_nothing(tmp_path):
    exact = {"logp": np.arange(5, dtype=np.float32), "other": np.arange(3, dtype=np.uint8)}
    file = tmp_path / "part.npz"
    np.savez(file, **exact)
    data = file.read_bytes()
    for at in range(len(data)):
        for value in (data[at] ^ 0xFF, data[at] ^ 1, 0):
            file.write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
            with contextlib.suppress(ValueError, OSError):
                found = npz_arrays(file)
                for name in set(found) & set(exact):
                    np.testing.assert_array_equal(found[name][:], exact[name])
