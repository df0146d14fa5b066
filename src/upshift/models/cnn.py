"""Small convolutional networks for small images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from upshift.models.shapes import image_shape


class SimpleCNN(nn.Module):
    """Blocks of 3×3 convolution, batch norm, ReLU and 2×2 max pooling, then one linear layer.

    Input (N, C, H, W), output logits (N, num_classes). Each block halves height and width; what is left
    after the last is averaged (for 32×32 and five blocks it is one pixel). With the defaults: 99,576
    parameters.

    Args:
        input_shape: Shape (C, H, W) of an image; each side at least 2 to the number of blocks.
        num_classes: Number of logits.
        widths: Output channels of each block.
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (3, 32, 32),
        num_classes: int = 10,
        widths: Sequence[int] = (6, 16, 32, 64, 128),
    ) -> None:
        super().__init__()
        channels, _, _ = image_shape(input_shape, "SimpleCNN", 2 ** len(widths))
        blocks = []
        for width in widths:
            blocks.append(
                nn.Sequential(
                    # batch norm subtracts the mean, so a bias before it would have no effect
                    nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    # ReLU and max pooling commute: in this order ReLU has a quarter of the values to read
                    nn.MaxPool2d(2),
                    nn.ReLU(inplace=True),
                )
            )
            channels = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.pool(self.blocks(images)).flatten(1))
        return logits


class ConvNet(nn.Module):
    """One 3×3 convolution with ReLU and 2×2 max pooling, then two fully connected layers.

    Input (N, C, H, W), output logits (N, num_classes). With the defaults, 28×28 → 26×26 → 13×13 and
    5,408–128–10: 693,962 parameters.

    Args:
        input_shape: Shape (C, H, W) of an image.
        num_classes: Number of logits.
        channels: Output channels of the convolution.
        hidden: Width of the first fully connected layer.
    """

    def __init__(
        self, input_shape: Sequence[int] = (1, 28, 28), num_classes: int = 10, channels: int = 32, hidden: int = 128
    ) -> None:
        super().__init__()
        in_channels, height, width = image_shape(input_shape, "ConvNet", 4)
        self.conv = nn.Conv2d(in_channels, channels, kernel_size=3)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(channels * ((height - 2) // 2) * ((width - 2) // 2), hidden)
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.pool(self.relu(self.conv(images))).flatten(1)
        logits: torch.Tensor = self.fc2(self.relu(self.fc1(features)))
        return logits


class Net(nn.Module):
    """Two 5×5 convolutions of 64 channels, each with ReLU and max pooling, then one linear layer.

    Input (N, C, H, W), output logits (N, num_classes). As first published, with 2×2 pooling, the linear
    layer of 1,024 inputs (64 channels of 4×4) fits 28×28 images: 28 → 24 → 12 → 8 → 4. For 32×32 images
    2×2 pooling would leave 5×5, 1,600 values. Here pooling is 3×3 with stride 2, overlapping as in AlexNet:
    32 → 28 → 13 → 9 → 4, which is what the linear layer takes. With the defaults: 117,578 parameters.

    Args:
        input_shape: Shape (C, H, W) of an image.
        num_classes: Number of logits.
        channels: Output channels of both convolutions.
    """

    def __init__(self, input_shape: Sequence[int] = (3, 32, 32), num_classes: int = 10, channels: int = 64) -> None:
        super().__init__()
        in_channels, height, width = image_shape(input_shape, "Net", 19)
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size=5)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=5)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2)
        for _ in range(2):
            height, width = (height - 4 - 3) // 2 + 1, (width - 4 - 3) // 2 + 1
        self.fc = nn.Linear(channels * height * width, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.pool(self.relu(self.conv1(images)))
        features = self.pool(self.relu(self.conv2(features)))
        logits: torch.Tensor = self.fc(features.flatten(1))
        return logits
