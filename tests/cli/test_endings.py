"""What a finished run says, and that the command it names works."""

import shlex

import commands
import pytest
import tiny_config

from simmim_jax.cli import arguments, train
from simmim_jax.cli.endings import ending, finetuning
from simmim_jax.config import schema
from simmim_jax.configs import common
from simmim_jax.data.loader.bad_examples import BadExample, BadImages
from simmim_jax.monitoring.writer import write_json


def named(name):
    return schema.parse(arguments.load(name, [])[1])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("small", "small:finetune"),
        ("small:pretrain,smoke", "small:finetune,smoke"),
        ("transcribe:pretrain", "transcribe"),
        ("transcribe:pretrain,smoke", "transcribe:smoke"),
        ("vit_base", "vit_base_finetune"),
        ("vit_base:smoke", "vit_base_finetune:smoke"),
        ("swin_base_100ep", "swin_base_100ep_finetune192"),
        ("sizes:swin_v2_tiny", "swin_v2_base_finetune"),
        ("ablations:block_32_0.6,smoke", "swin_base_finetune:smoke"),
    ],
)
def test_the_config_that_fine_tunes(name, expected):
    pretraining = named(name)
    found = finetuning(pretraining, arguments.find_config(name))
    assert found == expected
    assert named(found).model.name == pretraining.model.name


def record(workdir, labelled):
    """Write the config.json of a run on images with labels, or without."""
    config = schema.to_dict(schema.parse(common.pretrain()))
    write_json(workdir / "config.json", {"config": config, "labelled": labelled})


def files(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize(
    ("labelled", "dataset"), [(True, "tfds:imagenet2012"), (False, "LABELLED")]
)
def test_a_pre_training_run_names_its_files_and_fine_tuning(
    labelled, dataset, tmp_path
):
    workdir = tmp_path / "my run"
    files(workdir, "checkpoints/8/x", "checkpoints/12/x", "metrics.jsonl")
    files(workdir, "reconstructions/0000008.png", "reconstructions/0000012.png")
    record(workdir, labelled)
    config = schema.parse(common.pretrain())
    *lines, command = ending(config, "configs/vit_base.py", workdir, step=12, best=8)
    assert [line.split("  ")[0] for line in lines] == [
        "checkpoint",
        "last checkpoint",
        "picture",
        "metrics",
    ]
    for line, name in zip(
        lines,
        ("checkpoints/8", "checkpoints/12", "reconstructions/0000012.png"),
        strict=False,
    ):
        assert line.endswith(f"  {workdir / name}")
    assert command.startswith("next: fine-tune")
    assert shlex.split(command)[2:] == [
        *("simmim", "train", "--config=vit_base_finetune"),
        f"--config.init_from={workdir}",
        f"--config.data.dataset={dataset}",
    ]


def test_pre_training_on_speech_names_transcription(tmp_path):
    record(tmp_path, labelled=False)
    *_, command = ending(
        named("transcribe:pretrain"), "transcribe:pretrain", tmp_path, step=1, best=1
    )
    assert shlex.split(command)[2:] == [
        *("simmim", "train", "--config=transcribe"),
        f"--config.init_from={tmp_path}",
        "--config.data.dataset=bundled:speech",
    ]


def test_bad_images_are_counted_by_file(tmp_path):
    files(tmp_path, "checkpoints/12/x")
    config = tiny_config.typed("finetune")
    for process, count in (("", 3), (".1", 1)):
        account = BadImages("train", path=tmp_path / f"bad_images{process}.tsv")
        for _ in range(2):  # each of them twice
            account.add([BadExample(i, "empty", f"{i}.png") for i in range(count)])
    _, *lines, _ = ending(config, "mine.py", tmp_path, step=12, best=12)
    assert lines == [
        f"bad images         1, listed in {tmp_path}/bad_images.1.tsv",
        f"bad images         3, listed in {tmp_path}/bad_images.tsv",
    ]


def test_a_fine_tuned_run_names_prediction(tmp_path):
    files(tmp_path, "checkpoints/12/x", "augmented.png")
    config = tiny_config.typed("finetune")
    *lines, command = ending(config, "mine.py", tmp_path, step=12, best=12)
    assert [line.split()[-1] for line in lines] == [
        str(tmp_path / "checkpoints/12"),
        str(tmp_path / "augmented.png"),
    ]
    assert shlex.split(command)[2:] == [
        *("simmim", "predict", str(tmp_path), "IMAGES"),
    ]


def test_the_next_command_passes_the_checks_of_a_run(tmp_path):
    """With the grey images of 28x28 of the tiny config."""
    workdir = tmp_path / "run"
    output = commands.run(*commands.tiny("pretrain", workdir, "duration=1 steps"))
    *_, command = output.splitlines()
    assert f"checkpoint         {workdir}/checkpoints/1\n" in output
    argv = shlex.split(command)[4:]
    parser = arguments.parser("train", "Train.")
    train.add_arguments(parser, "small")
    _, fields, explicit = arguments.parse(parser, argv)
    config, (said,) = train.check(fields, explicit)
    assert "patch_size=(14, 7)" in said
    assert config.init_from == str(workdir)
    assert (config.data.channels, config.data.image_size) == (1, (28, 28))
