"""Each transform against a plain reference, sample by sample."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from upshift.data.augment import BatchTransform
from upshift.data.color import jitter
from upshift.data.config import AugmentConfig
from upshift.data.dataset import DataInfo
from upshift.data.draws import Draw, draw_epoch
from upshift.data.geometry import affine, crop_and_flip, cutout, resize
from upshift.errors import ConfigError

CPU = torch.device("cpu")


def noise(count: int, channels: int = 3, height: int = 7, width: int = 6) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, channels, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(count)
    )


@settings(deadline=None, max_examples=40)
@given(
    channels=st.sampled_from([1, 2, 3]),
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    data=st.data(),
    flips=st.lists(st.booleans(), min_size=1, max_size=5),
    channels_last=st.booleans(),
)
def test_crop_and_flip_equals_padding_slicing_and_mirroring(
    channels, height, width, data, flips, channels_last
) -> None:
    count = len(flips)
    padding = data.draw(st.integers(1, min(height, width) - 1))
    offsets = data.draw(st.lists(st.tuples(*[st.integers(0, 2 * padding)] * 2), min_size=count, max_size=count))
    images = noise(count, channels, height, width)
    given_images = images.contiguous(memory_format=torch.channels_last) if channels_last else images
    result = crop_and_flip(given_images, torch.tensor(offsets), torch.tensor(flips), padding=padding)
    for i, (y, x) in enumerate(offsets):
        padded = np.pad(images[i].numpy(), ((0, 0), (padding, padding), (padding, padding)), mode="reflect")
        expected = padded[:, y : y + height, x : x + width]
        assert np.array_equal(result[i].numpy(), expected[:, :, ::-1] if flips[i] else expected)


def test_crop_alone_and_flip_alone() -> None:
    images = noise(2)
    flips = torch.tensor([True, False])
    assert torch.equal(crop_and_flip(images, None, flips, padding=0)[0], images[0].flip(-1))
    assert torch.equal(crop_and_flip(images, None, flips, padding=0)[1], images[1])
    middle = torch.full((2, 2), 2)
    assert torch.equal(crop_and_flip(images, middle, None, padding=2), images)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 20])
def test_cutout_fills_a_square_of_its_side_cut_off_at_the_border(side) -> None:
    images = torch.ones(3, 2, 7, 6)
    centers = torch.tensor([[3, 3], [0, 0], [6, 5]])
    result = cutout(images, centers, side=side, fill=torch.zeros(2))
    for i, (y, x) in enumerate(centers.tolist()):
        expected = torch.ones(2, 7, 6)
        expected[:, max(0, y - side // 2) : y - side // 2 + side, max(0, x - side // 2) : x - side // 2 + side] = 0
        assert torch.equal(result[i], expected)


def draw(config: AugmentConfig, count: int = 500, shape: tuple[int, int, int] = (3, 7, 6), **ids: int) -> Draw:
    return draw_epoch(config, shape, num_samples=count, **{"seed": 0, "epoch": 0, **ids})


def test_affine_takes_the_same_coordinates_as_torch() -> None:
    images = noise(6).float()
    matrix = draw(AugmentConfig(rotation_degrees=30, translate=0.2, scale=0.3), 6).matrix
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    expected = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(affine(images, matrix), expected, rtol=1e-3, atol=1e-2)


def test_an_affine_draw_of_nothing_keeps_the_image() -> None:
    images = noise(4).float()
    identity = torch.eye(2, 3).expand(4, 2, 3)
    torch.testing.assert_close(affine(images, identity), images)


def test_rotation_turns_an_oblong_image_without_shearing_it() -> None:
    # A white block left of the centre of a wide image; every drawn angle keeps its distance from the centre.
    images = torch.zeros(1, 1, 40, 80)
    images[:, :, 18:22, 55:59] = 1
    matrix = draw(AugmentConfig(rotation_degrees=25), 50, (1, 40, 80)).matrix
    turned = affine(images.expand(50, 1, 40, 80), matrix)
    mass = turned.sum(dim=(1, 2, 3))
    rows = (turned.sum(dim=(1, 3)) @ torch.arange(40.0)) / mass - 19.5
    columns = (turned.sum(dim=(1, 2)) @ torch.arange(80.0)) / mass - 39.5
    torch.testing.assert_close(torch.hypot(rows, columns), torch.full((50,), 17.0), atol=0.3, rtol=0)
    angles = torch.rad2deg(torch.atan2(rows, columns))
    assert 15 < angles.abs().max() <= 26
    torch.testing.assert_close(mass, torch.full((50,), 16.0), atol=0.8, rtol=0)


def test_translation_and_scale_stay_within_their_ranges() -> None:
    images = torch.zeros(1, 1, 50, 50)
    images[:, :, 23:27, 23:27] = 1
    moved = affine(images.expand(60, 1, 50, 50), draw(AugmentConfig(translate=0.2), 60, (1, 50, 50)).matrix)
    columns = (moved.sum(dim=(1, 2)) @ torch.arange(50.0)) / moved.sum(dim=(1, 2, 3)) - 24.5
    assert 5 < columns.abs().max() <= 10.1
    zoomed = affine(images.expand(60, 1, 50, 50), draw(AugmentConfig(scale=0.5), 60, (1, 50, 50)).matrix)
    areas = zoomed.sum(dim=(1, 2, 3)) / 16
    assert areas.min() < 0.5 and areas.max() > 1.8 and areas.max() <= 2.4


def test_jitter_follows_its_definition() -> None:
    images = noise(3).float() / 255
    factors = torch.tensor([[0.5, 1.3, 0.2], [1.4, 0.6, 1.9], [1.0, 1.0, 1.0]])
    weights = torch.tensor([0.299, 0.587, 0.114])
    expected = []
    for image, (brightness, contrast, saturation) in zip(images, factors, strict=True):
        bright = (image * brightness).clamp(0, 1)
        mean = torch.einsum("chw,c->hw", bright, weights).mean()
        contrasted = ((bright - mean) * contrast + mean).clamp(0, 1)
        grey = torch.einsum("chw,c->hw", contrasted, weights)
        expected.append(((contrasted - grey) * saturation + grey).clamp(0, 1))
    brightness, contrast, saturation = factors.unbind(1)
    result = jitter(images.clone(), brightness=brightness, contrast=contrast, saturation=saturation)
    torch.testing.assert_close(result, torch.stack(expected))
    torch.testing.assert_close(result[2], images[2])
    grey_image = noise(1, 1).float() / 255
    torch.testing.assert_close(jitter(grey_image.clone(), saturation=torch.tensor([0.1])), grey_image)


def test_resize_of_a_constant_image_is_constant() -> None:
    torch.testing.assert_close(resize(torch.full((2, 3, 9, 9), 0.3), (4, 13)), torch.full((2, 3, 4, 13), 0.3))


def test_draws_differ_by_sample_epoch_and_seed_and_repeat() -> None:
    config = AugmentConfig(crop_padding=3, horizontal_flip=True, cutout=2, rotation_degrees=5, brightness=0.1)
    first, again = draw(config), draw(config)
    others = [draw(config, epoch=1), draw(config, seed=1)]
    for name in ("crop", "flip", "cutout", "matrix", "brightness"):
        values = vars(first)[name]
        assert torch.equal(values, vars(again)[name])
        assert all(not torch.equal(values, vars(other)[name]) for other in others)
        assert len(torch.unique(values, dim=0)) > 1
    assert set(first.crop.flatten().tolist()) == set(range(7))
    assert 0.4 < first.flip.float().mean() < 0.6


def test_turning_one_transform_on_leaves_the_draws_of_the_others() -> None:
    alone = draw(AugmentConfig(horizontal_flip=True))
    together = draw(AugmentConfig(horizontal_flip=True, crop_padding=2, cutout=3))
    assert torch.equal(alone.flip, together.flip) and alone.crop is None


@pytest.mark.parametrize("normalize", [True, False])
def test_cutout_shows_the_mean(normalize) -> None:
    info = DataInfo("image", (3, 7, 6), 2, ("a", "b"), (0.5, 0.25, 0.75), (0.1, 0.2, 0.3), 0, "made", "0")
    images = noise(2)
    shown = {}
    for side in (0, 5):
        config = AugmentConfig(cutout=side, normalize=normalize)
        transform = BatchTransform(info, config, device=CPU, seed=0, training=True, channels_last=False)
        shown[side] = transform(images, transform.draw(0, 2), 0)
    is_cut = (shown[0] != shown[5]).any(dim=1)
    expected = torch.zeros(3) if normalize else torch.tensor(info.mean)
    assert is_cut.flatten(1).sum(1).min() >= 3 * 3
    torch.testing.assert_close(shown[5].movedim(1, 3)[is_cut], expected.expand(int(is_cut.sum()), 3))
    assert torch.equal(shown[5].movedim(1, 3)[~is_cut], shown[0].movedim(1, 3)[~is_cut])


@pytest.mark.parametrize("field", ["cutout", "crop_padding"])
def test_what_is_cut_out_or_added_is_smaller_than_the_images(field) -> None:
    info = DataInfo("image", (3, 7, 6), 2, ("a", "b"), (0.5,) * 3, (0.1,) * 3, 0, "made", "0")
    with pytest.raises(ConfigError, match=rf"augment\.{field} must be below the images' 6 pixels; received 6"):
        BatchTransform(info, AugmentConfig(**{field: 6}), device=CPU, seed=0, training=True, channels_last=False)


@pytest.mark.parametrize("share", [1.0, 50.0, -0.1])
def test_images_are_not_shifted_out_of_sight(share) -> None:
    with pytest.raises(ConfigError, match=r"augment\.translate must be at least 0 and below 1"):
        AugmentConfig(translate=share)


@pytest.mark.parametrize(
    "field", [field.name for field in dataclasses.fields(AugmentConfig) if field.name != "normalize"]
)
def test_every_transform_changes_training_images_and_no_other(field) -> None:
    info = DataInfo("image", (3, 7, 6), 2, ("a", "b"), (0.5, 0.5, 0.5), (0.1, 0.2, 0.3), 0, "made", "0")
    value = {"crop_padding": 2, "horizontal_flip": True, "cutout": 3, "rotation_degrees": 20.0}.get(field, 0.4)
    rows = noise(8)
    batches = []
    for config, training in (
        (AugmentConfig(**{field: value}), True),
        (AugmentConfig(**{field: value}), False),
        (AugmentConfig(), True),
    ):
        transform = BatchTransform(info, config, device=CPU, seed=0, training=training, channels_last=False)
        batches.append(transform(rows, transform.draw(0, 8), 0))
    augmented, evaluated, plain = batches
    assert torch.equal(evaluated, plain)
    assert not torch.allclose(augmented, plain)
    assert torch.equal(rows, noise(8))
