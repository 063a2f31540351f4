"""A stage of a cascade: one network, an ensemble of experts, and how to sample from them.

    keys ─▶ noise ─▶ sampler(denoise, sigmas) ─▶ x0 in [-1, 1]
    denoise = threshold ∘ guide ∘ switch(experts) ∘ precondition(network)

Everything that image k depends on comes from keys[k] and row k of the arguments, so an image does not
depend on which others are in its batch. Its key gives three: `fold_in(key, 0)` draws the initial
noise, `fold_in(key, 1)` the noise added to the low-resolution image, `fold_in(key, 2)` goes to the sampler.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from ediffi_jax import conditioning, experts, guidance, models, samplers
from ediffi_jax.conditioning import Conditioning
from ediffi_jax.denoiser import DenoiseFn, precondition
from ediffi_jax.errors import UserError, nearest
from ediffi_jax.listening import Reports
from ediffi_jax.paint import PaintError, Painting
from ediffi_jax.release import SamplerSpec, StageSpec

THRESHOLDS: Mapping[str, Callable[[DenoiseFn], DenoiseFn]] = {
    "static": guidance.static_threshold,
    "dynamic": guidance.dynamic_threshold,
}
TEXT = ("clip_text", "t5")
OUTPUT = "conv_out"  # the networks' last layer, which is float32 in every compute dtype
INITIAL_NOISE, LOW_RES_NOISE, SAMPLER_NOISE = range(3)

# callback(stage, step, sigma, expert, x0): x0 is a host array [B, R, R, 3] in about [-1, 1].
Callback = Callable[[str, int, float, int, np.ndarray], None]


class CascadeError(UserError):
    """A request that a cascade cannot fulfil: prompts, numbers, a sampler, a style image, or its stages."""


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """Network + ensemble + parameters + sampling defaults.

    Attributes:
        spec: what the stage is.
        params: float32 parameters, leaves [E, ...] with the expert axis first; host arrays stay on the host. On the
            devices lies what the network computes with, `at_compute_dtype`.
        compute_dtype: "float32" or "bfloat16", of the network's inner arithmetic.
        devices: `sample` divides the batch over these, over CPU devices as far as it divides; parameters are on each
            accelerator, or on the first CPU device. Empty leaves everything where it is, which is what a stage inside
            somebody else's compiled function wants.
    """

    spec: StageSpec
    params: PyTree
    compute_dtype: str = "float32"
    devices: tuple[jax.Device, ...] = ()

    @functools.cached_property
    def network(self) -> nn.Module:
        """The network that all experts share."""
        return models.build({**self.spec.model, "dtype": self.compute_dtype})

    @functools.cached_property
    def _experts(self) -> tuple[PyTree, ...]:
        """Each expert's parameters by themselves, on the devices: a slice of the stack would be copied at each use."""
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(self.params))
        # What is kept must be arrays, also when first asked for inside somebody else's `jax.jit`.
        with contextlib.nullcontext() if traced else jax.ensure_compile_time_eval():
            return tuple(_place(self.at_compute_dtype(one), self.home) for one in experts.unstack(self.params))

    @functools.cached_property
    def home(self) -> tuple[jax.Device, ...]:
        """Where parameters stay: copies for further cores, which share one memory, are made for a batch."""
        return self.devices[:1] if self.devices and self.devices[0].platform == "cpu" else self.devices

    def places(self, batch: int) -> tuple[jax.Device, ...]:
        """The devices that a batch of this size is divided over: all or one; of CPU devices as many as divide it."""
        count = math.gcd(batch, len(self.devices))
        return self.devices[: 1 if len(self.home) == len(self.devices) != count else count]

    def at_compute_dtype(self, params: PyTree) -> PyTree:
        """Parameters with those of products and convolutions in the compute dtype, which they are converted to anyway.

        Left in float32, each expert's would be converted before the sampling loop and kept beside it: in bfloat16 a
        copy of half the size for every expert.
        """

        def narrow(path: tuple, leaf: Any) -> Any:
            names = [getattr(key, "key", "") for key in path]
            inner = names[-1] == "kernel" and OUTPUT not in names
            if not inner or self.compute_dtype == "float32":
                return leaf
            if isinstance(leaf, jax.ShapeDtypeStruct):
                return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(self.compute_dtype), sharding=leaf.sharding)
            return leaf.astype(jnp.dtype(self.compute_dtype))

        return jax.tree_util.tree_map_with_path(narrow, params)

    @functools.cached_property
    def ensemble(self) -> experts.Ensemble:
        """Which expert denoises which noise levels."""
        return self.spec.ensemble

    def denoise_fn(
        self,
        conditioning: Conditioning,
        guidance: float | Float[Array, ""] = 0.0,
        null: Conditioning | None = None,
        low_res: Float[Array, "b h w 3"] | None = None,
        aug_level: float | Float[Array, "b"] | None = None,
        threshold: str | None = None,
        interval: tuple[float, float] | None = None,
        paint: Painting | None = None,
        style_weight: float | Float[Array, ""] | Float[Array, "b"] | None = None,
    ) -> DenoiseFn:
        """The denoiser that samplers see, `denoise(x [B, R, R, 3], sigma scalar) -> x0`.

        Args:
            conditioning: rows [B, ...].
            guidance: weight w of D_c + w (D_c - D_0); 0 is no guidance, and then one pass per call.
            null: what D_0 is conditioned on; default nothing, or give a negative prompt.
            low_res: images in [-1, 1] to start from, noise already added (`add_noise`). Needed, and
                only allowed, in a super-resolution stage.
            aug_level: standard deviation of that noise; default the stage's.
            threshold: "static", "dynamic" or None.
            interval: (low, high) range of sigma in which guidance acts; default all.
            paint: painted phrases, rows [B, ...]; acts in the conditional passes only.
            style_weight: s of D_ts + w (D_t - D_0) + s (D_ts - D_t), `guidance.text_and_style`; None guides by
                text and style image together, with the weight w.

        Raises:
            CascadeError: low_res missing or out of place, unknown threshold.
            PaintError: paint that does not fit the conditioning, or a stage without cross-attention.
        """
        inputs = self._inputs(conditioning, null, guidance, low_res, aug_level, paint, style_weight)
        guided = not isinstance(guidance, (int, float)) or guidance != 0.0
        return self._denoise(self._experts, inputs, guided=guided, threshold=threshold, interval=interval)

    def sample(
        self,
        conditioning: Conditioning,
        keys: Array,
        *,
        low_res: Float[Array, "b h w 3"] | None = None,
        null: Conditioning | None = None,
        settings: SamplerSpec | None = None,
        aug_level: float | None = None,
        paint: Painting | None = None,
        style_weight: float | None = None,
        callback: Callback | None = None,
    ) -> Float[Array, "b r r 3"]:
        """Images in [-1, 1], one per key. Compiled once per batch size and kind of settings.

        Args:
            conditioning: rows [B, ...].
            keys: [B] PRNG keys (`jax.random.key`), one per image.
            low_res: clean images in [-1, 1] of a lower stage; this adds the noise of `aug_level`.
            null: what guidance leads away from; default nothing.
            settings: sampler, steps, grid, guidance; default the stage's.
            aug_level: standard deviation of the noise added to low_res; default the stage's.
            paint: painted phrases, rows [B, ...]; without, the program is the unpainted one.
            style_weight: of guidance by the style image, as in `denoise_fn`; without, the program is the usual one.
            callback: called after each step; costs a fresh compilation in each process, and runs on one device. What
                it raises stops the sampling and is raised here.

        Raises:
            CascadeError, SamplerError, PaintError: settings that cannot be, low_res or paint missing or out of place.
        """
        settings = settings or self.spec.sampler
        null = null if settings.guidance != 0.0 else None
        inputs = self._inputs(conditioning, null, settings.guidance, low_res, aug_level, paint, style_weight)
        places = self.places(1 if callback is not None else keys.shape[0])
        weight = inputs.pop("weight")
        with self._reports.to(None if callback is None else functools.partial(self._tell, callback)):
            return self._program(
                self._experts if places == self.home else _place(self._experts, places),
                _place(weight, places),
                _place(inputs, places, PartitionSpec("batch")),
                _place(keys, places, PartitionSpec("batch")),
                noise_grid(settings),
                **_static(settings),
                observed=callback is not None,
            )

    def trace(
        self,
        conditioning: Conditioning,
        keys: jax.ShapeDtypeStruct,
        *,
        low_res: jax.ShapeDtypeStruct | None = None,
        settings: SamplerSpec | None = None,
    ) -> jax.stages.Traced:
        """The program of `sample` traced for shapes, to be lowered and compiled for devices that nobody has.

        Args:
            conditioning, keys, low_res: as in `sample`, with `jax.ShapeDtypeStruct` leaves; all rows lie where `keys`
                do. So are the stage's parameters, each expert's lying where its stack does.
            settings: sampler, steps, grid, guidance; default the stage's.

        Raises:
            CascadeError, SamplerError: as `sample`.
        """
        settings = settings or self.spec.sampler

        def inputs(cond: Conditioning, low_res: Array | None) -> dict[str, Any]:
            return self._inputs(cond, None, settings.guidance, low_res, None)

        def lay(leaf: Any, shape: tuple[int, ...], like: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=like.sharding)

        rows = jax.eval_shape(inputs, conditioning, low_res)
        weight = rows.pop("weight")
        one = self.at_compute_dtype(jax.tree.map(lambda leaf: lay(leaf, leaf.shape[1:], leaf), self.params))
        placed = jax.tree.map(lambda leaf: lay(leaf, leaf.shape, keys), rows)
        params = (one,) * self.ensemble.num_experts
        return self._program.trace(
            params, weight, placed, keys, noise_grid(settings), **_static(settings), observed=False
        )  # fmt: skip

    def _inputs(
        self,
        cond: Conditioning,
        null: Conditioning | None,
        weight: float | Array,
        low_res: Array | None,
        aug_level: float | Array | None,
        paint: Painting | None = None,
        style_weight: float | Array | None = None,
    ) -> dict[str, Any]:
        """What the denoiser depends on besides parameters, with every default filled in."""
        size, batch = self.spec.low_resolution, jax.tree.leaves(cond)[0].shape[0]
        if (low_res is not None) != bool(size):
            needs = f"needs low_res images of {size}x{size}" if size else "is a base stage and takes no low_res"
            raise CascadeError(f"stage {self.spec.name!r} {needs}")
        if low_res is not None and tuple(low_res.shape) != (batch, size, size, 3):
            raise CascadeError(f"low_res has shape {tuple(low_res.shape)}; expected {(batch, size, size, 3)}")
        if paint is not None:
            self._check_paint(paint, cond)
        level = self.spec.aug_level if aug_level is None else aug_level
        return {
            "cond": cond,
            "null": conditioning.null_like(cond) if null is None else null,
            "weight": jnp.asarray(weight, jnp.float32),
            "low_res": low_res,
            "aug_level": _per_image(level, batch) if size else None,
            "paint": paint,
            "style_weight": None if style_weight is None else _per_image(style_weight, batch),
        }

    def _check_paint(self, paint: Painting, cond: Conditioning) -> None:
        if not self.has_cross_attention:
            raise PaintError(f"stage {self.spec.name!r} has no cross-attention, which painting acts through")
        batch, tokens = cond.t5.shape[0], cond.clip_text.shape[1] + cond.t5.shape[1] + 2
        shapes = jnp.shape(paint.masks), jnp.shape(paint.weight)
        if len(shapes[0]) != 4 or (shapes[0][0], shapes[0][3], *shapes[1]) != (batch, tokens, batch):
            expected = f"[{batch}, h, w, {tokens}] and [{batch}]"
            raise PaintError(f"paint has masks {list(shapes[0])} and weight {list(shapes[1])}; expected {expected}")

    @property
    def has_cross_attention(self) -> bool:
        """Whether the network attends to words at all, and so can be painted."""
        return bool(self.network.cross_attention_resolutions)

    def _denoise(
        self,
        params: PyTree,
        inputs: Mapping[str, Any],
        *,
        guided: bool,
        threshold: str | None,
        interval: tuple[float, float] | None,
    ) -> DenoiseFn:
        """threshold ∘ guide ∘ switch(experts) ∘ precondition(network), a function of traced arguments only."""
        if threshold is not None and threshold not in THRESHOLDS:
            raise CascadeError(f"unknown threshold {threshold!r}{nearest(str(threshold), THRESHOLDS)}")
        # What belongs to an image travels with its condition: guidance doubles all of it.
        images = {name: inputs[name] for name in ("low_res", "aug_level", "paint") if inputs[name] is not None}

        def denoise_of(rows: tuple[Conditioning, Mapping[str, Any]]) -> DenoiseFn:
            cond, extra = rows

            def expert(expert_params: PyTree) -> DenoiseFn:
                def network(x: Array, c_noise: Array) -> Array:
                    return self._apply(expert_params, x, c_noise, cond, extra)

                return precondition(network, self.spec.sigma_data)

            return experts.switch(expert, params, self.ensemble)

        given = (inputs["cond"], images)
        span = (0.0, float("inf")) if interval is None else interval
        null = (inputs["null"], {**images, "paint": images["paint"].unpainted()} if "paint" in images else images)
        weight, style_weight = inputs["weight"] if guided else 0.0, inputs["style_weight"]
        if style_weight is None:
            denoise = guidance.classifier_free(denoise_of, given, null, weight, span)
        else:
            text = (conditioning.select(inputs["cond"], TEXT), images)
            denoise = guidance.text_and_style(denoise_of, given, text, null, weight, style_weight, span)
        return denoise if threshold is None else THRESHOLDS[threshold](denoise)

    @functools.cached_property
    def _apply(self) -> Callable[..., Array]:
        """The network as a function of its own, so that it is traced once and not once per expert."""

        def apply(params: PyTree, x: Array, c_noise: Array, cond: Conditioning, extra: Mapping[str, Any]) -> Array:
            if "paint" in extra:
                extra = {**extra, "paint": extra["paint"].at(c_noise)}
            return self.network.apply({"params": params}, x, c_noise, cond, **extra)

        return jax.jit(apply)

    @functools.cached_property
    def _program(self) -> Callable[..., Array]:
        """The whole sampling loop as one compiled program. Parameters are arguments, never constants."""

        def run(
            params: PyTree, weight: Array, rows: Mapping[str, Any], keys: Array, sigmas: Array,
            *, sampler: samplers.Sampler, observed: bool, **how: Any,
        ) -> Array:  # fmt: skip
            size, inputs = self.spec.resolution, {**rows, "weight": weight}
            if inputs["low_res"] is not None:
                noisy = add_noise(inputs["low_res"], _fold(keys, LOW_RES_NOISE), inputs["aug_level"])
                inputs = {**inputs, "low_res": noisy}
            noise = samplers.initial_noise(_fold(keys, INITIAL_NOISE), (size, size, 3))
            denoise = self._denoise(params, inputs, **how)
            observer = {"callback": self._reports} if observed else {}
            return jnp.clip(sampler(denoise, noise, sigmas, _fold(keys, SAMPLER_NOISE), **observer), -1.0, 1.0)

        return jax.jit(run, static_argnames=("sampler", "guided", "threshold", "interval", "observed"))

    @functools.cached_property
    def _reports(self) -> Reports:
        """What the compiled program reports to."""
        return Reports()

    def _tell(self, callback: Callback, step: Any, sigma: Any, x0: Any) -> None:
        expert = int(np.searchsorted(np.asarray(self.ensemble.cut_sigmas, np.float32), np.float32(sigma), side="right"))
        callback(self.spec.name, int(step), float(sigma), expert, np.asarray(x0))


def _place(tree: PyTree, devices: tuple[jax.Device, ...], spec: PartitionSpec = PartitionSpec()) -> PyTree:
    """Lays arrays over devices by `spec`; over none, leaves them where they are."""
    if len(devices) < 2:
        return jax.device_put(tree, devices[0]) if devices else tree
    mesh = jax.make_mesh((len(devices),), ("batch",), axis_types=(AxisType.Auto,), devices=devices)
    return jax.device_put(tree, NamedSharding(mesh, spec))


def _static(settings: SamplerSpec) -> dict[str, Any]:
    """What of the settings a compiled program is made for."""
    return {
        "sampler": samplers.get(settings.name),
        "guided": settings.guidance != 0.0,
        "threshold": settings.threshold,
        "interval": settings.interval,
    }


def noise_grid(settings: SamplerSpec) -> Float[np.ndarray, "n"]:
    """The sigmas a sampler walks down: DEIS on the power grid, which ends at sigma_min; others on Karras', at 0."""
    ends = {"sigma_min": settings.sigma_min, "sigma_max": settings.sigma_max}
    if settings.name.startswith("deis"):
        return samplers.power(settings.steps, exponent=settings.exponent, **ends)
    return samplers.karras(settings.steps, rho=settings.exponent, **ends)


def add_noise(images: Float[Array, "b h w c"], keys: Array, level: Float[Array, "b"]) -> Float[Array, "b h w c"]:
    """Noise-conditioning augmentation: images + level * unit normal, drawn from each image's own key."""
    return images + level[:, None, None, None] * samplers.initial_noise(keys, images.shape[1:])


@functools.partial(jax.jit, static_argnames="stage_index")
def image_keys(seed: Array, indices: Array, *, stage_index: int) -> Array:
    """[B] keys: fold_in(fold_in(key(seed), stage_index), image_index), for indices [B]."""
    stage_key = jax.random.fold_in(jax.random.key(seed), stage_index)
    return jax.vmap(functools.partial(jax.random.fold_in, stage_key))(indices)


def _per_image(value: float | Array, batch: int) -> Float[Array, "b"]:
    return jnp.broadcast_to(jnp.asarray(value, jnp.float32), (batch,))


def _fold(keys: Array, what: int) -> Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, what))(keys)
