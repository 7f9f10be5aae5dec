"""Runs on spectrograms: what is measured, masked, counted and drawn."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny_config
from PIL import Image
from sounds import encoded, tone, write_sounds

from simmim_jax.config import schema
from simmim_jax.errors import UserError
from simmim_jax.tasks import pretrain, values
from simmim_jax.tasks.api import finetune
from simmim_jax.tasks.api import pretrain as run
from simmim_jax.tasks.display import NO_DATA
from simmim_jax.tasks.inputs import eval_pass, open_split

FIELDS = {
    "data.view": "speech",
    "data.flip": False,
    "data.image_size": (80, 16),
    "data.dtype": "auto",
    "data.mean": (),
    "data.std": (),
    "data.num_workers": 0,
    "model.patch_size": (80, 2),
    "duration": "3 steps",
    "eval_every": "3 steps",
}


@pytest.fixture
def folder(tmp_path):
    write_sounds(tmp_path / "sounds", [f"{c}/{i}.wav" for c in "ab" for i in range(12)])
    return str(tmp_path / "sounds")


def config(mode, folder, **fields):
    found = tiny_config.get_config(mode)
    found.update_from_flattened_dict(FIELDS | {"data.dataset": folder} | fields)
    return found


def test_sounds_pre_train_and_classify(folder, tmp_path):
    bands = {"data.image_size": (128, 16), "model.patch_size": (128, 2)}
    fields = bands | {"mask.unit_size": (128, 4)}
    trained = run(config("pretrain", folder, **fields), tmp_path / "pre")
    assert 0.1 < trained.last["eval_loss"] < 3
    with Image.open(tmp_path / "pre/reconstructions/0000003.png") as picture:
        is_empty = (np.asarray(picture) == NO_DATA).all(-1)
    # The band without values, in two examples six times as large: in the original,
    # where it is not masked, in the reconstruction, and pasted.
    assert is_empty.sum() == 2 * (16 + 4 + 16 + 16) * 6**2
    fields = bands | {"init_from": str(tmp_path / "pre"), "data.num_labels": 0}
    later = finetune(config("finetune", folder, **fields), tmp_path / "fine")
    assert 0 <= later.last["top1"] <= 1


def test_padding_and_dead_bands_are_neither_measured_nor_masked_nor_counted(folder):
    fields = {
        "data.image_size": (128, 100),
        "model.patch_size": (128, 2),
        "mask.unit_size": (128, 4),
        "data.batch_size": 8,
    }
    typed = schema.parse(config("pretrain", folder, **fields))
    source = open_split(typed.data, "train")
    typed, (said,) = values.resolve(typed, source)
    assert "% without data" in said
    held_out = next(iter(eval_pass(typed.data, source)))["image"]
    whole = np.concatenate([b["image"] for b in eval_pass(typed.data, source)])
    whole = whole[: len(source)]
    np.testing.assert_allclose(typed.data.mean, np.nanmean(whole), rtol=1e-4)
    np.testing.assert_allclose(typed.data.std, np.nanstd(whole), rtol=1e-4)
    prepare = pretrain.Parts(typed).prepare(flip=False)
    inputs = jax.device_get(prepare({"image": held_out}, jax.random.key(0)))
    is_padding = np.isnan(held_out[:, 0, ::2, 0])
    assert is_padding.any()
    assert not inputs["mask"][:, 0][is_padding].any()
    assert inputs["mask"].any()
    assert not inputs["valid"][:, 124].any()
    assert (inputs["image"][~inputs["valid"]] == 0).all()


@pytest.mark.parametrize(("name", "value"), [("channels", 3), ("flip", True)])
def test_fields_that_make_no_sense_of_sound_are_refused(name, value, folder, tmp_path):
    fields = {f"data.{name}": value, "mask.unit_size": (80, 4)}
    with pytest.raises(UserError, match=rf"config\.data\.{name}={value}: expected"):
        run(config("pretrain", folder, **fields), tmp_path / "run")


def test_bad_sounds_are_counted(folder, tmp_path):
    sound = encoded(tone())
    for name, data in {"empty": b"", "cut": sound[:9000], "text": b"no sound"}.items():
        (tmp_path / f"sounds/a/{name}.wav").write_bytes(data)
    data = schema.parse(config("pretrain", folder)).data
    data = dataclasses.replace(data, dtype="float32", max_bad_fraction=0.5)
    list(eval_pass(data, open_split(data, "train"), tmp_path))
    listed = (tmp_path / "bad_images.tsv").read_text()
    reasons = {line.split("\t")[0] for line in listed.splitlines()[1:]}
    assert reasons == {"empty", "truncated", "not audio"}
