"""Save and load checkpoint folders that contain their code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from huggingface_hub.constants import REPOCARD_NAME
from transformers import PreTrainedModel

from ...configuration.configuration_selfvit import SelfViTConfig
from ...file_modes import apply_umask
from .remote_code import code_files, remove_code, write_code
from .validation import check_objective, location_arguments, translate_load_errors

# Weights of a model and of adapters, in one file or in shards, also with a variant in the name.
WEIGHT_PATTERNS = ("model*.safetensors", "adapter_model*.safetensors")


class CheckpointModel(PreTrainedModel):
    """Base class for saving and loading a model.

    Attributes:
        objective_field: Field of `SelfViTConfig` with the settings of an objective. It is None for
            classes that open any checkpoint.
    """

    objective_field: str | None = None

    def __init__(self, config: SelfViTConfig, *args: Any, **kwargs: Any):
        field = self.objective_field
        if field is not None and getattr(config, field) is None:
            part = SelfViTConfig.sub_configs_defaults[field].config_class.__name__
            raise ValueError(f"{type(self).__name__} needs config.{field}; pass {field}={part}().")
        super().__init__(config, *args, **kwargs)

    @classmethod
    def auto_classes(cls) -> dict[str, type]:
        """Return the classes that open a checkpoint of this class, by Auto class."""
        raise NotImplementedError

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        *args: Any,
        save_code: bool = True,
        **kwargs: Any,
    ) -> None:
        """Save a checkpoint that also opens without selfvit, with `trust_remote_code=True`.

        File modes follow the umask; safetensors alone would let only the owner read the weights.

        Args:
            save_directory: Folder of the checkpoint. An earlier checkpoint in it is replaced,
                including its code.
            is_main_process: Whether this process writes.
            args: Positional arguments for transformers' `save_pretrained`.
            save_code: Whether to write the code of the model beside the weights. Without it the
                checkpoint opens only where selfvit is installed.
            kwargs: Keyword arguments for transformers' `save_pretrained`.

        Raises:
            OSError: If the source code cannot be read; `save_code=False` leaves the code out.
        """
        is_writer = self.should_save_on_this_rank(is_main_process)
        # a model with PEFT adapters writes these only, and no config.json
        only_adapters = getattr(self, "_hf_peft_config_loaded", False)
        if is_writer and not only_adapters:
            if save_code:
                self.config.auto_map = write_code(self.auto_classes(), save_directory)
            else:
                remove_code(save_directory)
                vars(self.config).pop("auto_map", None)
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_writer:
            for pattern in WEIGHT_PATTERNS:
                apply_umask(Path(save_directory).glob(pattern))

    def _upload_modified_files(
        self, working_dir: Any, repo_id: str, files_timestamps: dict[str, float], **kwargs: Any
    ) -> Any:
        # `save_pretrained(push_to_hub=True)` uploads the files that changed since it was called;
        # the code was written before
        code = {path.name for path in code_files(working_dir)}
        earlier = {name: time for name, time in files_timestamps.items() if name not in code}
        return super()._upload_modified_files(working_dir, repo_id, earlier, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Do nothing: `save_pretrained` writes the code of registered and other classes alike.

        transformers registers classes that it loaded as remote code. It would then write the code
        itself, for one Auto class, even with `save_code=False`.
        """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint with the `from_pretrained` of transformers, with clearer errors.

        Args:
            pretrained_model_name_or_path: Checkpoint folder or Hub id.
            args: Positional arguments for transformers' `from_pretrained`.
            kwargs: Keyword arguments for transformers' `from_pretrained`.

        Raises:
            FileNotFoundError: If weights are missing in a folder.
            ValueError: If a file of weights is damaged, the format in config.json is newer than
                this package, or AutoModelForPreTraining is called for an encoder or an unknown
                objective.
        """
        checkpoint, config = pretrained_model_name_or_path, kwargs.get("config")
        field = cls.objective_field
        # Auto classes pass both arguments. AutoModelForPreTraining takes the first objective if
        # config.json names a class that it does not know.
        if field is not None and config is not None and "trust_remote_code" in kwargs:
            check_objective(cls, str(checkpoint), config.architectures, getattr(config, field))
        if kwargs.get("variant") is not None:  # files of weights have other names
            return super().from_pretrained(checkpoint, *args, **kwargs)
        with translate_load_errors(checkpoint, location_arguments(kwargs)):
            return super().from_pretrained(checkpoint, *args, **kwargs)


def write_checkpoint(
    model: PreTrainedModel,
    folder: str | os.PathLike[str],
    processor: Any,
    card: str,
    **save_options: Any,
) -> None:
    """Write a model, its image processor and its card into one folder.

    Args:
        model: Model.
        folder: Checkpoint folder. It is created if it does not exist.
        processor: Image processor.
        card: Content of README.md.
        save_options: Keyword arguments for the `save_pretrained` of the model.

    Raises:
        OSError: If a file cannot be written.
    """
    model.save_pretrained(folder, **save_options)
    # only the image processor of this package has code of its own
    has_code = hasattr(processor, "preprocess_scaled")
    code = {"save_code": save_options.get("save_code", True)} if has_code else {}
    processor.save_pretrained(folder, **code)
    (Path(folder) / REPOCARD_NAME).write_text(card, encoding="utf-8")


__all__ = ["CheckpointModel", "write_checkpoint"]
