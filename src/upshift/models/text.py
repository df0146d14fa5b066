"""A transformer encoder that classifies texts from their bytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from upshift.errors import ConfigError

NUM_BYTES = 256
PADDING = 0
"""A text is stored as UTF-8 bytes, and no text has a byte 0: it fills what is left of the row."""


class EncoderBlock(nn.Module):
    """Self-attention and two linear layers, each after a layer norm and with a shortcut: (N, T, width) to the same.

    The norm comes first (arXiv 2002.04745): such a network trains without a warm-up of the learning rate.
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.gelu = nn.GELU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        heads = self.qkv(self.norm1(tokens)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        tokens = tokens + self.dropout(self.projection(attended.transpose(1, 2).flatten(2)))
        outputs: torch.Tensor = tokens + self.dropout(self.fc2(self.gelu(self.fc1(self.norm2(tokens)))))
        return outputs


class TextTransformer(nn.Module):
    """Byte embeddings, a strided convolution that makes tokens of them, encoder blocks, the mean, a linear layer.

    Input (N, L), the bytes of texts as int64, padded with 0; output logits (N, num_classes). The convolution takes
    `2 * stride` bytes at every `stride`-th: attention then has a `stride`-th of the positions, as in CANINE
    (arXiv 2103.06874). There is no vocabulary to build, and no text that it lacks words for. Tokens of nothing but
    padding are not attended to and not in the mean. With the defaults: 569,218 parameters.

    Args:
        input_shape: Shape (L,) of a text; L a multiple of `stride`.
        num_classes: Number of logits.
        width: Size of an embedding and of a token; a multiple of `num_heads`.
        num_layers: Encoder blocks.
        num_heads: Of the attention.
        stride: Bytes from one token to the next; even.
        dropout: Share of each shortcut's other branch that is dropped while training (arXiv 1207.0580).
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (256,),
        num_classes: int = 2,
        width: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        stride: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        length = _text_length(input_shape, stride)
        if width % num_heads:
            raise ConfigError(
                "TextTransformer needs a width that is a multiple of its heads",
                received=f"width {width}, {num_heads} heads",
                hint="for example --set model_args.width=128",
            )
        self.stride = stride
        self.embedding = nn.Embedding(NUM_BYTES, width, padding_idx=PADDING)
        self.merge = nn.Conv1d(width, width, kernel_size=2 * stride, stride=stride, padding=stride // 2)
        self.position = nn.Parameter(torch.empty(length // stride, width))
        self.blocks = nn.ModuleList(EncoderBlock(width, num_heads, dropout) for _ in range(num_layers))
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
        nn.init.normal_(self.position, std=0.02)

    def forward(self, texts: torch.Tensor) -> torch.Tensor:
        is_token = (texts != PADDING).reshape(-1, len(self.position), self.stride).any(-1)
        # A text without a byte has one token all the same: attention over nothing, and its mean, would be NaN.
        is_token = is_token | (torch.arange(is_token.shape[1], device=texts.device) == 0)
        tokens = self.merge(self.embedding(texts).transpose(1, 2)).transpose(1, 2)
        tokens = self.dropout(F.gelu(tokens) + self.position)
        mask = is_token[:, None, None, :]
        for block in self.blocks:
            tokens = block(tokens, mask)
        weights = is_token.unsqueeze(-1).to(tokens.dtype)
        mean = (self.norm(tokens) * weights).sum(1) / weights.sum(1)
        logits: torch.Tensor = self.head(mean)
        return logits


def _text_length(input_shape: Sequence[int], stride: int) -> int:
    """The bytes of a text, if the input is one and can be cut into tokens."""
    if len(input_shape) != 1:
        raise ConfigError(
            "TextTransformer takes texts, of shape (L,)",
            received=f"samples of shape {tuple(input_shape)}",
            hint="choose a model for this kind of data, or another dataset",
        )
    if stride < 2 or stride % 2:
        raise ConfigError(
            "TextTransformer needs an even stride", received=stride, hint="for example --set model_args.stride=4"
        )
    if input_shape[0] % stride:
        raise ConfigError(
            f"TextTransformer needs texts of a multiple of {stride} bytes",
            received=input_shape[0],
            hint=f"--set data.max_text_bytes={(input_shape[0] // stride + 1) * stride}",
        )
    return input_shape[0]
