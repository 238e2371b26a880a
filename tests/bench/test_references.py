"""Statistics of reference sets: built, imported, exported, and refused where they do not fit."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.cli import main
from bench.errors import UserError
from bench.references import UNKNOWN, Origin, Reference, export_npz, fitting, import_npz, load_reference, save_reference
from bench.run import RunOptions
from bench.shapes import ShapesDataset
from bench.statistics import FeatureStatistics
from tests.bench.networks.random_networks import random_inception
from tests.bench.tiny_suite import SUITE, run_tiny

ORIGIN = Origin("ffhq", 256, "d1", "inception", "e1")


def drawn(count: int = 30, width: int = 5) -> FeatureStatistics:
    features = torch.randn(count, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return FeatureStatistics.empty(width).update(features)


def test_reference_is_the_same_after_a_way_through_a_file(tmp_path: Path) -> None:
    save_reference(Reference(ORIGIN, {"pool": drawn()}), tmp_path / "r.safetensors")
    read = load_reference(tmp_path / "r.safetensors")
    assert read.origin == ORIGIN
    assert torch.equal(read.layers["pool"].scatter, drawn().scatter)
    assert read.layers["pool"].n == 30
    assert len(read.sha256) == 64


def test_npz_of_the_official_layout_comes_and_goes_unchanged(tmp_path: Path) -> None:
    pool, spatial = drawn(), drawn(width=3)
    export_npz(Reference(ORIGIN, {"pool": pool, "spatial": spatial}), tmp_path / "r.npz")
    with np.load(tmp_path / "r.npz") as content:
        np.testing.assert_allclose(content["sigma"], np.asarray(pool.cov(1)), rtol=1e-15)
        assert sorted(content.files) == ["mu", "mu_s", "sigma", "sigma_s"]
    read = import_npz(tmp_path / "r.npz", ORIGIN, 30)
    torch.testing.assert_close(read.layers["spatial"].cov(0), spatial.cov(0), rtol=1e-14, atol=0)
    assert read.origin.source.startswith("r.npz, sha256 ")


def test_only_what_fits_is_taken() -> None:
    reference = Reference(ORIGIN, {"pool": drawn()})
    assert fitting([reference], ORIGIN) is reference
    assert fitting([reference], dataclasses.replace(ORIGIN, resolution=64)) is None
    of_adm = Reference(dataclasses.replace(ORIGIN, convention="adm"), {})
    assert fitting([of_adm], dataclasses.replace(ORIGIN, convention="sg3")) is None
    imported = Reference(dataclasses.replace(ORIGIN, dataset_sha256=UNKNOWN), {})
    assert fitting([imported], dataclasses.replace(ORIGIN, dataset_sha256="d2")) is imported


def test_stale_reference_is_refused_with_the_fields_that_differ() -> None:
    now = dataclasses.replace(ORIGIN, dataset_sha256="d2", extractor_sha256="e2")
    with pytest.raises(UserError, match=r"dataset_sha256 d1 instead of d2; extractor_sha256 e1 instead of e2"):
        fitting([Reference(ORIGIN, {})], now)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"other": np.zeros(3)}, "no mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.zeros((3, 2))}, r"\[D\] and \[D, D\]"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 0.5], [0.2, 1.0]])}, "not symmetric"),
        ({"mu": np.array([0.0, np.nan]), "sigma": np.eye(2)}, "finite"),
    ],
)
def test_npz_without_usable_statistics_is_refused(
    arrays: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]], message: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        import_npz(tmp_path / "x.npz", ORIGIN, 10)


def test_files_that_are_cut_or_foreign_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("mu.npy", b"not an array")
        archive.writestr("sigma.npy", b"not an array")
    (tmp_path / "y.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:20])
    for name in ("x.npz", "y.npz", "absent.npz"):
        with pytest.raises(UserError, match="can't be read"):
            import_npz(tmp_path / name, ORIGIN, 10)
    save_reference(Reference(ORIGIN, {"pool": drawn()}), tmp_path / "r.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "r.safetensors").read_bytes()[:-9])
    with pytest.raises(UserError, match="can't be read as a reference"):
        load_reference(tmp_path / "cut.safetensors")


def test_built_reference_gives_the_numbers_of_its_images(
    suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.datasets.ShapesDataset", lambda resolution: ShapesDataset(resolution, count=60))
    suite.write_text(
        SUITE.replace('"half"', '"full"')
        .replace("num_images = 24", "num_images = 12")
        .replace("inversion_images = 1", "")
    )
    build = ["reference", "build", "shapes", "--resolution", "32", "--protocol", "fd@standin", "--offline"]
    output = tmp_path / "r.safetensors"
    assert main([*build, "--output", str(output)]) == 0
    assert "standin-v1" in capsys.readouterr().out
    without = run_tiny(suite, RunOptions(tmp_path / "without"))[1]
    with_it = run_tiny(suite, RunOptions(tmp_path / "with"), references=(output,))[1]
    pairs = [
        (a.measurement, b.measurement)
        for a, b in zip(without, with_it, strict=True)
        if a.measurement.protocol == "fd@standin" and a.measurement.subject != "real"
    ]
    assert pairs
    for measured, known in pairs:
        assert known.value == pytest.approx(measured.value, rel=1e-9)
        assert known.case["reference_sha256"] == load_reference(output).sha256
        assert known.case["n_reference"] == measured.case["n_reference"]


def test_reference_is_built_from_images_with_a_real_network(tmp_path: Path) -> None:
    torch.save(random_inception(seed=0), tmp_path / "inception.pth")
    build = ["reference", "build", "shapes", "--resolution", "32", "--offline", "--limit", "6"]
    weights = ["--inception-weights", str(tmp_path / "inception.pth"), "--output", str(tmp_path / "r.safetensors")]
    assert main([*build, *weights]) == 0
    layers = load_reference(tmp_path / "r.safetensors").layers
    assert {name: len(layer.mean) for name, layer in layers.items()} == {"pool": 2048, "spatial": 2023}


def test_cut_build_leaves_nothing_to_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STYLEBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("bench.datasets.ShapesDataset", lambda resolution: ShapesDataset(resolution, count=30))
    output = tmp_path / "r.safetensors"
    build = ["reference", "build", "shapes", "--resolution", "32", "--protocol", "fd@standin", "--offline"]

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("bench.reference_commands.load_features", cut)
        assert main([*build, "--limit", "10", "--output", str(output)]) == 130
    assert main([*build, "--output", str(output)]) == 0
    assert load_reference(output).layers["pool"].n == 30


def test_protocol_without_statistics_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reference", "build", "shapes", "--resolution", "32", "--protocol", "is50k@sg3", "--offline"]) == 1
    assert "takes no statistics of a reference" in capsys.readouterr().err


def test_unknown_convention_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_npz(Reference(ORIGIN, {"pool": drawn()}), tmp_path / "r.npz")
    import_ = ["reference", "import", str(tmp_path / "r.npz"), "imagenet", "--resolution", "256", "--count", "30"]
    assert main([*import_, "--convention", "edm", "--output", str(tmp_path / "back.safetensors")]) == 1
    assert "Allowed: adm, clean," in capsys.readouterr().err


def test_reference_that_serves_no_number_of_a_run_is_refused(suite: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.safetensors"
    save_reference(Reference(dataclasses.replace(ORIGIN, dataset="shapes", extractor="standin-v1"), {}), path)
    with pytest.raises(UserError, match=r"shapes at 256 px .* serves no number of this run: resolution 256 instead of"):
        run_tiny(suite, RunOptions(tmp_path / "run"), references=(path,))


def test_reference_leaves_and_comes_back_by_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, npz, back = (str(tmp_path / name) for name in ("r.safetensors", "r.npz", "back.safetensors"))
    save_reference(Reference(ORIGIN, {"pool": drawn()}), Path(ours))
    assert main(["reference", "export", ours, npz]) == 0
    import_ = ["reference", "import", npz, "imagenet", "--resolution", "256", "--count", "30", "--convention", "adm"]
    assert main([*import_, "--output", back]) == 0
    assert main(["reference", "show", back]) == 0
    shown = capsys.readouterr().out
    assert "30 images, 5 features" in shown
    assert "r.npz, sha256" in shown
    assert "protocols that end in @adm" in shown
    torch.testing.assert_close(load_reference(Path(back)).layers["pool"].scatter, drawn().scatter)
    import_[import_.index("30")] = "1"
    assert main([*import_, "--output", back]) == 1
