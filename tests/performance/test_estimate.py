"""Conclusions from compiler output; test_aot.py compiles for real."""

import dataclasses

import jax
import pytest

from simmim_jax.config import schema
from simmim_jax.configs import common
from simmim_jax.performance import estimate
from simmim_jax.runtime.accelerators import accelerator
from simmim_jax.tasks.learners import learner

GIB = 2**30


@pytest.mark.parametrize(
    ("first", "largest"), [(8, 200), (200, 200), (4096, 200), (1000, 1000), (16, 8)]
)
def test_largest_batch_takes_few_compilations(first, largest):
    """Memory grows slightly faster than linearly."""
    asked = []

    def bytes_of(batch):
        asked.append(batch)
        return need(batch) <= limit, need(batch)

    def need(batch):
        return 10**9 + batch * 10**7 + batch**2 * 1000

    limit = need(largest) + 1000
    found = estimate.largest_batch(
        bytes_of, first=first, unit=8, constant=10**9, limit=limit
    )
    assert found == largest
    assert len(asked) <= 6
    assert len(set(asked)) == len(asked)


def test_largest_batch_is_0_if_none_fits():
    found = estimate.largest_batch(
        lambda batch: (False, 10**10),
        first=256,
        unit=8,
        constant=10**10,
        limit=10**9,
    )
    assert found == 0


@pytest.mark.parametrize(
    ("message", "size"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
            "for HLO temporaries (512.00G) exceeds available HBM (15.75G).",
            512 * GIB,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of "
            "15.75G hbm. Exceeded hbm capacity by 4.75G.\n\nTotal hbm usage >= 99.0G",
            20.5 * GIB,
        ),
        ("RESOURCE_EXHAUSTED: no more", 0),
    ],
)
def test_needed_bytes_in_the_compiler_message(message, size):
    assert estimate.needed_bytes(message) == size


def memory(parameters, temporaries):
    return estimate.Memory(
        fits=False,
        available=16 * GIB,
        total=3 * parameters + temporaries,
        parameters=parameters,
        optimizer=2 * parameters,
        batch=0,
        temporaries=temporaries,
        program=0,
    )


def test_advice_shards_a_large_state_and_recomputes_large_activations():
    config, of = schema.Pretrain(), accelerator("v5e-8")
    large = estimate.advice(config, of, memory(4 * GIB, GIB))
    assert large[0].startswith("--config.mesh.fsdp=8")
    small = estimate.advice(config, of, memory(GIB // 8, 20 * GIB))
    assert small[0].startswith("--config.model.remat=full")
    assert "--search" in small[-1]
    model = dataclasses.replace(config.model, remat="full")
    config = dataclasses.replace(config, model=model)
    assert estimate.advice(config, of, memory(GIB // 8, 20 * GIB))[0].startswith(
        "--config.optim.accumulation=2"
    )


def rates_and_classes(learner):
    """Return learning rates, which depend on the number of examples, and classes."""
    params = jax.eval_shape(learner.init, jax.random.key(0))
    schedule, _ = learner.optimizer(params)
    steps = (1, 10, 1000, 12_500, 31_250)
    return [float(schedule(step, 1.0)) for step in steps], params["head"]["bias"].size


@pytest.mark.parametrize("num_labels", [0, 100])
def test_missing_data_set_is_assumed_to_be_imagenet(num_labels, tmp_path):
    fields = common.finetune("vit_small")
    fields.data.dataset = str(tmp_path / "missing")
    fields.data.num_labels = num_labels
    config = schema.parse(fields)
    found, assumptions = estimate.learner_of(config)
    assert "1,281,167 images of 1,000 classes" in assumptions[0]
    expected = learner(config, num_labels or 1_281_167, 1000)
    assert rates_and_classes(found) == rates_and_classes(expected)


def test_existing_data_set_needs_no_assumptions():
    fields = common.finetune("vit_small")
    fields.data.dataset = "bundled:fashion_mnist_10k"
    config = schema.parse(fields)
    found, assumptions = estimate.learner_of(config)
    assert not assumptions
    expected = rates_and_classes(learner(config, 8000, 10))
    assert rates_and_classes(found) == expected
    assert expected != rates_and_classes(learner(config, 1_281_167, 10))
