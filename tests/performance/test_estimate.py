"""What is made of the compiler's answers; compiled for real in test_aot.py."""

import pytest
from simmim_jax.configs import common

from simmim_jax.performance import estimate
from simmim_jax.runtime.accelerators import accelerator

GIB = 2**30


@pytest.mark.parametrize(
    ("first", "largest"), [(8, 200), (200, 200), (4096, 200), (1000, 1000), (16, 8)]
)
def test_the_largest_batch_is_found_in_few_compilations(first, largest):
    """Bytes that grow a little faster than linearly."""
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


def test_where_nothing_fits_the_largest_batch_is_none():
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
def test_the_compiler_says_how_much_is_needed(message, size):
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
    config, of = common.pretrain(), accelerator("v5e-8")
    large = estimate.advice(config, of, memory(4 * GIB, GIB))
    assert large[0].startswith("--config.mesh.fsdp=8")
    small = estimate.advice(config, of, memory(GIB // 8, 20 * GIB))
    assert small[0].startswith("--config.model.remat=full")
    assert "--search" in small[-1]
    config.model.remat = "full"
    assert estimate.advice(config, of, memory(GIB // 8, 20 * GIB))[0].startswith(
        "--config.optim.accumulation=2"
    )


def test_a_data_set_that_is_not_here_is_taken_for_imagenet(tmp_path):
    config = common.finetune("vit_small")
    config.data.dataset = str(tmp_path / "missing")
    learner, assumptions = estimate.learner_of(config)
    assert learner.num_examples == 1281167
    assert "1,281,167 images of 1,000 classes" in assumptions[0]
    config.data.dataset = "bundled:climate"
    learner, assumptions = estimate.learner_of(config)
    assert not assumptions
    assert learner.num_examples < 10000
