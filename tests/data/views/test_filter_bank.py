"""Filter banks against Kaldi's."""

import numpy as np
import pytest
from sounds import speech

from simmim_jax.data.views.filter_bank import (
    empty_bands,
    log_mel,
    num_frames,
    num_samples,
)

# kaldi-native-fbank 1.23.0: FbankOptions with dither=0 and num_bins, other values its
# defaults; OnlineFbank.accept_waveform(16000, samples in -1..1). Rows are frames 0, 20,
# 49, 75 and 97, columns the bands 0, 1, 3, n/4, n/2, 3n/4 and n - 1.
KALDI = {
    80: [
        [-8.3648, -7.2749, -2.5562, -0.7817, -4.2030, 2.3131, -14.7347],
        [-12.9745, -11.4263, -7.2064, -2.6270, -6.3843, -5.3105, -15.3939],
        [-13.5151, -11.8663, -9.7852, -4.5090, -2.1389, -2.0747, -14.3333],
        [-7.7342, -6.9873, -5.3023, -2.0256, -3.8133, 1.1250, -14.5532],
        [-15.6652, -14.9424, -11.6036, -8.6634, -5.6719, -1.1002, -14.2060],
    ],
    40: [
        [-3.9378, -2.0633, 0.1757, -0.8185, -2.8958, 2.4859, -14.3808],
        [-8.8214, -6.7274, -5.8817, -2.1595, -6.2338, -5.0458, -14.4387],
        [-11.2317, -8.9676, -6.7466, -4.6103, -1.9909, -1.0554, -11.6213],
        [-5.0165, -4.1871, 0.9434, -1.8561, -2.5566, 1.4693, -13.9759],
        [-13.6509, -11.2261, -7.1501, -8.1488, -4.7030, -0.6300, -10.1608],
    ],
}
# Mean and standard deviation over all values, of the same.
MOMENTS = {80: (-3.972366, 3.755673), 40: (-2.928750, 3.519815)}


@pytest.mark.parametrize("bands", KALDI)
def test_values_are_those_of_kaldi(bands):
    found = log_mel(speech(), bands)
    assert found.shape == (98, bands)
    assert found.dtype == np.float32
    columns = [0, 1, 3, bands // 4, bands // 2, 3 * bands // 4, bands - 1]
    frames = found[[0, 20, 49, 75, 97]][:, columns]
    np.testing.assert_allclose(frames, KALDI[bands], atol=1e-3)
    np.testing.assert_allclose((found.mean(), found.std()), MOMENTS[bands], atol=1e-5)


def test_louder_sound_is_a_constant_more():
    # In the scale of 16-bit integers, as Kaldi's own features; where the floor of
    # quiet bands is not reached.
    found, louder = log_mel(speech(), 80), log_mel(32768 * speech(), 80)
    above = found > -15
    np.testing.assert_allclose(
        (louder - found)[above], 2 * np.log(32768), atol=1e-4, rtol=0
    )


def test_numbers_of_frames_and_samples():
    assert [num_frames(n) for n in (0, 399, 400, 559, 560, 16_000)] == [
        *(0, 0, 1, 1, 2),
        98,
    ]
    assert num_samples(98) == 15_920
    assert num_frames(num_samples(98)) == 98
    assert log_mel(speech()[:399], 80).shape == (0, 80)


def test_one_of_128_bands_is_empty():
    # As torchaudio 2.11.1 and AST have it; kaldi-native-fbank refuses 128 bands.
    assert np.flatnonzero(empty_bands(128)).tolist() == [3]
    assert not empty_bands(80).any()
    np.testing.assert_allclose(log_mel(speech(), 128)[:, 3], -15.942385, rtol=1e-7)
    np.testing.assert_allclose(log_mel(np.zeros(400, np.float32), 80), -15.942385)


def test_a_frame_is_the_same_to_the_bit_wherever_it_stands():
    whole, part = log_mel(speech(), 80), log_mel(speech()[1600:4800], 80)
    np.testing.assert_array_equal(part, whole[10 : 10 + len(part)])
