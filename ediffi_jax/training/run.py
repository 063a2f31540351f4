"""What a run is made of before its first step: objective, held-out batches, and the state to start from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

from ediffi_jax import models, release
from ediffi_jax.compilation import compute_dtype
from ediffi_jax.conditioning import DropRates
from ediffi_jax.data import loader
from ediffi_jax.data.batches import Part
from ediffi_jax.errors import nearest
from ediffi_jax.noise import LogNormal
from ediffi_jax.training import checkpoint
from ediffi_jax.training.checkpoint import Position
from ediffi_jax.training.config import validate
from ediffi_jax.training.config_files import to_json
from ediffi_jax.training.errors import CheckpointError
from ediffi_jax.training.frozen import FrozenEncoders, encoder_params, open_encoders
from ediffi_jax.training.mesh import check_batch_size, local_part, make_mesh, state_shardings
from ediffi_jax.training.objective import Objective
from ediffi_jax.training.saving import Checkpoints
from ediffi_jax.training.schedule import Phase
from ediffi_jax.training.state import TrainState, branch, create, make_optimizer
from ediffi_jax.training.unconditional import Unconditional

INIT_KEY = 0xFFFFFFFF  # folded into the seed for parameters; steps are folded in from 0 upwards


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run's fixed parts.

    Attributes:
        config: as given.
        workdir: where everything is written.
        phases: the expert schedule.
        objective: one expert's loss.
        optimizer: of one expert's gradient.
        held_out: batches [1, B, ...] that are never trained on.
    """

    config: ConfigDict
    workdir: epath.Path
    phases: tuple[Phase, ...]
    objective: Objective
    optimizer: optax.GradientTransformation
    held_out: Sequence[Mapping[str, np.ndarray]]

    @classmethod
    def create(cls, config: ConfigDict, workdir: epath.Path) -> Run:
        """Builds everything that the config names. Raises UserError for what it names wrongly."""
        phases = validate(config)
        frozen_encoders = open_encoders(config)
        network = models.build({**to_json(config.model), "dtype": compute_dtype(config.compute_dtype)})
        objective = Objective(
            network=network,
            encoders=frozen_encoders,
            noise=LogNormal(**config.noise),
            sigma_data=config.sigma_data,
            drop=DropRates(**config.conditioning),
            max_level=config.aug.max_level,
        )
        # Whole ones in every process: evaluation and preview are the same program everywhere.
        batches = make_loader(config, frozen_encoders, split="test", num_experts=1).iterate()
        return cls(
            config=config,
            workdir=workdir,
            phases=phases,
            objective=objective,
            optimizer=make_optimizer(config.optimizer, sum(phase.steps for phase in phases)),
            held_out=[next(batches) for _ in range(max(1, config.eval_batches))],
        )

    def mesh(self, phase: Phase) -> Mesh:
        """The devices as one phase uses them. Raises TrainingError if they do not fit."""
        mesh = make_mesh(self.config.mesh, phase.num_experts)
        check_batch_size(mesh, self.config.batch_size, self.config.accumulate)
        return mesh

    def encoder_params(self, mesh: Mesh) -> PyTree:
        """The frozen encoders' weights on a phase's mesh, a part on each device; see `frozen.encoder_params`."""
        return encoder_params(self.config, mesh)

    def train_loader(self, phase: Phase) -> loader.Loader:
        """Training batches of a phase: the part of [E, B, ...] that is ours."""
        expert_part, image_part = local_part(self.mesh(phase))
        parts = {"expert_part": expert_part, "image_part": image_part}
        common = {"split": "train", "num_experts": phase.num_experts}
        return make_loader(self.config, self.objective.encoders, **common, **parts)

    def position(self, **changes: Any) -> Position:
        """The beginning of the run, with `changes`."""
        fields = {"step": 0, "images": 0, "phase": 0, "phase_step": 0, **changes}
        phase = self.phases[fields["phase"]]
        return Position(
            **fields,
            cuts=phase.cuts,
            expert_ids=phase.expert_ids,
            encoders=self.objective.encoders.fingerprint,
            config=to_json(self.config),
        )

    def fresh(self, key: Array, phase: Phase) -> TrainState:
        """An untrained state: all experts start alike."""
        example = {name: rows[0] for name, rows in self.held_out[0].items()}
        params = self.objective.init(key, example)
        stacked = jax.tree.map(lambda p: jnp.broadcast_to(p[None], (phase.num_experts, *p.shape)), params)
        return create(stacked, self.optimizer)

    def abstract(self, phase: Phase) -> TrainState:
        """The state's shapes, dtypes and shardings in a phase."""
        shapes = jax.eval_shape(lambda: self.fresh(jax.random.key(0), phase))
        shardings = state_shardings(self.mesh(phase), shapes)
        return jax.tree.map(lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes, shardings)

    def start(self, checkpoints: Checkpoints) -> tuple[TrainState, Position]:
        """The newest checkpoint's state, else a fresh one.

        Raises:
            CheckpointError: a checkpoint that does not fit the config.
        """
        restored = checkpoints.restore_newest(lambda position: self.abstract(self.phases[position.phase]))
        if restored is not None:
            state, position = restored
            check_encoders(position, self.objective.encoders.fingerprint, checkpoints.folder)
            return state, position
        phase = self.phases[0]
        key = jax.random.fold_in(jax.random.key(self.config.seed), np.uint32(INIT_KEY))
        shapes = self.abstract(phase)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
        state = jax.jit(lambda key: self.fresh(key, phase), out_shardings=shardings)(key)
        if self.config.init_from:
            params = jax.device_put(initial_params(self.config.init_from, self.config.stage, state.params), shardings.params)
            state = state.replace(params=params, ema=jax.tree.map(jnp.copy, params))
        return state, self.position()

    def branched(self, state: TrainState, position: Position) -> tuple[TrainState, Position]:
        """The start of the next phase: every expert a copy of its parent, laid on that phase's mesh."""
        phase = self.phases[position.phase + 1]
        state = branch(state, phase.rows)
        state = jax.device_put(state, state_shardings(self.mesh(phase), state))
        return state, self.position(step=position.step, images=position.images, phase=position.phase + 1)


def make_loader(
    config: ConfigDict,
    frozen: FrozenEncoders,
    *,
    split: str,
    num_experts: int,
    **parts: Part,
) -> loader.Loader:
    """The loader of a split: of whole batches, or of the `parts` that `mesh.local_part` gives."""
    return loader.make_loader(
        config.data,
        split=split,
        seed=config.seed,
        num_experts=num_experts,
        batch_size=config.batch_size,
        tokenizer=None if isinstance(frozen, Unconditional) else frozen,
        prepare=jax.process_count() == 1,
        **parts,
    )


def initial_params(source: str, stage: str, params: PyTree) -> PyTree:
    """The EMA weights of another run or release, of one expert for all or of as many experts as `params` has.

    Args:
        source: a workdir, a release folder, or a bundled release's name.
        stage: which stage of a release.
        params: what they have to fit.

    Raises:
        CheckpointError: no readable checkpoint, no such stage, or weights of another shape.
        ReleaseError: no such folder, or a damaged release.
    """
    folder = release.find(source)
    if release.is_workdir(folder):
        saved = checkpoint.load_newest(folder)[0]["ema"]
    else:
        released = release.read_release(folder)
        stages = {spec.name: weights for spec, weights in zip(released.specs, released.params, strict=True)}
        if stage not in stages:
            raise CheckpointError(f"config.init_from={source!r} has no stage {stage!r}{nearest(stage, stages)}")
        saved = stages[stage]
    experts = jax.tree.leaves(params)[0].shape[0]
    if jax.tree.leaves(saved)[0].shape[0] == 1:
        saved = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (experts, *leaf.shape[1:])), saved)
    checkpoint.check_leaves(folder, saved, params)
    return jax.tree.map(lambda leaf, like: np.asarray(leaf, like.dtype), saved, params)


def check_encoders(position: Position, fingerprint: str, folder: epath.Path) -> None:
    """Raises CheckpointError if a checkpoint was trained with other encoders."""
    if position.encoders != fingerprint:
        raise CheckpointError(
            f"{folder} was trained with encoders {position.encoders}, and config.encoders are {fingerprint};"
            " expected the same encoders"
        )
