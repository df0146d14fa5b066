"""What is measured of a classifier: running training metrics and the full evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F

from upshift.errors import ConfigError

NUM_CALIBRATION_BINS = 15
MAX_PENDING_ELEMENTS = 1 << 18


class RunningMetrics:
    """Loss and accuracy since the last line of metrics.jsonl, without a host synchronisation a step.

    Outputs are collected and reduced many steps at a time: a handful of tiny kernels a step would cost a small
    model several per cent of its speed.
    """

    def __init__(self) -> None:
        self.losses: list[float | None] = []
        self.sizes: list[int] = []
        self.num_correct = 0
        self._loss_tensors: list[torch.Tensor] = []
        self._outputs: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []
        self._correct: list[torch.Tensor] = []
        self._pending_elements = 0

    def update(self, loss: torch.Tensor, outputs: torch.Tensor, labels: torch.Tensor) -> None:
        """Note a step: its mean loss (scalar), logits (N, C) and labels (N,)."""
        self._loss_tensors.append(loss.detach())
        self.sizes.append(labels.shape[0])
        self._outputs.append(outputs.detach())
        self._labels.append(labels)
        self._pending_elements += outputs.numel()
        if self._pending_elements > MAX_PENDING_ELEMENTS:
            self._reduce_outputs()

    def _reduce_outputs(self) -> None:
        if self._outputs:
            hits = torch.cat(self._outputs).argmax(1) == torch.cat(self._labels)
            sizes = [len(labels) for labels in self._labels]
            if len(set(sizes)) == 1:
                self._correct.append(hits.view(len(sizes), -1).sum(1))
            else:  # an epoch's last batch
                self._correct.append(torch.stack([part.sum() for part in torch.split(hits, sizes)]))
            self._outputs, self._labels, self._pending_elements = [], [], 0

    def drain(self) -> None:
        """Bring what the device has to the host: one synchronisation."""
        self._reduce_outputs()
        if self._loss_tensors:
            losses = torch.stack(self._loss_tensors).double().tolist()
            self.losses += [loss if math.isfinite(loss) else None for loss in losses]
            correct = torch.cat(self._correct).tolist()
            self.num_correct += sum(hits for hits, loss in zip(correct, losses, strict=True) if math.isfinite(loss))
            self._loss_tensors, self._correct = [], []

    def take(self) -> dict[str, float | None]:
        """Mean loss and accuracy, weighted by samples, since the last call.

        Skipped steps, whose loss was not finite, are left out; both are None if there were no others.
        """
        self.drain()
        counted = [(loss, size) for loss, size in zip(self.losses, self.sizes, strict=True) if loss is not None]
        num_samples = sum(size for _, size in counted)
        loss = sum(loss * size for loss, size in counted) / num_samples if counted else None
        if len(counted) == 1:
            loss = counted[0][0]  # not rounded by the weighting
        accuracy = self.num_correct / num_samples if counted else None
        self.losses, self.sizes, self.num_correct = [], [], 0
        return {"loss": loss, "accuracy": accuracy}

    @property
    def num_steps(self) -> int:
        """Steps since the last call of `take`."""
        return len(self.sizes)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that the next line is the same after a resume."""
        self.drain()
        return {"losses": self.losses, "sizes": self.sizes, "num_correct": self.num_correct}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.losses, self.sizes = list(state["losses"]), list(state["sizes"])
        self.num_correct = state["num_correct"]


def check_logits(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """The outputs, if they are logits of shape (N, C) that cover the labels.

    Raises:
        ConfigError: They are something else.
    """
    if not isinstance(outputs, torch.Tensor):
        what = f"a {type(outputs).__name__}"
        if isinstance(outputs, dict):
            what += f" with the keys {', '.join(map(repr, list(outputs)[:8]))}"
        elif isinstance(outputs, list | tuple):
            what += f" of {len(outputs)}"
        raise ConfigError(
            "a recipe's model must return one tensor of logits, (N, num_classes)",
            received=what,
            hint='return the logits alone, for example output["logits"]',
        )
    if outputs.dim() != 2 or outputs.shape[0] != labels.shape[0] or outputs.shape[1] < 2:
        raise ConfigError(
            f"a recipe's model must return logits of shape ({labels.shape[0]}, num_classes)",
            received=tuple(outputs.shape),
            hint="flatten the features and end with a linear layer of num_classes outputs",
        )
    largest = int(labels.max())
    if largest >= outputs.shape[1]:
        raise ConfigError(
            "a recipe's model must have an output for each class",
            received=f"{outputs.shape[1]} outputs and a label {largest}",
            hint=f"set model_args.num_classes={largest + 1}",
        )
    return outputs


def is_reached(metric: str, value: float | None, goal: float) -> bool:
    """Whether a metric is as good as its goal; one that is not finite, None in records, never is."""
    if value is None or not math.isfinite(value):
        return False
    return value <= goal if metric == "loss" else value >= goal


def within(
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]], largest: int | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches cut into parts of at most `largest` samples; None leaves them."""
    for inputs, labels in batches:
        size = largest or labels.shape[0]
        yield from zip(torch.split(inputs, size), torch.split(labels, size), strict=True)


@torch.no_grad()
def monitor(
    model: torch.nn.Module,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    loss: Callable[[Any, Any], torch.Tensor] | None = None,
) -> dict[str, float]:
    """Mean loss and accuracy over batches, with one synchronisation at the end.

    Args:
        model: In evaluation mode.
        batches: (inputs, labels).
        loss: A mean over the batch; None is cross-entropy.
    """
    losses, correct, num_samples = [], [], 0
    for inputs, labels in batches:
        outputs = model(inputs).float()
        if loss is None:
            total = F.cross_entropy(outputs, labels, reduction="sum")
        else:
            total = loss(outputs, labels) * labels.shape[0]
        losses.append(total.double())
        correct.append((outputs.argmax(1) == labels).sum())
        num_samples += labels.shape[0]
    return {
        "loss": float(torch.stack(losses).sum()) / num_samples,
        "accuracy": int(torch.stack(correct).sum()) / num_samples,
    }


@dataclass(frozen=True)
class Evaluation:
    """The full evaluation of a classifier on a split.

    Attributes:
        metrics: accuracy, loss (mean cross-entropy), calibration_error (ECE of 15 bins, arXiv 1706.04599), and
            top5_accuracy where there are more than five classes.
        confusion_matrix: Counts (num_classes, num_classes): rows true, columns predicted.
        per_class: label, precision, recall, f1 and support of each class.
        calibration: confidence, accuracy and count of each bin that is not empty.
        predictions: Predicted class of each sample (N,).
        confidences: Probability of the predicted class (N,).
    """

    metrics: dict[str, float]
    confusion_matrix: list[list[int]]
    per_class: list[dict[str, Any]]
    calibration: list[dict[str, float]]
    predictions: torch.Tensor
    confidences: torch.Tensor


def of_other_loss(evaluation: Evaluation, loss: float | None = None) -> Evaluation:
    """An evaluation of a model that was trained by another loss than cross-entropy, which has a name of its own then.

    Args:
        evaluation: Whose metric `loss` is the mean cross-entropy.
        loss: The mean of the other loss; None where it is not known.
    """
    names = {"loss": "cross_entropy"}
    metrics = {names.get(name, name): value for name, value in evaluation.metrics.items()}
    return replace(evaluation, metrics=metrics if loss is None else {**metrics, "loss": loss})


@torch.no_grad()
def mean_loss(
    loss: Callable[[Any, Any], torch.Tensor], logits: torch.Tensor, labels: torch.Tensor, *, batch_size: int
) -> float:
    """The mean over samples of a loss that is a mean over a batch, from logits (N, C) and labels (N,)."""
    parts = zip(torch.split(logits.float(), batch_size), torch.split(labels, batch_size), strict=True)
    return sum(float(loss(outputs, wanted)) * len(wanted) for outputs, wanted in parts) / len(labels)


def evaluate_logits(logits: torch.Tensor, labels: torch.Tensor, label_names: tuple[str, ...]) -> Evaluation:
    """The full evaluation from logits (N, C) and labels (N,)."""
    logits = logits.double()
    num_classes = logits.shape[1]
    probabilities = logits.softmax(1)
    confidences, predictions = probabilities.max(1)
    correct = predictions == labels
    metrics = {
        "accuracy": float(correct.double().mean()),
        "loss": float(F.cross_entropy(logits, labels)),
    }
    if num_classes > 5:
        top5 = logits.topk(5, dim=1).indices
        metrics["top5_accuracy"] = float((top5 == labels[:, None]).any(1).double().mean())
    calibration, error = _calibration(confidences, correct)
    metrics["calibration_error"] = error
    matrix = torch.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    matrix = matrix.reshape(num_classes, num_classes)
    return Evaluation(
        metrics=metrics,
        confusion_matrix=matrix.tolist(),
        per_class=_per_class(matrix, label_names),
        calibration=calibration,
        predictions=predictions,
        confidences=confidences,
    )


def _calibration(confidences: torch.Tensor, correct: torch.Tensor) -> tuple[list[dict[str, float]], float]:
    bins = (confidences * NUM_CALIBRATION_BINS).long().clamp(max=NUM_CALIBRATION_BINS - 1)
    rows, error = [], 0.0
    for index in range(NUM_CALIBRATION_BINS):
        inside = bins == index
        count = int(inside.sum())
        if count == 0:
            continue
        confidence = float(confidences[inside].mean())
        accuracy = float(correct[inside].double().mean())
        rows.append({"confidence": confidence, "accuracy": accuracy, "count": count})
        error += abs(confidence - accuracy) * count / len(correct)
    return rows, error


def _per_class(matrix: torch.Tensor, label_names: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = []
    for index in range(matrix.shape[0]):
        true_positives = int(matrix[index, index])
        support, predicted = int(matrix[index].sum()), int(matrix[:, index].sum())
        precision = true_positives / predicted if predicted else 0.0
        recall = true_positives / support if support else 0.0
        both = precision + recall
        rows.append(
            {
                "label": label_names[index] if index < len(label_names) else str(index),
                "precision": precision,
                "recall": recall,
                "f1": 2 * precision * recall / both if both else 0.0,
                "support": support,
            }
        )
    return rows


@torch.no_grad()
def collect_logits(
    model: torch.nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, C) and labels (N,) of all batches, on the CPU."""
    outputs, targets = [], []
    for inputs, labels in batches:
        outputs.append(model(inputs).float())
        targets.append(labels)
    return torch.cat(outputs).cpu(), torch.cat(targets).cpu()
