"""Encoded images to uint8 arrays: one image, and a stream of them on all cores."""

from __future__ import annotations

import contextlib
import io
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from upshift.core.environment import num_usable_cores

Image: TypeAlias = npt.NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
ROWS_PER_TASK = 64
# Below this size Pillow's Python part dominates and threads only fight over the interpreter lock: 20,000 MNIST and
# CIFAR-10 images decoded 1.2 to 1.5 times slower on two threads than on one.
MIN_ENCODED_BYTES_FOR_THREADS = 8 * 2**10


class BadImageError(ValueError):
    """An image that cannot be used; `kind` groups such rows, `hint` says what would make it usable."""

    def __init__(self, kind: str, detail: str, hint: str = "") -> None:
        self.kind, self.detail, self.hint = kind, detail, hint
        super().__init__(f"{kind}: {detail}")


def decode_image(
    encoded: bytes | Path | None, *, channels: int | None = None, size: tuple[int, int] | None = None
) -> Image:
    """Decode one image, upright by its EXIF orientation.

    Args:
        encoded: Content of an image file, or its path.
        channels: 1 (grey) or 3 (colour) to convert to; None keeps grey grey and colour colour.
        size: (height, width) to resize to (antialiased bilinear); None keeps the size.

    Returns:
        uint8 (C, H, W).

    Raises:
        BadImageError: The image is missing, corrupt, too large (Pillow's limit) or of another format.
    """
    with _opened(encoded) as image:
        return _to_array(_resized(_in_channels(image, channels), size))


def decode_and_tell(encoded: Path, *, channels: int) -> tuple[Image, tuple[str, ...]]:
    """Decode one image as `decode_image` does, and tell what of it is lost or made up by its new channels.

    Returns:
        uint8 (C, H, W), and for example ("from colour to grey",).

    Raises:
        BadImageError: Likewise.
    """
    with _opened(encoded) as image:
        conversions = []
        if _num_channels(image) != channels:
            conversions.append(color_conversion(channels))
        if _is_transparent(image):
            conversions.append("without its transparency")
        return _to_array(_in_channels(image, channels)), tuple(conversions)


@contextlib.contextmanager
def _opened(encoded: bytes | Path | None) -> Iterator[Any]:
    """The Pillow image of a file, upright; what goes wrong with it is a `BadImageError`."""
    from PIL import Image as pillow
    from PIL import ImageOps, UnidentifiedImageError

    if encoded is None:
        raise BadImageError("missing image", "")
    stream = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
    try:
        with pillow.open(stream, formats=FORMATS) as image:
            _refuse_bomb(image)
            image.load()
            yield ImageOps.exif_transpose(image) if _may_be_rotated(image) else image
    except BadImageError:
        raise
    except UnidentifiedImageError as error:  # its own text names a stream in memory
        raise BadImageError("corrupt image", "unknown format") from error
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise BadImageError("image too large", str(error)) from error
    except Exception as error:
        # Pillow's decoders raise nearly anything on hostile bytes: OSError, SyntaxError, struct.error, IndexError …
        raise BadImageError("corrupt image", str(error) or type(error).__name__) from error


def _refuse_bomb(image: Any) -> None:
    """Refuse from Pillow's limit on; Pillow itself only warns until twice of it."""
    from PIL import Image as pillow

    limit = pillow.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        size = f"{image.height} × {image.width} pixels (height × width)"
        raise BadImageError("image too large", f"{size}, the limit is {limit} in all")


def _may_be_rotated(image: Any) -> bool:
    return "exif" in image.info or image.format == "TIFF"


def _in_channels(image: Any, channels: int | None) -> Any:
    if image.mode.startswith("I;16") or image.mode == "I":
        image = _from_16_bits(image)
    elif image.mode == "F":
        raise BadImageError("wrong mode", "floating-point pixels", "save the image with 8 bits a channel")
    mode = "L" if (channels or _num_channels(image)) == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def color_conversion(channels: int) -> str:
    """What is done to an image of the other number of channels."""
    return "from colour to grey" if channels == 1 else "from grey to colour"


def _num_channels(image: Any) -> int:
    """1 for grey, 3 for colour, whatever else the image holds."""
    is_grey = image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16")
    return 1 if is_grey else 3


def _is_transparent(image: Any) -> bool:
    """Whether an image has pixels that are not opaque."""
    if image.mode not in ("LA", "RGBA", "PA", "P", "L", "RGB") or not image.has_transparency_data:
        return False
    return bool(image.convert("RGBA").getchannel("A").getextrema()[0] < 255)


def _from_16_bits(image: Any) -> Any:
    """The upper 8 of 16 bits: Pillow's own conversion clips at 255 instead."""
    from PIL import Image as pillow

    wide = np.asarray(image).astype(np.int64)
    if wide.size and (wide.min() < 0 or wide.max() > 0xFFFF):
        raise BadImageError("wrong mode", "pixels of more than 16 bits", "save the image with 8 bits a channel")
    return pillow.fromarray((wide >> 8).astype(np.uint8))


def _resized(image: Any, size: tuple[int, int] | None) -> Any:
    from PIL import Image as pillow

    if size is None or image.size == (size[1], size[0]):
        return image
    return image.resize((size[1], size[0]), pillow.Resampling.BILINEAR)


def _to_array(image: Any) -> Image:
    array: Image = np.asarray(image, dtype=np.uint8)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def decode_stream(
    stretches: Iterable[Sequence[bytes | Path | None]],
    *,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
) -> Iterator[list[Image | BadImageError]]:
    """Decode stretches of encoded images in order; large images on all usable cores.

    Yields:
        For each task of up to `ROWS_PER_TASK` images, the arrays; the error in place of a bad one.
    """

    def decode_rows(rows: Sequence[bytes | Path | None]) -> list[Image | BadImageError]:
        return [_decode_or_error(row, channels, size) for row in rows]

    tasks = (
        stretch[start : start + ROWS_PER_TASK]
        for stretch in stretches
        for start in range(0, len(stretch), ROWS_PER_TASK)
    )
    num_workers = num_usable_cores()
    pending: deque[Future[list[Image | BadImageError]]] = deque()
    with ThreadPoolExecutor(num_workers, thread_name_prefix="decode") as pool:
        for rows in tasks:
            if num_workers > 1 and _is_worth_threads(rows):
                pending.append(pool.submit(decode_rows, rows))
                if len(pending) > 2 * num_workers:
                    yield pending.popleft().result()
            else:
                while pending:
                    yield pending.popleft().result()
                yield decode_rows(rows)
        while pending:
            yield pending.popleft().result()


def _decode_or_error(
    encoded: bytes | Path | None, channels: int | None, size: tuple[int, int] | None
) -> Image | BadImageError:
    try:
        return decode_image(encoded, channels=channels, size=size)
    except BadImageError as error:
        return error


def _is_worth_threads(rows: Sequence[bytes | Path | None]) -> bool:
    first = rows[0]
    if isinstance(first, Path):
        return True
    return first is not None and len(first) >= MIN_ENCODED_BYTES_FOR_THREADS


def convert_image(
    image: npt.NDArray[Any], *, channels: int | None = None, size: tuple[int, int] | None = None
) -> Image:
    """Convert a decoded image of uint8 (C, H, W) to other channels and another size, as `decode_image` does."""
    from PIL import Image as pillow

    fits_channels = channels is None or channels == image.shape[0]
    if fits_channels and (size is None or image.shape[1:] == size):
        return image
    opened = pillow.fromarray(image[0] if image.shape[0] == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
    return _to_array(_resized(_in_channels(opened, channels), size))
