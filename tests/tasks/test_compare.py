"""In what fine-tuning with and without pre-training differ, and when mistakes end."""

from pathlib import Path

import pytest
import tiny_config
from ml_collections import ConfigDict

from simmim_jax.checkpoints.record import config_changes
from simmim_jax.tasks.compare import arms, check, compare


def test_arms_differ_in_the_encoder_they_start_from_and_how_it_is_protected():
    config = tiny_config.get_config("finetune")
    config.freeze_encoder = True
    fresh, restored = arms(config, Path("/pretrained"))
    assert config_changes(fresh.to_dict(), restored.to_dict()) == {
        "freeze_encoder": "was False, is True",
        "init_from": "was '', is '/pretrained'",
        "optim.layer_decay": "was 1.0, is 0.65",
    }
    assert config_changes(config.to_dict(), restored.to_dict()).keys() == {"init_from"}


def both(**overrides):
    config = ConfigDict({"mode": "compare"})
    config.pretrain = tiny_config.get_config("pretrain")
    config.finetune = tiny_config.get_config("finetune")
    config.update_from_flattened_dict(overrides)
    return config


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("finetune.augment.magnitude", 11.0, "magnitude=11.0: expected 0 to 10"),
        ("finetune.augment.mix_prob", -1.0, "mix_prob=-1.0: expected 0 to 1"),
        ("finetune.model.remat", "x", "config.model.remat='x'"),
        ("finetune.model.embed_dim", 32, r"\(16,\) in the checkpoint, \(32,\) here"),
        ("finetune.optim.schedule", "new", "expected 'official'"),
        ("finetune.duration", "often", "'often' is no length of time"),
        ("finetune.eval_every", "often", "'often' is no length of time"),
        ("finetune.data.num_labels", 10**6, "must be between 1 and 8000"),
        ("pretrain.mask.ratio", 0.99, "hides all 8 units of an image"),
    ],
)
def test_mistakes_end_before_pre_training_begins(field, value, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        compare(both(**{field: value}), tmp_path)
    assert not any(tmp_path.iterdir())


def test_runs_that_fit_pass_the_check_and_leave_nothing(tmp_path):
    check(both(**{"finetune.data.image_size": (42, 28)}), tmp_path)
    frozen = both(**{"finetune.freeze_encoder": True, "finetune.model.depth": 1})
    frozen.finetune.init_first_blocks = True
    check(frozen, tmp_path)
    assert not any(tmp_path.iterdir())
