"""Views of images: what config.data says reaches the decoder."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from simmim_jax.config import schema
from simmim_jax.data.codecs.base import BadImage
from simmim_jax.tasks.views import eval_view, train_view
from tests.images import encoded


@pytest.mark.parametrize("view_of", [train_view, eval_view])
@pytest.mark.parametrize("crop_scale", [(0.5, 1.0), ()])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "array"])
def test_views_decode_up_to_the_limit_of_the_config(view_of, crop_scale, kind):
    pixels = Image.new("RGB", (50, 40))
    image = np.asarray(pixels) if kind == "array" else encoded(pixels, kind)
    example, rng = {"image": image, "label": 0}, np.random.default_rng(0)
    data = schema.Data(dtype="uint8", image_size=(16, 16), crop_scale=crop_scale)
    fits, over = (
        view_of(dataclasses.replace(data, max_image_pixels=limit))
        for limit in (2000, 1999)
    )
    assert fits(example, rng)["image"].shape == (16, 16, 3)
    with pytest.raises(BadImage, match="max_image_pixels=1,999") as raised:
        over(example, rng)
    assert raised.value.reason == "too large"
