"""Sounds: encodings, rates, channels, parts, and what is wrong with files."""

import io
import wave

import numpy as np
import pytest
import soundfile
from sounds import encoded, speech, tone

from simmim_jax.data.codecs.audio import Segment, Sound, is_sound
from simmim_jax.data.codecs.base import BadImage, Decoding
from simmim_jax.data.codecs.registry import read
from simmim_jax.errors import UserError

ENCODINGS = {
    "8 bits": ("WAV", "PCM_U8", 1 / 100),
    "16 bits": ("WAV", "PCM_16", 2**-15),
    "24 bits": ("WAV", "PCM_24", 2**-23),
    "float": ("WAV", "FLOAT", 0),
    "float64": ("WAV", "DOUBLE", 0),
    "FLAC": ("FLAC", "PCM_24", 2**-23),
    "Vorbis": ("OGG", "VORBIS", 0.1),
    "Opus": ("OGG", "OPUS", 0.1),
    "MP3": ("MP3", "MPEG_LAYER_III", 0.1),
}


def decoded(data, rate=16_000, **part):
    with Sound(data) as sound:
        return sound.read(rate, **part)


def reason(data, **part):
    with pytest.raises(BadImage) as raised:
        decoded(data, **part)
    return raised.value.reason


@pytest.mark.parametrize("name", ENCODINGS)
def test_encodings(name):
    format, subtype, error = ENCODINGS[name]
    data = encoded(speech(), format=format, subtype=subtype)
    assert is_sound(data)
    with Sound(data) as sound:
        assert (sound.encoding, sound.rate, sound.channels) == (format, 16_000, 1)
        assert sound.seconds == 1
        found = sound.read(16_000)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, speech(), atol=error)


def test_channels_become_their_mean():
    sides = np.stack([tone(), -tone(), tone(frequency=880.0)], axis=1)
    found = decoded(encoded(sides, subtype="FLOAT"))
    np.testing.assert_allclose(found, sides.mean(1), atol=1e-7)


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000])
def test_other_rates_are_resampled(rate):
    found = decoded(encoded(tone(rate=rate), rate, subtype="FLOAT"))
    assert len(found) == 16_000
    middle = slice(1600, -1600)
    np.testing.assert_allclose(found[middle], tone()[middle], atol=1e-3)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_part_is_the_same_as_of_the_whole(rate):
    data = encoded(tone(2, rate=rate), rate, subtype="FLOAT")
    whole, part = decoded(data), decoded(data, start=8000, count=4000)
    assert len(part) == 4000
    middle = slice(400, -400)
    np.testing.assert_allclose(
        part[middle], whole[8000:12_000][middle], atol=0 if rate == 16_000 else 1e-2
    )
    assert len(decoded(data, start=31_000, count=4000)) == 1000


def test_values_beyond_1_stay_in_floats():
    loud = 3 * tone()
    np.testing.assert_array_equal(decoded(encoded(loud, subtype="FLOAT")), loud)


def test_segments_read_their_part_of_a_file(tmp_path):
    path = str(tmp_path / "long.wav")
    soundfile.write(path, tone(3), 16_000, subtype="FLOAT")
    with Sound(Segment(path, 1.0, 1.5)) as sound:
        assert sound.seconds == 0.5
        np.testing.assert_array_equal(sound.read(16_000), tone(3)[16_000:24_000])
    with Sound(Segment(path, 2.5, np.inf)) as sound:
        assert sound.seconds == 0.5
    assert reason(Segment(path, 3.5, 4.0)) == "empty"
    assert reason(Segment(path, 2.5, 4.0)) == "truncated"
    with pytest.raises(FileNotFoundError):
        Sound(Segment(str(tmp_path / "none.wav"), 0, 1))


def test_bad_files_have_a_reason():
    long = np.tile(speech(), 4)
    data = {
        name: encoded(long, format=format, subtype=subtype)
        for name, (format, subtype, _) in ENCODINGS.items()
    }
    assert reason(b"") == "empty"
    assert reason(encoded(tone(0))) == "empty"
    assert reason(b"once upon a time") == "not audio"
    assert reason(data["16 bits"][:30]) == "not audio"
    for name in ("8 bits", "16 bits", "24 bits", "float", "Vorbis", "Opus", "MP3"):
        assert reason(data[name][: 3 * len(data[name]) // 4]) == "truncated", name
    assert reason(data["FLAC"][: len(data["FLAC"]) // 2]) == "corrupt"
    bad = tone()
    bad[500] = np.nan
    assert reason(encoded(bad, subtype="FLOAT")) == "corrupt"


def test_a_file_that_was_written_to_a_pipe_has_no_length():
    data = bytearray(encoded(tone()))
    start = data.index(b"data") + 4
    data[4:8] = data[start : start + 4] = b"\xff\xff\xff\xff"
    np.testing.assert_allclose(decoded(bytes(data)), tone(), atol=2**-15)


def test_a_file_of_the_standard_library():
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(2)
        sound.setsampwidth(2)
        sound.setframerate(16_000)
        sound.writeframes(np.full((100, 2), 16384, "<i2").tobytes())
    np.testing.assert_array_equal(decoded(file.getvalue()), np.full(100, 0.5))


# LAME, in libsndfile 1.2.2, 2026-11-29.
@pytest.mark.parametrize(
    ("level", "late", "length"), [(0.9, 1105, 17_280), (0.8, 0, 16_000)]
)
def test_mp3_of_few_bits_is_late_and_too_long(level, late, length):
    data = encoded(
        speech(),
        format="MP3",
        subtype="MPEG_LAYER_III",
        bitrate_mode="CONSTANT",
        compression_level=level,  # 24 and 40 kbit/s
    )
    found = decoded(data)
    assert len(found) == length
    lags = [found[lag : lag + 12_000] @ speech()[:12_000] for lag in range(2000)]
    assert np.argmax(lags) == late


def test_sounds_are_no_images_and_arrays_no_sounds():
    with pytest.raises(BadImage, match=r"is a sound: set --config\.data\.view=speech"):
        read(encoded(tone()), Decoding())
    with pytest.raises(UserError, match="of type ndarray: expected the bytes"):
        Sound(tone())
