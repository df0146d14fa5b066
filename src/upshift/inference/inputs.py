"""Why a model cannot take what it was called with, and the expression that mends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from upshift.errors import BadInputError, shown
from upshift.inference.preprocess import Preprocessing


@dataclass(frozen=True)
class _Given:
    """What the model was called with.

    Attributes:
        name: How to write it in an expression.
        is_tensor: PyTorch's, which spells some operations otherwise than NumPy.
        dtype: By its name.
        shape: Of the whole batch.
        values: None if they cannot be read as an array.
    """

    name: str
    is_tensor: bool
    dtype: str
    shape: tuple[int, ...]
    values: NDArray[Any] | None

    def cast(self, dtype: str) -> str:
        """The expression of these values in another type."""
        if self.is_tensor:
            return f"{self.name}.to(torch.{dtype})"
        return f'{self.name}.astype("{dtype}")'

    def axes(self, *order: int) -> str:
        """The expression of these values with their axes in another order."""
        return f"{self.name}.{'permute' if self.is_tensor else 'transpose'}({', '.join(map(str, order))})"


def refusal(preprocessing: Preprocessing, inputs: object) -> BadInputError:
    """The error for inputs that do not fit a model.

    Args:
        preprocessing: What the model takes.
        inputs: What it was called with: anything.
    """
    if isinstance(inputs, torch.Tensor):
        if problem := _without_values(inputs):
            return problem
        return _of_given(preprocessing, _given_tensor(inputs))
    try:
        array = np.asarray(inputs)
    except (ValueError, TypeError):  # lists of unequal lengths
        array = np.empty((), dtype=object)
    if array.dtype.kind not in "biufc":
        return BadInputError(
            "the model's input must be a tensor, or an array of numbers",
            received=f"an array of {array.dtype}" if isinstance(inputs, np.ndarray) else shown(inputs),
            hint=f"make one of shape {_expected(preprocessing)}",
        )
    name = "x" if isinstance(inputs, np.ndarray) else "numpy.asarray(x)"
    return _of_given(preprocessing, _Given(name, False, str(array.dtype), array.shape, array))


def _without_values(tensor: torch.Tensor) -> BadInputError | None:
    """The error for a tensor that has no values, or not in rows and columns."""
    rule = "the model's input must be an ordinary tensor, with a value for each element"
    if tensor.is_meta:
        return BadInputError(
            rule,
            received="one on the device meta, which has no values",
            hint="make it on a device that has, as torch.zeros(…, device='cpu')",
        )
    if tensor.is_nested:
        return BadInputError(rule, received="a nested one", hint="pad it: x.to_padded_tensor(0)")
    if tensor.layout != torch.strided:
        return BadInputError(rule, received=f"one of layout {tensor.layout}", hint="make it dense: x.to_dense()")
    if tensor.is_quantized:
        return BadInputError(rule, received=f"a quantized one, {tensor.dtype}", hint="x.dequantize()")
    return None


def _given_tensor(tensor: torch.Tensor) -> _Given:
    try:
        values = tensor.detach().cpu().numpy()
    except (TypeError, RuntimeError):  # types that NumPy lacks, as bfloat16
        values = None
    return _Given("x", True, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), values)


def _of_given(preprocessing: Preprocessing, given: _Given) -> BadInputError:
    shape = preprocessing.input_shape
    if given.shape[1:] != shape or len(given.shape) != len(shape) + 1 or given.shape[0] == 0:
        axes = " (samples, channels, height, width)" if _is_image(preprocessing) else ""
        return BadInputError(
            f"the model's input must have the shape {_expected(preprocessing)}{axes}, N at least 1",
            received=f"{given.dtype} {given.shape}",
            hint=_shape_hint(preprocessing, given),
        )
    rules = {
        "image": "uint8 pixels from 0 to 255, or float32 that is normalised as in training",
        "text": "bytes, as int64 or uint8",
        "tabular": "float32" + (" that is normalised as in training" if preprocessing.mean else ""),
    }
    return BadInputError(
        f"the model's input must be {rules[preprocessing.kind]}",
        received=given.dtype,
        hint=_dtype_hint(preprocessing, given),
    )


def _expected(preprocessing: Preprocessing) -> str:
    return f"({', '.join(('N', *map(str, preprocessing.input_shape)))})"


def _is_image(preprocessing: Preprocessing) -> bool:
    return preprocessing.kind == "image" and len(preprocessing.input_shape) == 3


def _shape_hint(preprocessing: Preprocessing, given: _Given) -> str:
    shape, x = preprocessing.input_shape, given.name
    if given.shape[1:] == shape and given.shape:
        return "give at least one sample"
    if given.shape == shape:
        return f"one sample is a batch of 1: {x}[None]"
    if _is_image(preprocessing):
        return _image_hint(shape, given)
    if preprocessing.kind == "text" and len(given.shape) <= 2:
        return f"cut the bytes of a text at {shape[0]}, or pad them with 0"
    if preprocessing.kind == "tabular" and len(shape) == 1 and len(given.shape) <= 2:
        return f"give the {shape[0]} features of the training data, in their order"
    return "reshape it to what the model was trained on"


def _image_hint(shape: tuple[int, ...], given: _Given) -> str:
    channels, height, width = shape
    x, received = given.name, given.shape
    if received[1:] == (height, width, channels):
        return f"channels come before height and width: {given.axes(0, 3, 1, 2)}"
    if received == (height, width, channels):
        return f"channels come before height and width, and one sample is a batch of 1: {given.axes(2, 0, 1)}[None]"
    if channels == 1 and received[1:] == (height, width):
        return f"grey images have one channel: {x}[:, None]"
    if channels == 1 and received == (height, width):
        return f"one grey image is a batch of 1 with one channel: {x}[None, None]"
    by_files = "`upshift predict` does so for files"
    if received[2:] == (height, width) and len(received) == 4:
        if channels == 3 and received[1] == 1:
            return f"the model takes colour: {x}.{'expand(-1, 3, -1, -1)' if given.is_tensor else 'repeat(3, axis=1)'}"
        if channels in (1, 3):
            return f"convert the images to {'grey' if channels == 1 else 'colour without transparency'}; {by_files}"
    return f"resize the images to {height} × {width} (height × width); {by_files}"


def _dtype_hint(preprocessing: Preprocessing, given: _Given) -> str:
    kind = preprocessing.kind
    if given.dtype.startswith("complex"):
        return "give real numbers"
    is_whole = given.dtype == "bool" or given.dtype.lstrip("u").startswith("int")
    if kind == "text":
        return given.cast("int64") if is_whole else "encode texts as UTF-8 bytes, padded with 0"
    if kind == "tabular":
        if preprocessing.mean:
            return f"raw features: model.preprocessing.apply({given.cast('float32')})"
        return given.cast("float32")
    if given.dtype == "bool":
        return f"white is 255: {given.cast('uint8')} * 255"
    if not is_whole:
        return f"pixels from 0 to 255: {given.cast('uint8')}; normalised values: {given.cast('float32')}"
    if given.values is not None and given.values.size and given.values.min() >= 0 and given.values.max() <= 255:
        return f"whole numbers from 0 to 255 are pixels: {given.cast('uint8')}"
    return "give pixels as uint8 from 0 to 255; other values must be normalised, and float32"
