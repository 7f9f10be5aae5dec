"""Fine-tuning: what is restored, what is counted, what is refused."""

import commands
import jax
import numpy as np
import pytest
import tiny_config

from simmim_jax import augment, inputs
from simmim_jax.data.source import ArraySource
from simmim_jax.finetune import check_classes, evaluation, finetune
from simmim_jax.models import build_classifier


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("pretrained")
    commands.run(*commands.tiny("pretrain", workdir, "duration=4 steps"))
    return workdir


@pytest.fixture(scope="module")
def classifier():
    config = tiny_config.get_config("finetune")
    model = build_classifier(num_classes=10, dtype="float32", **config.model)
    images = np.zeros((1, 28, 28, 1), np.float32)
    params = jax.jit(model.init)(jax.random.key(1), images)["params"]
    # A head that tells classes apart.
    params["head"]["kernel"] *= 1000
    return config, model, params


@pytest.mark.parametrize("examples", [1, 16, 37])
def test_accuracy_counts_every_image_once(examples, classifier):
    config, model, params = classifier
    rng = np.random.default_rng(examples)
    source = ArraySource(
        rng.integers(0, 256, (examples, 28, 28, 1), np.uint8),
        rng.integers(0, 10, examples),
        tuple("abcdefghij"),
    )
    metrics = evaluation(config, model, inputs.eval_pass(config, source))(params, 0)

    pixels = augment.normalize(source.images, config.data.mean, config.data.std)
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


def test_another_shape_of_model_is_refused(pretrained, tmp_path):
    config = tiny_config.get_config("finetune")
    config.init_from = str(pretrained)
    config.model.embed_dim = 32
    with pytest.raises(ValueError, match=r"\(16,\) in the checkpoint, \(32,\) here"):
        finetune(config, tmp_path)


def test_images_without_classes_are_refused():
    config = tiny_config.get_config("finetune")
    source = ArraySource(np.zeros((2, 28, 28, 1), np.uint8), None, ())
    with pytest.raises(ValueError, match="labelled images of at least two classes"):
        check_classes(config, source)


def test_other_model_in_the_same_workdir_is_refused(tmp_path):
    config = tiny_config.get_config("finetune")
    config.duration = "1 steps"
    finetune(config, tmp_path)
    config.model.depth = 3
    with pytest.raises(ValueError, match=r"model\.depth was 2, is 3"):
        finetune(config, tmp_path)


def test_finished_run_does_not_pretend_to_have_another_config(pretrained, tmp_path):
    config = tiny_config.get_config("finetune")
    config.duration = "1 steps"
    finetune(config, tmp_path)
    config.log_every = "2 steps"
    finetune(config, tmp_path)  # changes nothing of what was learned
    config.init_from = str(pretrained)
    with pytest.raises(ValueError, match="a finished run of another config") as error:
        finetune(config, tmp_path)
    assert f"is '{pretrained}/checkpoints/4'" in str(error.value)


def test_held_out_images_need_labels(classifier):
    config, model, params = classifier
    source = ArraySource(np.zeros((3, 28, 28, 1), np.uint8), None, ())
    evaluate = evaluation(config, model, inputs.eval_pass(config, source))
    with pytest.raises(ValueError, match="images without labels"):
        evaluate(params, 0)
