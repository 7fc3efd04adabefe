"""transformers' own tests are skipped without network, but not in continuous integration."""

from __future__ import annotations

import os

import pytest

from tests.conventions import transformers_source


@pytest.fixture
def absent(monkeypatch, tmp_path):
    monkeypatch.setattr(transformers_source, "FOLDER", tmp_path / "transformers-0")


def test_a_module_is_skipped_with_instructions_if_the_tests_are_absent(absent, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    instructions = "run `make test` or `python -m .* to download it"
    with pytest.raises(pytest.skip.Exception, match=instructions):
        transformers_source.load("test_modeling_common")


def test_continuous_integration_fails_if_the_tests_are_absent(absent, monkeypatch):
    monkeypatch.setenv("CI", "true")
    with pytest.raises(FileNotFoundError, match="transformers-0 does not exist; run `make test`"):
        transformers_source.load("test_modeling_common")


@pytest.fixture
def no_network(absent, monkeypatch):
    # pip then has no index to download from
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    for setting in ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(setting, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


def test_a_message_announces_skipped_tests_without_network(no_network, monkeypatch, capsys):
    monkeypatch.delenv("CI", raising=False)
    transformers_source.download()
    assert not transformers_source.FOLDER.exists()
    assert "could not be downloaded; tests that need it are skipped" in capsys.readouterr().err


def test_continuous_integration_fails_without_network(no_network, monkeypatch):
    monkeypatch.setenv("CI", "true")
    with pytest.raises(SystemExit, match="could not be downloaded"):
        transformers_source.download()
