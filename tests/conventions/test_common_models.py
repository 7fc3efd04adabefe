"""transformers' common tests of models, configurations and backbones, for all selfvit classes.

The tests of test_pipeline_mixin.py are not run, because the source distribution lacks their
helpers; tests/modeling and tests/training test pipelines. Exporters are tested in
test_compilers.py.
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
    DINOv2Config,
    DistillConfig,
    LeJEPAConfig,
    MAEConfig,
    PMSNConfig,
    SelfViTBackbone,
    SelfViTConfig,
    SelfViTForDINO,
    SelfViTForDINOv2,
    SelfViTForDistill,
    SelfViTForImageClassification,
    SelfViTForLeJEPA,
    SelfViTForMAE,
    SelfViTForPMSN,
    SelfViTModel,
    SelfViTPreTrainedModel,
)
from selfvit.modeling.layers import SelfViTPatchEmbeddings
from tests.conventions.model_testers import encoder_tester, full_encoder_tester, objective_tester
from tests.conventions.transformers_source import load

ModelTesterMixin: Any = load("test_modeling_common").ModelTesterMixin
ConfigTester: Any = load("test_configuration_common").ConfigTester
BackboneTesterMixin: Any = load("test_backbone_common").BackboneTesterMixin

# Tables by which the common tests distinguish a base model from a classifier.
TABLES = {
    "MODEL_MAPPING_NAMES": "SelfViTModel",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES": "SelfViTForImageClassification",
    "MODEL_FOR_BACKBONE_MAPPING_NAMES": "SelfViTBackbone",
}

# Prefixes of tests that would only be skipped, by reason. Tests that need a GPU are kept, and are
# skipped without one.
LEFT_OUT = {
    "text": ("resize_", "inputs_embeds", "causal_lm_", "encoder_decoder_", "sliding_window_"),
    "text, with other names": ("bc_cache_name_forward", "feed_forward_chunking"),
    "rotary positions": ("model_rope_", "vision_axial_rope"),
    "mixture of experts": ("eager_matches_batched_", "moe_", "output_router_"),
    "several modalities": ("multimodal_", "get_", "can_set_attention_dynamically_composite"),
    "composite models": ("attn_implementation_composite", "sdpa_can_dispatch_composite"),
    "packages that selfvit does not use": ("flash_attn_", "kernels_"),
    "tensor parallelism, which selfvit does not support": ("tp_plan_",),
    "weights that are renamed while loading, which selfvit has none of": (
        "reverse_loading_mapping",
        "can_load_from_already_mapped_keys",
    ),
    # it needs an input layer with a `weight`, which patch embeddings lack, as in ViT; instead:
    # test_lora.py::test_adapters_learn_the_same_with_gradient_checkpointing
    "weight of an embedding layer": ("enable_input_require_grads_with_gradient_checkpointing",),
}

# Tests of padding and masks, which images have not: for each of three types, six of the eight
# variants compute the same as `pad_left` with and without the kernels of SDPA.
PADDED = tuple(
    f"eager_matches_sdpa_inference_{number:02d}_" for number in range(24) if number % 8 >= 2
)
# Tests of what transformers does for any class, in ways that no class of selfvit overrides. They
# run for the encoders, TestEncoder, only.
SAME_FOR_ALL = (
    "bc_torch_dtype",
    "can_load_with_device_context_manager",
    "can_load_with_global_device_set",
    "cannot_load_with_meta_device_context_manager",
    "load_contiguous_weights",
    "can_use_safetensors",
)

# SelfViTForDINO, SelfViTForDINOv2, SelfViTForDistill, SelfViTForLeJEPA and SelfViTForPMSN return a
# loss and no features; the tests of the encoder cover features, and
# test_sdpa_gives_the_loss_of_eager covers attention.
LEFT_OUT_WHERE_A_LOSS_IS_ALL = {
    "features": (
        "hidden_states_output",
        "retain_grad_hidden_states_attentions",
        "attention_outputs",
        "capture_outputs_decorator",
        "can_capture_specific_layers_hidden_states",
        "eager_matches_sdpa_inference",
    ),
    "a single image": ("batching_equivalence",),
}


def leave_out(test_class: type, beginnings: dict[str, tuple[str, ...]]) -> None:
    """Remove tests from a class by prefix; every prefix must match a test."""
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
    """Common tests; a subclass sets `all_model_classes`."""

    # there is no vocabulary
    test_resize_embeddings = False
    # the test reads the year from a license header, which our files do not have
    test_can_init_all_missing_weights_before_2023 = True

    # the common test needs an nn.Embedding; ViT's own tests override it, too
    def test_model_get_set_embeddings(self):
        config = self.model_tester.get_config()
        for model_class in self.all_model_classes:
            model = model_class(copy.deepcopy(config))
            assert isinstance(model.get_input_embeddings(), SelfViTPatchEmbeddings)
            other = nn.Linear(1, 1)
            model.set_input_embeddings(other)
            assert model.get_input_embeddings() is other
            assert model.get_output_embeddings() is None


leave_out(ModelTests, {**LEFT_OUT, "padding": PADDED})


class TestEncoder(ModelTests, unittest.TestCase):
    all_model_classes = (SelfViTModel, SelfViTForImageClassification, SelfViTBackbone)

    def setUp(self):
        self.model_tester = encoder_tester()


class OtherModelTests(ModelTests):
    """Common tests of a class other than the plain encoder."""


leave_out(OtherModelTests, {"the same for all": SAME_FOR_ALL})


class TestEncoderWithEveryOption(OtherModelTests, unittest.TestCase):
    all_model_classes = (SelfViTModel, SelfViTForImageClassification, SelfViTBackbone)

    def setUp(self):
        self.model_tester = full_encoder_tester()


class TestMAE(OtherModelTests, unittest.TestCase):
    all_model_classes = (SelfViTForMAE,)

    def setUp(self):
        self.model_tester = objective_tester("mae")


def gradients_of(model: Any, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the gradient of every trained parameter."""
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.trained_parameters()}


class LossTests(OtherModelTests):
    """Common tests of models that return a loss only."""

    has_attentions = False

    # the common test uses the first block, which belongs to the teacher and has no gradient
    def check_training_gradient_checkpointing(self, gradient_checkpointing_kwargs=None):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config).train()
            block = model.trained_encoder.layers[-1].layernorm_before  # this part is recomputed
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

    # the common test also needs hidden states
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


class TestDINOv2(LossTests, unittest.TestCase):
    all_model_classes = (SelfViTForDINOv2,)

    def setUp(self):
        self.model_tester = objective_tester("dinov2")


class TestDistill(LossTests, unittest.TestCase):
    all_model_classes = (SelfViTForDistill,)

    def setUp(self):
        self.model_tester = objective_tester("distill")


class TestLeJEPA(LossTests, unittest.TestCase):
    all_model_classes = (SelfViTForLeJEPA,)

    def setUp(self):
        self.model_tester = objective_tester("lejepa")


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
    """Return a configuration as it is nested in another one."""
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
            dinov2_config=nested(DINOv2Config(num_prototypes=6)),
            distill_config=nested(DistillConfig(queue_size=5)),
            lejepa_config=nested(LeJEPAConfig(num_slices=8)),
            mae_config=nested(MAEConfig(mask_ratio=0.5)),
            pmsn_config=nested(PMSNConfig(num_prototypes=9)),
        )

    def test_dino(self):
        self.check(DINOConfig, num_prototypes=7)

    def test_dinov2(self):
        self.check(DINOv2Config, num_prototypes=6)

    def test_distill(self):
        self.check(DistillConfig, queue_size=5)

    def test_lejepa(self):
        self.check(LeJEPAConfig, num_slices=8)

    def test_mae(self):
        self.check(MAEConfig, mask_ratio=0.5)

    def test_pmsn(self):
        self.check(PMSNConfig, num_prototypes=9)


def test_every_public_class_is_tested():
    public = [getattr(selfvit, name) for name in selfvit.__all__]
    classes = {item for item in public if isinstance(item, type)}
    models = {item for item in classes if issubclass(item, PreTrainedModel)}
    models.remove(SelfViTPreTrainedModel)  # their base
    objectives = (TestDINO, TestDINOv2, TestDistill, TestLeJEPA, TestMAE, TestPMSN)
    tests = (TestEncoder, TestEncoderWithEveryOption, *objectives)
    assert {model for test in tests for model in test.all_model_classes} == models
