"""Fine-tuning: restored encoders, metrics and errors."""

import dataclasses

import commands
import jax
import numpy as np
import pytest
import tiny_config
from PIL import Image

from simmim_jax.augment.normalization import Normalization
from simmim_jax.checkpoints.transfer import interpolate_offsets
from simmim_jax.config import schema
from simmim_jax.configs import common
from simmim_jax.data.sources.base import ArraySource
from simmim_jax.models import build_classifier
from simmim_jax.runtime import sharding
from simmim_jax.tasks import classify, inputs, pretrain
from simmim_jax.tasks.api import finetune
from simmim_jax.tasks.classify import draw_augmented
from simmim_jax.training import compilation
from tests.images import write_photographs


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pretrained")
    commands.run(*commands.tiny("pretrain", workdir, "duration=4 steps"))
    return workdir


@pytest.fixture(scope="module")
def classifier():
    config = tiny_config.typed("finetune")
    model = build_classifier(
        num_classes=10, dtype="float32", **schema.to_dict(config.model)
    )
    images = np.zeros((1, 28, 28, 1), np.float32)
    params = jax.jit(model.init)(jax.random.key(1), images)["params"]
    # A head that tells classes apart.
    params["head"]["kernel"] *= 1000
    return config, model, params


def evaluation(config, model, source):
    passes = inputs.eval_pass(config.data, source)
    return classify.evaluation(config, model, passes, sharding.make_mesh())


@pytest.mark.parametrize("examples", [1, 16, 37])
def test_accuracy_counts_every_image_once(examples, classifier):
    config, model, params = classifier
    rng = np.random.default_rng(examples)
    source = ArraySource(
        rng.integers(0, 256, (examples, 28, 28, 1), np.uint8),
        rng.integers(0, 10, examples),
        tuple("abcdefghij"),
    )
    metrics = evaluation(config, model, source)(params, 0)

    pixels = Normalization(config.data.mean, config.data.std)(source.images)
    logits = np.asarray(model.apply({"params": params}, pixels), np.float64)
    order = np.argsort(-logits, axis=1)
    labels = np.asarray(source.labels)[:, None]
    log_sum = np.log(np.exp(logits).sum(1))
    loss = log_sum - np.take_along_axis(logits, labels, 1)[:, 0]
    assert metrics["top1"] == pytest.approx((order[:, :1] == labels).mean())
    assert metrics["top5"] == pytest.approx((order[:, :5] == labels).any(1).mean())
    assert metrics["eval_loss"] == pytest.approx(loss.mean(), rel=1e-5)


def test_starts_from_the_pre_trained_encoder(pretrained, tmp_path, capsys):
    config = tiny_config.get_config("finetune")
    config.init_from = str(pretrained)
    config.duration = "1 steps"
    config.optim.lr = config.optim.warmup_lr = 0.0
    trained = finetune(config, tmp_path)
    before = commands.params(pretrained, 4)["encoder"]["blocks_0"]["mlp"]
    after = jax.device_get(trained.params["encoder"]["blocks_0"]["mlp"])
    commands.assert_same(after, before)
    said = capsys.readouterr().out
    assert "restored" in said
    assert "left out: decoder" in said


def test_draws_what_the_model_sees_at_the_start_of_a_run(tmp_path):
    config = tiny_config.get_config("finetune")
    config.duration = "1 steps"
    config.augment = common.finetune().augment
    config.pictures = 5
    finetune(config, tmp_path)
    with Image.open(tmp_path / "augmented.png") as picture:
        assert picture.width > picture.height > 300  # three rows of four columns
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.std() > 10
    (tmp_path / "augmented.png").unlink()
    finetune(config, tmp_path)  # resumes from its checkpoint
    assert not (tmp_path / "augmented.png").exists()


@dataclasses.dataclass(frozen=True)
class Recording(ArraySource):
    """Records the indices of the images that are read."""

    asked: set[int] = dataclasses.field(default_factory=set)

    def __getitem__(self, index):
        self.asked.add(index)
        return super().__getitem__(index)


def test_drawing_reads_only_the_images_that_are_drawn(tmp_path):
    # A worker's process would not record anything here.
    config = tiny_config.typed("finetune", pictures=3, **{"data.num_workers": 1})
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28, 1), np.uint8)
    source = Recording(images, np.arange(40) % 10, tuple("abcdefghij"))
    learner, _ = classify.learner(config, 40, 10)
    path = draw_augmented(config, tmp_path, source, learner.prepare)
    assert source.asked == {0, 19, 39}
    assert path.exists()


def test_other_image_size_and_fewer_blocks(pretrained, tmp_path, capsys):
    config = tiny_config.get_config("finetune")
    config.init_from = str(pretrained)
    config.data.image_size = (42, 28)  # a grid of 3x4 patches instead of 2x4
    config.model.depth = 1
    config.init_first_blocks = True
    config.duration = "1 steps"
    config.optim.lr = config.optim.warmup_lr = 0.0
    trained = finetune(config, tmp_path)
    name = "relative_position_bias_table"
    old = commands.params(pretrained, 4)["encoder"]["rel_pos_bias"][name]
    expected = interpolate_offsets(old[:-3].reshape(3, 7, 2), (5, 7)).reshape(-1, 2)
    table = np.asarray(trained.params["encoder"]["blocks_0"]["attn"][name])
    np.testing.assert_allclose(table[:-3], expected, atol=1e-6)
    np.testing.assert_array_equal(table[-3:], old[-3:])
    assert f"interpolated: 1 {name} from 3x7 to 5x7" in capsys.readouterr().out


def test_frozen_encoder_is_unchanged_and_the_head_learns(pretrained, tmp_path):
    config = tiny_config.get_config("finetune")
    config.init_from = str(pretrained)
    config.freeze_encoder = True
    config.duration = "4 steps"
    heads = []
    for rate in (0.9, 0.0):  # a frozen encoder drops no paths
        config.model.drop_path_rate = rate
        trained = finetune(config, tmp_path / str(rate))
        after = jax.device_get(trained.params)
        heads.append(after["head"])
    commands.assert_same(*heads)
    before = commands.params(pretrained, 4)["encoder"]["blocks_1"]
    for name in ("mlp", "norm1", "gamma_1"):
        commands.assert_same(after["encoder"]["blocks_1"][name], before[name])
    assert np.abs(after["fc_norm"]["bias"]).min() > 0  # it was 0
    config.freeze_encoder = False
    with pytest.raises(ValueError, match="freeze_encoder was True, is False"):
        finetune(config, tmp_path / "0.0")


def test_freezing_a_random_encoder_raises(tmp_path):
    config = tiny_config.get_config("finetune")
    config.freeze_encoder = True
    with pytest.raises(ValueError, match="would keep a random encoder"):
        finetune(config, tmp_path)


def test_average_is_evaluated_and_saved(pretrained, tmp_path):
    config = tiny_config.get_config("finetune")
    config.init_from = str(pretrained)
    config.duration = "1 steps"
    config.optim.warmup_lr = 1e-1
    config.ema_decay = 0.25
    trained = finetune(config, tmp_path)
    saved = commands.params(tmp_path, 1)
    commands.assert_same(jax.device_get(trained.params), saved)
    config = schema.parse(config)
    model = build_classifier(
        num_classes=10, dtype="float32", **schema.to_dict(config.model)
    )
    source = inputs.open_split(config.data, config.data.eval_split)
    evaluate = evaluation(config, model, source)
    assert evaluate(saved, 1) == trained.last

    latest = commands.latest_params(tmp_path, 1)
    restored, average, last = (
        np.asarray(p["encoder"]["blocks_0"]["mlp"]["fc1"]["kernel"])
        for p in (commands.params(pretrained, 4), saved, latest)
    )
    assert np.abs(last - restored).max() > 1e-3
    # The average started at the restored encoder, not at the fresh one.
    np.testing.assert_allclose(average, 0.25 * restored + 0.75 * last, atol=1e-6)


def test_images_without_classes_raise(tmp_path):
    source = ArraySource(np.zeros((2, 28, 28, 1), np.uint8), None, ())
    with pytest.raises(ValueError, match="labelled images of at least two classes"):
        classify.build(tiny_config.typed("finetune"), tmp_path, train=source)


def test_other_held_out_classes_raise(tmp_path):
    images, labels = np.zeros((4, 28, 28, 1), np.uint8), np.arange(4) % 2
    sources = {
        "train": ArraySource(images, labels, ("cat", "dog")),
        "held_out": ArraySource(images, labels, ("dog", "cat")),
    }
    config = tiny_config.typed("finetune", **{"data.num_labels": 0})
    with pytest.raises(ValueError, match=r"\('dog', 'cat'\).* has \('cat', 'dog'\)"):
        classify.build(config, tmp_path, **sources)


def test_classes_without_examples_are_named(tmp_path):
    images, names = np.zeros((4, 28, 28, 1), np.uint8), ("cat", "dog", "owl")
    train = ArraySource(images, np.array([0, 1, 1, 0]), names)
    held_out = ArraySource(images, np.array([1, 2, 1, 2]), names)
    config = tiny_config.typed("finetune", **{"data.num_labels": 0})
    run = classify.build(config, tmp_path, train=train, held_out=held_out)
    assert run.notices[-2:] == (
        "config.data.train_split has no example of 1 of 3 classes, which are not "
        "learned: owl",
        "config.data.eval_split has no example of 1 of 3 classes, which do not count "
        "in top1: cat",
    )
    assert classify.class_notices(train, train, "config.finetune")[1].startswith(
        "config.finetune.data.eval_split has no example of 1 of 3 classes"
    )
    whole = ArraySource(images, np.array([0, 1, 2, 0]), names)
    assert classify.class_notices(whole, whole, "config") == ()


def test_images_without_a_label_are_left_out_of_fine_tuning(tmp_path):
    names = [f"{i}.jpg" for i in range(6)]
    write_photographs(tmp_path, names)
    labels, splits = ["a", "", "b", "", "b", ""], ["train"] * 3 + ["val"] * 3
    rows = [("path", "label", "split"), *zip(names, labels, splits, strict=True)]
    (tmp_path / "list.csv").write_text("\n".join(map(",".join, rows)))
    config = tiny_config.typed(
        "finetune", **{"data.num_labels": 0, "data.dataset": f"{tmp_path}/list.csv"}
    )
    run = classify.build(config, tmp_path / "run")
    assert "list.csv: 2 images to train on" in run.description
    assert ", 1 held out" in run.description
    assert run.notices[1:3] == (
        "config.data.train_split: 1 of 3 images have no label and are left out",
        "config.data.eval_split: 2 of 3 images have no label and are left out",
    )
    pretraining = tiny_config.typed(
        "pretrain", **{"data.dataset": f"{tmp_path}/list.csv"}
    )
    assert "list.csv: 3 images" in pretrain.build(pretraining, tmp_path).description


def test_a_list_with_a_class_of_validation_alone_is_refused(tmp_path):
    write_photographs(tmp_path, ["1.jpg", "2.jpg", "3.jpg"])
    rows = ["path,label,split", "1.jpg,a,train", "2.jpg,b,train", "3.jpg,c,val"]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    config = tiny_config.get_config("finetune")
    config.data.dataset = str(tmp_path / "list.csv")
    with pytest.raises(ValueError, match=r"list.csv' has classes without .* on: c\."):
        finetune(config, tmp_path / "run")


def test_error_names_the_image_that_makes_a_folder_unlabelled(tmp_path):
    write_photographs(tmp_path, ["cat/1.jpg", "cat/2.jpg", "dog/3.jpg", "4.jpg"])
    config = tiny_config.get_config("finetune")
    config.data.dataset = str(tmp_path)
    with pytest.raises(ValueError, match=rf"{tmp_path}/4\.jpg' is in no class folder"):
        finetune(config, tmp_path / "run")


def test_another_model_in_the_same_workdir_raises(tmp_path):
    config = tiny_config.get_config("finetune")
    config.duration = "1 steps"
    finetune(config, tmp_path)
    config.model.depth = 3
    with pytest.raises(ValueError, match=r"model\.depth was 2, is 3"):
        finetune(config, tmp_path)


def test_another_encoder_in_the_workdir_of_a_finished_run_raises(pretrained, tmp_path):
    config = tiny_config.get_config("finetune")
    config.duration = "1 steps"
    finetune(config, tmp_path)
    config.log_every = "2 steps"
    finetune(config, tmp_path)  # changes nothing of what was learned
    config.init_from = str(pretrained)
    with pytest.raises(ValueError, match="holds a finished run, which has") as error:
        finetune(config, tmp_path)
    assert f"is '{pretrained}/checkpoints/4'" in str(error.value)


def test_held_out_images_without_labels_raise(classifier):
    config, model, params = classifier
    source = ArraySource(np.zeros((3, 28, 28, 1), np.uint8), None, ())
    evaluate = evaluation(config, model, source)
    with pytest.raises(ValueError, match="images without labels"):
        evaluate(params, 0)


def test_frozen_encoder_costs_no_backpropagation():
    learner, _ = classify.learner(tiny_config.typed("finetune"), 40, 10)
    frozen = dataclasses.replace(learner, frozen=("encoder",))
    tokens, patches, width, pixels, classes = 9, 8, 16, 14 * 7, 10
    blocks = 2 * (12 * tokens * width**2 + 2 * tokens**2 * width)
    into_patches, head = patches * width * pixels, classes * width
    forward = 2 * (into_patches + blocks + head)
    # Backpropagation costs twice the forward pass, but ends at the patches and, with a
    # frozen encoder, at the norm before the head.
    assert compilation.flops_per_image(learner) == 3 * forward - 2 * into_patches
    assert compilation.flops_per_image(frozen) == forward + 4 * head
