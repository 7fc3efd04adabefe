"""transformers' own tests of every model, configuration and backbone, on all classes of selfvit.

Not run are those of test_pipeline_mixin.py, whose helpers are no part of the source distribution;
pipelines are tested in tests/modeling and tests/training. Exporters: test_compilers.py.
"""

from __future__ import annotations

import copy
import unittest
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

import selfvit
from selfvit import (
    DINOConfig,
    MAEConfig,
    PMSNConfig,
    SelfViTBackbone,
    SelfViTConfig,
    SelfViTForDINO,
    SelfViTForImageClassification,
    SelfViTForMAE,
    SelfViTForPMSN,
    SelfViTModel,
)
from selfvit.modeling.layers import SelfViTPatchEmbeddings
from tests.conventions.model_testers import encoder_tester, full_encoder_tester, objective_tester
from tests.conventions.transformers_source import load

ModelTesterMixin: Any = load("test_modeling_common").ModelTesterMixin
ConfigTester: Any = load("test_configuration_common").ConfigTester
BackboneTesterMixin: Any = load("test_backbone_common").BackboneTesterMixin

# Tables of transformers' names by which its tests tell a base model from a classifier.
TABLES = {
    "MODEL_MAPPING_NAMES": "SelfViTModel",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES": "SelfViTForImageClassification",
    "MODEL_FOR_BACKBONE_MAPPING_NAMES": "SelfViTBackbone",
}

# Beginnings of the names of tests that would only be skipped, and why. Those that need a GPU stay,
# and are skipped where there is none.
LEFT_OUT = {
    "of text": ("resize_", "inputs_embeds", "causal_lm_", "encoder_decoder_", "sliding_window_"),
    "of text, too": ("bc_cache_name_forward", "feed_forward_chunking"),
    "of rotary positions": ("model_rope_", "vision_axial_rope"),
    "of experts": ("eager_matches_batched_", "moe_", "output_router_"),
    "of several modalities": ("multimodal_", "get_", "can_set_attention_dynamically_composite"),
    "of models in models": ("attn_implementation_composite", "sdpa_can_dispatch_composite"),
    "of packages that selfvit does not use": ("flash_attn_", "kernels_"),
    "of a plan for tensor parallelism, which selfvit has none of": ("tp_plan_",),
    "of weights renamed while loading, which selfvit's are not": (
        "reverse_loading_mapping",
        "can_load_from_already_mapped_keys",
    ),
    # its input layer must have a `weight`, and patch embeddings have none, as ViT's; instead:
    # test_lora.py::test_adapters_learn_the_same_under_gradient_checkpointing
    "of an embedding's weight": ("enable_input_require_grads_with_gradient_checkpointing",),
}

# SelfViTForDINO and SelfViTForPMSN return a loss over pairs of views, and no features; those are
# the encoder's, which is tested as such. Their attention: test_sdpa_gives_the_loss_of_eager.
LEFT_OUT_WHERE_A_LOSS_IS_ALL = {
    "of features": (
        "hidden_states_output",
        "retain_grad_hidden_states_attentions",
        "attention_outputs",
        "capture_outputs_decorator",
        "can_capture_specific_layers_hidden_states",
        "eager_matches_sdpa_inference",
    ),
    "of an image alone in its batch": ("batching_equivalence",),
}


def leave_out(test_class: type, beginnings: dict[str, tuple[str, ...]]) -> None:
    """Take tests out of a class; each beginning must be of a test that there is."""
    for beginning in (name for names in beginnings.values() for name in names):
        found = [name for name in dir(test_class) if name.startswith(f"test_{beginning}")]
        assert found, beginning
        for name in found:
            setattr(test_class, name, None)


@pytest.fixture(autouse=True, scope="module")
def selfvit_in_the_tables():
    patches = [
        mock.patch.dict(getattr(modeling_auto, table), {"selfvit": name})
        for table, name in TABLES.items()
    ]
    for patch in patches:
        patch.start()
    yield
    for patch in patches:
        patch.stop()


class ModelTests(ModelTesterMixin):
    """The common tests; a subclass names its classes."""

    # there are no embeddings of a vocabulary to resize
    test_resize_embeddings = False
    # it goes by the year in the license at a file's head, and ours have none
    test_can_init_all_missing_weights_before_2023 = True

    # the common one wants an nn.Embedding; ViT's own tests replace it as well
    def test_model_get_set_embeddings(self):
        config = self.model_tester.get_config()
        for model_class in self.all_model_classes:
            model = model_class(copy.deepcopy(config))
            assert isinstance(model.get_input_embeddings(), SelfViTPatchEmbeddings)
            other = nn.Linear(1, 1)
            model.set_input_embeddings(other)
            assert model.get_input_embeddings() is other
            assert model.get_output_embeddings() is None


leave_out(ModelTests, LEFT_OUT)


class TestEncoder(ModelTests, unittest.TestCase):
    all_model_classes = (SelfViTModel, SelfViTForImageClassification, SelfViTBackbone)

    def setUp(self):
        self.model_tester = encoder_tester()


class TestEncoderWithEveryOption(ModelTests, unittest.TestCase):
    all_model_classes = (SelfViTModel, SelfViTForImageClassification, SelfViTBackbone)

    def setUp(self):
        self.model_tester = full_encoder_tester()


class TestMAE(ModelTests, unittest.TestCase):
    all_model_classes = (SelfViTForMAE,)

    def setUp(self):
        self.model_tester = objective_tester("mae")


def gradients_of(model: Any, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the gradient of every parameter that is trained."""
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.trained_parameters()}


class LossTests(ModelTests):
    """Of models that return a loss alone."""

    has_attentions = False

    # the common one watches the first block, which is the teacher's and has no gradient
    def check_training_gradient_checkpointing(self, gradient_checkpointing_kwargs=None):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config).train()
            block = model.student.vit.layers[-1].layernorm_before  # of it, what is run again
            runs: list[int] = []
            block.register_forward_hook(lambda *_, runs=runs: runs.append(1))
            gradients = gradients_of(model, inputs)
            num_runs = len(runs)
            assert num_runs > 0
            model.activation_checkpointing_enable(
                activation_checkpointing_kwargs=gradient_checkpointing_kwargs
            )
            torch.testing.assert_close(gradients_of(model, inputs), gradients)
            assert len(runs) == num_runs + 2 * num_runs

    # the common one asks for hidden states as well
    def test_model_outputs_equivalence(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config).eval()
            outputs = model(**inputs).to_tuple()
            assert len(outputs) > 1
            torch.testing.assert_close(model(**inputs, return_dict=False), outputs)

    def test_sdpa_gives_the_loss_of_eager(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model: PreTrainedModel = model_class(config)
            for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
                model.to(dtype)
                losses = {}
                for implementation in ("eager", "sdpa"):
                    model.set_attn_implementation(implementation)
                    losses[implementation] = model(**inputs).loss
                torch.testing.assert_close(
                    losses["sdpa"], losses["eager"], rtol=tolerance, atol=tolerance
                )


leave_out(LossTests, LEFT_OUT_WHERE_A_LOSS_IS_ALL)


class TestDINO(LossTests, unittest.TestCase):
    all_model_classes = (SelfViTForDINO,)

    def setUp(self):
        self.model_tester = objective_tester("dino")


class TestPMSN(LossTests, unittest.TestCase):
    all_model_classes = (SelfViTForPMSN,)

    def setUp(self):
        self.model_tester = objective_tester("pmsn")


class TestBackbone(BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (SelfViTBackbone,)
    config_class = SelfViTConfig

    def setUp(self):
        self.model_tester = encoder_tester()


def nested(config) -> dict[str, Any]:
    """Return a configuration as it stands within another."""
    return {
        name: value for name, value in config.to_dict().items() if name != "transformers_version"
    }


class TestConfigurations(unittest.TestCase):
    def check(self, config_class, **fields):
        tester = ConfigTester(
            self, config_class, has_text_modality=False, common_properties=list(fields), **fields
        )
        tester.run_common_tests()

    def test_selfvit(self):
        self.check(SelfViTConfig, hidden_size=36, num_hidden_layers=2, num_attention_heads=3)

    def test_selfvit_with_every_objective(self):
        self.check(
            SelfViTConfig,
            dino_config=nested(DINOConfig(num_prototypes=7)),
            mae_config=nested(MAEConfig(mask_ratio=0.5)),
            pmsn_config=nested(PMSNConfig(num_prototypes=9)),
        )

    def test_dino(self):
        self.check(DINOConfig, num_prototypes=7)

    def test_mae(self):
        self.check(MAEConfig, mask_ratio=0.5)

    def test_pmsn(self):
        self.check(PMSNConfig, num_prototypes=9)


def test_every_public_class_is_tested():
    public = {getattr(selfvit, name) for name in selfvit.__all__ if name != "__version__"}
    models = {item for item in public if issubclass(item, PreTrainedModel)}
    tests = (TestEncoder, TestEncoderWithEveryOption, TestMAE, TestDINO, TestPMSN)
    assert {model for test in tests for model in test.all_model_classes} == models
