"""Augmentation: what a batch becomes, keys, and that clients' batching leaves it be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fljax.data import augment
from fljax.engine import client
from fljax.engine.program import single
from tests import conftest
from tests.engine import test_cohort

IMAGES = jnp.arange(1, 64 * 12 * 10 * 2 + 1, dtype=jnp.float32).reshape(64, 12, 10, 2)


def test_each_image_is_a_shifted_and_perhaps_mirrored_copy():
    out = np.asarray(augment.crop_flip(jax.random.key(0), IMAGES))
    assert out.shape == IMAGES.shape
    assert out.dtype == np.float32
    padded = np.pad(IMAGES, ((0, 0), (4, 4), (4, 4), (0, 0)))
    seen = set()
    for image, got in zip(padded, out, strict=True):
        found = [
            (down, right, mirrored)
            for down in range(9)
            for right in range(9)
            for mirrored in (False, True)
            if np.array_equal(
                image[down : down + 12, right : right + 10][
                    :, :: -1 if mirrored else 1
                ],
                got,
            )
        ]
        assert len(found) == 1
        seen.update(found)
    assert len(seen) > 40  # of 162, in 64 draws
    assert 16 < sum(mirrored for *_, mirrored in seen) < 48


def test_the_key_decides():
    one, again, other = (
        augment.crop_flip(jax.random.key(seed), IMAGES) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert np.any(one != other)


def _train(problem, augmented):
    training = problem.training._replace(augment=augmented)
    return conftest.train_one(
        problem.blocks,
        problem.data,
        *conftest.shard(problem.shards, 0),
        jax.random.key(3),
        0.1,
        net=problem.net,
        plan=conftest.LATE,
        training=training,
    )


def _once(key, x):
    """Moves nothing: what is left is that a function was called at all."""
    del key
    return x


def test_it_is_off_by_default_and_then_changes_nothing(problem):
    assert client.Training().augment is None
    plain = _train(problem, None)
    conftest.assert_same_bits(plain, _train(problem, _once))
    assert float(plain.loss) != float(_train(problem, augment.crop_flip).loss)


def test_it_does_not_depend_on_the_width_of_a_chunk(problem):
    training = problem.training._replace(augment=augment.crop_flip)
    one, three = (
        test_cohort.run(
            problem, conftest.LATE, [0, 1, 4], training=training, width=width
        )
        for width in (1, 3)
    )
    conftest.assert_close(one, three)


def test_padding_repeats_the_augmented_first_example(problem):
    seen = []

    def noise(key, x):
        return x + jax.random.normal(key, x.shape)

    def loss(net, spec, plan, blocks, batch):
        jax.debug.callback(lambda x, mask: seen.append((x, mask)), batch.x, batch.mask)
        return step(net, spec, plan, blocks, batch)

    step = single.gradient_step
    training = problem.training._replace(augment=noise, local_epochs=1)
    static = client.Static(problem.net, single.Single(conftest.LATE), training)
    frozen = client.freeze(static, problem.blocks, None)
    start = client.Start(problem.blocks, frozen, problem.data, jnp.float32(0.1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(single, "gradient_step", loss)
        indices = conftest.shard(problem.shards, 0)[0]
        one = client.Client(indices, jnp.int32(6), jax.random.key(3))
        client.train(static, start, one)
        jax.effects_barrier()
    (whole, _), (padded, mask) = sorted(seen, key=lambda s: -s[1].sum())
    assert mask.tolist() == [1, 1, 0, 0]
    # Lanes of a vector and what is left of one may draw with other last bits.
    np.testing.assert_allclose(padded[2:], np.stack([padded[0]] * 2), atol=1e-6)
    assert np.any(whole[2:] != whole[0])
    assert np.any(padded[1] != padded[0])
