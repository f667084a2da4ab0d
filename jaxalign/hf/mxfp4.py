"""Weights in MXFP4 (Rouhani et al. 2023, arXiv:2310.10537), dequantized slice by slice.

A block is 32 neighboring inputs of one output: a scale, a power of two, and 16 bytes of two numbers
each, the low half first.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np

from ..errors import UserError

BLOCK = 32
BLOCKS, SCALES = "_blocks", "_scales"
VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
CODES = np.concatenate([VALUES, -VALUES])
BIAS, NOT_A_NUMBER = 127, 255


@dataclasses.dataclass(frozen=True)
class Packed:
    """A tensor [experts, in, out] of bfloat16, held as numbers of four bits and their scales."""

    name: str
    blocks: Any
    """uint8 [experts, out, in / 32, 16] when sliced."""
    scales: Any
    """uint8 [experts, out, in / 32] when sliced."""

    def get_shape(self) -> list[int]:
        """The shape of the tensor."""
        experts, out, blocks, _ = self.blocks.get_shape()
        return [experts, BLOCK * blocks, out]

    def get_dtype(self) -> str:
        """The dtype of the tensor, in safetensors notation; it holds all values."""
        return "BF16"

    def __getitem__(self, index: tuple[slice, slice, slice]) -> np.ndarray:
        """A part of the tensor, of which whole blocks are read.

        Raises:
          UserError: a scale is not a number.
        """
        experts, inputs, outputs = index
        start, stop, _ = inputs.indices(self.get_shape()[1])
        first, last = start // BLOCK, -(-stop // BLOCK)
        where = (experts, outputs, slice(first, last))
        packed, scales = np.asarray(self.blocks[where]), np.asarray(self.scales[where])
        if (scales == NOT_A_NUMBER).any():
            raise UserError(f"tensor '{self.name}': a scale is not a number; download it again")
        codes = np.stack([packed & 15, packed >> 4], -1).reshape(*scales.shape, BLOCK)
        values = np.ldexp(CODES[codes], scales.astype(np.int32)[..., None] - BIAS)
        whole = values.reshape(*scales.shape[:2], -1).swapaxes(1, 2)
        part = whole[:, start - first * BLOCK : stop - first * BLOCK]
        return part.astype(ml_dtypes.bfloat16)
