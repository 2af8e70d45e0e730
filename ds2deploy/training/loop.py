"""Training loop: epochs of optimisation steps, with checkpoints and validations between them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import msgspec
from lhotse import CutSet
from torch import nn

from ds2deploy.config import Recipe
from ds2deploy.data.batches import Batch, Batches, evaluation_batches, training_batches
from ds2deploy.model.checkpoint import KEY, header
from ds2deploy.model.network import DeepSpeech2
from ds2deploy.runtimes.alphabet import Alphabet
from ds2deploy.runtimes.errors import TrainingError
from ds2deploy.training.cell_states import CellStates
from ds2deploy.training.hardware import make_fabric, reduced, uses_gpu
from ds2deploy.training.last_checkpoint import LastCheckpoint
from ds2deploy.training.memory import give_back_freed_memory
from ds2deploy.training.optimization import ctc_loss, make_optimizer, make_schedule, restore
from ds2deploy.training.progress import TrainingProgress
from ds2deploy.training.recorder import RunRecorder
from ds2deploy.training.resuming import InitialState
from ds2deploy.training.run_folder import LAST, STAGE, ResumePoint, RunFolder, steps_of
from ds2deploy.training.teacher import TEACHER, Teacher, distillation_loss, trace_norm
from ds2deploy.training.validation import validate

MOST_SKIPPED = 40
"""Maximum number of consecutive steps that `16-mixed` skips. Each skip halves the loss scale, which
begins at 2 ** 16; after this many, the scale cannot be the cause."""

TRIM_STEPS = 20
"""Number of steps between returns of freed memory to the system. The next step spends a fifth of
its time on memory that the system zeroes again (3 x BiLSTM-256, 16 utterances of 1 to 3 s, one core
of an AMD Zen 4); that is 1 % of the total. With 100 instead, memory still grew over 200 steps."""


class TrainingLoop:
    """Training loop of one process.

    Args:
        recipe: recipe of the training, with feature statistics.
        network: network with its initial weights.
        cuts: training and validation utterances.
        folder: folder of the run.
        progress: display of the training.
        initial: state from which the training starts or resumes.
        teacher: network to learn from; None without one.

    Attributes:
        point: position in the training, which advances with every batch.
    """

    def __init__(
        self,
        recipe: Recipe,
        network: DeepSpeech2,
        cuts: tuple[CutSet, CutSet],
        folder: RunFolder,
        progress: TrainingProgress,
        initial: InitialState,
        teacher: Teacher | None = None,
    ) -> None:
        training = recipe.training
        self.recipe, self.point, self._progress = recipe, initial.point, progress
        self._train, self._valid = cuts
        self._unvalidated = initial.unvalidated
        self._fabric = make_fabric(recipe)
        if training.batch_norm == "synchronized":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        optimizer = make_optimizer(network, training)
        self._batches = self._plan(self.point.epochs)
        self._schedule = make_schedule(
            optimizer, recipe, lambda: self.point.epochs_done(self._batches, training.accumulate)
        )
        self._network, self._optimizer = self._fabric.setup(network, optimizer)
        self._cells = CellStates(network) if training.cell_penalty else None
        self._teacher = teacher
        if teacher is not None:
            teacher.network.to(self._fabric.device)
        if initial.document is not None:
            restore(optimizer, self._schedule, initial.document, training)
            self._fabric.strategy.precision.load_state_dict(initial.document["precision"])
        self._metrics: dict[str, float] = {}
        self._skipped_steps = self._skipped_in_a_row = 0
        self._stage = folder.stage
        self._recorder = RunRecorder(folder, recipe, sum(map(len, cuts)), self.point.step)
        self._last = LastCheckpoint(
            folder.path / LAST, 60 * training.checkpoint_minutes, self._fabric, self._content
        )

    def run(self) -> None:
        """Train to the end, after completing a validation that was interrupted."""
        every = self.recipe.training.validate_every
        bar = self._progress.bar(self.point.step, self._planned_steps())
        try:
            with bar, self._last.signals():
                if self._unvalidated:
                    self.validate()
                while not self.point.finishes(self.recipe):
                    self.train_epoch()
                    self._last.write()
                    if self.point.finishes(self.recipe) or self.point.epochs % every == 0:
                        self.validate()
                        self._last.write()
        finally:
            self._recorder.flush()

    def train_epoch(self) -> None:
        """Train on the remaining batches of an epoch, or up to the maximum number of steps."""
        if self._batches.epoch != self.point.epochs:
            self._batches = self._plan(self.point.epochs)
            self._progress.note_plan(self._planned_steps())
        if self.point.batches:
            self._batches.skip(self.point.batches, self.point.fingerprint)
        self._network.train()
        if self.recipe.training.batch_norm == "frozen":
            for part in self._network.modules():
                if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
                    part.eval()
        for batch in self._batches:
            self.learn(self._fabric.to_device(batch))
            if self.point.finishes(self.recipe):
                # `max_steps` ends the epoch here; a longer training would continue it.
                self.point = ResumePoint(self.point.step, self.point.epoch)
                return

    def learn(self, batch: Batch) -> None:
        """Add the gradients of a batch, and make a step when there are enough."""
        accumulate = self.recipe.training.accumulate
        done = self.point.batches + 1
        ended = done == len(self._batches)
        makes_step = ended or done % accumulate == 0
        with self._fabric.no_backward_sync(self._network, enabled=not makes_step):
            with self._fabric.autocast():
                log_probs, lengths = self._network(batch.features, batch.lengths)
                loss = ctc_loss(log_probs, lengths, batch) * batch.scale
                if self._teacher is not None:
                    taught = self._teacher.log_probs(batch)
                    divergence = distillation_loss(log_probs, taught, lengths) * batch.scale
                    loss = loss + self.recipe.training.teacher_weight * divergence
            if self._cells is not None:
                # A batch of scale 0 only keeps this process in step with others.
                excess = self._cells.excess() * (batch.scale > 0)
                loss = loss + self.recipe.training.cell_penalty * excess
            if self.recipe.training.trace_norm:
                norm = trace_norm(self._network.module)
                loss = loss + self.recipe.training.trace_norm * norm
            value = float(loss.detach())
            # With several processes, do not end here: the gradients of all become NaN and end them.
            if not math.isfinite(value) and self._fabric.world_size == 1:
                raise self._diverged(f"the loss is {value:g}")
            self._fabric.backward(loss / accumulate)
        gradient_norm = self._step() if makes_step else 0.0
        self.point = self.point.after_batch(self._batches, makes_step)
        if makes_step:
            self._schedule.step()
        self._note_broken(batch)
        if makes_step:
            self._note_step(value, gradient_norm)
        self._progress.note_batch(self.point, value if batch.scale else None)
        if makes_step:
            if self.point.step % TRIM_STEPS == 0 and not uses_gpu(self.recipe):
                give_back_freed_memory()
            self._last.after_step(ended, self._recorder.failure)

    def validate(self) -> None:
        """Measure the error rates, and keep the network if it is the best so far."""
        fabric, validated = self._fabric, itertools.count(1)

        def after_batch(batch: Batch) -> None:
            self._note_broken(batch)
            self._progress.note_validated(self.point, next(validated))
            self._last.stop_if_told()

        batches = evaluation_batches(
            self._valid, self.recipe, fabric.global_rank, fabric.world_size
        )
        found = validate(fabric, self._network, batches, Alphabet(self.recipe.labels), after_batch)
        self._metrics = found.metrics
        if not uses_gpu(self.recipe):
            give_back_freed_memory()  # a validation has other shapes
        self._recorder.note_validation(self.point, found, self._network.module)
        self._progress.note_validation(self.point, found.metrics)

    def _step(self) -> float:
        """Make a step, and return the norm of the gradients.

        A gradient that is not finite ends the training. In `16-mixed` the step is first skipped
        and the loss scale reduced, up to the maximum number of times.
        """
        limit = self.recipe.training.clip_norm
        clipped = self._fabric.clip_gradients(
            self._network, self._optimizer, max_norm=limit, error_if_nonfinite=False
        )
        assert clipped is not None  # always true with `max_norm`
        norm = float(clipped)
        if math.isfinite(norm):
            self._skipped_in_a_row = 0
        else:
            self._skipped_steps += 1
            self._skipped_in_a_row += 1
            scaled = self.recipe.training.precision == "16-mixed"
            if not scaled or self._skipped_in_a_row > MOST_SKIPPED:
                raise self._diverged(f"the norm of the gradients is {norm:g}")
        self._optimizer.step()
        self._optimizer.zero_grad()
        return norm

    def _note_step(self, loss: float, gradient_norm: float) -> None:
        """Record the mean loss of all processes every `training.log_every` steps."""
        training, step = self.recipe.training, self.point.step
        if step != 1 and step % training.log_every:
            return
        values = {
            "loss": reduced(self._fabric, [loss], "mean")[0],
            "learning_rate": self._optimizer.param_groups[0]["lr"],
            "gradient_norm": gradient_norm,
        }
        if training.precision == "16-mixed":
            values["skipped_steps"] = self._skipped_steps
        self._recorder.note_step(self.point, values)

    def _note_broken(self, batch: Batch) -> None:
        self._recorder.note_broken(self.point, batch.broken)
        if self._recorder.failure is not None and self._fabric.world_size == 1:
            raise self._recorder.failure

    def _plan(self, epoch: int) -> Batches:
        rank, processes = self._fabric.global_rank, self._fabric.world_size
        return training_batches(self._train, self.recipe, epoch, rank, processes)

    def _planned_steps(self) -> int:
        """Estimate the number of steps of the training from one epoch of each kind.

        The kinds are the sorted first epoch, the epochs before augmentation begins, and the
        others. The number is exact in the last epoch.
        """
        training, epoch = self.recipe.training, self.point.epochs
        kinds = [self._kind(number) for number in range(epoch, training.epochs)]
        if not kinds:
            return self.point.step
        counts = {kinds[0]: steps_of(len(self._batches), training.accumulate)}
        for kind in kinds[1:]:
            if kind not in counts:
                counts[kind] = steps_of(len(self._plan(kind)), training.accumulate)
        begun = self.point.step - steps_of(self.point.batches, training.accumulate)
        total = begun + sum(counts[kind] for kind in kinds)
        return min(total, training.max_steps or total)

    def _kind(self, epoch: int) -> int:
        """Return the first epoch of the same kind."""
        if self.recipe.data.sortagrad and epoch == 0:
            return 0
        warm_up = self.recipe.augment.warm_up_epochs
        regular = max(warm_up, 1 if self.recipe.data.sortagrad else 0)
        return regular if epoch >= regular else 1 if self.recipe.data.sortagrad else 0

    def _content(self) -> dict[str, Any]:
        """Collect the content of a checkpoint for resuming."""
        return {
            KEY: header(self.recipe, self._metrics),
            "state_dict": self._network.state_dict(),
            "optimizer_states": [self._optimizer.state_dict()],
            "lr_schedulers": [self._schedule.state_dict()],
            "precision": self._fabric.strategy.precision.state_dict(),
            "global_step": self.point.step,
            "position": msgspec.to_builtins(self.point),
            **({} if self._teacher is None else {TEACHER: self._teacher.sha256}),
            **({} if self._stage is None else {STAGE: str(self._stage)}),
        }

    def _diverged(self, what: str) -> TrainingError:
        return TrainingError(
            f"{self.recipe.training.run}: {what} at step {self.point.step + 1}; resume from an "
            "earlier step with a lower learning rate: --resume --set training.learning_rate="
            f"{self.recipe.training.learning_rate / 3:.2g}"
        )
