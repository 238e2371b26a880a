"""Where data sets are found, what they are opened as, and the real ones."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.datasets import DATASETS, class_prompt, find_datasets, identify, open_dataset, prompt
from bench.errors import UserError
from bench.shapes import ShapesDataset
from tests.bench.image_files import encode, noise, pngs, write_folder, write_zip

NAMES = ["00000/img00000000.png", "00000/img00000001.png", "00000/img00000002.png"]
LABELLED = {"labels": [[name, label] for name, label in zip(NAMES, (2, 0, 2), strict=True)]}

# --- the real sets


@pytest.mark.parametrize(
    ("name", "resolution", "count", "num_classes", "greatest_label"),
    [
        ("cifar10", 32, 3000, 10, 9),
        ("ffhq", 256, 600, 0, None),
        ("imagenet", 256, 400, 1000, 997),
        ("pokemon", 256, 500, 0, None),
        ("coco", 256, 83, 0, None),
    ],
)
def test_real_zip_has_its_count_labels_and_resolution(
    shared_dir: Path, name: str, resolution: int, count: int, num_classes: int, greatest_label: int | None
) -> None:
    dataset = open_dataset(name, resolution, shared_dir / "data")
    assert (dataset.name, dataset.resolution, len(dataset)) == (name, resolution, count)
    assert dataset.num_classes == num_classes
    labels = [dataset.label(i) for i in range(count)]
    present = [label for label in labels if label is not None]
    assert (max(present) if present else None) == greatest_label
    assert len(present) in {0, count}
    for index in (0, count // 2, count - 1):
        image = dataset.image(index)
        assert image.dtype == torch.uint8
        assert image.shape == (3, resolution, resolution)
    assert len(dataset.content_sha256()) == 64


def test_real_sets_are_found(shared_dir: Path) -> None:
    expected = [("cifar10", 32), ("coco", 256), ("ffhq", 256), ("imagenet", 256), ("pokemon", 256)]
    assert find_datasets(shared_dir / "data") == expected


def test_real_class_names_make_prompts(shared_dir: Path) -> None:
    cifar10 = open_dataset("cifar10", 32, shared_dir / "data")
    assert cifar10.label(2) == 1
    assert prompt(cifar10, 2) == "a photo of a automobile"
    imagenet = open_dataset("imagenet", 256, shared_dir / "data")
    assert (imagenet.label(1), prompt(imagenet, 1)) == (1, "a photo of a goldfish")
    assert len(imagenet.class_names) == 1000


def test_real_pokemon_are_captioned_and_coco_is_not(shared_dir: Path) -> None:
    pokemon = open_dataset("pokemon", 256, shared_dir / "data")
    assert pokemon.has_captions
    assert prompt(pokemon, 0) == "a drawing of a green four-legged pokemon on a white background"
    coco = open_dataset("coco", 256, shared_dir / "data")  # its zip has no image ids to match the captions with
    assert not coco.has_captions
    assert prompt(coco, 0) is None


# --- opening


def test_open_reads_zip_and_folder_alike(tmp_path: Path) -> None:
    write_zip(tmp_path / "mine-16x16.zip", pngs(3), LABELLED)
    write_folder(tmp_path / "yours-16x16", pngs(3), LABELLED)
    mine, yours = open_dataset("mine", 16, tmp_path), open_dataset("yours", 16, tmp_path)
    assert (mine.name, yours.name) == ("mine", "yours")
    for index in range(3):
        expected = torch.from_numpy(np.array(noise(index))).permute(2, 0, 1)
        assert torch.equal(mine.image(index), expected)
        assert torch.equal(yours.image(index), expected)
        assert mine.label(index) == yours.label(index) == (2, 0, 2)[index]
    assert mine.num_classes == 3
    assert mine.class_names == ()
    assert prompt(mine, 0) is None


def test_open_reads_jpeg_and_orders_by_name(tmp_path: Path) -> None:
    photo = Image.fromarray(np.full((16, 16, 3), (200, 10, 10), np.uint8))
    files = {"b.jpg": encode(photo, "JPEG"), "a.png": encode(noise(0)), "README.txt": b"hello", ".DS_Store": b""}
    dataset = open_dataset(str(write_zip(tmp_path / "set.zip", files)), 16)
    assert (dataset.name, len(dataset), dataset.num_classes) == ("set", 2, 0)
    assert torch.equal(dataset.image(0), torch.from_numpy(np.array(noise(0))).permute(2, 0, 1))
    assert dataset.image(1).float().mean((1, 2)).tolist() == pytest.approx([200, 10, 10], abs=2)


def test_open_by_path_is_the_set_of_that_name(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "cifar10-16x16.zip", pngs(3), LABELLED)
    dataset = open_dataset(str(path), 16)
    assert (dataset.name, dataset.num_classes) == ("cifar10", 10)
    assert prompt(dataset, 0) == class_prompt("bird")
    assert identify(tmp_path / "coco-val2014-64x64.zip") == (DATASETS["coco"], 64)


def test_open_shapes_needs_no_folder() -> None:
    assert isinstance(open_dataset("shapes", 16, None), ShapesDataset)
    assert prompt(open_dataset("shapes", 16), 0) == "a small red circle on a cream background"


def test_class_folders_become_labels(tmp_path: Path) -> None:
    files = {f"{animal}/{i}.png": encode(noise(i)) for animal in ("owl", "cat") for i in range(2)}
    dataset = open_dataset(str(write_folder(tmp_path / "zoo", files)), 16)
    assert [dataset.label(i) for i in range(4)] == [0, 0, 1, 1]
    assert (dataset.num_classes, dataset.class_names) == (2, ("cat", "owl"))
    assert prompt(dataset, 3) == "a photo of a owl"


def test_class_folders_must_be_all_classes_of_a_known_set(tmp_path: Path) -> None:
    files = {f"n0{i}/x.png": encode(noise(i)) for i in range(3)}
    write_folder(tmp_path / "imagenet", files)
    with pytest.raises(UserError, match=r"imagenet: 3 classes, imagenet has 1000"):
        open_dataset("imagenet", 16, tmp_path)


def test_numbered_shards_are_no_classes(tmp_path: Path) -> None:
    files = {f"{shard:05d}/{i}.png": encode(noise(i)) for shard in range(2) for i in range(2)}
    assert open_dataset(str(write_folder(tmp_path / "faces", files)), 16).num_classes == 0


def test_captions_of_the_zip_win_over_the_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "mine-captions.jsonl").write_text(
        "\n".join(json.dumps({"file": name, "caption": f"beside {name}"}) for name in NAMES)
    )
    write_zip(tmp_path / "mine-16x16.zip", pngs(3))
    beside = open_dataset("mine", 16, tmp_path)
    assert beside.has_captions
    assert prompt(beside, 1) == f"beside {NAMES[1]}"
    digest = beside.content_sha256()
    write_zip(tmp_path / "mine-16x16.zip", pngs(3), {"captions": [[NAMES[1], "inside"]]})
    inside = open_dataset("mine", 16, tmp_path)
    assert not inside.has_captions  # two of three have none
    assert [inside.caption(i) for i in range(3)] == [None, "inside", None]
    assert inside.content_sha256() != digest


def test_content_sha256_changes_with_pixels_labels_names_and_captions(tmp_path: Path) -> None:
    def digest(files: dict[str, bytes], document: object = None) -> str:
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        return open_dataset(str(write_folder(tmp_path / "set", files, document)), 16).content_sha256()

    plain = digest(pngs(3))
    assert plain == digest(pngs(3) | {"notes.txt": b"not read"})
    swapped = dict(zip(NAMES, reversed(pngs(3).values()), strict=True))
    (tmp_path / "set-captions.jsonl").write_text("")
    others = [digest(pngs(2)), digest(swapped), digest(pngs(3), LABELLED), digest(pngs(3), {"labels": None})]
    assert plain == digest(pngs(3))  # a caption file without captions for these images is not used
    (tmp_path / "set-captions.jsonl").write_text(json.dumps({"file": NAMES[0], "caption": "x"}))
    assert len({plain, *others, digest(pngs(3))}) == 6


def test_images_may_be_read_by_many_threads(tmp_path: Path) -> None:
    dataset = open_dataset(str(write_zip(tmp_path / "set.zip", pngs(40))), 16)
    alone = [dataset.image(i) for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(dataset.image, [i for i in range(40) for _ in range(5)]))
    assert all(torch.equal(alone[i // 5], image) for i, image in enumerate(together))


# --- finding


def test_find_reports_what_open_would_find(tmp_path: Path) -> None:
    write_zip(tmp_path / "mine-16x16.zip", pngs(1))
    write_folder(tmp_path / "pokemon", pngs(1, 24))
    write_folder(tmp_path / "ffhq", pngs(1, (24, 20)))  # not square: must be prepared first
    write_folder(tmp_path / "holiday", pngs(1))
    (tmp_path / "notes-16x16.txt").write_text("")
    found = find_datasets(tmp_path)
    assert found == [("mine", 16), ("pokemon", 24)]
    for name, resolution in found:
        assert len(open_dataset(name, resolution, tmp_path)) == 1


def test_zip_is_preferred_over_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "ffhq-16x16", pngs(1))
    write_folder(tmp_path / "ffhq", pngs(2))
    assert len(open_dataset("ffhq", 16, tmp_path)) == 1
    write_zip(tmp_path / "ffhq-16x16.zip", pngs(3))
    assert len(open_dataset("ffhq", 16, tmp_path)) == 3


# --- what can't be opened


def test_unknown_name_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Did you mean 'ffhq'\?"):
        open_dataset("ffqh", 256, tmp_path)


def test_missing_set_says_what_was_looked_for_and_what_is_there(tmp_path: Path) -> None:
    write_zip(tmp_path / "ffhq-16x16.zip", pngs(1))
    with pytest.raises(UserError) as caught:
        open_dataset("ffhq", 8, tmp_path)
    message = str(caught.value)
    assert "looked for ffhq-8x8.zip, ffhq-8x8, ffhq" in message
    assert "It is there at 16x16" in message
    assert (
        f"python -m bench dataset {tmp_path / 'ffhq-16x16.zip'} {tmp_path / 'ffhq-8x8.zip'} --resolution 8" in message
    )


@pytest.mark.parametrize("call", [find_datasets, lambda folder: open_dataset("ffhq", 16, folder)])
def test_missing_data_folder_is_named(tmp_path: Path, call: object) -> None:
    assert callable(call)
    with pytest.raises(UserError, match=r"nowhere: no such folder"):
        call(tmp_path / "nowhere")


def test_known_set_without_data_folder_asks_for_it() -> None:
    with pytest.raises(UserError, match="--data"):
        open_dataset("ffhq", 256, None)


def test_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.zip: no such file"):
        open_dataset(str(tmp_path / "gone.zip"), 16)


def test_resolution_that_is_not_the_one_in_the_name_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "mine-16x16.zip", pngs(1))
    with pytest.raises(UserError, match=r"mine-16x16\.zip: holds 16x16 by its name, asked for 32"):
        open_dataset(str(path), 32)


@pytest.mark.parametrize(("label", "shown"), [(10, "0..9"), (-1, "0..9")])
def test_label_outside_the_classes_names_the_image(tmp_path: Path, label: int, shown: str) -> None:
    document = {"labels": [[NAMES[0], 0], [NAMES[1], label], [NAMES[2], 1]]}
    write_zip(tmp_path / "cifar10-16x16.zip", pngs(3), document)
    with pytest.raises(UserError, match=rf"cifar10-16x16\.zip, entry {NAMES[1]}: label {label} is outside {shown}"):
        open_dataset("cifar10", 16, tmp_path)
