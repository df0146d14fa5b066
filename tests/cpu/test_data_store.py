"""The packed store is whole or absent, notices damage, and names rows that cannot be used."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from upshift.data import store as store_module
from upshift.data.config import DataConfig
from upshift.data.prepare import prepare
from upshift.errors import DataError, StorageError


def png(shape: tuple[int, ...] = (4, 4, 3), value: int = 7) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full(shape, value, dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write_images(folder: Path, encoded: list[bytes | None], labels: list[object], split: str = "train") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    column = pa.array([content and {"bytes": content} for content in encoded], pa.struct([("bytes", pa.binary())]))
    pq.write_table(pa.table({"image": column, "label": labels}), folder / f"{split}.parquet")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        write_images(tmp_path / "d", [png(value=i) for i in range(8)], [0, 1] * 4, split)
    return tmp_path / "d"


def stores(cache: Path) -> list[Path]:
    return [folder for folder in (cache / "packed").iterdir() if not folder.name.startswith(".")]


def test_a_second_call_opens_the_store_and_reads_nothing_of_the_source(tmp_path, source) -> None:
    calls = []
    config = DataConfig(source=str(source))
    first = prepare(config, cache_dir=tmp_path / "c", on_progress=lambda *call: calls.append(call))
    assert calls[-1] == ("packing d", 16, 16)
    calls.clear()
    second = prepare(config, cache_dir=tmp_path / "c", on_progress=lambda *call: calls.append(call))
    assert calls == [] and second.info == first.info and second.notes == ()
    assert np.array_equal(first.splits["test"].inputs, second.splits["test"].inputs)
    assert isinstance(second.splits["train"].inputs, np.memmap)


def test_the_fingerprint_follows_the_content_alone(tmp_path, source) -> None:
    first = prepare(DataConfig(source=str(source)), cache_dir=tmp_path / "c").info
    moved = source.rename(tmp_path / "e")
    assert prepare(DataConfig(source=str(moved)), cache_dir=tmp_path / "other").info.fingerprint == first.fingerprint
    write_images(moved, [png(value=i + 1) for i in range(8)], [0, 1] * 4)
    assert prepare(DataConfig(source=str(moved)), cache_dir=tmp_path / "c").info.fingerprint != first.fingerprint


def test_a_changed_source_is_packed_anew(tmp_path, source) -> None:
    config = DataConfig(source=str(source))
    prepare(config, cache_dir=tmp_path / "c")
    write_images(source, [png(value=i) for i in range(6)], [0, 1] * 3)
    assert len(prepare(config, cache_dir=tmp_path / "c").splits["train"]) == 6


@pytest.mark.parametrize("name", ["train-inputs.npy", "test-labels.npy", "index.json"])
def test_a_changed_byte_is_noticed_even_where_size_and_time_stay(tmp_path, source, name) -> None:
    config = DataConfig(source=str(source))
    whole = prepare(config, cache_dir=tmp_path / "c")
    inputs = np.array(whole.splits["train"].inputs)
    file = stores(tmp_path / "c")[0] / name
    status = file.stat()
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    store_module._verified.clear()  # as in another process
    again = prepare(config, cache_dir=tmp_path / "c")
    assert "damaged" in again.notes[0] and "made anew" in again.notes[0]
    assert again.info == whole.info
    assert np.array_equal(again.splits["train"].inputs, inputs)
    assert prepare(config, cache_dir=tmp_path / "c").notes == ()


def test_a_change_after_opening_is_noticed_in_the_same_process(tmp_path, source) -> None:
    config = DataConfig(source=str(source))
    prepare(config, cache_dir=tmp_path / "c")
    file = stores(tmp_path / "c")[0] / "train-inputs.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "damaged" in prepare(config, cache_dir=tmp_path / "c").notes[0]


@pytest.mark.parametrize("damage", ["cut", "removed", "index removed"])
def test_a_cut_or_missing_file_is_noticed(tmp_path, source, damage) -> None:
    config = DataConfig(source=str(source))
    prepare(config, cache_dir=tmp_path / "c")
    folder = stores(tmp_path / "c")[0]
    if damage == "cut":
        os.truncate(folder / "train-inputs.npy", 200)
    else:
        (folder / ("index.json" if damage == "index removed" else "test-inputs.npy")).unlink()
    again = prepare(config, cache_dir=tmp_path / "c")
    assert "made anew" in again.notes[0] and len(again.splits["train"]) == 8


def test_what_a_killed_process_left_is_removed(tmp_path, source) -> None:
    config = DataConfig(source=str(source))
    prepare(config, cache_dir=tmp_path / "c")
    folder = stores(tmp_path / "c")[0]
    (folder / "index.json").unlink()
    abandoned = folder.with_name(f".{folder.name}.12345678.tmp")
    abandoned.mkdir()
    prepare(config, cache_dir=tmp_path / "c")
    assert not abandoned.exists()


PACK = """
import sys
from pathlib import Path
from upshift.data.config import DataConfig
from upshift.data.prepare import prepare
from upshift.errors import StorageError
try:
    print(prepare(DataConfig(source=sys.argv[1]), cache_dir=Path(sys.argv[2])).info.fingerprint)
except StorageError as error:
    print("StorageError", error)
"""


def test_two_processes_that_pack_at_once_get_the_same_store(tmp_path, source) -> None:
    command = [sys.executable, "-c", PACK, str(source), str(tmp_path / "c")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    fingerprints = [process.communicate()[0] for process in running]
    assert all(process.returncode == 0 for process in running)
    assert fingerprints[0] == fingerprints[1] != ""
    assert len(stores(tmp_path / "c")) == 1
    assert not [entry for entry in (tmp_path / "c" / "packed").iterdir() if entry.suffix == ".tmp"]


def test_a_full_disk_is_said_and_leaves_nothing_half_made(tmp_path) -> None:
    big = tmp_path / "big"
    for split in ("train", "test"):
        write_images(big, [png((100, 100, 3), i) for i in range(8)], [0, 1] * 4, split)
    # A limit on the size of a file fails a write as a full disk does.
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n{PACK}"
    command = [sys.executable, "-c", limited, str(big), str(tmp_path / "c")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("StorageError") and "free disk space" in result.stdout
    assert [entry for entry in (tmp_path / "c" / "packed").iterdir() if entry.is_dir()] == []


def test_a_cache_that_cannot_be_written_is_said(tmp_path, source, monkeypatch) -> None:
    monkeypatch.setenv("UPSHIFT_CACHE_DIR", str(tmp_path / "file"))
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match=r"not packed in the cache folder yet .* with UPSHIFT_CACHE_DIR$"):
        prepare(DataConfig(source=str(source)), cache_dir=tmp_path / "file")


def test_packing_calls_the_data_as_the_user_does(tmp_path) -> None:
    pictures = tmp_path / "my pictures é"
    for split in ("train", "test"):
        write_images(pictures, [png((8, 8, 3), i) for i in range(4)], [0, 1] * 2, split)
    said = set()
    prepare(
        DataConfig(source=str(pictures)),
        cache_dir=tmp_path / "cache",
        on_progress=lambda description, done, total: said.add(description),
    )
    assert said == {"packing my pictures é"}


def test_bad_rows_are_named_by_kind_and_counted(tmp_path) -> None:
    encoded = [png() for _ in range(30)]
    encoded[3] = b"no image"
    encoded[4] = png()[:45]
    encoded[5] = None
    encoded[6] = png((5, 4, 3))
    encoded[7] = png((4, 4))
    labels: list[object] = [0, 1] * 15
    labels[10] = None
    labels[12] = -1
    write_images(tmp_path / "d", encoded, labels)
    with pytest.raises(DataError) as caught:
        prepare(DataConfig(source=str(tmp_path / "d")), cache_dir=tmp_path / "c")
    message = str(caught.value)
    for part in (
        "7 bad rows",
        "2 × missing label: row 10, row 12",
        "2 × corrupt image: row 3 (",
        "1 × missing image: row 5",
        "1 × size other than 4 × 4 (height × width): row 6 (5 × 4)",
        "1 × grey image among colour ones: row 7",
        "--set data.channels=3",
        "--skip-bad",
    ):
        assert part in message
    assert stores(tmp_path / "c") == []


def test_skip_bad_leaves_them_out_and_reports_it(tmp_path) -> None:
    encoded = [png(value=i) for i in range(20)]
    encoded[3] = b"no image"
    labels: list[object] = [0, 1] * 10
    labels[7] = None
    write_images(tmp_path / "d", encoded, labels)
    write_images(tmp_path / "d", [png(), png()], [0, 1], "test")
    config = DataConfig(source=str(tmp_path / "d"), skip_bad=True)
    for _ in range(2):
        dataset = prepare(config, cache_dir=tmp_path / "c")
        kept = [i for i in range(20) if i not in (3, 7)]
        assert dataset.splits["train"].inputs[:, 0, 0, 0].tolist() == kept
        assert dataset.splits["train"].labels.tolist() == [i % 2 for i in kept]
        assert dataset.info.num_bad_rows == 2 and "left out 2 bad rows" in dataset.notes[0]
    with pytest.raises(DataError, match="2 bad rows"):
        prepare(DataConfig(source=str(tmp_path / "d")), cache_dir=tmp_path / "c")


def test_only_the_first_ten_rows_of_a_kind_are_named(tmp_path) -> None:
    write_images(tmp_path / "d", [png()] * 4 + [b"x"] * 40, [0, 1] * 22)
    with pytest.raises(DataError) as caught:
        prepare(DataConfig(source=str(tmp_path / "d")), cache_dir=tmp_path / "c")
    assert "40 × corrupt image" in str(caught.value) and str(caught.value).count("row ") == 10 + 1


def test_features_that_are_not_finite_are_bad_rows(tmp_path) -> None:
    (tmp_path / "d").mkdir()
    x = [1.0, float("nan"), 3.0, float("inf"), 1e300, None, 7.0, 8.0, 9.0, 10.0]
    pq.write_table(pa.table({"x": x, "label": [0, 1] * 5}), tmp_path / "d" / "train.parquet")
    with pytest.raises(DataError, match=r"4 × NaN or infinite feature: row 1 \(feature 0\), row 3"):
        prepare(DataConfig(source=str(tmp_path / "d")), cache_dir=tmp_path / "c")


def test_an_image_beyond_pillows_limit_is_a_bad_row(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    write_images(tmp_path / "d", [png()] * 4 + [png((40, 40, 3)), png((60, 60, 3))], [0, 1] * 3)
    with pytest.raises(DataError, match="2 × image too large: row 4"):
        prepare(DataConfig(source=str(tmp_path / "d")), cache_dir=tmp_path / "c")
