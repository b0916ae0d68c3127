"""Rounding weights so that the errors of one column make up for those of another, as far as the linear's input lets them.

The channels of a ranker's linear are correlated, so an error in one weight can be taken back by the weights not yet rounded: they move to
where the output, on calibration rows, changes least. Columns are rounded one after another, in blocks, and each time the rest is updated:
GPTQ (Frantar et al. 2022, arXiv:2210.17323), which is optimal brain surgery (Hassibi & Stork 1993) in a fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from burnish.quantize import affine

DAMPING = 1e-3  # of a channel's largest square, added to its mean square: about the noise of its own rounding, and what keeps few rows, or
# channels that are seldom or always together on, from being trusted too far
WIDEST = 8192  # channels; above, the second moments alone would take half a gigabyte
BLOCK = 64  # columns whose updates are held back and then applied to the rest as one product


@dataclass(frozen=True)
class Second:
    """What compensation needs of a linear's input x (vectors, K): an order of the channels, and the upper triangular U with
    U^T U = (E[x x^T] + damping)^-1 in that order. The same for every linear that reads x and for every migration of it.

    The order is by power after a migration of 3/4: what matters most is rounded first, while most can still make up for it.
    """

    order: np.ndarray  # (K,)
    factor: np.ndarray  # (K, K)

    @classmethod
    def of(cls, x: np.ndarray, largest: np.ndarray) -> Second:
        """From vectors x (vectors, K) and the largest magnitude (K,) that each channel takes."""
        from scipy.linalg import lapack

        moments = x.T.astype(np.float64) @ x.astype(np.float64) / max(len(x), 1)
        power = np.diag(moments).copy()
        top = np.where(largest > 0, largest, 1.0).astype(np.float64)
        moments[np.diag_indices_from(moments)] += DAMPING * top**2
        order = np.argsort(-power / top**1.5, kind="stable")
        backwards = order[::-1]  # a lower triangular L, mirrored, is an upper R with R R^T = moments; U is the inverse of R
        root = np.linalg.cholesky(moments[np.ix_(backwards, backwards)])[::-1, ::-1]
        return cls(order, lapack.dtrtri(root, lower=0)[0])


def compensated(weight: np.ndarray, scale: np.ndarray, multiplier: np.ndarray, second: Second, limit: int = affine.S8_MAX) -> np.ndarray:
    """Weights (N, K) of x, to be read as q * scale * multiplier -> q int8 (N, K) in [-limit, limit]; scale (N,), multiplier () or (K,),
    float32."""
    k = weight.shape[1]
    w = weight[:, second.order].T.astype(np.float64)  # (K, N): columns are rows here
    step = np.broadcast_to(multiplier.astype(np.float64), (k,))[second.order, None] * scale.astype(np.float64)
    u = second.factor
    q = np.empty((k, len(weight)), np.int8)
    for start in range(0, k, BLOCK):
        stop = min(start + BLOCK, k)
        errors = np.empty((stop - start, len(weight)))
        for i in range(start, stop):
            rounded = np.clip(np.rint(w[i] / step[i]), -limit, limit)
            q[i] = rounded
            errors[i - start] = (w[i] - rounded * step[i]) / u[i, i]
            w[i:stop] -= u[i, i:stop, None] * errors[i - start]
        w[stop:] -= u[start:stop, stop:].T @ errors
    out = np.empty(weight.shape, np.int8)
    out[:, second.order] = q.T
    return out
