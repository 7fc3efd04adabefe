"""Weights in from other projects, and out to them."""

from .audit.audit import audit
from .convert import convert
from .exporters.export import export

__all__ = ["audit", "convert", "export"]
