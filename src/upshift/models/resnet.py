"""Residual networks (He et al. 2015, arXiv 1512.03385).

`resnet50` has the layout of torchvision's (v1.5: the stride is in the 3×3 convolution of a bottleneck) and
its names, so state dicts go both ways. `resnet18_cifar` starts with a 3×3 convolution and no pooling, as is
usual for 32×32 images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from upshift.models.shapes import image_shape


def _downsample(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """The projection of a shortcut where a block changes the shape; None where it is the identity."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
    )


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: (N, in_channels, H, W) to (N, channels, H/stride, W/stride)."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _downsample(in_channels, channels, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn2

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        shortcut = inputs if self.downsample is None else self.downsample(inputs)
        outputs = self.relu(self.bn1(self.conv1(inputs)))
        outputs = self.bn2(self.conv2(outputs))
        activated: torch.Tensor = self.relu(outputs + shortcut)
        return activated


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions and a shortcut: (N, in_channels, H, W) to (N, 4·channels, H/stride, W/stride)."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, kernel_size=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(in_channels, out_channels, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn3

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        shortcut = inputs if self.downsample is None else self.downsample(inputs)
        outputs = self.relu(self.bn1(self.conv1(inputs)))
        outputs = self.relu(self.bn2(self.conv2(outputs)))
        outputs = self.bn3(self.conv3(outputs))
        activated: torch.Tensor = self.relu(outputs + shortcut)
        return activated


class ResNet(nn.Module):
    """A stem, four stages of residual blocks of 64, 128, 256 and 512 channels, average pooling, a linear layer.

    Input (N, C, H, W), output logits (N, num_classes). At images so small that the last stage sees one
    pixel, training needs batches of at least two samples: batch norm has nothing to average over in one.

    Args:
        block: The kind of residual block.
        num_blocks: Blocks in each of the four stages.
        in_channels: Channels of the images.
        num_classes: Number of logits.
        small_images: Start with a 3×3 convolution of stride 1 and no pooling, in place of a 7×7
            convolution of stride 2 and 3×3 max pooling of stride 2.
        zero_init_residual: Start each block as the identity, its last batch norm scaling by 0
            (arXiv 1706.02677).
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        num_blocks: Sequence[int],
        *,
        in_channels: int,
        num_classes: int,
        small_images: bool = False,
        zero_init_residual: bool = False,
    ) -> None:
        super().__init__()
        if small_images:
            self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=3, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small_images else nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = _stage(block, 64, 64, num_blocks[0], stride=1)
        self.layer2 = _stage(block, 64 * block.expansion, 128, num_blocks[1], stride=2)
        self.layer3 = _stage(block, 128 * block.expansion, 256, num_blocks[2], stride=2)
        self.layer4 = _stage(block, 256 * block.expansion, 512, num_blocks[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * block.expansion, num_classes)
        self._initialise(zero_init_residual)

    def _initialise(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_(module.last_norm.weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        logits: torch.Tensor = self.fc(self.avgpool(features).flatten(1))
        return logits


def _stage(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, channels: int, num_blocks: int, *, stride: int
) -> nn.Sequential:
    first = block(in_channels, channels, stride)
    others = [block(channels * block.expansion, channels, 1) for _ in range(num_blocks - 1)]
    return nn.Sequential(first, *others)


def resnet50(
    input_shape: Sequence[int] = (3, 224, 224), num_classes: int = 1000, zero_init_residual: bool = False
) -> ResNet:
    """ResNet-50 in torchvision's layout: 25,557,032 parameters with the defaults.

    Args:
        input_shape: Shape (C, H, W) of an image; made for 224×224, usable from 28×28 and below.
        num_classes: Number of logits.
        zero_init_residual: Start each block as the identity (arXiv 1706.02677).
    """
    in_channels, _, _ = image_shape(input_shape, "resnet50", 8)
    return ResNet(
        Bottleneck,
        (3, 4, 6, 3),
        in_channels=in_channels,
        num_classes=num_classes,
        zero_init_residual=zero_init_residual,
    )


def resnet18_cifar(
    input_shape: Sequence[int] = (3, 32, 32), num_classes: int = 10, zero_init_residual: bool = False
) -> ResNet:
    """ResNet-18 for small images, with a 3×3 stem and no pooling: 11,173,962 parameters with the defaults.

    Args:
        input_shape: Shape (C, H, W) of an image; made for 32×32.
        num_classes: Number of logits.
        zero_init_residual: Start each block as the identity (arXiv 1706.02677).
    """
    in_channels, _, _ = image_shape(input_shape, "resnet18_cifar", 8)
    return ResNet(
        BasicBlock,
        (2, 2, 2, 2),
        in_channels=in_channels,
        num_classes=num_classes,
        small_images=True,
        zero_init_residual=zero_init_residual,
    )
