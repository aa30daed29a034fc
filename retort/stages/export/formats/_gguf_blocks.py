"""GGUF's blocks of 4 and 6 bits, written by numpy: each scale minimises a weighted squared error.

The layouts are those of llama.cpp (ggml-common.h): Q4_0 is 32 numbers of 4 bits and a scale of half
precision; Q6_K is 256 numbers of 6 bits in 16 groups, each with a scale of 8 bits, and one over
them.
"""

# N blocks or groups, B numbers of a block
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Q4_BLOCK, Q6_BLOCK, Q6_GROUP = 32, 256, 16
# The scales that are tried: where the code of the largest number lies, from within the codes to
# beyond them, which cuts off a large number where others matter more.
TRIED = np.linspace(-1, 2, 21, dtype=np.float32)
CHUNK = 1 << 13  # blocks at a time, so that the arrays stay in the processor's cache


def quantize_q4_0(values: Floats, importance: Floats | None = None) -> Bytes:
    """Returns the rows of a matrix as Q4_0; `importance` weighs each column's squared error.

    Beside it large numbers weigh more than small ones, as in llama.cpp's own quantizer: the KL to
    the model in single precision is a sixth lower than by importance alone.
    """

    def pack(values_NB: Floats, weights_NB: Floats) -> Bytes:
        squares_NB = np.square(values_NB)
        weights_NB = weights_NB * np.sqrt(squares_NB.mean(axis=1, keepdims=True) + squares_NB)
        scales_N = best_scales(values_NB, weights_NB, 8).astype(np.float16)
        codes_NB = (_codes(values_NB, scales_N.astype(np.float32), 8) + 8).astype(np.uint8)
        half = Q4_BLOCK // 2
        packed = codes_NB[:, :half] | (codes_NB[:, half:] << 4)
        return np.concatenate([scales_N[:, None].view(np.uint8), packed], axis=1)

    return _by_chunks(values, importance, Q4_BLOCK, pack)


def quantize_q6_k(values: Floats, importance: Floats | None = None) -> Bytes:
    """Returns the rows of a matrix as Q6_K; a row holds a multiple of 256 numbers."""

    def pack(values_NB: Floats, weights_NB: Floats) -> Bytes:
        groups = (len(values_NB) * Q6_BLOCK // Q6_GROUP, Q6_GROUP)
        wanted_NG = best_scales(values_NB.reshape(groups), weights_NB.reshape(groups), 32)
        wanted_NG = wanted_NG.reshape(len(values_NB), -1)
        largest_N1 = np.take_along_axis(
            wanted_NG, np.abs(wanted_NG).argmax(axis=1, keepdims=True), axis=1
        )
        scale_N1 = (largest_N1 / -128).astype(np.float16)
        with np.errstate(divide="ignore", invalid="ignore"):
            small_NG = np.rint(wanted_NG / scale_N1.astype(np.float32))
        small_NG = np.nan_to_num(small_NG, posinf=0, neginf=0).clip(-128, 127).astype(np.int8)
        scales_N = (scale_N1.astype(np.float32) * small_NG).reshape(-1)
        codes = (_codes(values_NB.reshape(groups), scales_N, 32) + 32).astype(np.uint8)
        low, high = _six_bits(codes.reshape(-1, 2, 4, 32))
        parts = [low, high, small_NG.view(np.uint8), scale_N1.view(np.uint8)]
        return np.concatenate(parts, axis=1)

    return _by_chunks(values, importance, Q6_BLOCK, pack)


def best_scales(values_NB: Floats, weights_NB: Floats, half: int) -> Floats:
    """Returns each block's scale: of those tried, the one with the least weighted squared error.

    Codes run from -half to half - 1. A tried scale gives codes, and these their best scale in
    closed form: sum(w x q) / sum(w q^2), which leaves an error of sum(w x^2) - sum(w x q)^2 /
    sum(w q^2).
    """
    index_N1 = np.abs(values_NB).argmax(axis=1, keepdims=True)
    largest_N1 = np.take_along_axis(values_NB, index_N1, axis=1)
    scales_N, gains_N = np.zeros((2, len(values_NB)), np.float32)
    weighted_NB = weights_NB * values_NB
    for step in TRIED:
        tried_N = largest_N1[:, 0] / -(half + step)
        codes_NB = _codes(values_NB, tried_N, half)
        dots_N = np.einsum("nb,nb->n", weighted_NB, codes_NB)
        squares_N = np.einsum("nb,nb,nb->n", weights_NB, codes_NB, codes_NB)
        with np.errstate(divide="ignore", invalid="ignore"):
            scale_N = np.where(squares_N > 0, dots_N / squares_N, 0)
        better_N = scale_N * dots_N > gains_N
        scales_N[better_N], gains_N[better_N] = scale_N[better_N], (scale_N * dots_N)[better_N]
    return scales_N


def weighted_error(values: Floats, restored: Floats, importance: Floats) -> float:
    """Returns the sum of squared errors, each column's weighed by its importance."""
    return float((np.square(values - restored).astype(np.float64) @ importance).sum())


def _codes(values_NB: Floats, scales_N: Floats, half: int) -> Floats:
    with np.errstate(divide="ignore"):
        inverse_N = np.where(scales_N == 0, 0, 1 / scales_N).astype(np.float32)
    codes: Floats = np.rint(values_NB * inverse_N[:, None]).clip(-half, half - 1)
    return codes


def _six_bits(codes_N2_4_32: npt.NDArray[np.uint8]) -> tuple[Bytes, Bytes]:
    """Returns the low four and the high two bits of each 256 codes, as they lie in a block."""
    nibbles = codes_N2_4_32 & np.uint8(15)
    low = nibbles[:, :, :2] | nibbles[:, :, 2:] << np.uint8(4)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high: Bytes = np.bitwise_or.reduce((codes_N2_4_32 >> 4) << shifts, axis=2)
    return low.reshape(len(low), -1), high.reshape(len(high), -1)


def _by_chunks(
    values: Floats,
    importance: Floats | None,
    block: int,
    pack: Callable[[Floats, Floats], Bytes],
) -> Bytes:
    """Returns a matrix of packed rows, some thousand blocks at a time."""
    rows = values.reshape(-1, values.shape[-1])
    if importance is None or not importance.any():
        importance = np.ones(rows.shape[1], np.float32)
    per_row = rows.shape[1] // block
    step = max(CHUNK // per_row, 1)
    parts = []
    for start in range(0, len(rows), step):
        chunk = np.ascontiguousarray(rows[start : start + step], np.float32)
        weights = np.broadcast_to(importance, chunk.shape).reshape(-1, block)
        parts.append(pack(chunk.reshape(-1, block), weights).reshape(len(chunk), -1))
    return np.concatenate(parts).reshape(*values.shape[:-1], -1)
