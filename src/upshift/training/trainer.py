"""The training loop, readable top to bottom."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import nn

from upshift.core import clock
from upshift.core.files import finite, write_bytes
from upshift.core.records import JsonlWriter, RunFolder, read_jsonl
from upshift.errors import NonFiniteLossError, TrainingInterrupted
from upshift.training.checkpoint import (
    checkpoint_folder,
    load_latest,
    prune,
    save_checkpoint,
    saved_steps,
    set_aside_after,
)
from upshift.training.conductor import Conductor
from upshift.training.config import TrainingConfig
from upshift.training.ema import ExponentialMovingAverage
from upshift.training.evaluation import within_memory
from upshift.training.execution import Execution
from upshift.training.interrupt import StopRequest, stop_on_signals
from upshift.training.loss import CrossEntropy
from upshift.training.metrics import RunningMetrics, is_reached, monitor
from upshift.training.observer import Observer
from upshift.training.optimizers import OptimizerSet, build_optimizer
from upshift.training.progress import Clock, Progress, TrainingResult
from upshift.training.run_state import RunState
from upshift.training.schedules import changed_length, learning_rate_factor
from upshift.training.stages import Stages
from upshift.training.step import Loss, TrainingStep, is_out_of_memory

LINES_PER_EPOCH = 50
MIN_STEPS_A_LINE = 10


class Loader(Protocol):
    """Batches of an epoch in an order that its number alone decides."""

    def __len__(self) -> int: ...

    def epoch(
        self, epoch: int, *, start_batch: int = 0, image_size: tuple[int, int] | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]: ...


class Trainer:
    """Trains a model that it is handed, with loaders that it is handed.

    Args:
        model: On its device, in the wanted memory format.
        loss: Loss of (logits, labels), a mean over the batch.
        train_loader: Batches to learn from.
        eval_loader: Batches to monitor on; `eval_split` says which split they are of.
        config: What training does.
        execution: How the loop executes.
        device: Where batches arrive and the model lies.
        conductor: Who changes the execution between steps; None leaves it as it is.

    Raises:
        BadInputError: The optimizer or the stages do not fit the model.
    """

    run: RunFolder

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        train_loader: Loader,
        eval_loader: Loader,
        *,
        eval_split: str,
        config: TrainingConfig,
        execution: Execution,
        device: torch.device,
        conductor: Conductor | None = None,
    ) -> None:
        self.model, self.config, self.device = model, config, device
        self._conductor = conductor
        self._train_loader, self._eval_loader, self._eval_split = train_loader, eval_loader, eval_split
        # Monitored without label smoothing, which is a means of training alone.
        self._monitored_loss = None if isinstance(loss, CrossEntropy) else loss
        self._observers: tuple[Observer, ...] = ()
        self._steps_per_epoch = len(train_loader)
        self._total_steps = min(config.epochs * self._steps_per_epoch, config.max_steps or sys.maxsize)
        self._log_every = config.log_every or max(MIN_STEPS_A_LINE, self._steps_per_epoch // LINES_PER_EPOCH)
        self._stages = Stages(model, config.stages)
        self._optimizer: OptimizerSet = build_optimizer(model, config.optimizer, fused=execution.fused_optimizer)
        self.step = TrainingStep(model, loss, self._optimizer, config, execution, device)
        self._ema = ExponentialMovingAverage(model, config.ema_decay) if config.ema_decay else None
        self._metrics = RunningMetrics()
        self._data_seconds = 0.0
        self.progress = Progress()
        self._clock = Clock(self.progress)
        self._state = RunState(model, self._optimizer, self.step, self._metrics, self.progress, self._ema, device)
        self._best: dict[str, torch.Tensor] = {}
        self._resumed_from: int | None = None
        self._last_checkpoint_step = 0
        self._largest_evaluated: int | None = None

    def train(
        self,
        run: RunFolder,
        observers: tuple[Observer, ...] = (),
        *,
        resume: bool = False,
        stops_at_once: bool = False,
    ) -> TrainingResult:
        """Run the loop to its end.

        Args:
            run: The folder that records and checkpoints go to.
            observers: Who watches.
            resume: Go on from the newest whole checkpoint of the folder; from the start where there is none.
            stops_at_once: Nothing of the training is wanted once it is stopped.

        Raises:
            TrainingInterrupted: After a checkpoint, at Ctrl-C or SIGTERM.
            StoppedAtOnce: Instead, where that is asked for: in the middle of whatever is done.
            NonFiniteLossError: Too many steps in a row were skipped; the last good state is saved.
        """
        progress = self.progress
        self.run, self._observers = run, observers
        if resume:
            self._resume()
        progress.total_steps = self._total_steps
        self._records = JsonlWriter(run.metrics)
        self._clock.start()
        for observer in observers:
            observer.on_start(
                steps_per_epoch=self._steps_per_epoch,
                epochs=self.config.epochs,
                total_steps=self._total_steps,
                step=progress.step,
            )
        try:
            with stop_on_signals(at_once=stops_at_once) as stop:
                while progress.step < self._total_steps and progress.stopped is None:
                    self._train_epoch(stop)
                    self._finish_epoch(stop)
            if not self._best and not self.step.weights_are_finite():
                self._give_up()
            progress.stopped = progress.stopped or "completed"
            self._keep_best_weights()
        finally:
            if self._conductor is not None:
                self._conductor.on_end(self)
            self.step.release()
            self._records.close()
            for observer in observers:
                observer.on_end()
        return TrainingResult(
            progress=progress,
            num_skipped_steps=self.step.num_skipped + self.step.num_overflows,
            micro_batch_size=self.step.micro_batch_size,
            largest_batch=self._largest_batch,
            resumed_from_step=self._resumed_from,
        )

    def _resume(self) -> None:
        checkpoint, warnings = load_latest(self.run.checkpoints)
        if checkpoint is not None:
            self._best = self._state.load(checkpoint)
            self._resumed_from = self._last_checkpoint_step = checkpoint.step
        set_aside_after(self.run.checkpoints, self.progress.step)
        changed = changed_length(self.config.schedule, self.progress.total_steps, self._total_steps, self.progress.step)
        for warning in [*warnings, *changed]:
            self.note(warning)
        self._judge_again()
        # Lines of steps that will be made again are dropped.
        kept = [record for record in read_jsonl(self.run.metrics) if record.get("step", 0) <= self.progress.step]
        lines = "".join(json.dumps(record) + "\n" for record in kept)
        write_bytes(self.run.metrics, lines.encode())

    def _train_epoch(self, stop: StopRequest) -> None:
        """The rest of the current epoch, step by step."""
        progress = self.progress
        stage = self._stages.enter(progress.epoch)
        self.model.train()
        self._clock.start_training()
        for inputs, labels in self._batches(stage.image_size if stage else None):
            factor = learning_rate_factor(self.config.schedule, progress.step, self._total_steps)
            self._optimizer.set_learning_rate(factor)
            loss, outputs = self._make_step(inputs, labels)
            if self._ema is not None and not self.step.skipped:
                self._ema.update()
            self._metrics.update(loss, outputs, labels)
            progress.step += 1
            progress.batch += 1
            progress.num_samples += labels.shape[0]
            if self.step.gave_up:
                if not self._is_mended(NonFiniteLossError("the loss stayed NaN or infinite")):
                    self._give_up()
                self.step.count_skips_anew()
            if progress.batch == self._steps_per_epoch or progress.step == self._total_steps:
                break
            if progress.step % self._log_every == 0:
                self._log({})
            if self._clock.progress_is_due():
                self._show_progress()
            if stop or self._checkpoint_is_due():
                self._stop_clock()
                self._save()
                self._stop_if_asked(stop)
                self._clock.start_training()
        self._stop_clock()

    def _stop_clock(self) -> None:
        """Something else than steps comes next."""
        if self._conductor is not None:
            self._conductor.before_pause(self)
        self.step.wait()  # for the steps that an accelerator has yet to do: their time is training's
        self._clock.stop_training()

    def _finish_epoch(self, stop: StopRequest) -> None:
        """Evaluate, judge, log and save at the end of an epoch, or of the training within one."""
        progress, config = self.progress, self.config
        epoch, is_last = progress.epoch, progress.step == self._total_steps
        if progress.batch == self._steps_per_epoch:
            progress.epoch, progress.batch = epoch + 1, 0
        evaluated: dict[str, Any] = {}
        if is_last or progress.epoch % config.evaluate_every == 0:
            metrics = self._evaluate()
            evaluated = {"eval_split": self._eval_split} | {f"eval_{name}": value for name, value in metrics.items()}
            self._judge(metrics)
        self._log(evaluated, epoch)
        self._show_progress()
        ends = is_last or progress.stopped is not None
        if ends or stop or self._checkpoint_is_due():
            self._save()
        if not ends:
            self._stop_if_asked(stop)

    def _batches(self, image_size: tuple[int, int] | None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The rest of the epoch's batches, from whichever loader is in use when each is wanted."""
        progress = self.progress
        while progress.batch < self._steps_per_epoch:
            loader = self._train_loader
            batches = iter(loader.epoch(progress.epoch, start_batch=progress.batch, image_size=image_size))
            while self._train_loader is loader:
                start = clock.now()
                try:
                    batch = next(batches, None)
                except Exception as error:
                    if not self._is_mended(error):
                        raise
                    break
                if batch is None:
                    return
                self._data_seconds = clock.now() - start
                yield batch

    @property
    def loader(self) -> Loader:
        """Where training batches come from."""
        return self._train_loader

    def use_loader(self, loader: Loader) -> None:
        """Take the following batches from another loader of the same batches."""
        self._train_loader = loader

    @property
    def steps_made(self) -> int:
        """Steps from the start, over all resumes."""
        return self.progress.step

    @property
    def remaining_steps(self) -> int:
        """Steps to the end, if no target or patience ends training before."""
        return self._total_steps - self.progress.step

    def _make_step(self, inputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self._conductor is None:
            return self._step_within_memory(inputs, labels)
        self._conductor.before_step(self, inputs, labels)
        start = clock.now()
        made = self._step_within_memory(inputs, labels)
        self._conductor.after_step(self, step_seconds=clock.now() - start, data_seconds=self._data_seconds)
        return made

    def _step_within_memory(self, inputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        while True:
            try:
                made = self.step(self.step.prepare(inputs), labels)
                is_wrong = self.step.skipped and not self.step.seeks_scale
                if is_wrong and self._is_mended(NonFiniteLossError("the loss or gradient was not finite")):
                    self.step.forget_skip()
                    continue
                return made
            except Exception as error:
                if self._is_mended(error):
                    self.step.abandon()
                    continue
                if not is_out_of_memory(error):
                    raise
            # Outside the except block: the error's traceback holds the tensors of the failed step.
            self.step.halve_micro_batch()
            self.note(
                f"out of memory at step {self.progress.step + 1}: micro-batches of {self.step.micro_batch_size} "
                f"are accumulated; the effective batch stays {self.config.batch_size}"
            )

    def _is_mended(self, error: Exception) -> bool:
        """Whether what raised is executed otherwise from now on, so that another attempt may go through."""
        return self._conductor is not None and self._conductor.on_error(self, error)

    @property
    def _largest_batch(self) -> int | None:
        """Samples that are known to fit in memory at a time; None where it never ran out."""
        return min((size for size in (self.step.largest_batch, self._largest_evaluated) if size), default=None)

    def _evaluate(self) -> dict[str, float]:
        start = clock.now()
        self.step.synchronize()
        self.model.eval()
        with self._final_weights():
            metrics, self._largest_evaluated = within_memory(
                lambda batches: monitor(self.model, batches, self._monitored_loss),
                lambda: self._eval_loader.epoch(0),
                largest=self._largest_batch,
                note=self.note,
            )
        self.model.train()
        self.progress.evaluation_seconds += clock.now() - start
        return metrics

    def _judge(self, metrics: dict[str, float]) -> None:
        """Note the best weights so far; stop where the target is reached or patience has run out."""
        progress = self.progress
        progress.last_evaluation = finite(metrics)
        is_best = metrics["accuracy"] > progress.best_accuracy
        if is_best:
            progress.best_accuracy, progress.best_epoch = metrics["accuracy"], progress.epoch
        self._stop_if_satisfied(metrics)
        if progress.stopped == "target":
            progress.time_to_target_seconds = self._clock.seconds()
        # Weights are chosen on the validation split alone: choosing on test would flatter them.
        if self._eval_split == "validation" and (is_best or progress.stopped == "target"):
            self._best = self._final_state()

    def _stop_if_satisfied(self, metrics: Mapping[str, float | None]) -> None:
        progress, config = self.progress, self.config
        if config.target and all(is_reached(name, metrics[name], goal) for name, goal in config.target.items()):
            progress.stopped = "target"
        elif config.patience is not None and progress.epoch - progress.best_epoch >= config.patience:
            progress.stopped = "patience"

    def _judge_again(self) -> None:
        """After a resume: what stopped the run may have been a target or a patience that is no longer asked for."""
        progress = self.progress
        progress.stopped = None
        if progress.last_evaluation and progress.batch == 0:
            self._stop_if_satisfied(progress.last_evaluation)
        if progress.stopped != "target":
            progress.time_to_target_seconds = None
        elif progress.time_to_target_seconds is None:
            progress.time_to_target_seconds = progress.seconds

    def _final_weights(self) -> AbstractContextManager[None]:
        """The model has what is evaluated and saved: the average of the weights where there is one."""
        return self._ema.swapped_in() if self._ema else self._optimizer.averaged()

    def _final_state(self) -> dict[str, torch.Tensor]:
        """A copy of what is evaluated and saved."""
        with self._final_weights():
            return {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def _keep_best_weights(self) -> None:
        self._stages.leave()
        self.model.load_state_dict(self._best or self._final_state())
        self.model.eval()

    def _log(self, extra: dict[str, Any], epoch: int | None = None) -> None:
        if self._metrics.num_steps == 0:
            return
        num_samples = sum(self._metrics.sizes)
        values = self._metrics.take()
        self.step.synchronize()
        record = {
            "step": self.progress.step,
            "epoch": self.progress.epoch if epoch is None else epoch,
            **values,
            "learning_rate": self._optimizer.learning_rate,
            "samples_per_second": num_samples / self._clock.training_seconds_since_last_call(),
            **extra,
        }
        self._records.write(record)
        for observer in self._observers:
            observer.on_record(record)

    def note(self, note: str) -> None:
        self.progress.notes.append(note)
        for observer in self._observers:
            observer.on_note(note)

    def _show_progress(self) -> None:
        progress = self.progress
        for observer in self._observers:
            observer.on_progress(step=progress.step, epoch=progress.epoch, batch=progress.batch)

    def _checkpoint_is_due(self) -> bool:
        config, since = self.config, self.progress.step - self._last_checkpoint_step
        by_steps = config.checkpoint_every_steps is not None and since >= config.checkpoint_every_steps
        minutes = config.checkpoint_every_minutes
        by_time = minutes is not None and self._clock.seconds_since_checkpoint() >= 60 * minutes
        return since > 0 and (by_steps or by_time)

    def _stop_if_asked(self, stop: StopRequest) -> None:
        if stop:
            raise TrainingInterrupted(
                f"stopped by {stop.signal_name} after step {self.progress.step}; the newest checkpoint is of step "
                f"{self._last_checkpoint_step}: go on with --resume --out {self.run.path}"
            )

    def _give_up(self) -> None:
        """Stop with the last good state saved: never weights that are not finite over those that are."""
        count = self.step.num_skipped_in_a_row
        hint = "hint: lower optimizer.lr, set clip_grad_norm=1, or check the data"
        if self.step.weights_are_finite():
            self._save()
            raise NonFiniteLossError(
                f"the loss or gradient was not finite for {count} steps in a row; the weights before them are saved in "
                f"{self.run.checkpoints}; {hint}"
            )
        saved = saved_steps(self.run.checkpoints)
        where = checkpoint_folder(self.run.checkpoints, saved[-1]) if saved else "not saved: no checkpoint was due yet"
        raise NonFiniteLossError(
            f"an update that was not finite spoilt the weights by step {self.progress.step - count}, and the loss was "
            f"not finite for {count} steps since; the last good state is {where}; {hint}"
        )

    def _save(self) -> None:
        progress = self.progress
        if progress.step == self._last_checkpoint_step or not self.step.weights_are_finite():
            return
        progress.seconds = self._clock.seconds()
        save_checkpoint(self.run.checkpoints, self._state.checkpoint(self._best))
        prune(self.run.checkpoints, keep=self.config.keep_checkpoints)
        self._last_checkpoint_step = progress.step
        self._clock.checkpointed()
