"""The sections that make batches: constants of the data, order, augmentation, normalisation."""

from __future__ import annotations

import math

from upshift.data.augment import augments
from upshift.data.color import jitter
from upshift.data.geometry import affine, crop_and_flip, cutout, resize
from upshift.data.loaders import CHUNK_BYTES
from upshift.data.order import epoch_order
from upshift.tuning.emit.carry import Carried
from upshift.tuning.emit.job import Job
from upshift.tuning.emit.source import call, lines, literal, when


def data_sections(job: Job, carried: Carried) -> list[str]:
    """Code that defines `Batches`; what it needs of upshift's own data code is copied."""
    carried.add(epoch_order)
    if job.resizes:
        carried.add(resize)
    sections = [_normalize(job)]
    if augments(job.augment):
        sections += _augmentation(job, carried)
    return [carried.take(), *sections, _batches(job)]


def data_constants(job: Job) -> list[str]:
    """Lines of constants: where the data are, and their statistics."""
    rows = [f"DATA = Path(__file__).resolve().parent / {literal(job.data_folder)}"]
    if job.info.kind == "image" and (job.augment.normalize or job.augment.cutout):
        rows += [
            "# Of the training split, by channel, for pixels from 0 to 1.",
            f"MEAN = {literal(job.info.mean, used=7)}",
            *when(job.augment.normalize, f"STD = {literal(job.info.std, used=6)}"),
        ]
    return rows


def _normalize(job: Job) -> str:
    if job.info.kind == "text":
        return lines(
            "def normalize(texts: torch.Tensor) -> torch.Tensor:",
            '    """Bytes (N, L) as the indices that an embedding takes."""',
            "    return texts.long()",
        )
    if job.info.kind == "tabular":
        return _normalize_features(job)
    layout = ", memory_format=torch.channels_last" if job.plan.memory_format == "channels_last" else ""
    if not job.augment.normalize:
        return lines(
            "def normalize(images: torch.Tensor) -> torch.Tensor:",
            '    """uint8 images (N, C, H, W) as float32 from 0 to 1."""',
            f"    return images.to(torch.float32{layout}).mul_(1 / 255)",
        )
    return lines(
        "def by_channel(values: Iterable[float]) -> torch.Tensor:",
        "    return torch.tensor(values, dtype=torch.float64).reshape(-1, 1, 1)",
        "",
        "",
        "# (x / 255 - mean) / std in one multiplication and one addition, worked out in float64.",
        "SCALE = (1 / (255 * by_channel(STD))).float().to(DEVICE)",
        "SHIFT = (-by_channel(MEAN) / by_channel(STD)).float().to(DEVICE)",
        "",
        "",
        "def normalize(images: torch.Tensor) -> torch.Tensor:",
        '    """uint8 images (N, C, H, W) as float32 of mean 0 and deviation 1."""',
        f"    return images.to(torch.float32{layout}).mul_(SCALE).add_(SHIFT)",
    )


def _normalize_features(job: Job) -> str:
    if not job.augment.normalize:
        return lines(
            "def normalize(features: torch.Tensor) -> torch.Tensor:",
            '    """Features (N, F) as float32."""',
            "    return features.to(torch.float32)",
        )
    return lines(
        "# Of the training split, by feature, float64.",
        'MEAN, STD = (torch.from_numpy(np.load(DATA / f"{name}.npy")) for name in ("mean", "std"))',
        "# The mean in two parts: in one, float32 cannot hold a mean that is large beside the deviation.",
        "ROUNDED = MEAN.float()",
        "REST = (MEAN - ROUNDED.double()).float()",
        "ROUNDED, REST, SCALE = (part.to(DEVICE) for part in (ROUNDED, REST, (1 / STD).float()))",
        "",
        "",
        "def normalize(features: torch.Tensor) -> torch.Tensor:",
        '    """Features (N, F) as float32 of mean 0 and deviation 1."""',
        "    return features.to(torch.float32, copy=True).sub_(ROUNDED).sub_(REST).mul_(SCALE)",
    )


def _augmentation(job: Job, carried: Carried) -> list[str]:
    """`draw_epoch`, the random parameters, and `augment`, which applies them."""
    augment = job.augment
    has_crop, has_flip = augment.crop_padding > 0, augment.horizontal_flip
    has_affine = bool(augment.rotation_degrees or augment.translate or augment.scale)
    colors = [name for name in ("brightness", "contrast", "saturation") if getattr(augment, name)]
    for used, function in (
        (has_crop or has_flip, crop_and_flip),
        (has_affine, affine),
        (colors, jitter),
        (augment.cutout, cutout),
    ):
        if used:
            carried.add(function)
    sections = [_affine_matrices(job)] if has_affine else []
    return [*sections, _draw(job, has_affine, colors), _augment(job, has_affine, colors)]


def _affine_matrices(job: Job) -> str:
    augment, (_, height, width) = job.augment, job.info.input_shape
    zoom = literal(augment.scale)
    return lines(
        "def affine_matrices(generator: np.random.Generator, num_samples: int) -> torch.Tensor:",
        '    """Maps of output to input coordinates (N, 2, 3), as `torch.nn.functional.affine_grid` has them."""',
        "    draws = generator.uniform(-1, 1, (num_samples, 4))",
        f"    angle = draws[:, 0] * math.radians({literal(augment.rotation_degrees)})",
        f"    zoom = 1 / (1 + draws[:, 1] * {zoom})",
        "    cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom",
        f"    shift = 2 * {literal(augment.translate)} * draws[:, 2:]",
        "    # Rotated in pixels, not in the square from -1 to 1; the shift is undone before the rotation.",
        f"    rows = np.stack([cos, sin * {height} / {width}, -sin * {width} / {height}, cos], axis=1)"
        ".reshape(-1, 2, 2)",
        '    offset = -np.einsum("nij,nj->ni", rows, shift)',
        "    return torch.from_numpy(np.concatenate([rows, offset[:, :, None]], axis=2).astype(np.float32))",
    )


def _draw(job: Job, has_affine: bool, colors: list[str]) -> str:
    augment, (_, height, width) = job.augment, job.info.input_shape
    numbers = {"brightness": 4, "contrast": 5, "saturation": 6}
    factors = [f'        "{name}": factors({numbers[name]}, {literal(getattr(augment, name))}),' for name in colors]
    return lines(
        "def draw_epoch(epoch: int, num_samples: int) -> dict[str, torch.Tensor]:",
        '    """The random parameters of an epoch\'s augmentation: one set a sample, by its position in the epoch."""',
        "",
        "    def stream(number: int) -> np.random.Generator:",
        "        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([SEED, epoch, 1, number])))",
        "",
        when(
            colors,
            "    def factors(number: int, spread: float) -> torch.Tensor:",
            "        return torch.from_numpy((1 + spread * stream(number).uniform(-1, 1, num_samples))"
            ".astype(np.float32))",
            "",
        ),
        "    return {",
        when(
            augment.crop_padding,
            f'        "crop": torch.from_numpy(stream(0).integers(0, {2 * augment.crop_padding + 1}, '
            "(num_samples, 2))),",
        ),
        when(
            augment.horizontal_flip,
            '        "flip": torch.from_numpy(stream(1).random(num_samples, dtype=np.float32) < 0.5),',
        ),
        when(has_affine, '        "matrix": affine_matrices(stream(2), num_samples),'),
        when(
            augment.cutout,
            f'        "center": torch.from_numpy(stream(3).integers(0, ({height}, {width}), (num_samples, 2))),',
        ),
        factors,
        "    }",
    )


def _augment(job: Job, has_affine: bool, colors: list[str]) -> str:
    augment = job.augment
    crop = 'drawn["crop"]' if augment.crop_padding else "None"
    flip = 'drawn["flip"]' if augment.horizontal_flip else "None"
    changes_values = bool(has_affine or colors)
    jittered = call("jitter", ["images", *(f'{name}=drawn["{name}"]' for name in colors)], indent=4, used=13)
    fill = "torch.zeros(len(MEAN), device=DEVICE)" if augment.normalize else "torch.tensor(MEAN, device=DEVICE)"
    # `normalize` gives images in the plan's layout; they are resampled into another.
    loses_layout = changes_values and job.plan.memory_format == "channels_last"
    return lines(
        "def augment(images: torch.Tensor, drawn: dict[str, torch.Tensor]) -> torch.Tensor:",
        '    """uint8 images (N, C, H, W), each varied by parameters of its own, as the model takes them."""',
        when(
            augment.crop_padding or augment.horizontal_flip,
            f"    images = crop_and_flip(images, {crop}, {flip}, padding={augment.crop_padding})",
        ),
        when(not changes_values, "    images = normalize(images)"),
        when(changes_values, "    images = images.to(torch.float32).mul_(1 / 255)"),
        when(has_affine, '    images = affine(images, drawn["matrix"])'),
        when(colors, f"    images = {jittered}"),
        when(
            changes_values and augment.normalize,
            "    images = images.mul_((1 / by_channel(STD)).float().to(DEVICE)).add_(SHIFT)",
        ),
        when(
            augment.cutout,
            f'    images = cutout(images, drawn["center"], side={augment.cutout}, fill={fill})',
        ),
        "    return images" + (".contiguous(memory_format=torch.channels_last)" if loses_layout else ""),
    )


def _batches(job: Job) -> str:
    is_resident, is_augmented = job.data_path == "resident", augments(job.augment)
    load = 'np.load(DATA / f"{split}-inputs.npy"' + ("" if is_resident else ', mmap_mode="c"') + ")"
    batch_bytes = 4 * job.config.batch_size * max(1, math.prod(job.info.input_shape))
    at_once = max(1, CHUNK_BYTES // batch_bytes)
    size = ", image_size: tuple[int, int] | None = None" if job.resizes else ""
    layout = ".contiguous(memory_format=torch.channels_last)" if job.plan.memory_format == "channels_last" else ""
    return lines(
        "Batch = tuple[torch.Tensor, torch.Tensor]",
        "",
        "",
        "class Batches:",
        '    """Model-ready batches of a split; what is in one follows from SEED, the epoch and its place alone."""',
        "",
        "    def __init__(self, split: str, batch_size: int, *, training: bool) -> None:",
        when(not is_resident, "        # Copy-on-write: torch warns of memory that it may not write to."),
        f"        self.inputs = torch.from_numpy({load})" + (".to(DEVICE)" if is_resident else ""),
        '        self.labels = torch.from_numpy(np.load(DATA / f"{split}-labels.npy"))'
        + (".to(DEVICE)" if is_resident else ""),
        "        self.batch_size, self.training = min(batch_size, len(self.labels)), training",
        "",
        "    def __len__(self) -> int:",
        "        return math.ceil(len(self.labels) / self.batch_size)",
        "",
        f"    def epoch(self, epoch: int{size}) -> Iterator[Batch]:",
        '        """The batches of an epoch: inputs and labels."""',
        "        num_samples = len(self.labels)",
        "        order = epoch_order(SEED, epoch, num_samples) if self.training else torch.arange(num_samples)",
        when(is_augmented, "        drawn = draw_epoch(epoch, num_samples) if self.training else {}"),
        "        # Several batches are gathered at once: a small model's step is shorter than gathering its batch.",
        f"        chunk = {at_once} * self.batch_size",
        "        for start in range(0, num_samples, chunk):",
        "            rows = order[start : start + chunk]" + (".to(self.inputs.device)" if is_resident else ""),
        "            inputs, labels = self.inputs.index_select(0, rows), self.labels.index_select(0, rows)",
        when(
            not is_resident,
            "            inputs, labels = inputs.to(DEVICE), labels.to(DEVICE)",
        ),
        when(
            is_augmented,
            "            if self.training:",
            "                of_chunk = {name: values[start : start + chunk].to(DEVICE) "
            "for name, values in drawn.items()}",
            "                inputs = augment(inputs, of_chunk)",
            "            else:",
            "                inputs = normalize(inputs)",
        ),
        when(not is_augmented, "            inputs = normalize(inputs)"),
        when(
            job.resizes,
            "            if image_size is not None and image_size != tuple(inputs.shape[2:]):",
            f"                inputs = resize(inputs, image_size){layout}",
        ),
        "            yield from zip(inputs.split(self.batch_size), labels.split(self.batch_size), strict=True)",
    )
