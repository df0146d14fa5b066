"""What does not fit a model is refused with words, and with an expression that mends it, which is tried here."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from upshift.errors import BadInputError
from upshift.inference.artifact import Artifact
from upshift.inference.manifest import Manifest, OutputSignature
from upshift.inference.preprocess import Preprocessing
from upshift.inference.structure import flatten

COLOUR = Preprocessing(kind="image", input_shape=(3, 6, 5), mean=(0.5,) * 3, std=(0.25,) * 3)
GREY = Preprocessing(kind="image", input_shape=(1, 6, 5), mean=(0.5,), std=(0.25,))
TEXT = Preprocessing(kind="text", input_shape=(8,))
TABLE = Preprocessing(kind="tabular", input_shape=(4,), mean=(0.0,) * 4, std=(1.0,) * 4)
PLAIN = Preprocessing(kind="tabular", input_shape=(4,))


def artifact(preprocessing: Preprocessing) -> Artifact:
    """One that gives its own input back, and so takes what an artifact of a model takes."""
    _, tree = flatten(torch.zeros(1))
    output = OutputSignature(tree=tree, dtypes=("float32",), shapes=(preprocessing.input_shape,), logits=None)
    manifest = Manifest(backend="eager", options={}, preprocessing=preprocessing, output=output)
    return Artifact(manifest, lambda inputs: [inputs])


def refused(preprocessing: Preprocessing, inputs: object) -> BadInputError:
    with pytest.raises(BadInputError) as caught:
        artifact(preprocessing)(inputs)
    return caught.value


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype)


def array(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.ones(shape, dtype)


@pytest.mark.parametrize(
    ("preprocessing", "inputs", "expression"),
    [
        (COLOUR, array(3, 6, 5), "x[None]"),
        (COLOUR, tensor(3, 6, 5, dtype=torch.uint8), "x[None]"),
        (COLOUR, array(2, 6, 5, 3), "x.transpose(0, 3, 1, 2)"),
        (COLOUR, tensor(2, 6, 5, 3), "x.permute(0, 3, 1, 2)"),
        (COLOUR, array(6, 5, 3, dtype="uint8"), "x.transpose(2, 0, 1)[None]"),
        (COLOUR, tensor(6, 5, 3), "x.permute(2, 0, 1)[None]"),
        (COLOUR, array(2, 1, 6, 5), "x.repeat(3, axis=1)"),
        (COLOUR, tensor(2, 1, 6, 5), "x.expand(-1, 3, -1, -1)"),
        (GREY, array(2, 6, 5), "x[:, None]"),
        (GREY, tensor(6, 5, dtype=torch.uint8), "x[None, None]"),
        (COLOUR, array(2, 3, 6, 5, dtype="int64"), 'x.astype("uint8")'),
        (COLOUR, tensor(2, 3, 6, 5, dtype=torch.int64), "x.to(torch.uint8)"),
        (COLOUR, tensor(2, 3, 6, 5, dtype=torch.bool), "x.to(torch.uint8) * 255"),
        (COLOUR, array(2, 3, 6, 5, dtype="float64"), 'x.astype("float32")'),
        (COLOUR, tensor(2, 3, 6, 5, dtype=torch.bfloat16), "x.to(torch.float32)"),
        (COLOUR, tensor(2, 3, 6, 5, dtype=torch.float64).requires_grad_(), "x.to(torch.float32)"),
        (COLOUR, array(2, 3, 6, 5).tolist(), 'numpy.asarray(x).astype("float32")'),
        (COLOUR, Image.new("RGB", (5, 6)), "numpy.asarray(x).transpose(2, 0, 1)[None]"),
        (COLOUR, tensor(2, 3, 6, 5).to_sparse(), "x.to_dense()"),
        (TEXT, array(8, dtype="uint8"), "x[None]"),
        (TEXT, array(2, 8, dtype="int32"), 'x.astype("int64")'),
        (TEXT, tensor(2, 8, dtype=torch.int16), "x.to(torch.int64)"),
        (TABLE, array(4), "x[None]"),
        (TABLE, tensor(2, 4, dtype=torch.float64), "model.preprocessing.apply(x.to(torch.float32))"),
        (PLAIN, array(2, 4, dtype="int64"), 'x.astype("float32")'),
    ],
)  # fmt: skip
def test_the_expression_of_the_hint_makes_it_fit(preprocessing, inputs, expression):
    hint = refused(preprocessing, inputs).hint
    assert hint.endswith(expression), hint
    model = artifact(preprocessing)
    mended = eval(expression, {"x": inputs, "numpy": np, "torch": torch, "model": model})
    assert model(mended).shape[1:] == preprocessing.input_shape


@pytest.mark.parametrize(
    ("preprocessing", "inputs", "received", "hint"),
    [
        (COLOUR, array(0, 3, 6, 5), "float32 (0, 3, 6, 5)", "give at least one sample"),
        (COLOUR, tensor(0, 3, 6, 5, dtype=torch.uint8), "uint8 (0, 3, 6, 5)", "give at least one sample"),
        (TABLE, array(0, 4), "float32 (0, 4)", "give at least one sample"),
        (COLOUR, array(2, 3, 5, 6), "float32 (2, 3, 5, 6)", "resize the images to 6 × 5 (height × width)"),
        (COLOUR, array(2, 4, 6, 5), "float32 (2, 4, 6, 5)", "convert the images to colour without transparency"),
        (GREY, tensor(2, 3, 6, 5), "float32 (2, 3, 6, 5)", "convert the images to grey"),
        (COLOUR, np.float32(3.0), "float32 ()", "resize the images"),
        (COLOUR, array(7), "float32 (7,)", "resize the images"),
        (TEXT, array(2, 9, dtype="int64"), "int64 (2, 9)", "cut the bytes of a text at 8"),
        (TABLE, array(2, 5), "float32 (2, 5)", "give the 4 features"),
        (COLOUR, np.full((1, 3, 6, 5), 256), "int64", "give pixels as uint8 from 0 to 255"),
        (COLOUR, np.full((1, 3, 6, 5), -1), "int64", "give pixels as uint8 from 0 to 255"),
        (TEXT, array(2, 8), "float32", "encode texts as UTF-8 bytes"),
        (TABLE, array(2, 4, dtype="complex64"), "complex64", "give real numbers"),
        (COLOUR, torch.zeros(2, 3, 6, 5, device="meta"), "one on the device meta, which has no values", "device='cpu'"),
        (COLOUR, None, "None", "make one of shape (N, 3, 6, 5)"),
        (TEXT, "hello", "'hello'", "make one of shape (N, 8)"),
        (COLOUR, {"x": 1}, "{'x': 1} (dict of 1)", "make one of shape"),
        (TABLE, [[1.0, 2.0], [3.0]], "[[1.0, 2.0], [3.0]] (list of 2)", "make one of shape (N, 4)"),
        (TABLE, np.array(["a"]), "an array of <U1", "make one of shape (N, 4)"),
    ],
)
def test_what_no_expression_mends_is_told_in_words(preprocessing, inputs, received, hint):
    error = refused(preprocessing, inputs)
    assert error.received == received
    assert hint in error.hint


def test_the_rule_names_the_axes_and_types_of_each_kind():
    assert "(N, 3, 6, 5) (samples, channels, height, width), N at least 1" in refused(COLOUR, array(3)).rule
    assert refused(TEXT, array(3)).rule.endswith("the shape (N, 8), N at least 1")
    assert "uint8 pixels from 0 to 255, or float32 that is normalised" in refused(COLOUR, array(1, 3, 6, 5) > 0).rule
    assert "bytes, as int64 or uint8" in refused(TEXT, array(1, 8)).rule
    assert refused(PLAIN, array(1, 4) > 0).rule.endswith("must be float32")


def test_a_tensor_that_needs_a_gradient_is_taken_as_it_is():
    model = artifact(COLOUR)
    assert torch.equal(model(tensor(2, 3, 6, 5).requires_grad_()), tensor(2, 3, 6, 5))
