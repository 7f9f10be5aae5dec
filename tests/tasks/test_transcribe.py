"""Speech to text from sounds to transcripts: tones that stand for letters."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from sounds import encoded

from simmim_jax.checkpoints import layout, store
from simmim_jax.cli import commands
from simmim_jax.config import schema
from simmim_jax.config.schema import Transcribe
from simmim_jax.data.sources.base import SubsetSource
from simmim_jax.data.sources.registry import open_source
from simmim_jax.errors import UserError
from simmim_jax.tasks import api, utterances
from simmim_jax.tasks.recognize import Recognizer, Span, Transcript
from simmim_jax.tasks.transcribe import bucket, build

RATE = 16_000
# Seconds of a letter, a quarter of which is silent, and its frequency [Hz].
LETTER, TONES = 0.12, {"a": 300.0, "b": 900.0, "c": 2700.0, " ": 0.0}


def spoken(text):
    """A sound file that says a text."""
    time = np.arange(round(LETTER * RATE)) / RATE
    is_heard = time < 0.75 * LETTER
    tones = [is_heard * np.sin(2 * np.pi * TONES[c] * time) for c in text]
    noise = np.random.default_rng(0).normal(size=len(time) * len(text)) / 500
    return encoded(np.concatenate(tones) / 2 + noise, RATE)


def write(folder, texts, split="train"):
    """Write sounds of texts; return the rows of a manifest."""
    rows = []
    for number, (said, written) in enumerate(texts):
        name = f"{split}{number}.wav"
        (folder / name).write_bytes(spoken(said))
        rows.append({"path": name, "text": written, "split": split})
    return rows


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Sixteen utterances to learn from, four that are left out, four held out."""
    folder = tmp_path_factory.mktemp("speech")
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abc"), 5)) for _ in range(20)]
    texts = [f"{text[:2]} {text[2:]}" for text in texts]
    rows = write(folder, [(text, text.upper() + ".") for text in texts[:16]])
    rows += write(
        folder,
        [
            ("ab ba", ""),
            ("ab", "..."),
            ("abc" * 10, "abc" * 10),
            ("ab", "abcabcabcabcabcabc"),
        ],
        "train_more",
    )
    for row in rows:
        row["split"] = "train"
    rows += write(folder, [(t, t) for t in texts[16:19]], "validation")
    rows += write(folder, [("ab ac", "ab xc")], "validation_more")
    rows[-1]["split"] = "validation"
    path = folder / "list.csv"
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    return path


def config_of(manifest, **fields):
    config = schema.config_dict(Transcribe())
    config.dtype = "float32"
    config.data.dataset = str(manifest)
    config.data.image_size = (20, 160)
    config.data.batch_size = 4
    config.data.num_workers = 0
    config.model.patch_size = (20, 2)
    config.model.embed_dim = 16
    config.model.depth = 1
    config.model.num_heads = 2
    config.model.layer_scale = 0.0
    config.model.init_std = 0.1
    config.augment.time_masks = config.augment.band_masks = 0
    config.optim.lr = 2.0
    config.optim.warmup = "10 steps"
    config.optim.layer_decay = 1.0
    config.optim.schedule = "plain"
    config.duration = "200 steps"
    config.log_every = "10 steps"
    config.eval_every = "200 steps"
    config.update_from_flattened_dict(fields)
    return schema.parse(config)


@pytest.fixture(scope="module")
def run(manifest, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, api.transcribe(config_of(manifest), workdir)


def test_tones_are_transcribed(run):
    workdir, trained = run
    # Of 18 characters one is not in the vocabulary.
    assert trained.last["cer"] < 0.3
    assert trained.last["cer_low"] <= trained.last["cer"] <= trained.last["cer_high"]
    assert 0 < trained.last["wer"] <= 1
    lines = (workdir / "transcripts" / "0000200.jsonl").read_text().splitlines()
    references = {json.loads(line)["reference"] for line in lines}
    assert len(lines) == 4
    assert "ab xc" in references


def test_the_vocabulary_is_that_of_the_training_transcripts(run):
    assert layout.read_meta(run[0])["vocabulary"] == " abc"


def test_a_run_says_what_it_leaves_out(manifest, tmp_path):
    run = build(config_of(manifest), tmp_path)
    said = "\n".join(run.notices)
    assert "2 of 20 utterances have no transcript, left out" in said
    assert "1 of 20 utterances are longer than 1.6 s" in said
    assert "1 of 17 utterances have more text than tokens of time" in said
    assert "characters that training lacks, and are errors: x" in said
    assert "16 utterances to train on" in run.description


def test_fewer_labels_are_a_part_of_more(manifest):
    config = config_of(manifest)
    source = open_source(str(manifest), "train")
    found, _ = utterances.read(source, lambda text: text, 160)
    few, more = (utterances.drawn(found, n, config.seed) for n in (3, 8))
    assert set(few.texts) <= set(more.texts)
    assert len(few) == 3
    assert isinstance(few.source, SubsetSource)


def test_sounds_without_transcripts_raise(manifest, tmp_path):
    for row in (silent := list(csv.DictReader(manifest.open()))):
        row["text"] = ""
        row["path"] = str(manifest.parent / row["path"])
    path = tmp_path / "silent.csv"
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, silent[0])
        table.writeheader()
        table.writerows(silent)
    with pytest.raises(UserError, match="has no utterance with a transcript"):
        build(config_of(path), tmp_path)


@pytest.mark.parametrize(
    ("frames", "expected"), [(1, 20), (20, 20), (21, 40), (150, 150), (141, 150)]
)
def test_batches_have_few_lengths(frames, expected):
    assert bucket(frames, 150, 2) == expected


# ---- Use -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recognizer(run):
    return Recognizer.load(run[0])


def test_a_sound_is_transcribed_with_times(recognizer):
    transcript, seen = recognizer(spoken("ab ca"))
    assert seen.shape == (20, 58)
    assert np.isfinite(seen).all()
    assert transcript.text == "ab ca"
    assert 0.3 < transcript.confidence <= 1
    assert [word.text for word in transcript.words] == ["ab", "ca"]
    for number, character in enumerate(transcript.characters):
        middle = (character.start + character.end) / 2
        assert number * LETTER - 0.05 < middle < (number + 1) * LETTER + 0.05


def test_a_long_sound_is_transcribed_in_windows(recognizer):
    text = "ab ca bc ba ac cb ab ca bc ba ac cb"
    transcript, seen = recognizer(spoken(text))
    frames = seen.shape[1]
    assert frames > 2 * 160
    image = np.random.default_rng(0).normal(size=(20, frames, 1)).astype(np.float32)
    windows = list(recognizer._windows(image))
    assert len(windows) == 4
    assert sum(map(len, windows)) == -(-frames // 2)
    # The first window's tokens are those of the beginning alone.
    alone = recognizer._log_probs(image[:, :160])
    np.testing.assert_allclose(windows[0], alone[: len(windows[0])], atol=1e-5)
    assert transcript.seconds == pytest.approx(frames / 100)
    assert transcript.characters[-1].end > 0.9 * transcript.seconds


def test_a_beam_hears_the_same_tones(recognizer):
    config = dataclasses.replace(recognizer.config, beam_width=4)
    wide = dataclasses.replace(recognizer, config=config)
    assert wide(spoken("ab ca"))[0].text == "ab ca"


def test_a_run_without_text_raises(tmp_path, monkeypatch):
    meta = {"config": {"mode": "pretrain"}, "step": 1}
    monkeypatch.setattr(store, "load", lambda path: ({}, meta))
    with pytest.raises(UserError, match="learns no text"):
        Recognizer.load(tmp_path)


def test_predict_prints_draws_and_writes(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    (sounds / "one.wav").write_bytes(spoken("ab ca"))
    (sounds / "two.wav").write_bytes(b"no sound")
    (sounds / "three.wav").write_bytes(spoken("ca"))
    (sounds / "three.flac").write_bytes(spoken("bb"))
    command = ["predict", str(run[0])]
    with pytest.raises(SystemExit):
        commands.main([*command, "sounds", "--srt=subtitles", "--picture=p.png"])
    said, warned = capsys.readouterr()
    assert "sounds/one.wav  ab ca  (" in said
    assert "left out: sounds/two.wav: " in warned
    assert "1 left out, 3 transcribed\n" in warned
    subtitles = (tmp_path / "subtitles" / "one.srt").read_text()
    assert subtitles.startswith("1\n00:00:00,")
    assert subtitles.endswith("\nab ca\n\n")
    for name, text in (("three.wav", "ca"), ("three.flac", "bb")):
        assert f"\n{text}\n" in (tmp_path / "subtitles" / f"{name}.srt").read_text()
    assert (tmp_path / "p.png").stat().st_size > 10_000
    commands.main([*command, "--table=t.csv", "sounds/one.wav"])
    with (tmp_path / "t.csv").open() as file:
        row = next(csv.DictReader(file))
    assert (row["path"], row["text"]) == ("sounds/one.wav", "ab ca")


def test_predict_takes_lists_of_segments(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long.wav").write_bytes(spoken("ab ca bb"))
    (tmp_path / "list.csv").write_text(
        f"path,start,end\nlong.wav,0,{5 * LETTER}\nlong.wav,{6 * LETTER},inf\n"
        "none.wav,0,1\n"
    )
    command = ["predict", str(run[0]), "list.csv", "--srt=subtitles"]
    with pytest.raises(SystemExit):
        commands.main([*command, "--table=t.jsonl"])
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").open()]
    assert [row["text"] for row in rows] == ["ab ca", "bb"]
    assert [word["word"] for word in rows[0]["words"]] == ["ab", "ca"]
    assert "none.wav" in (tmp_path / "t.jsonl.left_out.tsv").read_text()
    assert len([*(tmp_path / "subtitles").rglob("*.srt")]) == 2


@pytest.mark.parametrize("flag", ["--every_class", "--table=t.txt"])
def test_predict_refuses_what_transcripts_lack(flag, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=flag.removeprefix("--table=")):
        commands.main(["predict", str(run[0]), "talk.wav", flag])


def test_confidence_of_nothing_is_zero():
    assert Transcript((), 1.0).confidence == 0
    assert Transcript((Span("a", 0, 1, 0.5),), 1.0).words == (Span("a", 0, 1, 0.5),)
