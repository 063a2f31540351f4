"""Inception-v3 up to its last pooling, as FID has always used it: 2048 features of a picture.

The weights are those TensorFlow published on 2015-12-05, which pytorch-fid and torch-fidelity carry as state dicts
(`inception_files` reads them). That network is not torchvision's: its average pools do not count the padding, and its
last block pools by maximum. Submodules carry the published tensors' names. Heusel et al. 2017; Szegedy et al. 2016.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

SIZE, WIDTH = 299, 2048
_EPSILON = 1e-3  # of batch normalisation

Maps = Float[Array, "b h w c"]


class Unit(nn.Module):
    """Convolution without bias, batch normalisation by stored statistics, ReLU."""

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        """Float32, also where the hardware would rather multiply in less: FID is read to its second decimal."""
        strides = (self.stride, self.stride)
        conv = nn.Conv(
            self.features, self.kernel, strides, self.padding, use_bias=False, name="conv",
            precision=jax.lax.Precision.HIGHEST,
        )  # fmt: skip
        norm = nn.BatchNorm(use_running_average=True, epsilon=_EPSILON, name="bn")
        return nn.relu(norm(conv(x)))


def _mean_pool(x: Maps) -> Maps:
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def _max_pool(x: Maps) -> Maps:
    return nn.max_pool(x, (3, 3), padding="SAME")


def _halve(x: Maps) -> Maps:
    return nn.max_pool(x, (3, 3), (2, 2))


class MixedA(nn.Module):
    """35x35: 1x1, 5x5, two 3x3, and a pool."""

    pool_features: int

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        five = Unit(64, (5, 5), name="branch5x5_2")(Unit(48, name="branch5x5_1")(x))
        three = Unit(96, (3, 3), name="branch3x3dbl_2")(Unit(64, name="branch3x3dbl_1")(x))
        three = Unit(96, (3, 3), name="branch3x3dbl_3")(three)
        pool = Unit(self.pool_features, name="branch_pool")(_mean_pool(x))
        return jnp.concatenate([Unit(64, name="branch1x1")(x), five, three, pool], axis=-1)


class MixedB(nn.Module):
    """35x35 to 17x17."""

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        one = Unit(384, (3, 3), 2, "VALID", name="branch3x3")(x)
        two = Unit(96, (3, 3), name="branch3x3dbl_2")(Unit(64, name="branch3x3dbl_1")(x))
        two = Unit(96, (3, 3), 2, "VALID", name="branch3x3dbl_3")(two)
        return jnp.concatenate([one, two, _halve(x)], axis=-1)


class MixedC(nn.Module):
    """17x17: 7x7 as rows and columns, `width` channels inside."""

    width: int

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        c, row, column = self.width, (1, 7), (7, 1)
        one = Unit(c, row, name="branch7x7_2")(Unit(c, name="branch7x7_1")(x))
        one = Unit(192, column, name="branch7x7_3")(one)
        two = Unit(c, column, name="branch7x7dbl_2")(Unit(c, name="branch7x7dbl_1")(x))
        two = Unit(c, column, name="branch7x7dbl_4")(Unit(c, row, name="branch7x7dbl_3")(two))
        two = Unit(192, row, name="branch7x7dbl_5")(two)
        pool = Unit(192, name="branch_pool")(_mean_pool(x))
        return jnp.concatenate([Unit(192, name="branch1x1")(x), one, two, pool], axis=-1)


class MixedD(nn.Module):
    """17x17 to 8x8."""

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        one = Unit(320, (3, 3), 2, "VALID", name="branch3x3_2")(Unit(192, name="branch3x3_1")(x))
        two = Unit(192, (1, 7), name="branch7x7x3_2")(Unit(192, name="branch7x7x3_1")(x))
        two = Unit(192, (7, 1), name="branch7x7x3_3")(two)
        two = Unit(192, (3, 3), 2, "VALID", name="branch7x7x3_4")(two)
        return jnp.concatenate([one, two, _halve(x)], axis=-1)


class MixedE(nn.Module):
    """8x8: 3x3 as rows beside columns; the last block's pool takes maxima."""

    last: bool

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        row, column = (1, 3), (3, 1)
        one = Unit(384, name="branch3x3_1")(x)
        one = [Unit(384, row, name="branch3x3_2a")(one), Unit(384, column, name="branch3x3_2b")(one)]
        two = Unit(384, (3, 3), name="branch3x3dbl_2")(Unit(448, name="branch3x3dbl_1")(x))
        two = [Unit(384, row, name="branch3x3dbl_3a")(two), Unit(384, column, name="branch3x3dbl_3b")(two)]
        pool = Unit(192, name="branch_pool")((_max_pool if self.last else _mean_pool)(x))
        return jnp.concatenate([Unit(320, name="branch1x1")(x), *one, *two, pool], axis=-1)


class Inception(nn.Module):
    """Pictures to the features of the pooling named pool3."""

    @nn.compact
    def __call__(self, x: Maps) -> Float[Array, "b 2048"]:
        """Float32 features of pictures in [-1, 1], float32 [b, 299, 299, 3]."""
        x = Unit(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
        x = Unit(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = _halve(Unit(64, (3, 3), name="Conv2d_2b_3x3")(x))
        x = Unit(80, name="Conv2d_3b_1x1")(x)
        x = _halve(Unit(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x))
        for letter, pool_features in zip("bcd", (32, 64, 64)):
            x = MixedA(pool_features, name=f"Mixed_5{letter}")(x)
        x = MixedB(name="Mixed_6a")(x)
        for letter, width in zip("bcde", (128, 160, 160, 192)):
            x = MixedC(width, name=f"Mixed_6{letter}")(x)
        x = MixedD(name="Mixed_7a")(x)
        x = MixedE(False, name="Mixed_7b")(x)
        x = MixedE(True, name="Mixed_7c")(x)
        return x.mean(axis=(1, 2))
