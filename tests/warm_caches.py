"""What each run of selfvit prepares once per process, prepared before processes are forked."""

import matplotlib.projections  # noqa: F401 - imported late
import PIL.Image
import pydantic.type_adapter  # noqa: F401 - imported late
import typer.main
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from selfvit.cli import app
from selfvit.modeling.checkpoints.code_generator import generate_code
from selfvit.modeling.registry import TRAINABLE_CLASSES
from selfvit.sharing.model_card import card_template

from . import numba_cache  # noqa: F401

PIL.Image.init()
typer.main.get_command(app)
card_template()
get_checkpoint_conversion_mapping("selfvit")  # compiles the patterns of all models
for model_class in TRAINABLE_CLASSES.values():
    generate_code(model_class.auto_classes())
