"""What the records of a run say of the reference and of the data set."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from bench.jobs import count_reference, reference_caveats
from bench.plan import PlanOptions, make_plan
from bench.protocols import PROTOCOLS
from bench.run import RunOptions
from bench.shapes import ShapesDataset
from tests.bench.image_files import pngs, write_zip
from tests.bench.tiny_suite import CPU, SUITE, run_tiny


def test_only_as_many_real_images_are_counted_as_a_protocol_takes(suite: Path) -> None:
    (stage,) = make_plan(PlanOptions(suite=str(suite)), CPU).stages
    neighbours = PROTOCOLS["pr50k3@adm-inception"]
    assert count_reference(stage, neighbours, "reference") == 24
    assert count_reference(stage, dataclasses.replace(neighbours, num_reference=10), "reference") == 10
    assert count_reference(stage, PROTOCOLS["is50k@sg3"], "reference") is None


def test_number_against_part_of_a_set_says_so() -> None:
    frechet, neighbours = PROTOCOLS["fid50k_full@sg3"], PROTOCOLS["pr50k3@adm-inception"]
    dataset = ShapesDataset(8, count=20_000)
    assert reference_caveats(dataset, frechet, 20_000) == ()
    assert "10,000 real images instead of 20,000" in reference_caveats(dataset, frechet, 10_000)[0]
    assert reference_caveats(dataset, neighbours, 10_000) == ()
    assert "9,999 real images instead of 10,000" in reference_caveats(dataset, neighbours, 9_999)[0]
    dataset.name = "cifar10"  # known to have more
    assert "20,000 real images instead of 50,000" in reference_caveats(dataset, frechet, 20_000)[0]
    assert reference_caveats(dataset, PROTOCOLS["is50k@sg3"], None) == ()


def test_data_set_given_by_its_path_stays_in_the_folder_of_the_run(suite: Path, tmp_path: Path) -> None:
    zipped = write_zip(tmp_path / "mine-32x32.zip", pngs(24, 32))
    suite.write_text(
        SUITE.replace('"shapes"', f'"{zipped}"')
        .replace("-shapes-", "-half-")
        .replace("= 1", "= 0", 1)
        .replace("schema = 0", "schema = 1"),
        encoding="utf-8",
    )
    before = set(tmp_path.iterdir())
    folder, records = run_tiny(suite, RunOptions(tmp_path / "run"))
    assert set(tmp_path.iterdir()) - before <= {folder, tmp_path / "results"}
    assert {record.measurement.case["dataset"] for record in records} == {"mine"}
    assert not [record.measurement.error for record in records if record.measurement.status == "error"]
