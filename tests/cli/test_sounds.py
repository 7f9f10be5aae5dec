"""`simmim inspect` and `simmim stats` of sounds."""

import json

import numpy as np
import pytest
from sounds import encoded, speech, tone

from simmim_jax.cli import commands
from simmim_jax.data.survey.stats import from_json
from simmim_jax.data.views.filter_bank import log_mel


@pytest.fixture
def folder(tmp_path):
    """Five sounds: two rates, two numbers of channels, silence, and one that is cut."""
    folder = tmp_path / "sounds"
    folder.mkdir()
    sounds = {
        "a.wav": encoded(speech()),
        "b.flac": encoded(tone(0.5, 44_100), 44_100, "FLAC"),
        "c.ogg": encoded(np.stack([tone(2), tone(2)], 1), subtype="OPUS", format="OGG"),
        "d.wav": encoded(np.zeros(16_000, np.float32)),
        "e.wav": encoded(tone())[:9000],
    }
    for name, data in sounds.items():
        (folder / name).write_bytes(data)
    return folder


def test_inspect_says_lengths_rates_and_channels(folder, capsys):
    commands.main(["inspect", str(folder)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{folder}: 5 sounds (WAV/FLAC/OGG)"
    rows = dict(line.split("  ", 1) for line in lines[1:])
    rows = {title: text.strip() for title, text in rows.items()}
    assert rows["lengths"] == "0.50 to 2.00 s, median 1.00 s"
    assert rows["rates"] == "16,000 Hz 3, 44,100 Hz 1"
    assert rows["channels"] == "1: 3, 2: 1"
    assert rows["note"] == "1 of 4 sampled images have one value per band"
    assert rows["unreadable"].startswith("1 truncated, such as ")
    assert rows["to train"] == (
        f"simmim train --config=speech:pretrain --config.data.dataset={folder}"
    )


def test_inspect_has_sounds_in_json(tmp_path, capsys):
    (tmp_path / "list.csv").write_text("path,text\na.wav,yes\nb.wav,\n")
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(encoded(tone()))
    commands.main(["inspect", f"{tmp_path}/list.csv", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["sizes"] == []
    assert found["sounds"] == {
        "rates": {"16000": 2},
        "seconds": [1.0, 1.0, 1.0],
        "texts": 1,
    }


def test_stats_are_of_spectrograms(tmp_path, capsys):
    for number in range(3):
        path = tmp_path / f"sounds/train/{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(speech()))
    out = tmp_path / "stats.json"
    args = ["stats", f"{tmp_path}/sounds", "--image_size=40,98", f"--out={out}"]
    commands.main(args)
    assert "3 of 3 images, float32" in capsys.readouterr().out
    (band,) = from_json(out).bands
    expected = log_mel(speech(), 40)
    assert band.mean == pytest.approx(expected.mean(), abs=1e-4)
    assert band.std == pytest.approx(expected.std(), abs=1e-4)
