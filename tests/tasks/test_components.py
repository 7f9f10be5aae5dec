"""Principal components, beside scikit-learn."""

import numpy as np
import pytest
import sklearn.decomposition

from simmim_jax.tasks import components


def test_components_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(200, 3)) * [5, 2, 1]) @ rng.normal(size=(3, 6)) + 7
    found = components.fit(vectors, 2)
    expected = sklearn.decomposition.PCA(2).fit(vectors)  # scikit-learn 1.7
    np.testing.assert_allclose(found.shares, expected.explained_variance_ratio_)
    for mine, theirs in zip(found.directions, expected.components_, strict=True):
        assert abs(mine @ theirs) == pytest.approx(1)
        assert mine[np.abs(mine).argmax()] > 0
    places = np.abs(found.project(vectors))
    np.testing.assert_allclose(places, np.abs(expected.transform(vectors)), atol=1e-9)


def test_a_colour_means_the_same_in_all_images():
    maps = np.zeros((2, 4, 4, 5))
    maps[0, :2], maps[1, 1:3] = [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]
    levels, shares = components.colours(maps)
    assert levels.shape == (2, 4, 4, 3)
    assert levels.dtype == np.uint8
    first = levels[0, 0, 0]
    assert (levels[0, :2] == first).all()
    assert (levels[1, 1:3] == first).all()
    assert (levels[1, 3] == levels[0, 3]).all()
    assert first[0] == 255
    assert levels[0, 3, 0, 0] == 0
    assert shares[0] == pytest.approx(1)


def test_features_that_do_not_vary_have_a_colour():
    levels, shares = components.colours(np.ones((1, 2, 2, 2)))
    assert not levels.any()
    assert shares.tolist() == [0, 0]
