"""Register the package's classes with transformers' Auto classes, without importing transformers.

`import selfvit` stays light: if transformers is not imported yet, a finder on `sys.meta_path` waits
for it and registers the classes right after transformers itself was executed.
"""

from __future__ import annotations

import functools
import sys
import threading
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def register_auto_classes() -> None:
    """Register configuration, models, image processor and the converter of other weights.

    Repeating it changes nothing.
    """
    from transformers import (
        AutoBackbone,
        AutoConfig,
        AutoImageProcessor,
        AutoModel,
        AutoModelForImageClassification,
        AutoModelForPreTraining,
    )

    from .configuration.configuration_selfvit import SelfViTConfig
    from .modeling.checkpoints.resolve import set_converter
    from .modeling.image_processing_selfvit import SelfViTImageProcessor
    from .modeling.modeling_selfvit import (
        SelfViTBackbone,
        SelfViTForImageClassification,
        SelfViTModel,
    )
    from .modeling.registry import PRETRAINING_CLASSES

    AutoConfig.register("selfvit", SelfViTConfig, exist_ok=True)
    AutoModel.register(SelfViTConfig, SelfViTModel, exist_ok=True)
    AutoModelForImageClassification.register(
        SelfViTConfig, SelfViTForImageClassification, exist_ok=True
    )
    AutoBackbone.register(SelfViTConfig, SelfViTBackbone, exist_ok=True)
    # Only for preprocessor_config.json that names this class; a stock class is found before it.
    processors: dict[str, type] = {
        "torchvision": SelfViTImageProcessor,
        "pil": SelfViTImageProcessor,
    }
    AutoImageProcessor.register(SelfViTConfig, image_processor_classes=processors, exist_ok=True)
    pretraining: Any = AutoModelForPreTraining._model_mapping
    pretraining.register(SelfViTConfig, PRETRAINING_CLASSES, exist_ok=True)
    set_converter(_convert)


def _convert(source: str) -> str:
    from .conversion.cache import converted_checkpoint

    return converted_checkpoint(source)


def register_once_transformers_is_imported() -> None:
    """Register the classes now if transformers is imported, otherwise when it is."""
    if sys.modules.get("transformers") is not None:
        register_auto_classes()
    elif not any(isinstance(finder, TransformersFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, TransformersFinder())


class TransformersFinder(MetaPathFinder):
    """Find transformers as the other finders do, and register the classes once it was executed."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Return the spec of transformers, whose loader then calls `register_auto_classes`."""
        if fullname != "transformers":
            return None
        for finder in list(sys.meta_path):
            find_spec = None if finder is self else getattr(finder, "find_spec", None)
            spec = None if find_spec is None else find_spec(fullname, path, target)
            if spec is not None:
                self._extend_loader(spec.loader)
                return spec
        return None

    def _extend_loader(self, loader: Any) -> None:
        # One method of this loader object is replaced, so that its type and all other attributes
        # remain what inspect, importlib.resources and runpy expect.
        execute = loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            loader.exec_module = execute
            execute(module)
            if module.__name__ == "transformers":
                _forward_to_replacement(module)
                self._register()

        loader.exec_module = execute_and_register

    def _register(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        try:
            register_auto_classes()
        except (ImportError, RuntimeError):
            # Another thread may be importing a module of selfvit, and wait for transformers, whose
            # import lock this thread holds. Once it is released, both can continue.
            threading.Thread(target=_register_or_warn, name="selfvit registration").start()


def _forward_to_replacement(module: ModuleType) -> None:
    # transformers puts a lazy module into its own place in sys.modules. A thread that imports it in
    # the meantime waits for the end, but gets the first module, which has none of its names.
    replacement = sys.modules[module.__name__]
    if replacement is not module:
        vars(module)["__getattr__"] = functools.partial(getattr, replacement)


def _register_or_warn() -> None:
    try:
        register_auto_classes()
    except Exception as error:  # `import transformers` must not fail because of selfvit
        warnings.warn(
            "selfvit could not register its classes with transformers' Auto classes: "
            f"{type(error).__name__}: {error}. `from selfvit import SelfViTModel` shows the cause.",
            stacklevel=1,
        )


__all__ = ["register_auto_classes", "register_once_transformers_is_imported"]
