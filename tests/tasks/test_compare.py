"""Comparisons: the two fine-tunings, and checks before pre-training."""

from json import dumps
from pathlib import Path

import pytest
import tiny_config
from ml_collections import ConfigDict

from simmim_jax.checkpoints.record import config_changes
from simmim_jax.config import schema
from simmim_jax.tasks import classify, compared, pretrain
from simmim_jax.tasks.accuracy import Accuracy
from simmim_jax.tasks.api import compare
from simmim_jax.tasks.compare import PARTS, arms, check, panels
from simmim_jax.tasks.compared import Overlap, accuracy_table, overlap_table


@pytest.mark.parametrize(("mode", "decay"), [("finetune", 0.65), ("segment", 0.9)])
def test_arms_differ_in_the_encoder_and_its_protection(mode, decay):
    config = tiny_config.typed(mode, freeze_encoder=True)
    arms_of_config = arms(config, Path("/pretrained"))
    before, fresh, restored = map(schema.to_dict, (config, *arms_of_config))
    assert config_changes(fresh, restored) == {
        "freeze_encoder": "was False, is True",
        "init_from": "was '', is '/pretrained'",
        "optim.layer_decay": f"was 1.0, is {decay}",
    }
    assert config_changes(before, restored).keys() == {"init_from"}


def both(mode="finetune", **overrides):
    config = ConfigDict({"mode": "compare"})
    config.pretrain = tiny_config.get_config("pretrain")
    config.finetune = tiny_config.get_config(mode)
    config.update_from_flattened_dict(overrides)
    return config


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("finetune.augment.magnitude", 11.0, "magnitude=11.0: expected 0 to 10"),
        ("finetune.augment.mix_prob", -1.0, "mix_prob=-1.0: expected 0 to 1"),
        ("finetune.model.remat", "x", "config.finetune.model.remat='x'"),
        ("finetune.model.embed_dim", 32, r"\(16,\) in the checkpoint, \(32,\) here"),
        ("finetune.optim.schedule", "new", "='new': expected one of .'official'"),
        ("finetune.duration", "often", "duration='often': invalid duration"),
        ("finetune.eval_every", "often", "every='often': invalid duration"),
        ("finetune.data.num_labels", 10**6, "must be between 1 and 8000"),
        ("pretrain.mask.ratio", 0.99, "hides all 8 units of an image"),
    ],
)
def test_mistakes_raise_before_pre_training(field, value, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        compare(both(**{field: value}), tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "fields",
    [
        {"finetune.data.image_size": (42, 28)},
        {
            "finetune.freeze_encoder": True,
            "finetune.model.depth": 1,
            "finetune.init_first_blocks": True,
        },
    ],
)
def test_matching_runs_pass_the_check_and_leave_no_files(fields, tmp_path):
    config = schema.parse(both(**fields))
    fresh, _ = arms(config.finetune, tmp_path)
    old = pretrain.build(config.pretrain, tmp_path)
    check(config, old, classify.build(fresh, tmp_path))
    assert not any(tmp_path.iterdir())


def test_masks_are_compared_as_well(tmp_path):
    with pytest.raises(ValueError, match="num_masks=100000: expected at most 8000"):
        compare(both("segment", **{"finetune.data.num_masks": 10**5}), tmp_path)
    config = schema.parse(both("segment"))
    fresh, _ = arms(config.finetune, tmp_path)
    kind = compared.kind(fresh)
    old = pretrain.build(config.pretrain, tmp_path)
    check(config, old, kind.build(fresh, tmp_path, path="config.finetune"))
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_comparison_of_masks_ends_with_summary_and_pictures(tmp_path, capsys):
    config = both("segment", **{"finetune.data.num_masks": 16})
    for part in (config.pretrain, config.finetune):
        part.duration = part.optim.warmup = "1 steps"
        part.pictures = 0
        part.data.num_workers = 0
    summary = compare(config, tmp_path)
    assert f"from scratch         1{summary['scratch_miou']:>10.2%}" in (
        said := capsys.readouterr().out
    )
    assert "16 masks, 200 held-out images\n" in said
    assert "next: segment      simmim predict" in said
    assert summary["simmim_last"].keys() == {"step", "miou", "pixel_accuracy"}
    for name in ("curves", "predictions"):
        assert Path(summary[name]).stat().st_size > 1000


def test_curves_have_the_probes_of_pre_training_where_there_are(tmp_path):
    for part in PARTS:
        lines = [{"step": 1, "loss": 1.0}, {"step": 2, "eval_loss": 0.5, "top1": 0.1}]
        (tmp_path / part).mkdir()
        (tmp_path / part / "metrics.jsonl").write_text("\n".join(map(dumps, lines)))
    titles = ["Pre-training loss", "Fine-tuning loss", "Held-out top-1"]
    assert list(panels(tmp_path, compared.CLASSES)) == titles
    assert list(panels(tmp_path, compared.MASKS)) == [*titles[:2], "Held-out mIoU"]
    with (tmp_path / "pretrain" / "metrics.jsonl").open("a") as file:
        file.write("\n" + dumps({"step": 4, "knn_top1": 0.7, "effective_rank": 5.5}))
    found = panels(tmp_path, compared.CLASSES)
    assert list(found) == [*titles, "Nearest neighbours' top-1", "Effective rank"]
    assert found["Nearest neighbours' top-1"] == {"held out": ([4], [0.7])}
    assert found["Effective rank"] == {"held out": ([4], [5.5])}


def test_held_out_images_without_a_label_are_not_counted(tmp_path):
    rows = [f"{i}.png,{'ab'[i % 2]},train" for i in range(4)]
    rows += ["4.png,a,validation", "5.png,b,validation", "6.png,,validation"]
    file = tmp_path / "list.csv"
    file.write_text("\n".join(["path,label,split", *rows]))
    for row in rows:
        (tmp_path / row.split(",")[0]).touch()
    for arm in compared.ARMS.values():
        (tmp_path / arm).mkdir()
        (tmp_path / arm / "metrics.jsonl").write_text(dumps({"step": 2, "top1": 0.5}))
    config = tiny_config.typed("finetune", **{"data.dataset": str(file)})
    _, said = compared.accuracies(config, tmp_path)
    assert "2 held-out images\n" in said


@pytest.mark.parametrize(
    ("images", "gain"),
    [
        (28, "+10.71 points, 95 % interval -14.6 to +34.2: it may be chance."),
        (2800, "+10.71 points, 95 % interval +8.1 to +13.3."),
    ],
)
def test_table_says_what_accuracies_are_worth(images, gain):
    scratch, simmim = Accuracy(60, 12 / 28, images), Accuracy(60, 15 / 28, images)
    said = accuracy_table((scratch, Accuracy(40, 14 / 28, images)), (simmim, simmim))
    assert f"{images:,} held-out images\n" in said
    if images == 28:
        assert "from scratch        60    42.86%   26.5% to 60.9%\n" in said
        assert "  best step         40    50.00%   32.6% to 67.4%\n" in said
        assert "with SimMIM         60    53.57%   35.8% to 70.5%\n" in said
    assert f"Difference after the last step: {gain}\n" in said


def test_table_of_masks_has_both_runs():
    best, last = Overlap(40, 0.5, 0.9), Overlap(60, 0.4, 0.85)
    assert overlap_table((last, best), (best, best)).splitlines()[:6] == [
        "                  step      mIoU   pixel accuracy",
        "from scratch        60    40.00%           85.00%",
        "  best step         40    50.00%           90.00%",
        "with SimMIM         40    50.00%           90.00%",
        "  best step         40    50.00%           90.00%",
        "Difference after the last step: +10.00 points of mIoU. Pixels of an image "
        "depend on each other:",
    ]
