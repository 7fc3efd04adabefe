"""Self-supervised vision transformers, as transformers models.

Importing this package imports neither torch nor transformers: each name is imported at its first
use, and the classes are registered with transformers' Auto classes once transformers is imported.
"""

from __future__ import annotations

from importlib import import_module, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .auto_registration import register_once_transformers_is_imported

if TYPE_CHECKING:
    from .configuration.configuration_dino import DINOConfig as DINOConfig
    from .configuration.configuration_dinov2 import DINOv2Config as DINOv2Config
    from .configuration.configuration_distill import DistillConfig as DistillConfig
    from .configuration.configuration_lejepa import LeJEPAConfig as LeJEPAConfig
    from .configuration.configuration_mae import MAEConfig as MAEConfig
    from .configuration.configuration_pmsn import PMSNConfig as PMSNConfig
    from .configuration.configuration_selfvit import SelfViTConfig as SelfViTConfig
    from .conversion.audit.audit import audit as audit
    from .conversion.convert import convert as convert
    from .conversion.exporters.export import export as export
    from .data.decoding import decode_image as decode_image
    from .data.sources import open_images as open_images
    from .embedding.embedder import EmbeddedImages as EmbeddedImages
    from .embedding.embedder import Embedder as Embedder
    from .embedding.preparation import preprocess as preprocess
    from .embedding.preprocessing import build_processor as build_processor
    from .embedding.vectors.reader import read_vectors as read_vectors
    from .embedding.vectors.writer import write_embeddings as write_embeddings
    from .evaluation.evaluate import evaluate_checkpoint as evaluate_checkpoint
    from .evaluation.evaluate import evaluate_embeddings as evaluate_embeddings
    from .evaluation.evaluate import format_table as format_table
    from .evaluation.evaluate import save_metrics as save_metrics
    from .exploration.app.server import explore as explore
    from .exploration.clusters import cluster as cluster
    from .exploration.duplicates import duplicates as duplicates
    from .exploration.labeling import label as label
    from .exploration.map_files import map_vectors as map_vectors
    from .exploration.outliers import outliers as outliers
    from .exploration.search import search as search
    from .exploration.selection import select as select
    from .modeling.modeling_dino import SelfViTForDINO as SelfViTForDINO
    from .modeling.modeling_dinov2 import SelfViTForDINOv2 as SelfViTForDINOv2
    from .modeling.modeling_distill import SelfViTForDistill as SelfViTForDistill
    from .modeling.modeling_lejepa import SelfViTForLeJEPA as SelfViTForLeJEPA
    from .modeling.modeling_mae import SelfViTForMAE as SelfViTForMAE
    from .modeling.modeling_pmsn import SelfViTForPMSN as SelfViTForPMSN
    from .modeling.modeling_selfvit import SelfViTBackbone as SelfViTBackbone
    from .modeling.modeling_selfvit import (
        SelfViTForImageClassification as SelfViTForImageClassification,
    )
    from .modeling.modeling_selfvit import SelfViTModel as SelfViTModel
    from .modeling.modeling_selfvit import SelfViTPreTrainedModel as SelfViTPreTrainedModel
    from .modeling.registry import register_objective as register_objective
    from .sharing.model_card import add_results as add_results
    from .sharing.publish import publish as publish
    from .sharing.space import publish_space as publish_space
    from .sharing.space_folder import write_space as write_space
    from .training.recipes import RECIPES as RECIPES
    from .training.recipes import register_recipe as register_recipe
    from .training.train import train_recipe
    from .visualization.attention_maps import plot_attention_maps as plot_attention_maps
    from .visualization.embedding_map import plot_embedding_map as plot_embedding_map
    from .visualization.inputs import open_checkpoint as open_checkpoint
    from .visualization.pca_maps import plot_pca_maps as plot_pca_maps
    from .visualization.reconstructions import open_mae as open_mae
    from .visualization.reconstructions import plot_reconstructions as plot_reconstructions

    train = train_recipe
    __version__: str

# Module of each public name, and the name there if it differs; type checkers read the same from
# the imports above.
MODULES = {
    "DINOConfig": "configuration.configuration_dino",
    "DINOv2Config": "configuration.configuration_dinov2",
    "DistillConfig": "configuration.configuration_distill",
    "EmbeddedImages": "embedding.embedder",
    "Embedder": "embedding.embedder",
    "LeJEPAConfig": "configuration.configuration_lejepa",
    "MAEConfig": "configuration.configuration_mae",
    "PMSNConfig": "configuration.configuration_pmsn",
    "RECIPES": "training.recipes",
    "SelfViTBackbone": "modeling.modeling_selfvit",
    "SelfViTConfig": "configuration.configuration_selfvit",
    "SelfViTForDINO": "modeling.modeling_dino",
    "SelfViTForDINOv2": "modeling.modeling_dinov2",
    "SelfViTForDistill": "modeling.modeling_distill",
    "SelfViTForImageClassification": "modeling.modeling_selfvit",
    "SelfViTForLeJEPA": "modeling.modeling_lejepa",
    "SelfViTForMAE": "modeling.modeling_mae",
    "SelfViTForPMSN": "modeling.modeling_pmsn",
    "SelfViTModel": "modeling.modeling_selfvit",
    "SelfViTPreTrainedModel": "modeling.modeling_selfvit",
    "add_results": "sharing.model_card",
    "audit": "conversion.audit.audit",
    "build_processor": "embedding.preprocessing",
    "cluster": "exploration.clusters",
    "convert": "conversion.convert",
    "decode_image": "data.decoding",
    "duplicates": "exploration.duplicates",
    "evaluate_checkpoint": "evaluation.evaluate",
    "evaluate_embeddings": "evaluation.evaluate",
    "explore": "exploration.app.server",
    "export": "conversion.exporters.export",
    "format_table": "evaluation.evaluate",
    "label": "exploration.labeling",
    "map_vectors": "exploration.map_files",
    "open_checkpoint": "visualization.inputs",
    "open_images": "data.sources",
    "open_mae": "visualization.reconstructions",
    "outliers": "exploration.outliers",
    "plot_attention_maps": "visualization.attention_maps",
    "plot_embedding_map": "visualization.embedding_map",
    "plot_pca_maps": "visualization.pca_maps",
    "plot_reconstructions": "visualization.reconstructions",
    "preprocess": "embedding.preparation",
    "publish": "sharing.publish",
    "publish_space": "sharing.space",
    "read_vectors": "embedding.vectors.reader",
    "register_objective": "modeling.registry",
    "register_recipe": "training.recipes",
    "save_metrics": "evaluation.evaluate",
    "search": "exploration.search",
    "select": "exploration.selection",
    "train": "training.train:train_recipe",
    "write_embeddings": "embedding.vectors.writer",
    "write_space": "sharing.space_folder",
}

__all__ = [*MODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = _read_version()
    elif name in MODULES:
        if MODULES[name].startswith(("configuration.", "modeling.")):
            # Before a module of selfvit is locked: a thread that imports transformers imports
            # these modules too, and would wait for this one.
            import_module("transformers")
        module, _, attribute = MODULES[name].partition(":")
        value = getattr(import_module(f".{module}", __name__), attribute or name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _read_version() -> str:
    """Return the version from `configuration`, whose other modules need transformers."""
    file = Path(__file__).parent / "configuration" / "format_version.py"
    spec = util.spec_from_file_location("selfvit_format_version", file)
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.VERSION


register_once_transformers_is_imported()
