"""How fast one core of this machine makes samples: decoding images, and turning bytes into normalised floats."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from upshift.core.cache import TuningCache
from upshift.core.environment import describe, fingerprint
from upshift.core.normalization import image_constants
from upshift.core.peaks import Stopwatch, measuring_state
from upshift.core.typed_fields import check_fields, dataclass_from_json, to_json
from upshift.data.images import decode_image
from upshift.errors import BadInputError, ConfigError

PHOTO_SIDE = 256
THUMBNAIL_SIDE = 32
_BATCH = 256
_CPU = torch.device("cpu")
_SECONDS = 0.15
_MAX_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class DataRates:
    """Samples per second of one core, at best; other sizes take time in proportion to their pixels.

    Attributes:
        jpeg_images_per_second: Decoding JPEG files in colour, 256 × 256 pixels of quality 90.
        png_images_per_second: Decoding PNG files in colour, 32 × 32 pixels.
        normalize_images_per_second: uint8 to normalised float32 of decoded images in colour, 32 × 32 pixels, by batch.
    """

    jpeg_images_per_second: float
    png_images_per_second: float
    normalize_images_per_second: float

    def stored_images_per_second(self, shape: Sequence[int]) -> float:
        """Images of a store that become a model's inputs.

        Args:
            shape: (C, H, W) of an image.
        """
        return self.normalize_images_per_second * (3 * THUMBNAIL_SIDE**2) / max(1, math.prod(shape))

    def __post_init__(self) -> None:
        check_fields(self)
        slowest = min(self.jpeg_images_per_second, self.png_images_per_second, self.normalize_images_per_second)
        if not slowest > 0:
            raise ConfigError("rates must be greater than 0", received=slowest, hint="measure them again")


def measure_data_rates() -> DataRates:
    """Measure them, in about half a second, with the decoder and the arithmetic that training uses."""
    watch = Stopwatch(_CPU, _MAX_SECONDS)
    with measuring_state(_CPU, num_threads=1):
        return DataRates(
            jpeg_images_per_second=1 / watch.best(_decoding("JPEG", PHOTO_SIDE), _SECONDS),
            png_images_per_second=1 / watch.best(_decoding("PNG", THUMBNAIL_SIDE), _SECONDS),
            normalize_images_per_second=_BATCH / watch.best(_normalizing(), _SECONDS),
        )


def data_rates(*, cache: TuningCache | None = None, environment: str | None = None) -> DataRates:
    """The rates as they were measured before on this machine, else measured now and kept.

    Args:
        cache: Where to look and to keep them; else the usual one.
        environment: `environment.fingerprint` of this machine, if it is at hand.
    """
    cache = TuningCache() if cache is None else cache
    environment = fingerprint(describe()) if environment is None else environment
    known = known_data_rates(cache=cache, environment=environment)
    if known is not None:
        return known
    found = measure_data_rates()
    cache.save("limits", environment, "data", to_json(found))
    return found


def known_data_rates(*, cache: TuningCache | None = None, environment: str | None = None) -> DataRates | None:
    """What was measured before on this machine, without measuring; None if nothing was.

    Args:
        cache: Where to look; else the usual one.
        environment: `environment.fingerprint` of this machine, if it is at hand.
    """
    cache = TuningCache() if cache is None else cache
    environment = fingerprint(describe()) if environment is None else environment
    document = cache.load("limits", environment, "data")
    try:
        known = None if document is None else dataclass_from_json(document, DataRates)
    except BadInputError:  # of an older upshift, or edited: measured again and replaced
        return None
    return known if isinstance(known, DataRates) else None


def _decoding(file_format: str, side: int) -> Callable[[], object]:
    """Decode one image that compresses as a photo does: smooth, with a little noise."""
    from PIL import Image

    y, x = np.mgrid[0:side, 0:side] * (8 / side)
    waves = np.stack([np.sin(x + y), np.cos(2 * x - y), np.sin(x) * np.cos(y)], axis=-1)
    noise = np.random.default_rng(0).normal(scale=6, size=waves.shape)
    stream = io.BytesIO()
    Image.fromarray((128 + 90 * waves + noise).clip(0, 255).astype(np.uint8)).save(stream, file_format, quality=90)
    encoded = stream.getvalue()
    return lambda: decode_image(encoded, channels=3)


def _normalizing() -> Callable[[], object]:
    images = torch.randint(
        256, (_BATCH, 3, THUMBNAIL_SIDE, THUMBNAIL_SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    constants = image_constants((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    scale = constants.scale.reshape(-1, 1, 1)
    shift = torch.zeros(1) if constants.shift is None else constants.shift.reshape(-1, 1, 1)
    return lambda: images.float().mul_(scale).add_(shift)
