"""Folders of sounds, and of speech with transcripts."""

import shutil

import numpy as np
import pytest
from images import write_photographs
from sounds import write_sounds

from simmim_jax.data.codecs.audio import Segment, is_sound
from simmim_jax.data.sources.registry import check_source, open_source
from simmim_jax.errors import NotFoundError, UserError

SPLITS = ("train", "validation")


def examples(place, splits=SPLITS):
    """Return the examples of all splits by path below the place."""
    found = {}
    for split in splits:
        check_source(str(place), split)
        source = open_source(str(place), split)
        for i in range(len(source)):
            example = source[i]
            assert is_sound(example["image"])
            found[example["path"].removeprefix(f"{place}/")] = example
    return found


def texts(place, splits=SPLITS):
    return {path: each["text"] for path, each in examples(place, splits).items()}


def test_folders_of_sounds_have_classes_as_folders_of_images_have(tmp_path):
    names = [f"{split}/{c}/{i}.wav" for split in SPLITS for c in "ab" for i in "12"]
    write_sounds(tmp_path, names)
    (tmp_path / "train/a/notes.txt").write_text("no sound")
    found = examples(tmp_path)
    assert sorted(found) == sorted(names)
    assert all(each["label"] == "ab".index(p[-7]) for p, each in found.items())
    assert open_source(str(tmp_path), "train").class_names == ("a", "b")


@pytest.mark.parametrize("ending", ["wav", "FLAC", "ogg", "opus", "mp3"])
def test_every_ending_of_a_sound_counts(ending, tmp_path):
    write_sounds(tmp_path, [f"{i}.{ending}" for i in range(3)])
    assert len(examples(tmp_path)) == 3


def test_one_image_makes_a_folder_one_of_images(tmp_path):
    write_sounds(tmp_path, [f"{i}.wav" for i in range(3)])
    write_photographs(tmp_path, ["cover/0.jpg", "cover/1.jpg"])
    source = open_source(str(tmp_path), "train")
    assert not is_sound(source[0]["image"])


@pytest.mark.parametrize("ending", ["tar", "zip"])
def test_archives_of_sounds(ending, tmp_path):
    names = [f"{c}/{i}.wav" for c in "ab" for i in range(30)]
    write_sounds(tmp_path / "sounds", names)
    place = tmp_path / f"sounds.{ending}"
    shutil.make_archive(str(tmp_path / "sounds"), ending, tmp_path / "sounds")
    found = examples(place)
    assert sorted(path.removeprefix("./") for path in found) == sorted(names)
    source = open_source(str(place), "train")
    assert source.class_names == ("a", "b")


def test_an_image_makes_an_archive_one_of_images(tmp_path):
    write_sounds(tmp_path / "set", [f"{i}.wav" for i in range(9)])
    write_photographs(tmp_path / "set", ["0.jpg", "1.jpg"])
    shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path / "set")
    source = open_source(f"{tmp_path}/set.zip", "train")
    assert [path.rpartition(".")[2] for path in source.paths] == ["jpg"]


def test_ljspeech(tmp_path):
    names = [f"LJ00{i}" for i in range(4)]
    write_sounds(tmp_path / "wavs", [f"{name}.wav" for name in names])
    lines = [f"{name}|in {i}|in words | {i}" for i, name in enumerate(names)]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    lines[2] = "LJ002|alone"
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    found = texts(tmp_path)
    assert found == {f"wavs/{n}.wav": str(i) for i, n in enumerate(names)} | {
        "wavs/LJ002.wav": "alone"
    }
    (tmp_path / "metadata.csv").write_text("LJ000 no bar\n")
    with pytest.raises(UserError, match=r"metadata\.csv', line 1: expected ID\|TEXT"):
        open_source(str(tmp_path), "train")


def test_kaldi(tmp_path):
    write_sounds(tmp_path, [f"audio/{i}.wav" for i in range(3)])
    for split, numbers in {"train_all": (0, 1), "dev": (2,)}.items():
        folder = tmp_path / split
        folder.mkdir()
        (folder / "wav.scp").write_text(
            "".join(f"utt{i}  {tmp_path}/audio/{i}.wav\n" for i in numbers)
        )
        (folder / "text").write_text("".join(f"utt{i} TEXT {i}\n" for i in numbers))
    assert texts(tmp_path) == {f"audio/{i}.wav": f"TEXT {i}" for i in range(3)}
    assert len(open_source(str(tmp_path), "train")) == 2
    (tmp_path / "train_all/segments").write_text("a utt1 0.1 0.3\nutt0 utt0 0.2 0.4\n")
    source = open_source(str(tmp_path), "train")
    assert source[0]["image"] == Segment(f"{tmp_path}/audio/1.wav", 0.1, 0.3)
    assert ["text" in source[i] for i in range(2)] == [False, True]
    (tmp_path / "train_all/segments").write_text("a utt9 0.1 0.3\n")
    with pytest.raises(UserError, match=r"segments', line 1: expected UTTERANCE REC"):
        open_source(str(tmp_path), "train")
    (tmp_path / "train_all/wav.scp").write_text("utt0 sox a.wav -t wav - |\n")
    with pytest.raises(UserError, match=r"line 1: expected a file, not a command"):
        open_source(str(tmp_path), "train")


def test_librispeech(tmp_path):
    expected = {}
    for split in ("train-clean-100", "dev-other", "test-clean"):
        folder = f"{split}/84/121"
        names = [f"84-121-000{i}" for i in range(2)]
        write_sounds(tmp_path / folder, [f"{name}.flac" for name in names])
        lines = [f"{name} SAID IN {split}" for name in names]
        (tmp_path / folder / "84-121.trans.txt").write_text("\n".join(lines))
        expected |= {f"{folder}/{name}.flac": f"SAID IN {split}" for name in names}
    assert texts(tmp_path, (*SPLITS, "test")) == expected
    (one,) = texts(tmp_path / "train-clean-100", ["train"])
    assert one.startswith("84/121/84-121-000")


def test_lists_may_have_texts_and_parts(tmp_path):
    write_sounds(tmp_path, ["a.wav", "b.wav"])
    (tmp_path / "list.csv").write_text(
        "path,text,start,end,label,split\n"
        'a.wav,"yes, of course",,,x,train\n'
        "b.wav,,0.1,0.25,y,train\n"
        "b.wav,no,0.25,,x,train\n"
        "a.wav,no,,0.5,x,validation\n"
    )
    source = open_source(str(tmp_path / "list.csv"), "train")
    found = [source[i] for i in range(3)]
    assert found[0]["text"] == "yes, of course"
    assert isinstance(found[0]["image"], bytes)
    assert found[1]["image"] == Segment(str(tmp_path / "b.wav"), 0.1, 0.25)
    assert found[2]["image"] == Segment(str(tmp_path / "b.wav"), 0.25, np.inf)
    assert [each.get("text") for each in found[1:]] == [None, "no"]
    assert [each["label"] for each in found] == [0, 1, 0]
    assert source.class_names == ("x", "y")


@pytest.mark.parametrize("span", ["0.5,0.2", "-1,2", "one,2", "0.5,nan"])
def test_parts_that_make_no_sense_name_the_line(span, tmp_path):
    write_sounds(tmp_path, ["a.wav"])
    (tmp_path / "list.csv").write_text(f"path,start,end\na.wav,0,1\na.wav,{span}\n")
    with pytest.raises(UserError, match=r"line 3: start=.* Expected seconds"):
        open_source(str(tmp_path / "list.csv"), "train")


def test_a_list_of_sounds_that_do_not_exist(tmp_path):
    (tmp_path / "list.txt").write_text("a.wav\n")
    with pytest.raises(NotFoundError, match=r"a\.wav' does not exist"):
        check_source(str(tmp_path / "list.txt"), "train")


def test_the_bundled_speech_has_texts_and_phones():
    train, held_out = (open_source("bundled:speech", split) for split in SPLITS)
    assert (len(train), len(held_out)) == (103, 21)
    assert train[0]["text"].startswith("Глаза ленивые, серо-карие")
    phones = [open_source("bundled:speech", f"{split}_phones") for split in SPLITS]
    assert [len(source) for source in phones] == [8663, 1841]
    assert len(phones[0].class_names) == 49
    apart = [set(source.paths) for source in (train, held_out)]
    assert not apart[0] & apart[1]
    assert [set(source.paths) for source in phones] == apart
