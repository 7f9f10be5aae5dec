"""Principal components of features, to be looked at as colours or places."""

from typing import NamedTuple

import numpy as np

# Percentiles of a component that become the darkest and the brightest colour.
_ENDS = (1, 99)


class Components(NamedTuple):
    """The directions in which vectors differ most, the first one most of all.

    mean: [d]; directions: [k, d], orthonormal, the largest part of each is positive;
    shares: [k], of the variance.
    """

    mean: np.ndarray
    directions: np.ndarray
    shares: np.ndarray

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """Return places [..., k] of vectors [..., d]."""
        return (vectors - self.mean) @ self.directions.T


def fit(vectors: np.ndarray, count: int) -> Components:
    """Return the first principal components of vectors [n, d], at most d of them.

    Vectors that are all equal have shares of 0.
    """
    vectors = np.asarray(vectors, np.float64)
    mean = vectors.mean(axis=0)
    centred = vectors - mean
    variances, directions = np.linalg.eigh(centred.T @ centred)
    chosen = directions.T[::-1][:count]
    largest = np.abs(chosen).argmax(axis=1)
    chosen = chosen * np.sign(chosen[np.arange(len(chosen)), largest])[:, None]
    total = variances.sum()
    shares = variances[::-1][:count].clip(0) / (total if total > 0 else 1)
    return Components(mean, chosen, shares)


def colours(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return maps of features [n, h, w, d] as colours, uint8 [n, h, w, 3], and shares.

    The first three principal components of the patches of all images together are red,
    green and blue, so that a colour means the same in each; shares: of the variance,
    [3]. Maps of fewer features leave colours out.
    """
    patches = maps.reshape(-1, maps.shape[-1])
    found = fit(patches, 3)
    places = found.project(maps)
    low, high = np.percentile(places.reshape(-1, places.shape[-1]), _ENDS, axis=0)
    scaled = (places - low) / np.maximum(high - low, 1e-12)
    levels = np.zeros((*maps.shape[:3], 3), np.uint8)
    levels[..., : places.shape[-1]] = np.rint(255 * scaled.clip(0, 1))
    return levels, found.shares
