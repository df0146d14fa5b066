"""Files to predict become rows in the model's layout, or are refused by name."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from upshift.data import decode
from upshift.data.dataset import DataInfo
from upshift.data.decode import DecodedInputs
from upshift.data.images import decode_image
from upshift.data.table import POSITION_NOTE
from upshift.errors import DataError

IMAGES = DataInfo("image", (1, 4, 6), 2, ("a", "b"), (0.5,), (0.1,), 0, "made", "0")
TABLE = DataInfo("tabular", (3,), 2, ("a", "b"), (0.0,) * 3, (1.0,) * 3, 0, "made", "0")
NAMED = replace(TABLE, feature_names=("a", "b", "c"))
TEXT = DataInfo("text", (8,), 2, ("a", "b"), (), (), 0, "made", "0")


class Read:
    """All parts of what was read, put together, and the notes on it."""

    def __init__(self, reader, *arguments, **named) -> None:
        notes: list[str] = []
        parts = reader(*arguments, notes.append, **named)
        parts = [parts] if isinstance(parts, DecodedInputs) else list(parts)
        self.inputs = np.concatenate([part.inputs for part in parts])
        self.names = tuple(name for part in parts for name in part.names)
        self.notes, self.num_parts = tuple(notes), len(parts)


def read_images(paths, shape) -> Read:
    return Read(decode.read_images, paths, shape)


def read_inputs(path, info) -> Read:
    return Read(decode.read_inputs, path, info)


def read_npz_inputs(path, info) -> Read:
    return Read(decode.read_npz_inputs, path, info)


def read_table(text, info=TABLE) -> Read:
    return Read(decode.read_table, io.StringIO(text), info, name="table")


def read_texts(text, max_bytes) -> Read:
    return Read(lambda _: decode.read_texts(io.StringIO(text), max_bytes, name="lines"))


def save(path, shape=(4, 6), mode=None, **options):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def test_an_image_of_the_models_size_is_kept_exactly(tmp_path) -> None:
    path = save(tmp_path / "a.png")
    decoded = read_images([path], (1, 4, 6))
    assert np.array_equal(decoded.inputs[0, 0], np.asarray(Image.open(path)))
    assert decoded.names == (str(path),) and decoded.notes == ()


def test_other_sizes_and_modes_are_converted_and_said(tmp_path) -> None:
    files = [save(tmp_path / f"{mode}.png", (9, 9, 3), mode) for mode in ("RGB", "P", "RGBA", "LA", "1")]
    decoded = read_images(files, (3, 4, 6))
    assert decoded.inputs.shape == (5, 3, 4, 6) and decoded.inputs.dtype == np.uint8
    assert set(decoded.notes) == {
        "resized 5 images, the first RGB.png of 9 × 9, to the model's 4 × 6 (height × width)",
        "converted 2 images, the first LA.png, from grey to colour",
    }


@pytest.mark.parametrize(
    ("mode", "channels", "notes"),
    [
        ("L", 1, ()),
        ("RGB", 3, ()),
        ("P", 3, ()),
        ("L", 3, ("converted x.png from grey to colour",)),
        ("1", 3, ("converted x.png from grey to colour",)),
        ("RGB", 1, ("converted x.png from colour to grey",)),
        ("CMYK", 1, ("converted x.tiff from colour to grey",)),
        ("RGBA", 3, ("converted x.png without its transparency",)),
        ("LA", 1, ("converted x.png without its transparency",)),
        ("RGBA", 1, ("converted x.png from colour to grey", "converted x.png without its transparency")),
    ],
)
def test_a_conversion_of_colours_is_said(tmp_path, mode, channels, notes) -> None:
    image = Image.new("RGB", (6, 4), (200, 20, 20)).convert(mode)
    if "A" in mode:
        image.putpixel((0, 0), (*image.getpixel((0, 0))[:-1], 0))
    path = tmp_path / ("x.tiff" if mode == "CMYK" else "x.png")
    image.save(path)
    assert read_images([path], (channels, 4, 6)).notes == notes


def test_a_transparent_palette_is_said_and_an_opaque_alpha_channel_is_not(tmp_path) -> None:
    Image.new("RGBA", (6, 4), (1, 2, 3, 255)).save(tmp_path / "opaque.png")
    Image.new("P", (6, 4)).save(tmp_path / "palette.png", transparency=0)
    assert read_images([tmp_path / "opaque.png"], (3, 4, 6)).notes == ()
    assert read_images([tmp_path / "palette.png"], (3, 4, 6)).notes == (
        "converted palette.png without its transparency",
    )


def test_16_bit_grey_is_no_conversion_of_colours_and_is_one_to_colour(tmp_path) -> None:
    Image.fromarray(np.full((4, 6), 60_000, dtype=np.uint16)).save(tmp_path / "w.png")
    assert read_images([tmp_path / "w.png"], (1, 4, 6)).notes == ()
    assert read_images([tmp_path / "w.png"], (3, 4, 6)).notes == ("converted w.png from grey to colour",)


def test_images_of_an_archive_that_are_converted_are_said(tmp_path) -> None:
    np.savez(tmp_path / "x.npz", inputs=np.zeros((3, 4, 6, 3), np.uint8))
    decoded = read_inputs(tmp_path / "x.npz", IMAGES)
    assert decoded.notes == ("converted x.npz from colour to grey",)
    assert decoded.inputs.shape == (3, 1, 4, 6)


def test_16_bit_grey_keeps_its_upper_bits(tmp_path) -> None:
    wide = np.array([[0, 255, 256, 65535]], dtype=np.uint16)
    Image.fromarray(wide).save(tmp_path / "w.png")
    assert decode_image(tmp_path / "w.png").tolist() == [[[0, 0, 1, 255]]]


def test_an_image_stands_upright_by_its_exif_orientation(tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "r.jpg", (4, 6, 3), exif=exif)
    assert decode_image(tmp_path / "r.jpg").shape == (3, 6, 4)


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + bytes(50), b"not an image"])
def test_a_broken_image_is_named(tmp_path, content) -> None:
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.png: corrupt image"):
        read_images([tmp_path / "broken.png"], (1, 4, 6))


def test_a_folder_is_read_in_order_and_must_hold_images(tmp_path) -> None:
    (tmp_path / "f" / "sub").mkdir(parents=True)
    for name in ("b.png", "sub/a.png", "c.PNG"):
        save(tmp_path / "f" / name)
    (tmp_path / "f" / "notes.txt").write_text("no image")
    decoded = read_inputs(tmp_path / "f", IMAGES)
    assert [name.rsplit("/", 1)[1] for name in decoded.names] == ["b.png", "c.PNG", "a.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="must hold images"):
        read_inputs(tmp_path / "empty", IMAGES)


def test_tables_are_read_with_and_without_names_and_from_a_stream(tmp_path) -> None:
    (tmp_path / "t.csv").write_text("a,b,c\r\n1,2,3\r\n\r\n4,5,6e1\r\n")
    assert read_inputs(tmp_path / "t.csv", TABLE).inputs.tolist() == [[1, 2, 3], [4, 5, 60]]
    streamed = read_table("1,2,3\n")
    assert streamed.inputs.dtype == np.float32 and streamed.inputs.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2\n", "line 1 with 2 values"),
        ("a,b,c\n1,2,x\n", "line 2 column 3: 'x'"),
        ("1,nan,3\n", "column 2: 'nan'"),
        ("1,1e39,3\n", "column 2: '1e39'"),
        ("", "must have rows"),
        ("a,b,c\n", "must have rows"),
        ("1,2," + "3" * 200_000, "comma-separated"),
    ],
)
def test_a_bad_table_is_named_by_line(text, message) -> None:
    with pytest.raises(DataError, match=message):
        read_table(text)


@pytest.mark.parametrize("header", ["c,a,b", " c , a,b", "\ufeffc,a,b", '"c","a","b"'])
def test_columns_of_another_order_are_found_by_their_names(header) -> None:
    read = read_table(f"{header}\n3,1,2\n6,4,5\n", NAMED)
    assert read.inputs.tolist() == [[1, 2, 3], [4, 5, 6]] and read.notes == ()
    assert read.names == ("table:0", "table:1")


def test_names_that_are_numbers_are_a_header_where_they_are_the_models() -> None:
    numbered = replace(TABLE, feature_names=("10", "11", "12"))
    assert read_table("12,10,11\n3,1,2\n", numbered).inputs.tolist() == [[1, 2, 3]]
    assert read_table("3,1,2\n", numbered).inputs.tolist() == [[3, 1, 2]]


@pytest.mark.parametrize(
    ("header", "received"),
    [
        ("a,b,d", "table without c, with the unknown d"),
        ("a,b", "table without c"),
        ("a,b,c,label", "table with the unknown label"),
        ("a,b,c,a", "table with twice the same a"),
    ],
)
def test_a_header_that_is_not_the_models_is_refused(header, received) -> None:
    row = ",".join("1" for _ in header.split(","))
    with pytest.raises(DataError, match=rf"name the model's 3 features.*received {received};.*columns a, b, c"):
        read_table(f"{header}\n{row}\n", NAMED)


def test_without_names_columns_are_taken_by_position() -> None:
    assert read_table("3,1,2\n", NAMED).inputs.tolist() == [[3, 1, 2]]
    unnamed = read_table("c,a,b\n3,1,2\n", TABLE)
    assert unnamed.inputs.tolist() == [[3, 1, 2]]
    assert unnamed.notes == (POSITION_NOTE,)


def test_large_inputs_come_in_parts(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("upshift.data.decode.IMAGES_PER_PART", 2)
    monkeypatch.setattr("upshift.data.decode.TEXTS_PER_PART", 2)
    monkeypatch.setattr("upshift.data.table.ROWS_PER_PART", 2)
    table, texts = read_table("1,1,1\n2,2,2\n3,3,3\n"), read_texts("one\ntwo\nthree\n", 8)
    for size, name in ((8, "a.png"), (4, "b.png"), (8, "c.png")):
        save(tmp_path / name, (size, 6))
    images = read_inputs(tmp_path, IMAGES)
    for read in (table, texts, images):
        assert read.num_parts == 2 and len(read.inputs) == len(set(read.names)) == 3
    assert table.inputs[:, 0].tolist() == [1, 2, 3]
    assert images.notes == ("resized 2 images, the first a.png of 8 × 6, to the model's 4 × 6 (height × width)",)


def test_texts_are_read_by_line() -> None:
    decoded = read_texts("good\n\nvery good film\n", 8)
    assert [bytes(row).rstrip(b"\0") for row in decoded.inputs] == [b"good", b"very goo"]
    with pytest.raises(DataError, match="one a line"):
        read_texts("\n", 8)


def test_archives_are_read_for_every_kind(tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 6), dtype=np.uint8)
    np.savez(tmp_path / "i.npz", inputs=pixels)
    assert np.array_equal(read_inputs(tmp_path / "i.npz", IMAGES).inputs, pixels[:, None])
    np.savez(tmp_path / "r.npz", pixels[:, :2])
    assert "resized" in read_inputs(tmp_path / "r.npz", IMAGES).notes[0]
    np.savez(tmp_path / "t.npz", x_test=np.ones((2, 3)), y_test=[0, 1])
    assert read_inputs(tmp_path / "t.npz", TABLE).inputs.tolist() == [[1, 1, 1]] * 2
    np.savez(tmp_path / "s.npz", texts=np.array(["ab", "c"]))
    assert bytes(read_inputs(tmp_path / "s.npz", TEXT).inputs[0][:3]) == b"ab\0"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"inputs": np.ones((2, 4))}, "the model's 3 features"),
        ({"inputs": np.array([[1, 2, np.inf]])}, "finite number"),
        ({"inputs": np.ones((2, 4, 4))}, "the model takes tabular inputs|pixels"),
        ({"a": np.ones((2, 3)), "b": np.ones((2, 3))}, "an array called inputs"),
        ({"inputs": np.array([{}], dtype=object)}, "pickled code"),
    ],
)
def test_archives_that_do_not_fit_are_refused(tmp_path, arrays, message) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_npz_inputs(tmp_path / "x.npz", TABLE)


def test_missing_files_and_other_kinds_are_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="must exist"):
        read_inputs(tmp_path / "nothing.png", IMAGES)
    (tmp_path / "t.csv").write_text("1,2,3")
    with pytest.raises(DataError, match="model takes image inputs"):
        read_inputs(tmp_path / "t.csv", IMAGES)
