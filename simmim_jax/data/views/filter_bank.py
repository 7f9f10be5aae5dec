"""Log-mel filter banks: Kaldi's defaults, without dither.

25 ms of sound every 10 ms, frames that are complete alone (snip_edges): each without
its mean (remove_dc_offset), with preemphasis 0.97, under Povey's window, padded to 512
samples; the power spectrum is summed under triangles from 20 Hz to half of the rate,
equally wide in mel, and the natural logarithm taken, of at least 2**-23. Source: Povey
et al., "The Kaldi speech recognition toolkit" (ASRU 2011), feature-window.cc and
mel-computations.cc.
"""

import functools

import numpy as np
import scipy.fft
import scipy.sparse

RATE = 16_000  # Hz
HOP = 160  # samples
_WINDOW, _PADDED = 400, 512  # samples
_PREEMPHASIS = 0.97
_LOWEST = 20.0  # Hz
_FLOOR = 2**-23  # float32's epsilon
# Frames at a time: arrays of all of them would be new memory for each sound.
_BLOCK = 64


def num_frames(samples: int) -> int:
    """Return the number of frames of a sound."""
    return max(0, 1 + (samples - _WINDOW) // HOP)


def num_samples(frames: int) -> int:
    """Return the shortest sound of at least one frame that has so many."""
    return _WINDOW + (frames - 1) * HOP


def log_mel(samples: np.ndarray, bands: int) -> np.ndarray:
    """Return float32 [frames bands], the lowest band first.

    samples: float32 [n] at RATE, in -1..1.
    """
    if len(samples) < _WINDOW:
        return np.empty((0, bands), np.float32)
    # Kaldi's float32 errs by up to 1e-3 in quiet bands, and so would ours.
    samples = samples.astype(np.float64)
    changes = samples.copy()
    changes[1:] -= _PREEMPHASIS * samples[:-1]
    frames, changes = (
        np.lib.stride_tricks.sliding_window_view(each, _WINDOW)[::HOP]
        for each in (samples, changes)
    )
    blocks = [
        _energies(frames[i : i + _BLOCK], changes[i : i + _BLOCK], bands)
        for i in range(0, len(frames), _BLOCK)
    ]
    energies = np.concatenate(blocks, axis=1).T
    return np.log(np.maximum(energies, _FLOOR)).astype(np.float32)


def _energies(frames: np.ndarray, changes: np.ndarray, bands: int) -> np.ndarray:
    """Return float64 [bands n] of frames, float64 [n _WINDOW].

    changes: each sample less _PREEMPHASIS of the one before, which the first sample of
    a frame takes for itself.
    """
    rest, mean = 1 - _PREEMPHASIS, frames.mean(1, keepdims=True)
    emphasized = changes - rest * mean
    emphasized[:, 0] = rest * (frames[:, 0] - mean[:, 0])
    emphasized *= _window()
    spectrum = scipy.fft.rfft(emphasized, _PADDED)
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    # Sparse, since BLAS rounds a row by how many there are, and waits for threads.
    return _triangles(bands) @ power.T


def empty_bands(bands: int) -> np.ndarray:
    """Return bool [bands]: those whose triangle lies between two bins.

    They have the same value for any sound: with 128 bands, the fourth is one.
    """
    return np.diff(_triangles(bands).indptr) == 0


@functools.cache
def _window() -> np.ndarray:
    """Return Povey's window, float64 [_WINDOW]: a Hann window to the power 0.85."""
    phase = 2 * np.pi * np.arange(_WINDOW) / (_WINDOW - 1)
    return (0.5 - 0.5 * np.cos(phase)) ** 0.85


@functools.cache
def _triangles(bands: int) -> scipy.sparse.csr_array:
    """Return the weight of each bin in each band, float64 [bands bins]."""
    lowest, highest = _mel(np.array([_LOWEST, RATE / 2])).tolist()
    edges = np.linspace(lowest, highest, bands + 2)[:, None]
    bins = _mel(np.arange(_PADDED // 2) * RATE / _PADDED)
    width = edges[1] - edges[0]
    rising, falling = (bins - edges[:-2]) / width, (edges[2:] - bins) / width
    weights = np.maximum(np.minimum(rising, falling), 0)
    # The bin of half of the rate is in no band.
    return scipy.sparse.csr_array(np.pad(weights, ((0, 0), (0, 1))))


def _mel(frequency: np.ndarray) -> np.ndarray:
    return 1127 * np.log1p(frequency / 700)
