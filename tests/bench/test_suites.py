from __future__ import annotations

import pytest

from bench.errors import UserError
from bench.suites import entry_for, load_suite, parse_suite, select_entries, suite_names
from models.registry import MODELS

MINIMAL = 'schema = 1\nname = "mine"\n[defaults]\nnum_images = 8\n[[entry]]\ndataset = "shapes"\nresolution = 32\n'


@pytest.mark.parametrize("name", suite_names())
def test_shipped_suite_is_valid_and_names_known_models(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == name
    assert suite.summary.endswith(".")
    assert {model for entry in suite.entries for model in entry.models} <= MODELS.keys()


def test_entry_takes_the_defaults() -> None:
    suite = parse_suite("mine.toml", MINIMAL)
    assert suite.entries[0].num_images == 8
    assert entry_for(suite, "ffhq", 64, ["stylegan2-half-64"]).num_images == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("num_images = 8", "num_image = 8"), "Did you mean 'num_images'"),
        (("schema = 1", "schema = 1\nsede = 3"), "Did you mean 'seed'"),
        (("num_images = 8", 'num_images = "8"'), "must be of type int"),
        (("num_images = 8", "num_images = 0"), "must be 1 or more"),
        (("num_images = 8", "num_images = true"), "must be of type int"),
        (("num_images = 8", 'reference = "some"'), "'half', 'full'"),
        (("num_images = 8", 'protocols = ["fid50k_ful@sg3"]'), "Did you mean 'fid50k_full@sg3'"),
        (("num_images = 8", 'probes = ["eqr50@sg3"]'), "Did you mean 'eqr50k@sg3'"),
        (("num_images = 8", "probe_samples = 0"), "must be 1 or more"),
        (("num_images = 8", 'inversion_tracks = ["inversion@sgx"]'), "Did you mean 'inversion@sgxl'"),
        (("num_images = 8", "inversion_batch = 0"), "must be 1 or more"),
        (("num_images = 8", 'models = "stylegan2"'), "list of strings"),
        (("resolution = 32", ""), "resolution missing"),
        (("schema = 1", "schema = 9"), "reads schema = 1"),
        (("schema = 1", "schema = "), "not valid TOML"),
        (("[[entry]]", "[other]"), "unknown key"),
        (
            ("[[entry]]", '[[entry]]\ndataset = "shapes"\nresolution = 32\n[[entry]]'),
            "are called shapes-32",
        ),
    ],
)
def test_bad_suite_is_one_clear_message(change: tuple[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_suite("mine.toml", MINIMAL.replace(*change))


def test_unknown_suite_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'smoke'"):
        load_suite("smok")


def test_selection_keeps_entries_or_models() -> None:
    suite = load_suite("smoke")
    assert [e.title for e in select_entries(suite, "shapes-64").entries] == ["shapes-64"]
    assert [e.models for e in select_entries(suite, "stylegan2-shapes-*").entries] == [("stylegan2-shapes-32",)]
    with pytest.raises(UserError, match="matches nothing"):
        select_entries(suite, "nothing-*")
