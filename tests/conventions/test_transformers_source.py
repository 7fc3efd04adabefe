"""Whoever has no network skips transformers' own tests; continuous integration must not."""

from __future__ import annotations

import os

import pytest

from tests.conventions import transformers_source


@pytest.fixture
def absent(monkeypatch, tmp_path):
    monkeypatch.setattr(transformers_source, "FOLDER", tmp_path / "transformers-0")


def test_without_them_a_module_is_skipped_with_what_to_do(absent, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="`make test`, or `python -m .* downloads it"):
        transformers_source.load("test_modeling_common")


def test_without_them_continuous_integration_fails(absent, monkeypatch):
    monkeypatch.setenv("CI", "true")
    with pytest.raises(FileNotFoundError, match="transformers-0; `make test`"):
        transformers_source.load("test_modeling_common")


@pytest.fixture
def no_network(absent, monkeypatch):
    # pip then knows of no place to download from
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    for setting in ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(setting, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


def test_without_network_it_is_said_that_tests_will_be_skipped(no_network, monkeypatch, capsys):
    monkeypatch.delenv("CI", raising=False)
    transformers_source.bring()
    assert not transformers_source.FOLDER.exists()
    assert "could not be downloaded; the tests that need it are skipped" in capsys.readouterr().err


def test_without_network_continuous_integration_fails(no_network, monkeypatch):
    monkeypatch.setenv("CI", "true")
    with pytest.raises(SystemExit, match="could not be downloaded"):
        transformers_source.bring()
