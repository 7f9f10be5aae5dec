#!/bin/sh
# soundfile 0.14.0 reads half of a WAV or Ogg file as if it were whole.
#
# libsndfile 1.2.2 makes the length of a WAV file what is there, whatever its header says,
# and takes the last page of an Ogg file that it finds for the last one. An MP3 file
# declares its length but gives fewer samples. Only FLAC raises an error. MP3 of 16 kHz
# at 24 kbit/s is also 1,105 samples late and 1,280 too long.
#
# Output on 2026-11-29, Linux x86-64, Python 3.11:
#
#     soundfile 0.14.0, libsndfile 1.2.2
#     WAV PCM_16: whole 160000, half: 79989 declared, 79989 read
#     OGG VORBIS: whole 160000, half: 60544 declared, 60544 read
#     OGG OPUS: whole 160000, half: 63576 declared, 63576 read
#     MP3 MPEG_LAYER_III: whole 160000, half: 160000 declared, 78383 read
#     FLAC PCM_16: whole 160000, half: Error : flac decoder lost sync.
#     MP3 of 24 kbit/s: 17280 samples of 16000, 1105 late
#
# Exits with 1 if this changes. Needs Python 3.11 or newer.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet --disable-pip-version-check install \
  soundfile==0.14.0 numpy==2.4.6

"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import io
import sys

import numpy as np
import soundfile

print(f"soundfile {soundfile.__version__}, libsndfile {soundfile.__libsndfile_version__}")
rng = np.random.default_rng(0)
noise = np.convolve(rng.normal(0, 0.05, 160_000), np.ones(8) / 8, "same")


def encoded(format, subtype, samples, **options):
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format=format, subtype=subtype, **options)
    return file.getvalue()


read = set()
for format, subtype in (
    ("WAV", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
    ("FLAC", "PCM_16"),
):
    data = encoded(format, subtype, noise)
    whole, _ = soundfile.read(io.BytesIO(data))
    try:
        with soundfile.SoundFile(io.BytesIO(data[: len(data) // 2])) as half:
            said = f"{half.frames} declared, {len(half.read())} read"
        read.add(format)
    except soundfile.LibsndfileError as error:
        said = error.error_string
    print(f"{format} {subtype}: whole {len(whole)}, half: {said}")
options = {"bitrate_mode": "CONSTANT", "compression_level": 0.9}
data = encoded("MP3", "MPEG_LAYER_III", noise[:16_000], **options)
found, _ = soundfile.read(io.BytesIO(data))
late = np.argmax([found[lag : lag + 12_000] @ noise[:12_000] for lag in range(2000)])
print(f"MP3 of 24 kbit/s: {len(found)} samples of 16000, {late} late")
as_found = read == {"WAV", "OGG", "MP3"} and (len(found), late) == (17_280, 1105)
sys.exit(not as_found)
PYTHON
