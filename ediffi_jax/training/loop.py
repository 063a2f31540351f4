"""The training loop.

    draw a batch ─▶ step ─▶ log ─▶ evaluate ─▶ sample ─▶ save ─▶ (stop?) ─▶ draw the next

Saving comes before the next batch is drawn, so that a checkpoint's data position is exactly what its
weights have seen, and a run that is stopped anywhere goes on bit for bit as if it had not been.
Losses stay on the device until they are logged; evaluation, samples and saving do not count in the rate.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ediffi_jax import stores
from ediffi_jax.training import goodput
from ediffi_jax.training.calls import Call, Calls
from ediffi_jax.training.checkpoint import Position
from ediffi_jax.training.chrono import Chrono
from ediffi_jax.training.config import profile_steps
from ediffi_jax.training.config_files import check_same_run, read_workdir, write_workdir
from ediffi_jax.training.errors import RESTART
from ediffi_jax.training.evaluate import make_quantile_loss
from ediffi_jax.training.mesh import replicated
from ediffi_jax.training.nonfinite import Rollbacks, finite, first_bad
from ediffi_jax.training.observers import Profile
from ediffi_jax.training.ownership import owned
from ediffi_jax.training.preview import make_preview
from ediffi_jax.training.run import Run
from ediffi_jax.training.saving import Checkpoints
from ediffi_jax.training.schedule import Phase, warn_of_strangers
from ediffi_jax.training.session import Session, make_observers
from ediffi_jax.training.signals import StopRequest
from ediffi_jax.training.state import TrainState
from ediffi_jax.training.step import Metrics
from ediffi_jax.training.storage import writing
from ediffi_jax.training.watchdog import Watchdog

FINISHED = 0
IN_FLIGHT = 2  # calls dispatched ahead of the device


def train(config: ConfigDict, workdir: str | epath.Path) -> int:
    """Trains until the schedule is finished or the process is asked to stop.

    Args:
        config: see `config.default`.
        workdir: a new folder, or that of the same run, which then goes on from its newest checkpoint.

    Returns:
        The exit code: 0 when finished, 42 when saved after SIGTERM or Ctrl-C. A process that hangs ends
        itself with 42.

    Raises:
        UserError: whatever is wrong with the config, the workdir or its checkpoints, another run that has the
            workdir, storage that fails, and a loss that became NaN or infinite. Its `exit_code` says whether
            to start again.
    """
    workdir = stores.at(workdir)
    check_same_run(workdir, config)
    chrono = Chrono()
    with StopRequest() as stop, Watchdog(chrono, config.hang_minutes):
        run = Run.create(config, workdir)
        if read_workdir(workdir) is None:
            run.mesh(run.phases[0])  # a mesh or batch that does not fit claims no workdir
        with owned(workdir) as owner:
            check_same_run(workdir, config)  # by now it may be that of another
            checkpoints = Checkpoints(workdir, config.keep)
            if jax.process_index() == 0:
                write_workdir(workdir, config)
            state, position = run.start(checkpoints)
            warn_of_strangers(run.phases[position.phase :])
            with writing(workdir):
                observers = make_observers(run, position, chrono)
            session = Session(
                checkpoints=checkpoints,
                observers=observers,
                stop=stop,
                chrono=chrono,
                owner=owner,
                rollbacks=Rollbacks(config, workdir),
            )
            with session.closing():
                while True:
                    state, position = PhaseLoop(run, position.phase, session).train(state, position)
                    if position.phase_step < run.phases[position.phase].steps:
                        return RESTART
                    if position.phase + 1 == len(run.phases):
                        return FINISHED
                    state, position = run.branched(state, position)


class PhaseLoop:
    """The loop over one phase's steps."""

    def __init__(self, run: Run, phase_index: int, session: Session) -> None:
        self.run = run
        self.session = session
        self.config = run.config
        self.phase: Phase = run.phases[phase_index]
        self.mesh: Mesh = run.mesh(self.phase)
        self.checkpoints = session.checkpoints
        self.observers = session.observers
        self.chrono = session.chrono
        self.chrono.turn("start")
        self.unread: deque[tuple[Call, Metrics]] = deque()
        self.measured: list[Metrics] = []
        self.frozen = run.encoder_params(self.mesh)
        self.finite = jax.jit(finite, out_shardings=replicated(self.mesh))  # every process reads it
        self.profile = Profile(run.workdir, profile_steps(run.config.profile))
        common = {"objective": run.objective, "phase": self.phase, "mesh": self.mesh, "seed": run.config.seed}
        self.calls = Calls(run, self.phase, self.mesh, session.rollbacks)
        self.quantile_loss = make_quantile_loss(batches=run.held_out[: run.config.eval_batches], **common)
        self.preview = make_preview(run.config, run.objective, self.phase, self.mesh, run.held_out[0])

    def train(self, state: TrainState, position: Position) -> tuple[TrainState, Position]:
        """Trains to the end of the phase, or until stopped; saved either way."""
        last = self.checkpoints.last
        # Stopped before its first step, a phase will be branched again; one without steps leaves its branching.
        saved = last.step if last and (self.phase.steps > 0 or last.phase == position.phase) else -1
        while position.phase_step < self.phase.steps and not self.session.stop.now():
            self.chrono.turn("data")
            call, batches = self.calls.draw(position)
            self.note_records(call)
            self.chrono.turn("step" if self.calls.compiled(call) else "compile")
            self.profile.before(position.step + 1)
            state, metrics = self.calls.run(call, batches, state, self.frozen)
            position = call.positions[-1]
            self.keep_pace(call, metrics)
            self.profile.after(position.step, metrics)
            if self.due(self.config.log_every, position):
                self.log(position)
            if self.due(self.config.eval_every, position):
                self.evaluate(state, position)
            if self.preview and self.due(self.config.sample_every, position):
                self.sample(state, position)
            if self.due(self.config.save_every, position):
                self.save(state, position)
                saved = position.step
        self.calls.close()
        if saved != position.step:
            self.save(state, position)
        self.chrono.turn("save")
        self.checkpoints.wait()
        self.profile.close()
        return state, position

    def due(self, every: int, position: Position) -> bool:
        """Whether something done every so many steps is due; the phase's last step counts as one."""
        return every > 0 and (position.step % every == 0 or position.phase_step == self.phase.steps)

    def note_records(self, call: Call) -> None:
        """Hands on which records the steps train on."""
        for record_ids, position in zip(call.record_ids, call.positions, strict=False):
            for observer in self.observers:
                observer.drawn(position.step, record_ids)

    def keep_pace(self, call: Call, metrics: Metrics) -> None:
        """Notes a call's metrics, and waits for an earlier one lest the host run far ahead of the device."""
        if not self.calls.compiled(call):  # its time says nothing about the rate
            jax.block_until_ready(metrics)
            self.chrono.restart()
            self.calls.note_compiled(call)
        else:
            self.chrono.count(call.images)
        self.unread.append((call, metrics))
        if len(self.unread) > IN_FLIGHT:
            jax.block_until_ready(self.unread[-1 - IN_FLIGHT][1])
        for observer in self.observers:
            observer.tick(call.positions[-1].step)

    def read(self) -> None:
        """Fetches the metrics of the steps since the last time into `measured`.

        Raises:
            TrainingError, RestartError: one of them is NaN or infinite.
        """
        calls = [call for call, _ in self.unread]
        fetched = jax.device_get([metrics for _, metrics in self.unread])
        self.unread.clear()
        positions = [position for call in calls for position in call.positions]
        values = [one for call, metrics in zip(calls, fetched, strict=True) for one in call.each(metrics)]
        for position, metrics in zip(positions, values, strict=True):
            if bad := first_bad(metrics):
                name, row, value = bad
                self.refuse(f"{name} of expert {self.phase.expert_ids[row]} became {value}", position)
        self.measured += values

    def refuse(self, what: str, bad: Position) -> None:
        """Ends the process: training has diverged. Raises TrainingError or RestartError, by the policy."""
        self.checkpoints.wait()
        good = self.checkpoints.last
        path = self.checkpoints.folder / str(good.step) if good else None
        where = f"the last good checkpoint is {path}" if good else "none was saved"
        self.session.rollbacks.refuse(what, bad, good, where)

    def log(self, position: Position) -> None:
        """Writes the mean of each metric since the last time, per expert, and the speed.

        Raises:
            TrainingError: the workdir is no longer ours.
            StorageError, RestartError: the save in the background has failed.
        """
        self.read()
        row: dict[str, float] = {}
        for name in ("loss", "grad_norm"):
            means = np.mean([metrics[name] for metrics in self.measured], axis=0)
            row |= {f"{name}/{expert}": float(mean) for expert, mean in zip(self.phase.expert_ids, means, strict=True)}
        self.measured.clear()
        row |= {"images": position.images, "phase": position.phase, **self.chrono.measure()}
        row |= {"data_replaced": self.calls.replaced, **goodput.shares(self.chrono)}
        if "images_per_s" in row:
            row["eta_s"] = self.images_left(position) / row["images_per_s"]
        self.session.owner.check()
        self.checkpoints.check()
        self.write(position.step, row)
        self.chrono.restart()

    def images_left(self, position: Position) -> int:
        """Images still to be trained on, over this phase and those to come."""
        ahead = sum(phase.steps * phase.num_experts for phase in self.run.phases[position.phase + 1 :])
        here = (self.phase.steps - position.phase_step) * self.phase.num_experts
        return (here + ahead) * self.config.batch_size

    def evaluate(self, state: TrainState, position: Position) -> None:
        """Writes the held-out loss of the EMA weights: mean and curve over noise quantiles, per expert."""
        self.chrono.turn("evaluate")
        row: dict[str, Any] = {}
        for expert, curve in zip(self.phase.expert_ids, self.quantile_loss(state.ema, self.frozen), strict=True):
            row[f"held_out/{expert}"] = float(curve.mean())
            row |= {f"held_out_bins/{expert}/{index:02d}": float(value) for index, value in enumerate(curve)}
        self.write(position.step, row)

    def sample(self, state: TrainState, position: Position) -> None:
        """Writes a grid of samples."""
        self.chrono.turn("sample")
        pixels = self.preview(state.ema, self.frozen)
        with writing(self.run.workdir):
            for observer in self.observers:
                observer.image(position.step, "samples", pixels)

    def save(self, state: TrainState, position: Position) -> None:
        """Starts a checkpoint, unless training has diverged or the workdir is no longer ours."""
        self.read()
        self.chrono.turn("save")
        whole = np.asarray(self.finite(state.params))
        if not whole.all():
            self.refuse(f"params of expert {self.phase.expert_ids[np.argmin(whole)]} became NaN or infinite", position)
        self.session.owner.check()
        with writing(self.run.workdir):
            for observer in self.observers:
                observer.saved(position.step)
        self.checkpoints.save(state, position)

    def write(self, step: int, row: dict[str, float]) -> None:
        """Hands numbers to every observer."""
        with writing(self.run.workdir):
            for observer in self.observers:
                observer.write(step, row)
