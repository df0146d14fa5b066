"""The same training by Keras 3's `fit`, on the backend that KERAS_BACKEND names."""

from __future__ import annotations

import math
import time
from typing import Any

import keras
import numpy as np

from loops.job import SEED, Job, Turn
from loops.keras_models import keras_model


class KerasTrainer:
    """`compile` and `fit` as documented, over arrays in memory that are normalised beforehand.

    What the backend can compile is compiled: `jit_compile` is left to Keras. A turn begins with the weights of the
    first one.
    """

    def __init__(self, job: Job) -> None:
        keras.utils.set_random_seed(SEED)
        self._job = job
        self._inputs, self._labels = _arrays(job)
        self._model = keras_model(job.recipe, job.dataset.info.input_shape, job.dataset.info.num_classes)
        self._weights = self._model.get_weights()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self._model.compile(optimizer=_optimizer(job), loss=loss)

    @property
    def num_parameters(self) -> int:
        """That are trained."""
        return sum(math.prod(weight.shape) for weight in self._model.trainable_weights)

    def __call__(self, num_steps: int | None = None) -> Turn:
        num_steps, batch_size = num_steps or self._job.num_steps, self._job.recipe.batch_size
        # Whole batches only, as a smaller one would be compiled anew; the same number in each epoch.
        num_epochs = math.ceil(num_steps * batch_size / len(self._labels))
        num_rows = num_steps // num_epochs * batch_size
        watch = _Watch()
        self._model.set_weights(self._weights)
        history = self._model.fit(
            self._inputs[:num_rows],
            self._labels[:num_rows],
            batch_size=batch_size,
            epochs=num_epochs,
            shuffle=True,
            verbose=0,
            callbacks=[watch],
        ).history
        made = num_epochs * num_rows // batch_size
        return Turn(watch.seconds * num_steps / made, float(np.mean(history["loss"])))


class _Watch(keras.callbacks.Callback):
    """Notes the time of a `fit` without what it sets up before its first batch."""

    seconds = math.nan

    def on_train_begin(self, logs: Any = None) -> None:
        self._start = time.perf_counter()

    def on_train_end(self, logs: Any = None) -> None:
        self.seconds = time.perf_counter() - self._start


def _arrays(job: Job) -> tuple[np.ndarray, np.ndarray]:
    """All training data as the model takes them."""
    info, split = job.dataset.info, job.dataset.splits["train"]
    labels = np.array(split.labels, dtype=np.int32)
    if info.kind == "text":
        return np.array(split.inputs, dtype=np.int32), labels
    images = np.array(split.inputs, dtype=np.float32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray((images / 255 - np.float32(info.mean)) / np.float32(info.std)), labels


def _optimizer(job: Job) -> Any:
    config = job.recipe.optimizer
    if config.name == "sgd":
        return keras.optimizers.SGD(config.lr)
    optimizer = keras.optimizers.AdamW(
        config.lr, weight_decay=config.weight_decay, beta_1=config.betas[0], beta_2=config.betas[1], epsilon=config.eps
    )
    if not config.decay_norm_and_bias:
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer
