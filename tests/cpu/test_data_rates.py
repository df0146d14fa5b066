"""How fast samples are made: measured with real files, and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from upshift.core.cache import TuningCache
from upshift.core.typed_fields import to_json
from upshift.data import rates
from upshift.data.rates import DataRates, data_rates, known_data_rates, measure_data_rates

KNOWN = DataRates(jpeg_images_per_second=1000.0, png_images_per_second=9000.0, normalize_images_per_second=1e6)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real measurements, of a few calls each."""
    monkeypatch.setattr(rates, "_SECONDS", 0.005)


@pytest.mark.parametrize(("file_format", "side"), [("JPEG", 256), ("PNG", 32)])
def test_what_is_decoded_is_an_image_in_colour_that_compresses_as_a_photo_does(file_format: str, side: int) -> None:
    image: Any = rates._decoding(file_format, side)()
    assert image.shape == (3, side, side) and image.std() > 30


def test_what_is_normalised_becomes_floats_around_zero() -> None:
    batch: Any = rates._normalizing()()
    assert batch.dtype == torch.float32 and batch.min() >= -2.01 and batch.max() <= 2.01 and abs(batch.mean()) < 0.1


def test_measuring_leaves_threads_and_random_numbers_as_they_were() -> None:
    before = torch.get_num_threads(), torch.get_rng_state().tolist()
    found = measure_data_rates()
    assert (torch.get_num_threads(), torch.get_rng_state().tolist()) == before
    assert all(rate > 0 for rate in to_json(found).values())


def test_rates_are_measured_once_a_machine(tmp_path: Path) -> None:
    TuningCache(tmp_path).save("limits", "here", "data", to_json(KNOWN))
    assert data_rates(cache=TuningCache(tmp_path), environment="here") == KNOWN
    elsewhere = data_rates(cache=TuningCache(tmp_path), environment="elsewhere")
    assert data_rates(cache=TuningCache(tmp_path), environment="elsewhere") == elsewhere != KNOWN


def test_a_training_takes_rates_that_are_known_and_measures_none(tmp_path: Path) -> None:
    cache = TuningCache(tmp_path)
    assert known_data_rates(cache=cache, environment="here") is None and not list(tmp_path.rglob("*.json"))
    cache.save("limits", "here", "data", to_json(KNOWN))
    assert known_data_rates(cache=cache, environment="here") == KNOWN


def test_larger_images_become_inputs_at_a_lower_rate() -> None:
    assert KNOWN.stored_images_per_second((3, 32, 32)) == 1e6
    assert KNOWN.stored_images_per_second((3, 64, 64)) == pytest.approx(2.5e5)
    assert KNOWN.stored_images_per_second((1, 28, 28)) == pytest.approx(1e6 * 3072 / 784)


@pytest.mark.parametrize(
    "change", [{"png_images_per_second": 0.0}, {"png_images_per_second": None}, {"gif_images_per_second": 1.0}]
)
def test_remembered_nonsense_is_measured_anew(tmp_path: Path, change: dict[str, Any]) -> None:
    cache = TuningCache(tmp_path)
    cache.save("limits", "here", "data", to_json(KNOWN) | change)
    found = data_rates(cache=cache, environment="here")
    assert found != KNOWN and data_rates(cache=cache, environment="here") == found
