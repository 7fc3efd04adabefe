"""Checkpoint folders: they carry their code, and say what is wrong with them."""

from __future__ import annotations

import os
from typing import Any

from transformers import PreTrainedModel

from ...configuration.configuration_selfvit import SelfViTConfig
from .remote_code import code_files, remove_code, write_code
from .validation import check_objective, explained, place_of


class CheckpointModel(PreTrainedModel):
    """Saving and loading of a model.

    Attributes:
        objective_field: of an objective's class, the field of `SelfViTConfig` that says what it
            adds; None for what opens any checkpoint.
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
        """Return the classes that open what this one saves, by the Auto class that gives them."""
        raise NotImplementedError

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        *args: Any,
        save_code: bool = True,
        **kwargs: Any,
    ) -> None:
        """Save a folder that opens without selfvit, too, by `trust_remote_code=True`.

        Args:
            save_directory: the folder; an earlier checkpoint in it is replaced, code included.
            is_main_process: whether this process writes.
            args: as for transformers' `save_pretrained`.
            save_code: whether the modules of the model lie beside its weights, named by `auto_map`
                in config.json. Without them the folder opens where selfvit is installed.
            kwargs: as for transformers' `save_pretrained`.

        Raises:
            OSError: if the code cannot be read; `save_code=False` leaves it out.
        """
        only_adapters = getattr(
            self, "_hf_peft_config_loaded", False
        )  # are written, no config.json
        if self.should_save_on_this_rank(is_main_process) and not only_adapters:
            if save_code:
                self.config.auto_map = write_code(self.auto_classes(), save_directory)
            else:
                remove_code(save_directory)
                vars(self.config).pop("auto_map", None)
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)

    def _upload_modified_files(
        self, working_dir: Any, repo_id: str, files_timestamps: dict[str, float], **kwargs: Any
    ) -> Any:
        # `save_pretrained(push_to_hub=True)` uploads what changed since its own start, when the
        # code was already there
        code = {path.name for path in code_files(working_dir)}
        earlier = {name: time for name, time in files_timestamps.items() if name not in code}
        return super()._upload_modified_files(working_dir, repo_id, earlier, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Do nothing: `save_pretrained` writes the code, whether the class was registered or not.

        transformers registers what it opened as remote code. It would then write the code itself,
        for one Auto class, with `save_code=False` as well.
        """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load as transformers does; errors name the file and what to do.

        Args:
            pretrained_model_name_or_path: folder or Hub id.
            args: as for transformers' `from_pretrained`.
            kwargs: as for transformers' `from_pretrained`.

        Raises:
            FileNotFoundError: if a folder has no weights, or not all of them.
            ValueError: if a file of weights is damaged, config.json is of a newer format, or
                AutoModelForPreTraining is to open an encoder or an objective that is not known.
        """
        checkpoint, config = pretrained_model_name_or_path, kwargs.get("config")
        field = cls.objective_field
        # An Auto class hands both on. AutoModelForPreTraining takes the first objective where none
        # has the name in config.json.
        if field is not None and config is not None and "trust_remote_code" in kwargs:
            check_objective(cls, str(checkpoint), config.architectures, getattr(config, field))
        if kwargs.get("variant") is not None:  # weights of other names
            return super().from_pretrained(checkpoint, *args, **kwargs)
        with explained(checkpoint, place_of(kwargs)):
            return super().from_pretrained(checkpoint, *args, **kwargs)


__all__ = ["CheckpointModel"]
