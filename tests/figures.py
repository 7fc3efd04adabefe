"""Figures that are inspected before they are saved as pictures."""

from __future__ import annotations

from typing import Any

import pytest


def kept_figures(monkeypatch: pytest.MonkeyPatch, module: Any) -> list[Any]:
    """Return the list that each figure a module saves with `save_png` is appended to.

    Args:
        monkeypatch: Fixture of the test.
        module: Module that imports `save_png`.
    """
    figures: list[Any] = []
    save = module.save_png

    def keep(figure: Any, path: Any) -> None:
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(module, "save_png", keep)
    return figures
