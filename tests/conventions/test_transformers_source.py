"""Whoever has no network skips transformers' own tests; continuous integration must not."""

from __future__ import annotations

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
