"""The architecture of a checkpoint, which fine-tuning adopts."""

import dataclasses
import json
from pathlib import Path

import commands
import jax
import numpy as np
import pytest
import tiny_config

from simmim_jax.checkpoints.transfer import transfer
from simmim_jax.cli.train import check
from simmim_jax.config import schema
from simmim_jax.configs import common
from simmim_jax.errors import NotFoundError, UserError
from simmim_jax.tasks import api, classify, compare, pretrain
from simmim_jax.tasks.architecture import adopt
from simmim_jax.tasks.values import assume

# A ViT with patches of 14x7, width 16, depth 2 and 2 heads, trained on grey images.
PRETRAINED = Path(__file__).parents[1] / "workdirs" / "e0607c8" / "pretrain"


def finetune(init_from=PRETRAINED, **fields):
    return tiny_config.typed("finetune", init_from=str(init_from), **fields)


def checkpoint_of(config, folder):
    """Write what a checkpoint of a pre-training config records, without parameters."""
    (folder / "params").mkdir()
    (folder / "meta").mkdir()
    meta = {"config": schema.to_dict(schema.parse(config)), "step": 1}
    (folder / "meta" / "metadata").write_text(json.dumps(meta))
    return str(folder)


OTHER = {
    "model.patch_size": (7, 7),
    "model.embed_dim": 32,
    "model.depth": 3,
    "model.num_heads": 4,
    "model.mlp_ratio": 2.0,
    "model.qkv_bias": False,
    "model.use_abs_pos_emb": True,
    "model.layer_scale": 0.0,
    "model.norm_eps": 1e-5,
}


def test_same_architecture_changes_nothing():
    config = finetune()
    assert adopt(config) == (config, [])
    explicit = {"model.embed_dim", "model.depth", "data.batch_size"}
    assert adopt(config, explicit) == (config, [])


def test_training_from_scratch_keeps_its_architecture():
    config = finetune("", **OTHER)
    assert adopt(config, set(OTHER)) == (config, [])


@pytest.mark.parametrize("path", [PRETRAINED, PRETRAINED / "checkpoints" / "8"])
def test_adopts_the_architecture_and_says_so(path):
    adopted, (line,) = adopt(finetune(path, **OTHER))
    assert adopted == finetune(path)
    assert line.startswith(f"architecture of {path}: ")
    for said in ("patch_size=(14, 7)", "embed_dim=16", "depth=2", "num_heads=2"):
        assert said in line


def test_adopts_only_what_parameters_depend_on():
    fields = {
        "model.drop_path_rate": 0.3,
        "model.head_scale": 1.0,
        "model.use_rel_pos_bias": False,
        "model.use_shared_rel_pos_bias": True,
        "data.image_size": (42, 28),
        "optim.lr": 1.0,
    }
    adopted, _ = adopt(finetune(**fields, **OTHER))
    assert adopted == finetune(**fields)


@pytest.mark.parametrize("field", OTHER)
def test_explicit_contradiction_is_refused(field):
    name = field.removeprefix("model.")
    with pytest.raises(UserError) as error:
        adopt(finetune(**OTHER), {field})
    text = str(error.value)
    assert text.startswith(f"config.model.{name}={OTHER[field]!r}, but ")
    assert f"config.init_from='{PRETRAINED}' has " in text
    assert "leave the field out, or start from another checkpoint" in text


def test_contradiction_on_the_command_line_ends_the_run_at_once(tmp_path):
    output = commands.run(
        *commands.tiny("finetune", tmp_path / "run", f"init_from={PRETRAINED}"),
        "--config.model.embed_dim=32",
        status=1,
    )
    assert "\nconfig.model.embed_dim=32, but " in output  # after a warning
    assert "has 16: leave the field out" in output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


def test_command_line_checks_and_reports_the_architecture():
    fields = tiny_config.get_config("finetune")
    fields.init_from = str(PRETRAINED)
    fields.model.embed_dim = 32
    config, (line,) = check(fields, {"init_from"})
    assert config == finetune()
    assert "embed_dim=16" in line
    with pytest.raises(UserError, match=r"config\.model\.embed_dim=32, but .* has 16"):
        check(fields, {"init_from", "model.embed_dim"})


def test_another_width_in_the_config_trains_with_that_of_the_checkpoint(
    tmp_path, capsys
):
    fields = tiny_config.get_config("finetune")
    fields.update_from_flattened_dict(OTHER)
    fields.init_from = str(PRETRAINED)
    fields.duration = "1 steps"
    trained = api.finetune(fields, tmp_path)
    assert trained.params["fc_norm"]["scale"].shape == (16,)
    assert commands.config(tmp_path)["model"]["embed_dim"] == 16
    said = capsys.readouterr().out
    assert "embed_dim=16" in said
    assert "restored" in said


def test_another_family_is_refused():
    config = common.finetune("swin_base")
    config.init_from = str(PRETRAINED)
    expected = "config.model.name='swin', but .* has a 'vit'"
    with pytest.raises(UserError, match=expected):
        adopt(schema.parse(config))


def test_other_channels_are_refused():
    config = finetune(
        **{
            "data.channels": 3,
            "data.mean": (0.5,) * 3,
            "data.std": (0.5,) * 3,
        }
    )
    with pytest.raises(UserError, match=r"channels=3, but .*--config.data.channels=1"):
        adopt(config)


def test_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(NotFoundError, match="has no checkpoint"):
        adopt(finetune(tmp_path))


def test_layer_scale_is_adopted_but_not_its_initial_value():
    config = finetune(**{"model.layer_scale": 1e-5})
    assert adopt(config, {"model.layer_scale"}) == (config, [])


# Values that no default has.
OTHER_MODEL = {
    "patch_size": (8, 8),
    "embed_dim": 48,
    "depth": 1,
    "depths": (2, 1),
    "num_heads": {"vit": 3, "swin": (4, 4), "swin_v2": (4, 4)},
    "window_size": 3,
    "pretrained_window_sizes": (3, 2),
    "mlp_ratio": 2.0,
    "layer_scale": 0.0,
}
SMALL_MODEL = {
    "vit": {"embed_dim": 24, "depth": 2, "num_heads": 2},
    "swin": {"embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2)},
}


@pytest.mark.parametrize("encoder", schema.ENCODERS)
def test_no_field_of_the_encoder_stops_fine_tuning_once_adopted(encoder, tmp_path):
    """Before JAX starts the meta is all there is; shapes of parameters come late."""
    small = SMALL_MODEL["vit" if encoder == "vit" else "swin"]
    variant = f"{encoder}_base"
    for each in dataclasses.fields(schema.ENCODERS[encoder]):
        default = getattr(schema.ENCODERS[encoder](), each.name)
        other = OTHER_MODEL.get(each.name, default)
        other = not default if isinstance(default, bool) else other
        other = other[encoder] if isinstance(other, dict) else other
        if each.name == "scan_layers" or other == default:
            continue  # needs remat; no effect on parameters
        fields = small | {each.name: other}
        pretraining = common.pretrain(variant, **fields)
        finetuning = common.finetune(variant, **small)
        for config in (pretraining, finetuning):
            config.data.image_size = (32, 32)
        folder = tmp_path / each.name
        folder.mkdir()
        finetuning.init_from = checkpoint_of(pretraining, folder)
        adopted, _ = adopt(schema.parse(finetuning))
        learned = pretrain.learner(assume(schema.parse(pretraining)), 10)
        learns, _ = classify.learner(assume(adopted), 10, 3)
        old, new = (
            jax.eval_shape(of.init, jax.random.key(0)) for of in (learned, learns)
        )
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), (old, new))
        _, report = transfer(*zeros)
        assert "restored" in report, each.name


def test_first_blocks_of_a_vit():
    first = {"init_first_blocks": True, "model.depth": 1}
    assert adopt(finetune(**first), {"model.depth"}) == (finetune(**first), [])
    with pytest.raises(UserError, match=r"depth=3, but .* at most .*\.depth=2"):
        adopt(finetune(**first | {"model.depth": 3}))
    # Without init_first_blocks the depth is adopted like other fields.
    assert adopt(finetune(**{"model.depth": 1}))[0] == finetune()


@pytest.mark.parametrize(
    ("depths", "heads", "adopted"),
    [
        ((2, 2), (4, 8), (4, 8)),
        ((2, 2, 6), (4, 8, 16), (4, 8, 16)),
        ((2, 2, 6, 2), (4, 8, 16, 32), None),
        ((2, 1, 18), (4, 8, 16), None),
        ((2, 2, 18, 2), (2, 4, 8, 16), (4, 8, 16, 32)),
    ],
)
def test_first_blocks_of_a_swin(depths, heads, adopted, tmp_path):
    config = common.finetune("swin_base", depths=depths, num_heads=heads)
    config.init_from = checkpoint_of(common.pretrain("swin_base"), tmp_path)
    config.init_first_blocks = True
    if adopted is None:
        with pytest.raises(UserError, match=r"depths=.* at most .*\(2, 2, 18, 2\)"):
            adopt(schema.parse(config))
        return
    found, _ = adopt(schema.parse(config))
    assert (found.model.depths, found.model.num_heads) == (depths, adopted)


def test_lists_in_the_meta_become_tuples(tmp_path):
    config = common.finetune("swin_base", depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
    config.init_from = checkpoint_of(common.pretrain("swin_base"), tmp_path)
    adopted, _ = adopt(schema.parse(config))
    assert adopted.model.depths == (2, 2, 18, 2)
    assert adopted.model.num_heads == (4, 8, 16, 32)


def test_a_run_keeps_the_fields_that_it_began_with(tmp_path):
    """One that was begun before architectures were adopted still resumes."""
    begun = finetune(**{"model.norm_eps": 1e-3})
    record = {"config": schema.to_dict(begun)}
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert adopt(begun, workdir=tmp_path) == (begun, [])
    assert adopt(begun)[0] == finetune()


@pytest.mark.parametrize("meta", ["{}", '{"config": 1}', '{"config": {"model": {}}}'])
def test_checkpoint_without_a_config_is_damaged(meta, tmp_path):
    checkpoint_of(tiny_config.get_config("pretrain"), tmp_path)
    (tmp_path / "meta" / "metadata").write_text(meta)
    with pytest.raises(
        UserError, match="is damaged: meta/metadata has no whole config"
    ):
        adopt(finetune(tmp_path))


# ---- Comparisons ---------------------------------------------------------------------


def comparison(**fields):
    config = common.comparison(
        dataset="bundled:fashion_mnist_10k",
        eval_split="validation",
        image_size=(28, 28),
        mean=(0.286,),
        std=(0.353,),
        patch_size=(7, 7),
    )
    config.pretrain.mask.unit_size = (14, 7)
    config.pretrain.init_from = str(PRETRAINED)
    config.update_from_flattened_dict(fields)
    return schema.parse(config)


def test_both_runs_of_a_comparison_adopt_the_architecture(tmp_path):
    adopted, (first, second) = adopt(comparison())
    assert first.startswith(f"architecture of {PRETRAINED}: patch_size=(14, 7), ")
    assert second.startswith(f"architecture of {PRETRAINED}, in fine-tuning: ")
    for run in (adopted.pretrain, adopted.finetune):
        assert run.model.patch_size == (14, 7)
        assert (run.model.embed_dim, run.model.depth, run.model.num_heads) == (16, 2, 2)
    assert adopted.finetune.init_from == ""
    assert not adopted.finetune.model.use_shared_rel_pos_bias
    # What would end fine-tuning is found before pre-training.
    old = pretrain.build(adopted.pretrain, tmp_path, path="config.pretrain")
    fresh, _ = compare.arms(adopted.finetune, tmp_path)
    compare.check(adopted, old, classify.build(fresh, tmp_path))
    assert adopt(comparison(**{"pretrain.init_from": ""}))[1] == []


def test_a_comparison_may_fine_tune_the_first_blocks():
    fields = {"finetune.init_first_blocks": True, "finetune.model.depth": 1}
    adopted, _ = adopt(comparison(**fields))
    assert (adopted.pretrain.model.depth, adopted.finetune.model.depth) == (2, 1)


@pytest.mark.parametrize(
    ("explicit", "says"),
    [
        ("model.depth", "config.pretrain.model.depth=4, but config.pretrain.init_from"),
        ("finetune.model.depth", "config.finetune.model.depth=4, but config.pretrain"),
    ],
)
def test_explicit_fields_of_a_comparison_are_refused(explicit, says):
    with pytest.raises(UserError, match=says):
        adopt(comparison(), {explicit})
