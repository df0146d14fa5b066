"""Every model of the package passes the same checks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from upshift.errors import ConfigError
from upshift.models.cnn import ConvNet, Net, SimpleCNN
from upshift.models.mlp import MLP
from upshift.models.resnet import resnet18_cifar, resnet50
from upshift.models.spec import state_dict_on_cpu
from upshift.models.text import TextTransformer

Factory = Callable[..., nn.Module]


class Texts(tuple[int, ...]):
    """The shape (L,) of inputs that are bytes."""


# (factory, input shape, parameters with 10 classes)
MODELS = {
    "mlp": (MLP, (1, 28, 28), 109_386),
    "mlp-small": (partial(MLP, hidden=[64]), (1, 28, 28), 50_890),
    "mlp-dropout": (partial(MLP, hidden=[32], dropout=0.2), (1, 28, 28), 25_450),
    "mlp-tabular": (MLP, (7,), (7 * 128 + 128) + (128 * 64 + 64) + 650),
    "convnet": (ConvNet, (1, 28, 28), 693_962),
    "net": (Net, (3, 32, 32), 117_578),
    "simplecnn": (SimpleCNN, (3, 32, 32), 99_576),
    "simplecnn-digits": (partial(SimpleCNN, widths=[32, 64, 128]), (1, 8, 8), 94_186),
    "simplecnn-odd": (SimpleCNN, (3, 45, 33), 99_576),
    "resnet18-cifar": (resnet18_cifar, (3, 32, 32), 11_173_962),
    "resnet50-mnist": (resnet50, (1, 28, 28), 23_522_250),
    "text-transformer": (TextTransformer, Texts((64,)), 569_218 - (256 - 64) // 4 * 128 + 8 * 129),
}


def check_model(factory: Factory, input_shape: tuple[int, ...], tmp_path: Path) -> nn.Module:
    """The checks that a model of this package must pass; returns one made under seed 0."""
    model = _make(factory, input_shape, seed=0)
    _check_batch_sizes(model, input_shape)
    _check_gradients(model, input_shape)
    _check_modes(model, input_shape)
    _check_determinism(factory, input_shape)
    _check_state_round_trip(model, factory, input_shape, tmp_path)
    _check_export(model, input_shape)
    return model


def _make(factory: Factory, input_shape: tuple[int, ...], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return factory(input_shape=input_shape, num_classes=10)


def _batch(input_shape: tuple[int, ...], size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size)
    if not isinstance(input_shape, Texts):
        return torch.randn(size, *input_shape, generator=generator)
    texts = torch.randint(1, 256, (size, *input_shape), generator=generator)
    lengths = torch.randint(0, input_shape[0] + 1, (size, 1), generator=generator)
    return texts * (torch.arange(input_shape[0]) < lengths)


@torch.no_grad()
def _check_batch_sizes(model: nn.Module, input_shape: tuple[int, ...]) -> None:
    model.eval()
    inputs = _batch(input_shape, 5)
    together = model(inputs)
    assert together.shape == (5, 10)
    assert together.dtype == torch.float32
    one_by_one = torch.cat([model(sample[None]) for sample in inputs])
    torch.testing.assert_close(one_by_one, together, rtol=1e-4, atol=1e-5)
    if len(input_shape) == 3:
        as_nhwc = model(inputs.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(as_nhwc, together, rtol=1e-4, atol=1e-5)


def _check_gradients(model: nn.Module, input_shape: tuple[int, ...]) -> None:
    model.train()
    inputs = _batch(input_shape, 8)
    before = inputs.clone()
    nn.functional.cross_entropy(model(inputs), torch.arange(8)).backward()
    assert torch.equal(inputs, before), "an in-place operation changed the caller's batch"
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any()
    ]
    assert without == []
    model.zero_grad()


@torch.no_grad()
def _check_modes(model: nn.Module, input_shape: tuple[int, ...]) -> None:
    model.eval()
    inputs = _batch(input_shape, 4)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert torch.equal(model(inputs), model(inputs))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    if any(isinstance(module, nn.BatchNorm2d | nn.Dropout) for module in model.modules()):
        evaluated = model(inputs)
        assert not torch.allclose(model.train()(inputs), evaluated)


def _check_determinism(factory: Factory, input_shape: tuple[int, ...]) -> None:
    states = [_make(factory, input_shape, seed).state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert not all(torch.equal(tensor, states[2][name]) for name, tensor in states[0].items())


@torch.no_grad()
def _check_state_round_trip(model: nn.Module, factory: Factory, input_shape: tuple[int, ...], tmp_path: Path) -> None:
    save_file(state_dict_on_cpu(model), tmp_path / "model.safetensors")
    other = _make(factory, input_shape, seed=1)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    inputs = _batch(input_shape, 3)
    assert torch.equal(model.eval()(inputs), other.eval()(inputs))


@torch.no_grad()
def _check_export(model: nn.Module, input_shape: tuple[int, ...]) -> None:
    model.eval()
    exported: Any = torch.export.export(
        model, (_batch(input_shape, 4),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
    ).module()
    for size in (1, 7):
        inputs = _batch(input_shape, size)
        torch.testing.assert_close(exported(inputs), model(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_model_conforms(name: str, tmp_path: Path) -> None:
    factory, input_shape, num_parameters = MODELS[name]
    model = check_model(factory, input_shape, tmp_path)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


def test_resnet50_has_the_parameters_and_names_of_torchvision() -> None:
    with torch.device("meta"):
        state = resnet50().state_dict()
        num_parameters = sum(parameter.numel() for parameter in resnet50().parameters())
    assert num_parameters == 25_557_032
    assert len(state) == 320
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert shapes["conv1.weight"] == (64, 3, 7, 7)
    assert shapes["layer1.0.downsample.0.weight"] == (256, 64, 1, 1)
    assert shapes["layer1.0.downsample.1.running_var"] == (256,)
    assert shapes["layer2.0.conv2.weight"] == (128, 128, 3, 3)
    assert shapes["layer3.5.bn3.num_batches_tracked"] == ()
    assert shapes["layer4.2.conv3.weight"] == (2048, 512, 1, 1)
    assert shapes["fc.weight"] == (1000, 2048)
    assert "layer1.1.downsample.0.weight" not in shapes


def test_resnet50_strides_in_the_3x3_convolution_as_v1_5_does() -> None:
    with torch.device("meta"):
        model = resnet50()
    assert (model.layer2[0].conv1.stride, model.layer2[0].conv2.stride) == ((1, 1), (2, 2))


@torch.no_grad()
def test_resnet50_sees_224_pixels_as_7_by_7_features() -> None:
    with torch.device("meta"):
        model = resnet50().eval()
        features: list[torch.Size] = []
        model.layer4.register_forward_hook(lambda module, inputs, output: features.append(output.shape))
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
    assert features == [(2, 2048, 7, 7)]


def test_zero_init_residual_starts_each_block_as_its_shortcut() -> None:
    model = resnet18_cifar(zero_init_residual=True).eval()
    block = model.layer1[0]
    inputs = torch.rand(2, 64, 8, 8)
    assert torch.equal(block(inputs), inputs)
    assert not torch.equal(resnet18_cifar().eval().layer1[0](inputs), inputs)


@pytest.mark.parametrize("factory", [SimpleCNN, ConvNet, Net, resnet50, resnet18_cifar])
def test_image_models_refuse_data_that_are_no_images(factory: Factory) -> None:
    with pytest.raises(ConfigError, match="takes images"):
        factory(input_shape=(13,), num_classes=2)


@pytest.mark.parametrize("factory", [SimpleCNN, ConvNet, Net, resnet50, resnet18_cifar])
def test_image_models_refuse_images_too_small_for_their_poolings(factory: Factory) -> None:
    with pytest.raises(ConfigError, match=r"at least .* received 2×2; hint: --set data.image_size"):
        factory(input_shape=(1, 2, 2), num_classes=2)


@pytest.mark.parametrize(("factory", "side"), [(SimpleCNN, 32), (ConvNet, 4), (Net, 19), (resnet50, 8)])
def test_the_smallest_image_that_a_model_accepts_works(factory: Factory, side: int) -> None:
    model = factory(input_shape=(3, side, side), num_classes=2)
    assert model.eval()(torch.randn(1, 3, side, side)).shape == (1, 2)
