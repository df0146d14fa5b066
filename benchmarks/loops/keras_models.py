"""The benchmarked models once more, for Keras 3: layer by layer what `upshift.models` has, images channels last."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import layers, ops

from upshift.models.text import PADDING
from upshift.recipes.recipe import Recipe

# As torch draws the weights of linear layers and convolutions: evenly within 1 / sqrt(inputs).
_AS_TORCH: Mapping[str, Any] = {"scale": 1 / 3, "mode": "fan_in", "distribution": "uniform"}


def keras_model(recipe: Recipe, input_shape: tuple[int, ...], num_classes: int) -> keras.Model:
    """The model of a recipe; images (N, H, W, C), texts (N, L) as int32; logits (N, num_classes)."""
    if len(input_shape) == 3:
        channels, height, width = input_shape
        inputs = keras.Input((height, width, channels))
    else:
        inputs = keras.Input(input_shape, dtype="int32")
    features = MODELS[recipe.name](inputs, **recipe.model_args)
    return keras.Model(inputs, _dense(features, num_classes))


def _dense(inputs: Any, units: int, activation: str | None = None) -> Any:
    initializer = keras.initializers.VarianceScaling(**_AS_TORCH)
    return layers.Dense(units, activation=activation, kernel_initializer=initializer)(inputs)


def _convolution(inputs: Any, filters: int, size: int, *, initializer: Any = None, **arguments: Any) -> Any:
    initializer = initializer or keras.initializers.VarianceScaling(**_AS_TORCH)
    return layers.Conv2D(filters, size, kernel_initializer=initializer, **arguments)(inputs)


def _batch_norm(inputs: Any) -> Any:
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(inputs)


def _mlp(inputs: Any, hidden: list[int]) -> Any:
    features = layers.Flatten()(inputs)
    for width in hidden:
        features = _dense(features, width, "relu")
    return features


def _conv_net(inputs: Any, channels: int, hidden: int) -> Any:
    features = layers.MaxPooling2D()(_convolution(inputs, channels, 3, activation="relu"))
    return _dense(layers.Flatten()(features), hidden, "relu")


def _simple_cnn(inputs: Any, widths: list[int]) -> Any:
    features = inputs
    for width in widths:
        features = _batch_norm(_convolution(features, width, 3, padding="same", use_bias=False))
        features = layers.ReLU()(layers.MaxPooling2D()(features))
    return layers.GlobalAveragePooling2D()(features)


def _net(inputs: Any, channels: int = 64) -> Any:
    features = inputs
    for _ in range(2):
        features = _convolution(features, channels, 5, activation="relu")
        features = layers.MaxPooling2D(3, strides=2)(features)
    return layers.Flatten()(features)


def _residual_convolution(inputs: Any, filters: int, size: int, stride: int = 1) -> Any:
    """A convolution padded alike on both sides, as torch pads, and its batch norm."""
    padding = "same" if stride == 1 else "valid"
    if stride > 1 and size > 1:
        inputs = layers.ZeroPadding2D(size // 2)(inputs)
    # He's initialisation for ReLU by what goes out, as the ResNets of upshift have it, which do not cut its tails.
    initializer = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
    outputs = _convolution(
        inputs, filters, size, initializer=initializer, strides=stride, padding=padding, use_bias=False
    )
    return _batch_norm(outputs)


def _basic_block(inputs: Any, channels: int, stride: int) -> Any:
    outputs = layers.ReLU()(_residual_convolution(inputs, channels, 3, stride))
    return _residual_convolution(outputs, channels, 3)


def _bottleneck(inputs: Any, channels: int, stride: int) -> Any:
    outputs = layers.ReLU()(_residual_convolution(inputs, channels, 1))
    outputs = layers.ReLU()(_residual_convolution(outputs, channels, 3, stride))
    return _residual_convolution(outputs, 4 * channels, 1)


def _stages(features: Any, block: Callable[[Any, int, int], Any], num_blocks: tuple[int, ...]) -> Any:
    for stage, (channels, count) in enumerate(zip((64, 128, 256, 512), num_blocks, strict=True)):
        for index in range(count):
            stride = 2 if stage > 0 and index == 0 else 1
            outputs = block(features, channels, stride)
            if stride > 1 or outputs.shape[-1] != features.shape[-1]:
                features = _residual_convolution(features, outputs.shape[-1], 1, stride)
            features = layers.ReLU()(layers.Add()([outputs, features]))
    return layers.GlobalAveragePooling2D()(features)


def _resnet18_cifar(inputs: Any) -> Any:
    return _stages(layers.ReLU()(_residual_convolution(inputs, 64, 3)), _basic_block, (2, 2, 2, 2))


def _resnet50(inputs: Any) -> Any:
    features = layers.ReLU()(_residual_convolution(inputs, 64, 7, 2))
    # What is padded comes after a ReLU: zeros there win over nothing, as torch's minus infinity would not.
    features = layers.MaxPooling2D(3, strides=2)(layers.ZeroPadding2D(1)(features))
    return _stages(features, _bottleneck, (3, 4, 6, 3))


class _Tokens(layers.Layer):
    """Which tokens of `stride` bytes hold any text; the first one always does."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self._stride = stride

    def call(self, texts: Any) -> Any:
        is_byte = ops.reshape(ops.not_equal(texts, PADDING), (-1, texts.shape[1] // self._stride, self._stride))
        is_token = ops.any(is_byte, axis=-1)
        return ops.logical_or(is_token, ops.arange(is_token.shape[1]) == 0)


class _Positions(layers.Layer):
    """Adds a learned vector to each position."""

    def build(self, shape: tuple[int, ...]) -> None:
        initializer = keras.initializers.RandomNormal(stddev=0.02)
        self.position = self.add_weight(shape=shape[1:], initializer=initializer, name="position")

    def call(self, tokens: Any) -> Any:
        return tokens + self.position


class _ByteEmbedding(layers.Layer):
    """A vector for each byte, 0 for padding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._embedding = layers.Embedding(256, width, embeddings_initializer=keras.initializers.RandomNormal(stddev=1))

    def call(self, texts: Any) -> Any:
        embedded = self._embedding(texts)
        return embedded * ops.expand_dims(ops.cast(ops.not_equal(texts, PADDING), embedded.dtype), -1)


class _MaskedMean(layers.Layer):
    """The mean of the tokens that hold any text."""

    def call(self, tokens: Any, is_token: Any) -> Any:
        weights = ops.expand_dims(ops.cast(is_token, tokens.dtype), -1)
        return ops.sum(tokens * weights, axis=1) / ops.sum(weights, axis=1)


def _text_transformer(
    inputs: Any, width: int = 128, num_layers: int = 2, num_heads: int = 4, stride: int = 4, dropout: float = 0.1
) -> Any:
    is_token = _Tokens(stride)(inputs)
    padded = layers.ZeroPadding1D(stride // 2)(_ByteEmbedding(width)(inputs))
    initializer = keras.initializers.VarianceScaling(**_AS_TORCH)
    tokens = layers.Conv1D(width, 2 * stride, strides=stride, kernel_initializer=initializer)(padded)
    tokens = layers.Activation(lambda values: ops.gelu(values, approximate=False))(tokens)
    tokens = layers.Dropout(dropout)(_Positions()(tokens))
    mask = layers.Reshape((1, -1))(is_token)
    for _ in range(num_layers):
        normed = layers.LayerNormalization(epsilon=1e-5)(tokens)
        attention = layers.MultiHeadAttention(num_heads, width // num_heads)
        tokens = tokens + layers.Dropout(dropout)(attention(normed, normed, attention_mask=mask))
        hidden = _dense(layers.LayerNormalization(epsilon=1e-5)(tokens), 4 * width)
        hidden = layers.Activation(lambda values: ops.gelu(values, approximate=False))(hidden)
        tokens = tokens + layers.Dropout(dropout)(_dense(hidden, width))
    return _MaskedMean()(layers.LayerNormalization(epsilon=1e-5)(tokens), is_token)


MODELS: Mapping[str, Callable[..., Any]] = {
    "mnist-mlp": _mlp,
    "mnist-cnn": _conv_net,
    "cifar10-simplecnn": _simple_cnn,
    "cifar10-net": _net,
    "cifar10-resnet18": _resnet18_cifar,
    "mnist-resnet50": _resnet50,
    "sst2-transformer": _text_transformer,
}
