from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from bench import doctor, environment
from bench.doctor import examine, format_findings, refuse_foreign_packages
from bench.errors import UserError
from bench.weights import WeightsOptions


def test_this_checkout_is_accepted_and_a_shadowed_one_is_not(tmp_path: Path) -> None:
    refuse_foreign_packages()
    with pytest.raises(UserError, match="Run from the checkout"):
        refuse_foreign_packages(tmp_path)


def test_installed_package_of_our_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.distribution
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: real("torch" if name == "kernels" else name))
    with pytest.raises(UserError, match=r"package 'kernels' [\s\S]*uninstall kernels"):
        refuse_foreign_packages()


def test_findings_name_what_is_missing_and_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STYLEBENCH_CACHE", str(tmp_path / "cache"))
    findings = list(examine(WeightsOptions(cache=tmp_path / "cache"), ask_network=False))
    shown = format_findings(findings)
    assert "`python -m bench fetch inception` gets them" in shown
    assert "not asked (--offline)" in shown
    assert not any(finding.state == "bad" for finding in findings)


def test_unwritable_cache_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("STYLEBENCH_CACHE", str(tmp_path / "file" / "cache"))
    findings = {finding.what: finding for finding in examine(WeightsOptions(cache=tmp_path), ask_network=False)}
    assert findings["cache"].state == "bad"
    assert "STYLEBENCH_CACHE" in findings["cache"].text


def test_known_bad_pair_and_untested_versions_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = environment.package_versions() | {"scipy": "1.18.0", "triton": "3.12.0"}
    monkeypatch.setattr(doctor, "package_versions", lambda: versions)
    shown = format_findings(list(examine(WeightsOptions(cache=tmp_path), ask_network=False)))
    assert "fails with SciPy 1.18.0" in shown
    assert "3.12.0 is outside the tested range" in shown
