"""`bench dataset`: pixels against Pillow by hand and an independent formula, equal bytes, and nothing left behind."""

from __future__ import annotations

import errno
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d

from bench import prepare
from bench.archives import DecodedImage
from bench.datasets import open_dataset, prompt
from bench.errors import UserError
from bench.prepare import PreparationSpec, prepare_dataset, resize, to_rgb
from bench.shapes import ShapesDataset
from tests.bench.image_files import encode, noise, pngs, write_folder, write_zip

Array = npt.NDArray[np.float64]


def spec(source: Path | str, destination: Path, **changes: Any) -> PreparationSpec:
    return PreparationSpec(str(source), destination, **({"resolution": 8} | changes))


def document(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("dataset.json"))


def same(image: Image.Image, expected: Image.Image) -> bool:
    return np.array_equal(np.asarray(image), np.asarray(expected))


# --- pixels


@pytest.mark.parametrize("name", ["lanczos", "box", "bicubic", "bilinear", "hamming", "nearest"])
def test_center_crop_then_filter_is_what_pillow_does(name: Any, tmp_path: Path) -> None:
    image = noise(0, (31, 20))
    expected = image.crop((5, 0, 25, 20)).resize((8, 8), Image.Resampling[name.upper()])
    assert same(resize(image, spec("x", tmp_path, filter=name)), expected)


def test_images_of_the_right_size_keep_their_pixels(tmp_path: Path) -> None:
    image = noise(0, 8)
    assert same(resize(image, spec("x", tmp_path, crop="none")), image)


def box(t: Array) -> Array:
    return ((t > -0.5) & (t <= 0.5)).astype(float)


def catmull_rom(t: Array) -> Array:
    """Keys' cubic with a = -1/2, the bicubic of Pillow."""
    t = np.abs(t)
    near, far = 1 + t**2 * (1.5 * t - 2.5), 2 - 4 * t + 2.5 * t**2 - 0.5 * t**3
    return np.where(t < 1, near, np.where(t < 2, far, 0))


def scaled(pixels: Array, shape: tuple[int, int], kernel: Callable[[Array], Array]) -> Array:
    """Resample the two first axes with a kernel that is widened when the image shrinks."""
    for axis, size in ((1, shape[1]), (0, shape[0])):
        ratio = pixels.shape[axis] / size
        centres, sources = (np.arange(size) + 0.5) * ratio, np.arange(pixels.shape[axis]) + 0.5
        weights = kernel((sources[None] - centres[:, None]) / max(ratio, 1))
        weights /= weights.sum(1, keepdims=True)
        pixels = np.moveaxis(np.tensordot(weights, pixels, (1, axis)), 0, axis).clip(0, 255)
    return pixels


@pytest.mark.parametrize("size", [(64, 48), (40, 32), (33, 70), (20, 15), (16, 16), (5, 9), (8, 8)])
def test_dhariwal_crop_matches_an_independent_formula(size: tuple[int, int], tmp_path: Path) -> None:
    """The definition of ADM in float64: halve while the short side is at least twice the target, bicubic, cut."""
    image = noise(1, size)
    pixels = np.array(image).astype(float)
    halvings = int(np.log2(min(size) / 8)) if min(size) >= 16 else 0
    for _ in range(halvings):
        pixels = scaled(pixels, (pixels.shape[0] // 2, pixels.shape[1] // 2), box)
    height, width = pixels.shape[:2]
    short = min(height, width)
    pixels = scaled(pixels, (round(height * 8 / short), round(width * 8 / short)), catmull_rom)
    top, left = (pixels.shape[0] - 8) // 2, (pixels.shape[1] - 8) // 2
    result = np.array(resize(image, spec("x", tmp_path, crop="center-dhariwal")))
    # Pillow rounds to whole levels after each pass over an axis, two of them in each of the steps
    np.testing.assert_allclose(result, pixels[top : top + 8, left : left + 8], atol=1 + halvings)


def test_crop_none_refuses_oblong_images_by_name(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "set", pngs(1) | {"wide.png": encode(noise(0, (20, 10)))})
    with pytest.raises(UserError, match=r"wide\.png: 20x10 pixels are not square; give --crop center"):
        prepare_dataset(spec(source, tmp_path / "out.zip", crop="none"))
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (1, 1), 70), (70, 70, 70)),
        (Image.new("1", (1, 1), 1), (255, 255, 255)),
        (Image.new("LA", (1, 1), (70, 0)), (255, 255, 255)),
        (Image.new("RGBA", (1, 1), (10, 20, 30, 255)), (10, 20, 30)),
        (Image.new("RGBA", (1, 1), (10, 20, 30, 0)), (255, 255, 255)),
        (Image.new("RGBA", (1, 1), (0, 100, 200, 51)), (204, 224, 244)),  # a fifth of the colour on white
        (Image.fromarray(np.full((1, 1), 0x1234, np.uint16)), (0x12, 0x12, 0x12)),
    ],
    ids=["L", "1", "LA", "opaque", "clear", "fifth", "16-bit"],
)
def test_conversion_to_rgb(image: Image.Image, expected: tuple[int, int, int]) -> None:
    assert to_rgb(DecodedImage(image, image.mode), "x.png").getpixel((0, 0)) == expected


def test_conversion_keeps_palette_colours_and_transparency() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([1, 2, 3, 250, 100, 50])
    palette.putpixel((1, 0), 1)
    assert np.array(to_rgb(DecodedImage(palette, "P"), "x")).tolist() == [[[1, 2, 3], [250, 100, 50]]]
    palette.info["transparency"] = 1
    assert np.array(to_rgb(DecodedImage(palette, "P"), "x")).tolist() == [[[1, 2, 3], [255, 255, 255]]]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_without_a_range_are_refused(mode: str) -> None:
    with pytest.raises(UserError, match=rf"x\.tif: pixels of mode {mode}"):
        to_rgb(DecodedImage(Image.new(mode, (2, 2)), mode), "x.tif")


# --- the zip


def test_zip_is_in_the_layout_of_stylegan(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "cifar10-16x16.zip", pngs(3), {"labels": [[name, 7] for name in pngs(3)]})
    path = prepare_dataset(spec(source, tmp_path / "new" / "cifar10-8x8.zip", filter="box"))
    assert path == tmp_path / "new" / "cifar10-8x8.zip"
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [*pngs(3), "dataset.json"]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        with Image.open(archive.open("00000/img00000002.png")) as image:
            assert same(image, noise(2).resize((8, 8), Image.Resampling.BOX))
    written = document(path)
    assert written["labels"] == [[name, 7] for name in pngs(3)]
    assert written["recipe"] == {
        "source": "cifar10-16x16.zip",
        "images": 3,
        "resolution": 8,
        "crop": "center",
        "filter": "box",
        "source_recipe": None,
    }
    assert open_dataset("cifar10", 8, tmp_path / "new").label(1) == 7


def test_recipe_of_the_source_is_kept(tmp_path: Path) -> None:
    first = prepare_dataset(spec(write_zip(tmp_path / "a.zip", pngs(2)), tmp_path / "b.zip", resolution=12))
    second = prepare_dataset(spec(first, tmp_path / "c.zip", crop="center-dhariwal"))
    recipe = document(second)["recipe"]
    assert (recipe["filter"], recipe["source_recipe"]["filter"]) == ("box, bicubic", "lanczos")
    assert recipe["source_recipe"]["resolution"] == 12


def test_class_folders_keep_their_names_and_labels(tmp_path: Path) -> None:
    files = {f"{animal}/{i}.png": encode(noise(i)) for animal in ("owl", "cat") for i in range(2)}
    path = prepare_dataset(spec(write_folder(tmp_path / "zoo", files), tmp_path / "zoo-8x8.zip"))
    dataset = open_dataset("zoo", 8, tmp_path)
    assert dataset.class_names == ("cat", "owl")
    assert [prompt(dataset, i) for i in (0, 3)] == ["a photo of a cat", "a photo of a owl"]
    assert path.is_file()


def test_captions_are_kept_under_the_new_names(tmp_path: Path) -> None:
    (tmp_path / "mine-captions.jsonl").write_text('{"file": "b.jpg", "caption": "second"}')
    source = write_zip(
        tmp_path / "mine-16x16.zip", {"a.jpg": encode(noise(0), "JPEG"), "b.jpg": encode(noise(1), "JPEG")}
    )
    path = prepare_dataset(spec(source, tmp_path / "other-8x8.zip"))
    assert document(path)["captions"] == [["00000/img00000001.png", "second"]]
    dataset = open_dataset(str(path), 8)
    assert [dataset.caption(i) for i in range(2)] == [None, "second"]


def test_shapes_can_be_written(tmp_path: Path) -> None:
    path = prepare_dataset(spec("shapes", tmp_path / "drawn-8x8.zip", max_images=20))
    dataset = open_dataset(str(path), 8)
    assert (len(dataset), dataset.num_classes, dataset.has_captions) == (20, 10, True)
    shapes = ShapesDataset(8)
    described_alike = [i for i in range(len(shapes)) if shapes.caption(i) == dataset.caption(0)]
    assert any(torch.equal(shapes.image(i), dataset.image(0)) for i in described_alike)
    assert dataset.class_names[dataset.label(0) or 0] in (dataset.caption(0) or "")


def test_real_pokemon_are_prepared_with_captions(shared_dir: Path, tmp_path: Path) -> None:
    source = shared_dir / "data" / "pokemon-256x256.zip"
    path = prepare_dataset(spec(source, tmp_path / "pokemon-64x64.zip", resolution=64, max_images=8))
    dataset = open_dataset("pokemon", 64, tmp_path)
    assert (len(dataset), dataset.has_captions) == (8, True)
    original = open_dataset("pokemon", 256, shared_dir / "data")
    described_alike = [i for i in range(len(original)) if original.caption(i) == dataset.caption(3)]
    gaps = [(avg_pool2d(original.image(i).float(), 4) - dataset.image(3)).abs().mean() for i in described_alike]
    assert min(gaps) < 5
    assert path.name == "pokemon-64x64.zip"


# --- equal bytes, and which images


def test_equal_input_gives_equal_bytes_and_another_recipe_does_not(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "set.zip", pngs(4))

    def digest(name: str, **changes: Any) -> str:
        path = prepare_dataset(spec(source, tmp_path / name, **changes))
        return open_dataset(str(path), 8).content_sha256()

    assert digest("a.zip") == digest("b.zip")
    others = [digest("c.zip", filter="box"), digest("d.zip", crop="center-dhariwal"), digest("e.zip", max_images=3)]
    assert len({digest("f.zip"), *others}) == 4


def test_recipe_alone_changes_the_digest(tmp_path: Path) -> None:
    """Images of the right size have the same pixels by any filter; what they are called must still differ."""
    source = write_zip(tmp_path / "set.zip", pngs(2, 8))
    lanczos = open_dataset(str(prepare_dataset(spec(source, tmp_path / "a.zip"))), 8)
    bicubic = open_dataset(str(prepare_dataset(spec(source, tmp_path / "b.zip", filter="bicubic"))), 8)
    assert torch.equal(lanczos.image(1), bicubic.image(1))
    assert lanczos.content_sha256() != bicubic.content_sha256()


def test_max_images_takes_from_the_whole_set(tmp_path: Path) -> None:
    files = {f"class{label}/{i:03d}.png": encode(noise(100 * label + i, 8)) for label in range(4) for i in range(25)}
    source = write_folder(tmp_path / "set", files)
    prepare_dataset(spec(source, tmp_path / "few.zip", max_images=20))
    prepare_dataset(spec(source, tmp_path / "more.zip", max_images=40))
    few, more = open_dataset(str(tmp_path / "few.zip"), 8), open_dataset(str(tmp_path / "more.zip"), 8)
    assert {few.label(i) for i in range(20)} == {0, 1, 2, 3}
    taken = {more.image(i).numpy().tobytes() for i in range(40)}
    assert len(taken) == 40
    assert all(few.image(i).numpy().tobytes() in taken for i in range(20))


# --- what goes wrong


def test_summary_counts_what_was_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = pngs(2) | {
        "grey.png": encode(noise(0).convert("L")),
        "grey2.png": encode(noise(1).convert("L")),
        "alpha.png": encode(noise(0).convert("RGBA")),
        "photo.jpg": encode(noise(0), "JPEG"),
        "tiny.png": encode(noise(0, 4)),
    }
    prepare_dataset(spec(write_folder(tmp_path / "set", files), tmp_path / "out.zip"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path / 'out.zip'}: 7 images, 8x8, crop center"
    assert [line.strip() for line in lines[1:]] == [
        "2 converted to RGB from L",
        "1 converted to RGB from RGBA",
        "1 enlarged",
        "1 from JPEG, which is lossy",
    ]


def test_existing_file_is_overwritten_by_force_only(tmp_path: Path) -> None:
    source, target = write_zip(tmp_path / "set.zip", pngs(2)), tmp_path / "out.zip"
    target.write_bytes(b"precious")
    with pytest.raises(UserError, match=r"out\.zip: exists\. .*--force"):
        prepare_dataset(spec(source, target))
    assert target.read_bytes() == b"precious"
    prepare_dataset(spec(source, target, force=True))
    assert len(open_dataset(str(target), 8)) == 2


def test_source_may_be_replaced_by_force(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", pngs(2))
    prepare_dataset(spec(path, path, force=True))
    assert len(open_dataset(str(path), 8)) == 2


def test_broken_image_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    source, target = write_zip(tmp_path / "set.zip", pngs(2) | {"x.png": encode(noise(0))[:200]}), tmp_path / "out.zip"
    target.write_bytes(b"older")
    with pytest.raises(UserError, match=r"set\.zip, entry x\.png: cannot be decoded"):
        prepare_dataset(spec(source, target, force=True))
    assert target.read_bytes() == b"older"
    assert {path.name for path in tmp_path.iterdir()} == {"set.zip", "out.zip"}


@pytest.mark.parametrize("full_after", [0, 2])
def test_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_after: int) -> None:
    source, written = write_zip(tmp_path / "set.zip", pngs(4)), 0
    real_write = zipfile.ZipFile.writestr

    def write(archive: zipfile.ZipFile, *arguments: Any) -> None:
        nonlocal written
        if written == full_after:
            raise OSError(errno.ENOSPC, "No space left on device")
        written += 1
        real_write(archive, *arguments)

    monkeypatch.setattr(zipfile.ZipFile, "writestr", write)
    with pytest.raises(UserError, match=r"cannot write .*out\.zip: No space left on device"):
        prepare_dataset(spec(source, tmp_path / "out.zip"))
    assert [path.name for path in tmp_path.iterdir()] == ["set.zip"]


def test_interruption_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    source = write_zip(tmp_path / "set.zip", pngs(2))
    monkeypatch.setattr(prepare, "resize", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare_dataset(spec(source, tmp_path / "out.zip"))
    assert [path.name for path in tmp_path.iterdir()] == ["set.zip"]


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        ("out", {}, "the destination is a zip"),
        ("set-16x16.zip", {}, "its name says 16x16, but --resolution is 8"),
        ("out.zip", {"crop": "middle"}, "--crop 'middle': choose from none, center, center-dhariwal"),
        ("out.zip", {"filter": "sharp"}, "--filter 'sharp': choose from lanczos"),
        ("out.zip", {"resolution": 0}, "must be at least 1"),
        ("out.zip", {"max_images": 0}, "must be at least 1"),
    ],
)
def test_wrong_settings_are_told_at_once(tmp_path: Path, name: str, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        prepare_dataset(spec(tmp_path / "gone", tmp_path / name, **changes))


def test_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone: no such file"):
        prepare_dataset(spec(tmp_path / "gone", tmp_path / "out.zip"))


def test_labels_out_of_range_are_told_before_the_work(tmp_path: Path) -> None:
    source = write_zip(tmp_path / "cifar10-16x16.zip", pngs(1), {"labels": [["00000/img00000000.png", 10]]})
    with pytest.raises(UserError, match=r"label 10 is outside 0\.\.9"):
        prepare_dataset(spec(source, tmp_path / "out.zip"))
