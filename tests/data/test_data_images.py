"""Resizing and recoloring arrays of images."""

import numpy as np
import pytest

from fljax.data import images, load

pytest.importorskip("PIL")


def test_digits_at_32_in_color():
    plain = load.load("digits")
    data = load.load("digits", load.Options(image_size=32, image_mode="rgb"))
    assert data.x_train.shape == (1437, 32, 32, 3)
    assert data.x_train.dtype == np.uint8
    np.testing.assert_array_equal(data.x_test[..., 0], data.x_test[..., 2])
    # Bilinear: the mean over four by four pixels is about the pixel they come from.
    shrunk = data.x_train[..., 0].reshape(-1, 8, 4, 8, 4).mean((2, 4))
    assert np.corrcoef(shrunk.ravel(), plain.x_train.ravel())[0, 1] > 0.95


def test_a_mode_alone_keeps_the_size():
    x = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    grey = images.fit("x", {"x_train": x, "x_test": x[:1]}, mode="grey")
    assert grey["x_train"].shape == (2, 3, 4, 1)
    back = images.fit("x", grey, mode="rgb")
    assert back["x_test"].shape == (1, 3, 4, 3)
    assert images.fit("x", {"x_train": x})["x_train"] is x  # nothing is asked for


@pytest.mark.parametrize(
    "x", [np.zeros((2, 3, 4, 1), np.float32), np.zeros((2, 5), np.uint8)]
)
def test_what_is_no_image_is_refused(x):
    with pytest.raises(ValueError, match=r"set: --image_size .* to be uint8") as e:
        images.fit("set", {"x_train": x, "x_test": x}, 32)
    assert f"got {x.dtype}{list(x.shape)}" in str(e.value)
