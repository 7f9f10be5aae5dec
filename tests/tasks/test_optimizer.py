"""What is said of runs that are too short for their learning rate."""

import dataclasses
import importlib
import pkgutil

import pytest

from simmim_jax import configs
from simmim_jax.config import schema
from simmim_jax.config.schema import Compare
from simmim_jax.configs import small, swin_base, vit_base, vit_base_finetune
from simmim_jax.tasks.optimizer import notices

RECIPES = [m.name for m in pkgutil.iter_modules(configs.__path__)]


def said(config, num_examples, /, **fields):
    config.update_from_flattened_dict(fields)
    return notices(schema.parse(config), num_examples)


@pytest.mark.parametrize(
    ("recipe", "duration", "num_examples", "percent", "offer"),
    [
        (vit_base_finetune, "5 epochs", 8000, 22, "1 epochs"),
        (vit_base_finetune, "5 epochs", 1_281_167, 25, "1 epochs"),
        (vit_base_finetune, "20 epochs", 1_281_167, 100, "4 epochs"),
        (vit_base_finetune, "3125 steps", 1_281_167, 25, "625 steps"),
    ],
)
def test_run_that_ends_in_its_warm_up(recipe, duration, num_examples, percent, offer):
    config = recipe.get_config()
    assert said(config, num_examples, duration=duration) == (
        f"config.duration={duration!r} ends within config.optim.warmup='20 epochs', "
        f"at {percent} % of the peak learning rate: --config.optim.warmup={offer!r} "
        "would be in proportion.",
    )
    assert said(config, num_examples, **{"optim.warmup": offer}) == ()


@pytest.mark.parametrize("recipe", [vit_base, swin_base])
def test_milestone_beyond_the_run(recipe):
    config = recipe.get_config()
    assert said(config, 1_281_167) == ()
    assert said(config, 1_281_167, duration="100 epochs") == (
        "700 epochs of config.optim.milestones is not within "
        "config.duration='100 epochs', and never lowers the learning rate: "
        "--config.optim.milestones=\"('87.5 epochs',)\" would be in proportion.",
    )
    milestones = {"optim.milestones": ("87.5 epochs",)}
    assert said(config, 1_281_167, **milestones) == ()


@pytest.mark.parametrize("arg", ["", "smoke"])
@pytest.mark.parametrize("name", RECIPES)
def test_published_runs_reach_their_peak_and_their_milestones(name, arg):
    recipe = importlib.import_module(f"simmim_jax.configs.{name}")
    if hasattr(recipe, "get_config"):
        config = schema.parse(recipe.get_config(arg))
        compares = isinstance(config, Compare)
        for run in (config.pretrain, config.finetune) if compares else (config,):
            assert notices(run, 5000 if arg or compares else 1_281_167) == ()


def test_one_step_is_not_worth_a_word():
    config = vit_base_finetune.get_config()
    assert said(config, 8000, duration="1 steps") == ()


def test_fields_of_a_comparison_have_their_part_in_front():
    config = schema.parse(small.get_config("compare")).finetune
    config = dataclasses.replace(config, duration="2000 examples")
    (notice,) = notices(config, 5000, "config.finetune")
    assert notice.startswith("config.finetune.duration='2000 examples' ends within ")
    assert "--config.finetune.optim.warmup='400 examples'" in notice
