"""Convert weights to selfvit checkpoints, export them to other libraries, and audit them."""

from .audit.audit import audit
from .convert import convert
from .exporters.export import export

__all__ = ["audit", "convert", "export"]
