"""In what fine-tuning with and without pre-training differ."""

from pathlib import Path

import tiny_config

from simmim_jax.checkpoint import config_changes
from simmim_jax.compare import arms


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
