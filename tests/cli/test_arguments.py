"""Configs by name, and fields that the command line sets."""

import commands
import pytest

from simmim_jax.cli import arguments

QUICKSTART = "quickstart:smoke"


def load(*overrides, config=QUICKSTART):
    return arguments.load(config, overrides)[1]


@pytest.mark.parametrize(
    "text",
    [
        "quickstart:smoke",
        "quickstart.py:smoke",
        "configs/quickstart:smoke",
        "configs/quickstart.py:smoke",
        str(commands.ROOT / "configs" / "quickstart.py:smoke"),
    ],
)
def test_names_and_files_of_a_config(text):
    file, config = arguments.load(text, [])
    assert file.endswith("configs/quickstart.py:smoke")
    assert config.pretrain.duration == "30 steps"


@pytest.mark.parametrize(
    ("overrides", "pretraining", "finetuning"),
    [
        (["--config.data.dataset=/x"], "/x", "/x"),
        (["--config.data.dataset", "/x"], "/x", "/x"),
        (["--config.finetune.data.dataset=/x"], None, "/x"),
        (["--config.pretrain.data.dataset", "/x"], "/x", None),
        (
            ["--config.data.dataset=/x", "--config.finetune.data.dataset=/y"],
            "/x",
            "/y",
        ),
    ],
)
def test_field_of_a_comparison_is_set_in_both_runs(overrides, pretraining, finetuning):
    config, default = load(*overrides), "bundled:fashion_mnist_10k"
    assert config.pretrain.data.dataset == (pretraining or default)
    assert config.finetune.data.dataset == (finetuning or default)


def test_field_of_one_run_is_set_there():
    config = load("--config.data.num_labels=7", "--config.mask.ratio=0.5")
    assert config.finetune.data.num_labels == 7
    assert config.pretrain.mask.ratio == 0.5
    assert "num_labels" not in config.pretrain.data
    assert "mask" not in config.finetune


@pytest.mark.parametrize(
    ("config", "override", "says"),
    [
        (QUICKSTART, "--config.data.datset=/x", "unknown config field data.datset"),
        (QUICKSTART, "--config.pretrain.data.datset=/x", 'Did you mean "dataset"'),
        ("vit_base", "--config.data.datset=/x", 'Did you mean "dataset"'),
        ("quickstrat", "--config.seed=1", 'Did you mean "quickstart"?'),
        ("vit_bse", "--config.seed=1", 'Did you mean "vit_base"?'),
        ("sizes:vit_bse", "--config.seed=1", 'Did you mean "vit_base"?'),
        ("small:finetne,smoke", "--config.seed=1", 'mean "finetune,smoke"?'),
        ("quickstart:smok", "--config.seed=1", 'nothing. Did you mean "smoke"?'),
        (QUICKSTART, "--config.data.datset=/x", 'Did you mean "data.dataset"?'),
        (QUICKSTART, "--config.mask.ratoi=1", 'Did you mean "mask.ratio"?'),
    ],
)
def test_unknown_names_suggest_known_ones(config, override, says):
    with pytest.raises(SystemExit) as exit_:
        load(override, config=config)
    assert says in exit_.value.code


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["--config.data.batch_size=abc"], "data.batch_size='abc': expected a whole"),
        (
            ["--config.data.batch_size", "1.5"],
            "data.batch_size='1.5': expected a whole",
        ),
        (["--config.optim.lr=fast"], "optim.lr='fast': expected a number."),
        (["--config.wandb=maybe"], "wandb='maybe': expected True or False."),
        (
            ["--config.data.image_size=(1,"],
            "data.image_size='(1,': expected values such as '(224, 224)'.",
        ),
    ],
)
def test_a_value_of_another_type_is_refused_with_what_is_expected(overrides, says):
    with pytest.raises(SystemExit) as stopped:
        load("--config.seed=1", *overrides, config="vit_base")
    assert str(stopped.value).startswith(f"config.{says}")


def test_a_config_file_runs_once(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from simmim_jax.configs import quickstart\n\n"
        "def get_config():\n"
        f"    open({str(tmp_path / 'runs')!r}, 'a').write('.')\n"
        "    return quickstart.get_config()\n"
    )
    config = load("--config.data.dataset=/x", config=str(tmp_path / "mine.py"))
    assert config.finetune.data.dataset == "/x"
    assert (tmp_path / "runs").read_text() == "."


def test_a_config_file_that_returns_no_config(tmp_path):
    (tmp_path / "mine.py").write_text("def get_config():\n    pass\n")
    with pytest.raises(SystemExit, match="returns NoneType: expected a ConfigDict"):
        load(config=str(tmp_path / "mine.py"))


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import nope\n", "1: ModuleNotFoundError: No module named 'nope'"),
        ("def get_config(:\n    pass\n", "1: SyntaxError: invalid syntax"),
        ("\ndef get_config():\n    return {}['a']\n", "3: KeyError: 'a'"),
        ("def get_config():\n    raise ValueError('no')\n", "2: no"),
    ],
)
def test_an_error_in_a_config_file_names_its_line(code, says, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(code)
    with pytest.raises(SystemExit) as stopped:
        load(config=str(file))
    assert str(stopped.value) == f"{file}:{says}"


def test_a_config_without_its_flag_is_suggested():
    parser = arguments.parser("train", "Train.")
    arguments.add_config(parser, "quickstart")
    with pytest.raises(SystemExit, match="try --config=small"):
        arguments.parse(parser, ["small"])


def test_flags_of_commands_without_a_config():
    parser = arguments.parser("pack", "Pack.")
    parser.add_argument("--shard_size")
    parser.add_argument("files", nargs="*")
    args = parser.parse_args(["--shard_size=1", "a", "--", "--b"])
    assert (args.shard_size, args.files) == ("1", ["a", "--b"])
    with pytest.raises(SystemExit, match=r'--shrd_size\. Did you mean "--shard_size"'):
        parser.parse_args(["--shrd_size=1"])


def test_parse_returns_the_fields_that_flags_set():
    parser = arguments.parser("train", "Train.")
    arguments.add_config(parser, "quickstart")
    argv = ["--config=vit_base", "--config.seed=3", "--config.data.batch_size", "64"]
    args, config, explicit = arguments.parse(parser, argv)
    assert args.config.endswith("vit_base.py")
    assert (config.seed, config.data.batch_size) == (3, 64)
    assert explicit == {"seed", "data.batch_size"}


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            OSError(28, "No space left", "/x"),
            "cannot read or write '/x': No space left",
        ),
        (OSError(28, "No space left"), "cannot read or write: No space left"),
        (OSError("broken"), "cannot read or write: broken"),
    ],
)
def test_errors_of_files_are_a_sentence(error, says):
    with pytest.raises(SystemExit) as raised, arguments.explained():
        raise error
    assert str(raised.value) == says
