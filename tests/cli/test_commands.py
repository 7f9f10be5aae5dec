"""The `simmim` command and its small sub-commands."""

import re

import pytest

from simmim_jax.cli import arguments, commands, configs, fields
from simmim_jax.config import schema
from simmim_jax.config.parsing import leaves
from simmim_jax.errors import NotFoundError

# Commands that need no example beyond their own name.
ALONE = {"configs", "doctor"}


@pytest.mark.parametrize("argv", [[], ["--help"], ["help"]])
def test_overview_lists_every_command(argv, capsys):
    commands.main(argv)
    said = capsys.readouterr().out
    for name, (_, purpose) in commands.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(purpose)}$", said, re.MULTILINE)


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_help_shows_an_example(name, capsys):
    with pytest.raises(SystemExit) as exit_:
        commands.main([name, "--help"])
    assert exit_.value.code == 0
    said = capsys.readouterr().out
    assert f"usage: simmim {name}" in said
    arguments_of_example = "" if name in ALONE else r" +\S+"
    assert re.search(rf"^ +simmim {name}{arguments_of_example}", said, re.MULTILINE)


def test_unknown_command_suggests_a_known_one():
    with pytest.raises(SystemExit, match=r"unknown command 'trian'.* mean \"train\"\?"):
        commands.main(["trian"])


def test_configs_have_a_purpose_of_one_line(capsys):
    configs.main([])
    lines = capsys.readouterr().out.splitlines()
    names = arguments.config_names()
    assert [line.split()[0] for line in lines] == names
    assert "quickstart" in names
    assert not {"common", "models", "__init__"} & set(names)
    for line in lines:
        purpose = line.split(maxsplit=1)[1]
        assert purpose.endswith(".")
        assert len(purpose) < 100


@pytest.mark.parametrize("name", ["small", "configs/small.py"])
def test_a_config_is_explained_with_its_arguments(name, capsys):
    configs.main([name])
    said = capsys.readouterr().out
    assert said.startswith("Your own small colour images on one laptop: ")
    assert "--config=small[:ARGUMENT]: Pre-training, or the part of that name" in said
    assert said.endswith(
        "\nARGUMENT: smoke, NAME or NAME,smoke; NAME is one of pretrain, finetune, "
        "linear, compare\n"
    )


def test_every_config_is_explained(capsys):
    for name in arguments.config_names():
        configs.main([name])
        said = capsys.readouterr().out
        assert said.startswith(configs.purpose(name)[:40])
        assert f"\n\n--config={name}[:ARGUMENT]: " in said
        assert "\n\nARGUMENT: smoke" in said
    with pytest.raises(NotFoundError, match=r'--config=smal .*Did you mean "small"'):
        configs.main(["smal"])


def test_fields_are_explained(capsys):
    fields.main([])
    said = capsys.readouterr().out
    for run in (schema.Pretrain(), schema.Finetune()):
        for name, _, _, value in leaves(run):
            assert f"--config.{name}={value!r}\n    [" in said


# Of pre-training, fine-tuning and segmentation.
LEARNING_RATES = ["optim.lr=0.0001", "optim.lr=0.00125", "optim.lr=0.00096"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["optim.lr"], LEARNING_RATES),
        (["config.optim.lr"], LEARNING_RATES),
        (["--config=vit_base", "mask.ratio"], ["mask.ratio=0.6"]),
        (
            ["--config=vit_base", "optim.lr", "--config.optim.lr=3e-4"],
            ["optim.lr=0.0003"],
        ),
        (
            ["--config=quickstart", "seed"],
            ["pretrain.seed=0", "finetune.seed=0"],
        ),
    ],
)
def test_fields_of_a_name_or_config(argv, expected, capsys):
    fields.main(argv)
    said = capsys.readouterr().out
    assert re.findall(r"--config\.(\S+)\n", said) == expected


def test_fields_of_a_group(capsys):
    fields.main(["bench"])
    said = capsys.readouterr().out
    assert re.findall(r"--config\.(\w+\.\w+)=", said) == [
        "bench.steps",
        "bench.num_classes",
        "bench.checkpoint",
        "bench.accelerators",
    ]


def test_unknown_field_lists_the_groups():
    expected = r'no field optm: expected one of .*, optim,.* Did you mean "optim"\?'
    with pytest.raises(SystemExit, match=expected):
        fields.main(["optm"])
    with pytest.raises(SystemExit, match=r'Did you mean "optim\.lr"\?'):
        fields.main(["optim.lrr"])
