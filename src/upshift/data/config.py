"""What data a recipe learns from, and how it is varied while training."""

from __future__ import annotations

from dataclasses import dataclass

from upshift.core.typed_fields import check_fields
from upshift.errors import ConfigError

MAX_TEXT_BYTES = 2**20
"""Every text of a dataset takes as many."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A dataset and how it is read.

    Attributes:
        source: A named dataset ("digits", "mnist", "cifar10"), a local folder or file (parquet, image
            folder, MNIST IDX, `.npz`), or a hub dataset as "hub:owner/name".
        input_column: Parquet column with the image or text; found by its type when None.
        label_column: Parquet column with the label; "label" (or the only class column) when None.
        feature_columns: Numeric parquet columns that together form a tabular input.
        image_size: (height, width) to resize images to when packing; None demands equal sizes.
        channels: 1 (grey) or 3 (colour) to convert images to; None demands equal modes.
        max_text_bytes: Texts are stored as this many UTF-8 bytes, cut or padded with 0.
        validation_fraction: Share of the training split held out where there is no validation split.
        skip_bad: Leave bad rows out and report them, instead of refusing the dataset.
    """

    source: str = "digits"
    input_column: str | None = None
    label_column: str | None = None
    feature_columns: tuple[str, ...] = ()
    image_size: tuple[int, int] | None = None
    channels: int | None = None
    max_text_bytes: int = 256
    validation_fraction: float = 0.0
    skip_bad: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "data.")
        if not self.source.strip():
            raise ConfigError(
                "data.source must not be empty", received=repr(self.source), hint="name a dataset or a path, as digits"
            )
        if self.channels not in (None, 1, 3):
            raise ConfigError(
                "data.channels must be 1 (grey) or 3 (colour)",
                received=self.channels,
                hint="leave it out to keep what the files hold",
            )
        if self.image_size is not None and min(self.image_size) < 1:
            raise ConfigError(
                "data.image_size must be two positive numbers, height and width",
                received=self.image_size,
                hint="for example --set data.image_size=32,32",
            )
        if not 0.0 <= self.validation_fraction < 1.0:
            raise ConfigError(
                "data.validation_fraction must be at least 0 and below 1",
                received=self.validation_fraction,
                hint="0.1 holds out a tenth of the training split",
            )
        if not 1 <= self.max_text_bytes <= MAX_TEXT_BYTES:
            raise ConfigError(
                f"data.max_text_bytes must be at least 1 and at most {MAX_TEXT_BYTES:,}",
                received=self.max_text_bytes,
                hint="256 keeps a few sentences",
            )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random variation of images while training; each sample draws its own parameters.

    Attributes:
        crop_padding: Pixels of reflected border from which a crop of the same size is taken.
        horizontal_flip: Mirror half of the samples.
        cutout: Side in pixels of a square set to the mean (arXiv 1708.04552).
        rotation_degrees: Rotation drawn from ± this many degrees.
        translate: Shift drawn from ± this share of the width and height.
        scale: Zoom factor drawn from 1 ± this.
        brightness: Factor drawn from 1 ± this; likewise contrast and saturation.
        normalize: Subtract the training split's mean and divide by its standard deviation, per channel.
    """

    crop_padding: int = 0
    horizontal_flip: bool = False
    cutout: int = 0
    rotation_degrees: float = 0.0
    translate: float = 0.0
    scale: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    normalize: bool = True

    def __post_init__(self) -> None:
        check_fields(self, "augment.")
        for name in ("crop_padding", "cutout", "rotation_degrees"):
            if getattr(self, name) < 0:
                raise ConfigError(
                    f"augment.{name} must not be negative", received=getattr(self, name), hint="0 turns it off"
                )
        for name in ("translate", "scale", "brightness", "contrast", "saturation"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(
                    f"augment.{name} must be at least 0 and below 1",
                    received=getattr(self, name),
                    hint="0 turns it off; 0.2 varies by a fifth",
                )
