"""Files that are no images, or not there: left out, counted, told, listed, judged."""

import io
import itertools
import os

import numpy as np
import pytest
from PIL import Image

from simmim_jax.data.loader.bad_examples import BadExample, BadImages
from simmim_jax.data.sources.base import ArraySource
from simmim_jax.data.sources.registry import check_source, open_source
from simmim_jax.errors import UserError
from tests.batches import eval_batches, train_iterator

SIZE = {"image_size": (8, 8), "channels": 3, "interpolation": "bilinear"}
STREAM = {
    **SIZE,
    "scale": (0.3, 1.0),
    "ratio": (0.75, 1.33),
    "fast_decode": True,
    "seed": 0,
}
PASS = {**SIZE, "crop_fraction": 1.0}


def encoded(color, kind="JPEG", size=(40, 30), **options):
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 9, (*size[::-1], 3), np.uint8)
    Image.fromarray(noise + np.uint8(color)).save(file, kind, **options)
    return file.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


# What each file holds, and the reason why it is left out; None: it is not.
JPEG = encoded(100)
FILES = {
    "good.jpg": (JPEG, None),
    "png named.jpg": (encoded(100, "PNG"), None),
    "webp named.png": (encoded(100, "WEBP"), None),
    "UPPER.JPG": (JPEG, None),
    "naïve 图像 🐈.jpg": (JPEG, None),
    os.fsdecode(b"latin-1 \xe9.jpg"): (JPEG, None),
    "one pixel.png": (encoded(100, "PNG", (1, 1)), None),
    "a line.png": (encoded(100, "PNG", (1, 20000)), None),
    "gray.jpg": (b"", None),  # made below
    "empty.jpg": (b"", "empty"),
    "half.jpg": (JPEG[: len(JPEG) // 2], "truncated"),
    "start.jpg": (JPEG[:20], "not an image"),
    "half.png": (encoded(100, "PNG")[:-60], "truncated"),
    "text.jpg": (b"This is no image.\n" * 20, "not an image"),
    "page.png": (b"<!DOCTYPE html><title>404</title>", "not an image"),
}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    for name, (content, _) in FILES.items():
        write(folder / "val" / name, content)
    Image.new("L", (20, 20), 100).save(folder / "val" / "gray.jpg")
    return folder


def test_every_kind_of_file_is_decoded_or_left_out_by_its_reason(folder):
    source = open_source(str(folder), "val")
    found = []
    batches = eval_batches(source, batch_size=4, bad=Account(found), **PASS)
    weights = np.concatenate([batch["weight"] for batch in batches])
    reasons = {os.path.basename(bad.path): bad.reason for bad in found}
    assert reasons == {n: reason for n, (_, reason) in FILES.items() if reason}
    good = [os.path.basename(p) not in reasons for p in source.paths]
    assert weights[: len(source)].tolist() == good
    for image, weight in itertools.chain.from_iterable(
        zip(batch["image"], batch["weight"], strict=True) for batch in batches
    ):
        # 100 to 108, and what WebP's chroma makes of it.
        assert (abs(image.astype(int) - 104) < 30).all() if weight else not image.any()


class Account(BadImages):
    """Keeps what it is given as well."""

    def __init__(self, found, **options):
        super().__init__(**options)
        self._found = found

    def add(self, found):
        super().add(found)
        self._found += found


# ---- In place of a bad one -----------------------------------------------------------


def gapped(folder, count=40, bad=(3, 17, 18, 31)):
    """Images whose pixels tell their index, some of them broken."""
    for i in range(count):
        write(folder / "train" / f"{i:02}.png", encoded(i * 6, "PNG"))
    for i in bad:
        write(folder / "train" / f"{i:02}.png", JPEG[:200])
    return open_source(str(folder), "train")


def indices(batch):
    return np.rint((batch["image"].min((1, 2, 3)) - 3) / 6).astype(int)


def test_another_example_takes_the_place_and_all_others_keep_theirs(tmp_path):
    options = {**STREAM, "batch_size": 8}
    whole = train_iterator(gapped(tmp_path / "whole", bad=()), **options)
    broken = train_iterator(gapped(tmp_path / "broken"), **options)
    differ = []
    for _ in range(5):  # an epoch
        expected, batch = next(whole), next(broken)
        same = (expected["image"] == batch["image"]).all((1, 2, 3))
        differ += indices(expected)[~same].tolist()
        assert not set(indices(batch)) & {3, 17, 18, 31}
        assert batch.keys() == {"image", "label"}
    assert sorted(differ) == [3, 17, 18, 31]


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_replacements_depend_on_the_place_alone(num_workers, tmp_path):
    source = gapped(tmp_path)
    alone = train_iterator(source, batch_size=6, **STREAM)
    expected = [next(alone) for _ in range(20)]
    state = {"examples_seen": 30, "num_examples": 40, "seed": 0, "bad_images": {}}
    for process in range(2):
        with_workers = train_iterator(
            source,
            batch_size=3,
            process_index=process,
            process_count=2,
            num_workers=num_workers,
            **STREAM,
        )
        with_workers.set_state(state)
        part = slice(3 * process, 3 * process + 3)
        for whole in expected[5:]:
            batch = next(with_workers)
            np.testing.assert_array_equal(batch["image"], whole["image"][part])
        with_workers.close()


def test_files_that_vanish_during_the_run(tmp_path):
    source = gapped(tmp_path, bad=())
    bad = BadImages()
    iterator = train_iterator(source, batch_size=8, num_workers=2, bad=bad, **STREAM)
    next(iterator)
    for i in (5, 6):
        (tmp_path / "train" / f"{i:02}.png").unlink()
    for _ in range(10):
        next(iterator)
    assert bad.counts.keys() == {"missing"}
    iterator.close()


def test_files_that_cannot_be_opened(tmp_path):
    source = gapped(tmp_path, count=20, bad=())
    (tmp_path / "train" / "03.png").unlink()
    (tmp_path / "train" / "03.png").mkdir()  # opening it is an OSError
    (tmp_path / "train" / "04.png").unlink()
    (tmp_path / "train" / "04.png").symlink_to(tmp_path / "nowhere")
    found = []
    list(eval_batches(source, batch_size=8, bad=Account(found), **PASS))
    assert {(bad.index, bad.reason) for bad in found} == {
        (3, "unreadable"),
        (4, "missing"),
    }
    assert all(bad.path.endswith(f"{bad.index:02}.png") for bad in found)


def test_files_without_permission(open_folder, without_root):
    source = gapped(open_folder, count=20, bad=())
    (open_folder / "train" / "03.png").chmod(0)
    found = []
    with without_root:
        list(eval_batches(source, batch_size=8, bad=Account(found), **PASS))
    assert [(bad.index, bad.reason) for bad in found] == [(3, "unreadable")]


# ---- Mistakes of the user, which are no bad images -----------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_raw_images_that_do_not_fit_end_the_run(num_workers):
    source = ArraySource(np.zeros((9, 8, 8, 1), np.uint8), None, ())
    iterator = train_iterator(source, batch_size=4, num_workers=num_workers, **STREAM)
    with pytest.raises(
        ValueError, match=r"channels=3.*Set --config.data.channels"
    ) as caught:
        next(iterator)
    assert "Example " in caught.value.__notes__[0]
    iterator.close()


def test_channels_that_no_file_has_end_the_run(tmp_path):
    options = {**STREAM, "channels": 4}
    with pytest.raises(ValueError, match=r"expected \[h, w, 4\] since channels=4"):
        next(train_iterator(gapped(tmp_path), batch_size=4, **options))


def test_a_folder_without_images_is_refused_at_once(tmp_path):
    (tmp_path / "a").mkdir()
    for task in (check_source, open_source):
        with pytest.raises(FileNotFoundError, match="has no images"):
            task(str(tmp_path), "train")


def test_a_single_class_trains_and_has_one_label(tmp_path):
    for i in range(30):
        write(tmp_path / "only" / f"{i}.png", encoded(i, "PNG"))
    source = open_source(str(tmp_path), "train")
    assert source.class_names == ("only",)
    batch = next(train_iterator(source, batch_size=8, **STREAM))
    assert batch["label"].tolist() == [0] * 8


# ---- Too many ------------------------------------------------------------------------


def judged(folder, num_bad, *, max_fraction, num_workers=0, steps=20):
    source = gapped(folder, 20, range(num_bad))
    bad = BadImages("train", max_fraction=max_fraction, path=folder / "bad_images.tsv")
    iterator = train_iterator(
        source, batch_size=4, num_workers=num_workers, bad=bad, **STREAM
    )
    try:
        for _ in range(steps):
            next(iterator)
    finally:
        iterator.close()
    return bad


def test_as_many_as_allowed(tmp_path):
    bad = judged(tmp_path, 5, max_fraction=0.25)
    assert bad.counts == {"truncated": 4 * 5}  # 20 batches of 4 are 4 epochs


@pytest.mark.parametrize("num_workers", [0, 2])
def test_more_than_allowed_end_the_run(num_workers, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"6 of 20 examples of the train split have no usable image "
        r"\(6 truncated\), see .*bad_images\.tsv\. "
        r"Expected at most config\.data\.max_bad_fraction=0\.2",
    ):
        judged(tmp_path, 6, max_fraction=0.25, num_workers=num_workers)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("max_fraction", [0.1, 1.0])
def test_a_run_without_any_image_ends_in_its_first_batch(
    max_fraction, num_workers, tmp_path
):
    with pytest.raises(ValueError, match=r"100 examples in a row .*\(100 truncated\)"):
        judged(
            tmp_path, 20, max_fraction=max_fraction, num_workers=num_workers, steps=1
        )


def test_evaluation_of_too_many_or_of_none_at_all(tmp_path):
    source = gapped(tmp_path, 20, range(5))

    def evaluate(max_fraction):
        bad = BadImages("val", max_fraction=max_fraction)
        return list(eval_batches(source, batch_size=8, bad=bad, **PASS))

    assert sum(batch["weight"].sum() for batch in evaluate(0.25)) == 15
    with pytest.raises(ValueError, match="5 of 20 examples of the val split"):
        evaluate(0.2)
    evaluate(0.21)  # 4.2 images
    source = gapped(tmp_path, 20, range(20))
    with pytest.raises(ValueError, match="20 of 20 examples"):
        evaluate(1.0)


@pytest.mark.parametrize(
    ("number", "max_fraction", "allowed"),
    [(6, 0.1, 1), (10, 0.1, 1), (11, 0.1, 2), (30, 0.1, 3), (6, 0.0, 0), (1, 0.1, 0)],
)
def test_the_share_is_rounded_up_to_whole_images(number, max_fraction, allowed):
    bad = BadImages("val", max_fraction=max_fraction)
    bad.add([BadExample(i, "empty", "") for i in range(allowed)])
    bad.judge(number, enough=0)
    bad.judge_pass(number, lambda counts, names: counts)
    bad.add([BadExample(allowed, "empty", "")])
    with pytest.raises(ValueError, match=rf"{allowed + 1} of {number} examples"):
        bad.judge(number, enough=0)
    with pytest.raises(ValueError, match=rf"{allowed + 1} of {number} examples"):
        bad.judge_pass(number, lambda counts, names: counts)


# ---- The list ------------------------------------------------------------------------


def test_the_list_has_each_example_once_whoever_meets_it(tmp_path):
    path, told = tmp_path / "bad_images.tsv", []
    odd = "a\tb\nc\\" + os.fsdecode(b"\xff") + "é.jpg"
    first = BadImages("train", path=path, say=told.append)
    first.add([BadExample(7, "empty", odd), BadExample(3, "missing", "3.jpg", 1)])
    first.add([BadExample(7, "empty", odd)])
    BadImages("val", path=path).add([BadExample(7, "corrupt", "v.jpg")])
    with path.open("ab") as file:
        file.write(b"empty\ttrain\t9")  # a crash cut it short
    BadImages("train", path=path, say=told.append).add(
        [BadExample(7, "empty", odd), BadExample(9, "empty", "")]
    )
    assert path.read_bytes().decode("utf-8", "surrogateescape").split("\n") == [
        "reason\tsplit\tindex\tpath",
        "empty\ttrain\t7\t" + r"a\tb\nc\\" + os.fsdecode(b"\xff") + "é.jpg",
        "missing\ttrain\t3\t3.jpg",
        "corrupt\tval\t7\tv.jpg",
        "empty\ttrain\t9\t",
        "",
    ]
    assert len(told) == 3
    assert told[1] == "bad image, missing: train example 3 '3.jpg'"
    assert all(line.isascii() for line in told)


def test_some_are_told_and_the_rest_is_counted(tmp_path):
    told = []
    bad = BadImages("train", path=tmp_path / "list.tsv", say=told.append)
    for i in range(100):
        bad.add([BadExample(i, "empty", f"{i}.jpg")])
    assert len(told) == 21
    assert told[-1].startswith("further bad images are not logged one by one, see ")
    assert bad.counts == {"empty": 100}
    assert len((tmp_path / "list.tsv").read_text().splitlines()) == 101


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"notes of mine\n", 1),
        (b"reason\tsplit\tindex\tpath\ncorrupt\ttrain\tx\ta.jpg\n", 2),
        (b"reason\tsplit\tindex\tpath\ncorrupt\ttrain\t7\ta\ncorrupt\ttrain\n", 3),
    ],
)
def test_a_file_that_is_no_list_is_refused_and_kept(content, line, tmp_path):
    path = tmp_path / "bad_images.tsv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"bad_images.tsv', line {line}, is damaged"):
        BadImages("train", path=path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("length", range(30))
def test_a_list_that_a_crash_cut_off_is_continued(length, tmp_path):
    path = tmp_path / "bad_images.tsv"
    BadImages("train", path=path).add([BadExample(3, "corrupt", "a.jpg")])
    path.write_bytes(path.read_bytes()[:length])
    BadImages("train", path=path).add([BadExample(4, "corrupt", "b.jpg")])
    header, *rows = path.read_text().splitlines()
    assert header == "reason\tsplit\tindex\tpath"
    assert rows == ["corrupt\ttrain\t4\tb.jpg"]


def test_too_many_large_images_name_the_limits():
    bad = BadImages("train", max_fraction=0)
    bad.add([BadExample(0, "too large", "a.jpg")])
    with pytest.raises(UserError, match=r"1 too large.*config.data.max_image_pixels"):
        bad.judge(10, enough=1)
