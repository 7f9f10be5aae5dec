"""Calibration, beside the formulas of the papers written out."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import optimize

from simmim_jax.errors import UserError
from simmim_jax.tasks import calibration
from simmim_jax.tasks.calibration import (
    calibrate,
    fit_temperature,
    probabilities_of,
    reliability,
)


def overconfident(images=4000, classes=5, scale=3.0, seed=0):
    """Logits `scale` times those that labels are drawn from."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (images, classes))
    shares = probabilities_of(logits, "softmax").astype(np.float64)
    labels = (shares.cumsum(1) > rng.random((images, 1))).argmax(1)
    return (scale * logits).astype(np.float32), labels


def test_the_calibration_error_is_that_of_guo():
    logits, labels = overconfident(images=500)
    shares = probabilities_of(logits, "softmax")
    # Guo et al. (2017), equation 3: bins ((m - 1) / M, m / M].
    expected, confidence = 0.0, shares.max(1).astype(np.float64)
    right = shares.argmax(1) == labels
    for m in range(1, 16):
        inside = (confidence > (m - 1) / 15) & (confidence <= m / 15)
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].mean())
            expected += inside.sum() / 500 * gap
    assert reliability(shares, labels).error == pytest.approx(expected, rel=1e-9)
    assert reliability(shares, labels).images.sum() == 500


def test_bins_without_images_do_not_count():
    shares = np.array([[0.95, 0.05], [0.95, 0.05], [1.0, 0.0], [0.0, 1.0]])
    found = reliability(shares, np.array([0, 1, 0, 1]), bins=10)
    assert found.images.tolist() == [0] * 9 + [4]
    assert np.isnan(found.accuracy[:9]).all()
    assert found.error == pytest.approx(abs(0.75 - 0.975))


def test_a_temperature_finds_what_logits_were_multiplied_by():
    logits, labels = overconfident(images=20_000, scale=3.0)
    assert fit_temperature(logits, labels, "softmax") == pytest.approx(3, rel=0.03)
    unsure, _ = overconfident(images=20_000, scale=0.5)
    assert fit_temperature(unsure, labels, "softmax") == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_no_other_temperature_has_less_cross_entropy(kind):
    logits, labels = overconfident(images=300)
    one_hot = np.eye(5)[labels]

    def loss(temperature):
        scaled = logits.astype(np.float64) / temperature
        if kind == "softmax":
            shares = np.exp(scaled) / np.exp(scaled).sum(1, keepdims=True)
            return -(one_hot * np.log(shares)).sum(1).mean()
        shares = 1 / (1 + np.exp(-scaled))
        each = one_hot * np.log(shares) + (1 - one_hot) * np.log(1 - shares)
        return -each.sum(1).mean()

    best = optimize.minimize_scalar(loss, bounds=(0.1, 20), method="bounded").x
    assert fit_temperature(logits, labels, kind) == pytest.approx(best, rel=1e-3)


def test_held_out_halves_judge_each_other():
    logits, labels = overconfident()
    found = calibrate(logits, labels, "softmax", dataset="d", split="validation")
    assert found.images == 4000
    assert found.temperature == pytest.approx(3, rel=0.1)
    raw = reliability(probabilities_of(logits, "softmax"), labels).error
    assert found.error == raw > 0.15
    # Each half by the temperature of the other one.
    parts = [(logits[i::2], labels[i::2]) for i in (0, 1)]
    temperatures = [fit_temperature(*part, "softmax") for part in parts]
    shares = [
        probabilities_of(part[0], "softmax", temperature)
        for part, temperature in zip(parts, temperatures[::-1], strict=True)
    ]
    expected = reliability(
        np.concatenate(shares), np.concatenate([part[1] for part in parts])
    ).error
    assert found.calibrated_error == pytest.approx(expected, rel=1e-9)
    assert found.calibrated_error < 0.03
    assert found.describe().startswith("temperature 2.91, fitted on 4,000 images of d")


def test_mistakes_are_needed():
    logits = np.eye(3, dtype=np.float32)
    with pytest.raises(UserError, match="All 3 images of 'd' are classified right"):
        calibrate(logits, np.arange(3), "softmax", dataset="d", split="validation")


def test_a_calibration_is_kept_beside_its_checkpoint(tmp_path):
    found = calibrate(*overconfident(100), "softmax", dataset="d", split="test")
    assert calibration.load(tmp_path, 7) is None
    file = calibration.save(found, tmp_path, 7)
    assert file == tmp_path / "checkpoints" / "7" / "calibration.json"
    assert calibration.load(tmp_path, 7) == found
    assert calibration.load(tmp_path, 8) is None
    step = file.parent
    (step / "params").mkdir()
    assert calibration.load(step, 7) == found
    for content in ("{", "[]", json.dumps(dataclasses.asdict(found) | {"x": 1})):
        file.write_text(content)
        with pytest.raises(UserError, match=r"calibration.json' is damaged"):
            calibration.load(step, 7)
