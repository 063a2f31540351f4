"""Experts: one network, several sets of parameters, each for an interval of noise levels (eDiff-I, Sec. 4).

    Ensemble(cuts=(1/8, 511/512))      0 ── low ── 1/8 ── middle ── 511/512 ── high ── 1     mass of p(sigma)
    route(sigma) = #{cuts c : quantile(c) <= sigma}                an expert owns its lower edge
    branch(stacked, parents)[i] = stacked[parents[i]]              parameters, EMA and moments alike

The parameters of an ensemble are one pytree whose every leaf has a leading expert axis, low noise first.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ediffi_jax.denoiser import DenoiseFn
from ediffi_jax.errors import UserError
from ediffi_jax.noise import Interval, LogNormal
from ediffi_jax.types import Images, Params, Scalar, Sigmas


class ExpertError(UserError):
    """Cuts that are no partition of [0, 1], parents that do not exist, parameters that do not fit the ensemble."""


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """A partition of p(sigma) among experts, low noise first.

    Attributes:
        cuts: masses between neighbouring experts, increasing, inside (0, 1); none is a single model.
        noise: p(sigma), which gives the cuts their sigmas.

    Raises:
        ExpertError: cuts out of order, outside (0, 1), or too close to differ in float32.
    """

    cuts: tuple[float, ...] = ()
    noise: LogNormal = LogNormal()

    def __post_init__(self) -> None:
        object.__setattr__(self, "cuts", tuple(float(cut) for cut in self.cuts))
        if not all(0.0 < cut < 1.0 for cut in self.cuts):
            raise ExpertError(f"cuts are {self.cuts}; expected numbers inside (0, 1), such as (0.125, 0.75)")
        if list(self.cuts) != sorted(set(self.cuts)):
            raise ExpertError(f"cuts are {self.cuts}; expected increasing numbers: {tuple(sorted(set(self.cuts)))}")
        if np.any(np.diff(self.edges()) <= 0):
            raise ExpertError(f"cuts {self.cuts} have sigmas {self.cut_sigmas}, equal in float32; expected wider apart")

    @property
    def num_experts(self) -> int:
        """How many intervals the cuts make."""
        return len(self.cuts) + 1

    @property
    def intervals(self) -> tuple[Interval, ...]:
        """The interval of mass of each expert."""
        masses = (0.0, *self.cuts, 1.0)
        return tuple(Interval(low, high) for low, high in itertools.pairwise(masses))

    @property
    def cut_sigmas(self) -> tuple[float, ...]:
        """The cuts as noise levels: float32 numbers, the only ones that training, sampling and plots compare with."""
        return tuple(float(self.noise.edge(cut)) for cut in self.cuts)

    def edges(self) -> Float[np.ndarray, "experts+1"]:
        """The ends of the experts' intervals as sigmas, float32: 0, the cuts, infinity."""
        return np.array([0.0, *self.cut_sigmas, np.inf], np.float32)

    def route(self, sigma: float | Float[Array, "*shape"]) -> Int[Array, "*shape"]:
        """The expert of each noise level, int32: the number of cuts at or below it. Exact at float32 neighbours."""
        return jnp.sum(jnp.asarray(sigma)[..., None] >= self.edges()[1:-1], axis=-1, dtype=jnp.int32)


def node(level: int, index: int) -> Interval:
    """The paper's node E^level_index: one of 2^level intervals of equal mass, index 0 the least noise (Sec. 4.1).

    Raises:
        ExpertError: there is no such node.
    """
    if level < 0 or not 0 <= index < 2**level:
        raise ExpertError(f"no node ({level}, {index}); expected level >= 0 and 0 <= index < 2^level")
    return Interval(index / 2**level, (index + 1) / 2**level)


def stack(experts: Sequence[Params]) -> Params:
    """One pytree with a leading expert axis, from one pytree per expert."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *experts)


def take(stacked: Params, i: int) -> Params:
    """Expert i alone, without the expert axis; i is a Python number, so the slice is static."""
    return jax.tree.map(lambda leaf: leaf[i], stacked)


def unstack(stacked: Params) -> tuple[Params, ...]:
    """One pytree per expert, low noise first: the layout `switch` reads without copying. Do it once, outside `jit`."""
    return tuple(take(stacked, i) for i in range(_count(stacked)))


def branch(stacked: Params, parents: Sequence[int]) -> Params:
    """Expert i of the result is a copy of expert parents[i]: a gather over the leading axis of every leaf.

    Raises:
        ExpertError: a parent out of range (a gather would silently take the nearest).
    """
    _check_parents(parents, _count(stacked))
    rows = np.array(parents, np.int32)
    return jax.tree.map(lambda leaf: leaf[rows], stacked)


def switch(
    denoise_of: Callable[[Params], DenoiseFn], params: Params | tuple[Params, ...], ensemble: Ensemble
) -> DenoiseFn:
    """The denoiser of an ensemble: at each call, the network of the expert that owns sigma, and no other.

    `lax.switch` with the whole network inside each branch. One expert needs no switch. Give a compiled program
    `unstack(stacked)`: each expert is then a buffer of its own. Slices of a stack are copied at each
    call by XLA:CPU, as is what a dynamic index gives (benchmarks/expert_switch.py compares them).

    Args:
        denoise_of: one expert's parameters -> its denoiser.
        params: a tuple of E pytrees (`unstack`), or one pytree with leaves [E, ...].
        ensemble: who owns which sigma; E experts.

    Raises:
        ExpertError: the parameters are of another number of experts; when called, sigma is not a scalar.
    """
    count, expected = len(params) if isinstance(params, tuple) else _count(params), ensemble.num_experts
    if count != expected:
        raise ExpertError(f"parameters of {count} experts; expected {expected}, cuts {ensemble.cuts}")

    def expert(i: int, x: Images, sigma: Scalar) -> Images:
        mine = params[i] if isinstance(params, tuple) else take(params, i)
        return denoise_of(mine)(x, sigma)

    branches = [functools.partial(expert, i) for i in range(count)]

    def denoise(x: Images, sigma: float | Scalar | Sigmas) -> Images:
        if count == 1:
            return branches[0](x, sigma)
        if jnp.ndim(sigma) != 0:
            raise ExpertError(f"sigma has shape {jnp.shape(sigma)}; expected a scalar, one expert denoises the batch")
        return jax.lax.switch(ensemble.route(sigma), branches, x, jnp.asarray(sigma, x.dtype))

    return denoise


def _count(stacked: Params) -> int:
    counts = {jnp.shape(leaf)[0] for leaf in jax.tree.leaves(stacked)}
    if len(counts) != 1:
        raise ExpertError(f"leaves have {sorted(counts)} experts; expected one number for all")
    return counts.pop()


def _check_parents(parents: Sequence[int], count: int) -> None:
    for parent in parents:
        if not 0 <= parent < count:
            raise ExpertError(f"parents are {tuple(parents)}, but {parent} does not exist; expected 0 to {count - 1}")
