"""Weights in from other projects, and out to them."""

from .checkpoint_audit import audit
from .weights_in import convert
from .weights_out import export

__all__ = ["audit", "convert", "export"]
