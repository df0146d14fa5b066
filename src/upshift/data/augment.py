"""Stored rows to model-ready batches on the device: augmentation with parameters for each sample, normalisation."""

from __future__ import annotations

import torch

from upshift.data.color import jitter
from upshift.data.config import AugmentConfig
from upshift.data.dataset import DataInfo
from upshift.data.draws import Draw, draw_epoch
from upshift.data.geometry import affine, crop_and_flip, cutout, resize
from upshift.data.normalize import Normalization
from upshift.errors import ConfigError


class BatchTransform:
    """Turns stored rows into what a model takes. Only the transforms that are on cost anything.

    In this order: crop and flip (on uint8), affine, colour jitter, normalisation, cutout, resize.

    Args:
        info: Kind, shape and statistics of the store.
        augment: What is on.
        device: Where the batches are.
        seed: Draws the parameters, with the epoch.
        training: Augment; otherwise only normalise and resize.
        channels_last: Give images in torch.channels_last memory format.

    Raises:
        ConfigError: Augmentation is on and the data are not images, or too small for it.
    """

    def __init__(
        self,
        info: DataInfo,
        augment: AugmentConfig,
        *,
        device: torch.device,
        seed: int,
        training: bool,
        channels_last: bool,
    ) -> None:
        self._kind, self._seed = info.kind, seed
        self._augment = augment
        self._is_on = training and augments(augment)
        if self._is_on:
            _check(info, augment)
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._shape = info.input_shape
        self._normalization = Normalization(info, device=device, enabled=augment.normalize)

    def draw(self, epoch: int, num_samples: int) -> Draw | None:
        """The random parameters of an epoch, by position in it; None where nothing is random."""
        if not self._is_on:
            return None
        return draw_epoch(self._augment, self._shape, seed=self._seed, epoch=epoch, num_samples=num_samples)

    def __call__(
        self, rows: torch.Tensor, draw: Draw | None, start: int, *, image_size: tuple[int, int] | None = None
    ) -> torch.Tensor:
        """Transform a chunk.

        Args:
            rows: Stored rows (n, ...) on the device.
            draw: The epoch's parameters.
            start: Position in the epoch of the first row.
            image_size: (height, width) to resize images to.

        Returns:
            float32 (n, C, H, W) or (n, F), or int64 (n, L) for text. Never the memory of `rows`.
        """
        if self._kind == "text":
            return rows.long()
        if self._kind == "tabular":
            return self._normalization.features(rows.to(torch.float32, copy=True))
        if rows.dtype != torch.uint8:
            return self._given(rows, draw, image_size)
        if draw is not None:
            return self._augmented(rows, draw.of(start, start + len(rows), rows.device), image_size)
        return self._resized(self._normalized(rows), image_size)

    def _given(self, images: torch.Tensor, draw: Draw | None, image_size: tuple[int, int] | None) -> torch.Tensor:
        """Float images of a torch dataset, which has prepared them for the model itself."""
        if draw is not None:
            raise ConfigError(
                "augmentation needs uint8 images",
                received=f"{images.dtype} images, already prepared by their dataset",
                hint="augment in the dataset, or let it return uint8 images",
            )
        return self._resized(images.contiguous(memory_format=self._format), image_size)

    def _normalized(self, rows: torch.Tensor) -> torch.Tensor:
        # Conversion first: multiplying uint8 by float directly takes up to twice as long on CPU.
        return self._normalization.stored(rows.to(torch.float32, memory_format=self._format))

    def _augmented(self, rows: torch.Tensor, draw: Draw, image_size: tuple[int, int] | None) -> torch.Tensor:
        config = self._augment
        if draw.crop is not None or draw.flip is not None:
            rows = crop_and_flip(rows, draw.crop, draw.flip, padding=config.crop_padding)
        if draw.matrix is None and draw.brightness is None and draw.contrast is None and draw.saturation is None:
            images = self._normalized(rows)
        else:
            images = rows.to(torch.float32).mul_(1 / 255)
            if draw.matrix is not None:
                images = affine(images, draw.matrix)
            images = jitter(images, brightness=draw.brightness, contrast=draw.contrast, saturation=draw.saturation)
            images = self._normalization.unit(images.contiguous(memory_format=self._format))
        if draw.cutout is not None:
            images = cutout(images, draw.cutout, side=config.cutout, fill=self._normalization.shown_mean)
        return self._resized(images, image_size)

    def _resized(self, images: torch.Tensor, image_size: tuple[int, int] | None) -> torch.Tensor:
        if image_size is None or tuple(images.shape[2:]) == tuple(image_size):
            return images
        return resize(images, image_size).contiguous(memory_format=self._format)


def augments(config: AugmentConfig) -> bool:
    """Whether anything random is on."""
    return bool(
        config.crop_padding
        or config.horizontal_flip
        or config.cutout
        or config.rotation_degrees
        or config.translate
        or config.scale
        or config.brightness
        or config.contrast
        or config.saturation
    )


def _check(info: DataInfo, augment: AugmentConfig) -> None:
    if info.kind != "image":
        raise ConfigError(
            "augmentation needs images",
            received=f"{info.kind} data from {info.source}",
            hint="leave recipe.augment at its defaults",
        )
    smallest = min(info.input_shape[1:])
    if augment.crop_padding >= smallest:
        raise ConfigError(
            f"augment.crop_padding must be below the images' {smallest} pixels",
            received=augment.crop_padding,
            hint="an eighth of the side is usual, as 4 of 32",
        )
    if augment.cutout >= smallest:
        raise ConfigError(
            f"augment.cutout must be below the images' {smallest} pixels",
            received=augment.cutout,
            hint="a quarter of the side is usual, as 8 of 32",
        )
