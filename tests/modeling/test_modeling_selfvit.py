"""Encoder, classifier and backbone."""

# B batch · N patches · T tokens · D hidden · A attention heads

from __future__ import annotations

import copy
import math
import pickle
import re
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import (
    AutoBackbone,
    AutoModel,
    AutoModelForImageClassification,
    ViTConfig,
    ViTModel,
)

from selfvit import (
    SelfViTBackbone,
    SelfViTConfig,
    SelfViTForDINO,
    SelfViTForImageClassification,
    SelfViTModel,
)
from selfvit.modeling.checkpoints.loading import load_strictly
from selfvit.modeling.layers import SelfViTDropPath
from selfvit.modeling.pooling import generalized_mean
from selfvit.modeling.position_embeddings import sincos_position_embeddings
from tests.golden import load_golden, weights_of
from tests.objectives import DINOV3, OBJECTIVES, tiny_config, tiny_dino_config

POOLINGS = ["cls", "mean", "cls+mean", "gem", "concat:1", "concat:3"]
OPTIONS = pytest.mark.parametrize(
    "options", [{"num_register_tokens": 2}, DINOV3], ids=["vit", "dinov3"]
)


def make_model(seed: int = 0, **overrides: Any) -> SelfViTModel:
    """Return a tiny encoder in evaluation mode."""
    torch.manual_seed(seed)
    return SelfViTModel(tiny_config(**{"initializer_range": 0.2, **overrides})).eval()


def random_images(batch_size: int = 2, height: int = 32, width: int = 32, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch_size, 3, height, width, generator=generator)


def random_ids(num_kept: int, num_patches: int = 16, batch_size: int = 2) -> Tensor:
    """Return the first `num_kept` indices of a random order of patches per image."""
    generator = torch.Generator().manual_seed(2)
    return torch.rand(batch_size, num_patches, generator=generator).argsort(dim=1)[:, :num_kept]


# The authors' DINO backbone


def rename_dino_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of facebookresearch/dino's ViT under our names."""
    renamed = {}
    for name, tensor in weights.items():
        if ".attn.qkv." in name:
            for part, chunk in zip("qkv", tensor.chunk(3), strict=True):
                renamed[name.replace("attn.qkv", f"attention.{part}_proj")] = chunk
            continue
        renamed[name.replace("attn.proj", "attention.o_proj")] = tensor
    replacements = {
        "blocks.": "layers.",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "pos_embed": "embeddings.position_embeddings",
        "cls_token": "embeddings.cls_token",
    }
    for old, new in replacements.items():
        renamed = {name.replace(old, new): tensor for name, tensor in renamed.items()}
    return {re.sub(r"^norm\.", "layernorm.", name): value for name, value in renamed.items()}


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_golden("dino_vit")[0]


def golden_model(golden: dict[str, Tensor], image_size: Any, positions: Tensor) -> SelfViTModel:
    """Return our encoder with the weights of the reference and the given positions."""
    config = tiny_config(
        hidden_size=48,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=image_size,
        patch_size=16,
    )
    model = SelfViTModel(config).eval()
    weights = rename_dino_weights(weights_of(golden))
    weights["embeddings.position_embeddings"] = positions
    model.load_state_dict(weights, strict=True)
    return model


def resize_as_dino_does(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize by scale factors with an offset of 0.1, as in facebookresearch/dino."""
    side = math.isqrt(positions.shape[1] - 1)
    patches = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    scale = ((grid[0] + 0.1) / side, (grid[1] + 0.1) / side)
    resized = F.interpolate(patches, scale_factor=scale, mode="bicubic")
    assert resized.shape[2:] == grid
    return torch.cat([positions[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)


def test_tokens_of_every_block_match_the_reference(golden):
    model = golden_model(golden, 64, golden["weights.pos_embed"])
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(golden["images"], output_hidden_states=True, output_attentions=True)
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(outputs.pooler_output, golden["cls"], **close)
    for block in range(4):
        normed = model.layernorm(outputs.hidden_states[block + 1])
        torch.testing.assert_close(normed, golden[f"intermediate.{block}"], **close)
    torch.testing.assert_close(outputs.attentions[-1], golden["last_attention"], **close)


@pytest.mark.parametrize(("name", "size"), [("small", (32, 32)), ("rect", (96, 48))])
def test_other_sizes_match_the_reference_given_its_positions(golden, name, size):
    grid = (size[0] // 16, size[1] // 16)
    positions = resize_as_dino_does(golden["weights.pos_embed"], grid)
    model = golden_model(golden, size, positions)
    with torch.no_grad():
        embedding = model(golden[f"images_{name}"]).pooler_output
    expected = golden[f"cls_{name}_dino_interpolation"]
    torch.testing.assert_close(embedding, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["small", "rect"])
def test_our_interpolation_is_close_to_that_of_the_reference(golden, name):
    model = golden_model(golden, 64, golden["weights.pos_embed"])
    with torch.no_grad():
        embedding = model(golden[f"images_{name}"]).pooler_output
    expected = golden[f"cls_{name}_dino_interpolation"]
    assert embedding.isfinite().all()
    assert F.cosine_similarity(embedding, expected).min() > 0.999


# transformers' stock ViT


def test_the_encoder_matches_transformers_vit():
    model = make_model()
    stock = ViTModel(
        ViTConfig(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=128,
            image_size=32,
            patch_size=8,
            layer_norm_eps=1e-6,
        ),
        add_pooling_layer=False,
    ).eval()
    stock.load_state_dict(model.state_dict(), strict=True)
    images = random_images()
    with torch.no_grad():
        torch.testing.assert_close(
            model(images).last_hidden_state, stock(images).last_hidden_state, rtol=1e-5, atol=1e-5
        )


# Attention


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
@OPTIONS
def test_attention_implementations_agree(implementation, pooling, options):
    model = make_model(pooling=pooling, **options)
    images = random_images()
    # flex attention compiles C++ code for a minute; its eager form computes the same
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        model.set_attn_implementation("sdpa")
        forward, embedding = model(images).last_hidden_state, model.embed(images)
        model.set_attn_implementation(implementation)
        close = {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(model(images).last_hidden_state, forward, **close)
        torch.testing.assert_close(model.embed(images), embedding, **close)


def test_rows_of_the_attention_sum_to_one():
    model = make_model(num_register_tokens=2)
    model.set_attn_implementation("eager")
    attentions = model(random_images(), output_attentions=True).attentions
    assert len(attentions) == 3
    for weights in attentions:
        assert weights.shape == (2, 2, 19, 19)
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 2, 19))


def test_hidden_states_are_the_embeddings_and_the_output_of_every_block():
    model = make_model(num_register_tokens=2)
    images = random_images()
    outputs = model(images, output_hidden_states=True)
    assert [tuple(state.shape) for state in outputs.hidden_states] == [(2, 19, 32)] * 4
    assert torch.equal(outputs.hidden_states[0], model.embeddings(images))
    assert torch.equal(model.layernorm(outputs.hidden_states[-1]), outputs.last_hidden_state)
    assert model(images).hidden_states is None


def test_a_tuple_has_the_same_values():
    model = make_model()
    images = random_images()
    outputs, values = model(images), model(images, return_dict=False)
    assert isinstance(values, tuple)
    assert torch.equal(values[0], outputs.last_hidden_state)
    assert torch.equal(values[1], outputs.pooler_output)


# Pooling


@pytest.mark.parametrize("num_register_tokens", [0, 4])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooler_output_matches_the_definition_of_the_pooling(pooling, num_register_tokens):
    model = make_model(pooling=pooling, num_register_tokens=num_register_tokens)
    outputs = model(random_images(), output_hidden_states=True)
    tokens = outputs.last_hidden_state
    patches = tokens[:, 1 + num_register_tokens :]  # means exclude registers
    assert patches.shape[1] == 16
    if pooling.startswith("concat:"):
        blocks = outputs.hidden_states[-int(pooling[-1]) :]
        expected = torch.cat([model.layernorm(block)[:, 0] for block in blocks], dim=-1)
    else:
        expected = {
            "cls": tokens[:, 0],
            "mean": patches.mean(dim=1),
            "cls+mean": torch.cat([tokens[:, 0], patches.mean(dim=1)], dim=-1),
            "gem": generalized_mean(patches),
        }[pooling]
    assert outputs.pooler_output.shape == (2, model.config.embedding_size)
    torch.testing.assert_close(outputs.pooler_output, expected)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    "options", [{"num_register_tokens": 2, "layerscale_value": 0.5}, DINOV3], ids=["vit", "dinov3"]
)
def test_embed_equals_the_pooler_output(pooling, implementation, options):
    model = make_model(pooling=pooling, **options)
    model.set_attn_implementation(implementation)
    images = random_images(height=48, width=24)
    embedding = model.embed(images)
    torch.testing.assert_close(embedding, model(images).pooler_output, rtol=1e-5, atol=1e-5)


# Sizes


@pytest.mark.parametrize("position_embedding_type", ["learned", "sincos", "rotary"])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 40), (64, 64), (40, 8)])
def test_any_multiple_of_the_patch_size_is_encoded(height, width, position_embedding_type):
    model = make_model(position_embedding_type=position_embedding_type)
    tokens = model(random_images(height=height, width=width)).last_hidden_state
    assert tokens.shape == (2, 1 + height * width // 64, 32)
    assert tokens.isfinite().all()


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [
        (30, 32, r"height \(30\) must be a multiple of patch_size \(8\); .* 24 or 32 pixels"),
        (32, 33, r"width \(33\) must be a multiple of patch_size \(8\); .* 32 or 40 pixels"),
        (5, 32, r"height \(5\) must be a multiple of patch_size \(8\); .* to 8 pixels"),
    ],
)
def test_another_size_is_an_error_that_names_the_nearest_valid_size(height, width, message):
    with pytest.raises(ValueError, match=message):
        make_model()(random_images(height=height, width=width))


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (3, 32, 32)])
def test_images_of_a_wrong_shape_are_an_error_that_names_it(shape):
    with pytest.raises(ValueError, match=re.escape(f"got {shape}")):
        make_model()(torch.randn(shape))


# Dropping and masking patches


def test_embeddings_of_kept_patches_match_the_convolution():
    embeddings = make_model(image_size=(32, 48)).embeddings.patch_embeddings
    images, ids_keep = random_images(width=48), random_ids(7, num_patches=24)
    expected = embeddings(images).gather(1, ids_keep.unsqueeze(-1).expand(-1, -1, 32))
    torch.testing.assert_close(embeddings(images, ids_keep), expected, rtol=1e-5, atol=1e-5)


@OPTIONS
def test_keeping_all_patches_changes_nothing(options):
    model, images = make_model(**options), random_images()
    everything = torch.arange(16).expand(2, -1)
    torch.testing.assert_close(
        model(images, ids_keep=everything).last_hidden_state,
        model(images).last_hidden_state,
        rtol=1e-5,
        atol=1e-5,
    )


@OPTIONS
def test_the_order_of_kept_patches_only_permutes_the_tokens(options):
    model, images = make_model(**options), random_images()
    order = random_ids(16)
    tokens, ordered = (
        model(images).last_hidden_state,
        model(images, ids_keep=order).last_hidden_state,
    )
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(ordered[:, :3], tokens[:, :3], **close)
    expected = tokens[:, 3:].gather(1, order.unsqueeze(-1).expand(-1, -1, 32))
    torch.testing.assert_close(ordered[:, 3:], expected, **close)


@OPTIONS
def test_dropped_patches_have_no_influence(options):
    model, images, ids_keep = make_model(**options), random_images(), random_ids(5)
    tokens = model(images, ids_keep=ids_keep).last_hidden_state
    assert tokens.shape == (2, 8, 32)
    kept = torch.zeros(2, 16).scatter_(1, ids_keep, 1.0).unflatten(1, (1, 4, 4))
    erased = images * F.interpolate(kept, scale_factor=8, mode="nearest")
    assert torch.equal(model(erased, ids_keep=ids_keep).last_hidden_state, tokens)
    assert not torch.allclose(model(erased).last_hidden_state, model(images).last_hidden_state)


def test_the_mask_token_replaces_masked_patches():
    model, images = make_model(use_mask_token=True), random_images()
    nn.init.normal_(model.embeddings.mask_token)
    masked = torch.zeros(2, 16, dtype=torch.bool)
    masked[0, 3] = masked[1, 7] = True
    plain = model.embeddings(images)[:, 1:]
    tokens = model.embeddings(images, bool_masked_pos=masked)[:, 1:]
    assert torch.equal(tokens[~masked], plain[~masked])
    positions = model.embeddings.position_embeddings[0, 1:]
    expected = model.embeddings.mask_token[0, 0] + positions[[3, 7]]
    torch.testing.assert_close(tokens[masked], expected)
    assert torch.equal(model.embeddings(images, bool_masked_pos=masked.long())[:, 1:], tokens)


def test_masking_and_dropping_can_be_combined():
    # the mask used to be applied to the kept patches as if they were all patches
    model, images = make_model(use_mask_token=True), random_images()
    nn.init.normal_(model.embeddings.mask_token)
    masked, ids_keep = torch.rand(2, 16) < 0.5, random_ids(9)
    everything = model.embeddings(images, bool_masked_pos=masked)[:, 1:]
    tokens = model.embeddings(images, ids_keep, masked)[:, 1:]
    expected = everything.gather(1, ids_keep.unsqueeze(-1).expand(-1, -1, 32))
    torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-5)


def test_masking_without_a_mask_token_is_an_error():
    masked = torch.zeros(2, 16, dtype=torch.bool)
    with pytest.raises(ValueError, match="use_mask_token=True"):
        make_model()(random_images(), bool_masked_pos=masked)


# Initialization and loading

ANY_PROJECTION = r"(q_proj|k_proj|v_proj|o_proj|fc1|fc2|gate_proj|up_proj|down_proj)"
PATCH_BOUND = 1 / math.sqrt(3 * 8 * 8)
INITIALIZATION = {  # kind: (pattern of names, std or value)
    "normal": (rf"{ANY_PROJECTION}\.weight|cls_token|register_tokens", 0.02),
    "positions": (r"embeddings\.position_embeddings", 0.02),
    "uniform": (r"projection\.(weight|bias)", PATCH_BOUND / math.sqrt(3)),
    "zeros": (rf"{ANY_PROJECTION}\.bias|layernorm\w*\.bias|mask_token", 0.0),
    "ones": (r"layernorm\w*\.weight", 1.0),
    "layerscale": (r"layer_scale\d\.lambda1", 1e-3),
}


def assert_statistics(name: str, value: Tensor, mean: float, std: float) -> None:
    """Check mean and std within 5 standard errors."""
    value = value.detach()
    assert abs(value.mean().item() - mean) < 5 * std / math.sqrt(value.numel()), name
    assert abs(value.std().item() / std - 1) < 5 / math.sqrt(2 * value.numel()), name


@pytest.mark.parametrize("position_embedding_type", ["learned", "sincos", "rotary"])
def test_every_parameter_and_buffer_is_initialized_as_documented(position_embedding_type):
    torch.manual_seed(0)
    config = tiny_config(
        hidden_size=128,
        num_register_tokens=4,
        layerscale_value=1e-3,
        use_mask_token=True,
        use_gated_mlp=position_embedding_type == "rotary",
        position_embedding_type=position_embedding_type,
    )
    model = SelfViTModel(config)
    seen = []
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        kinds = [kind for kind, (names, _) in INITIALIZATION.items() if re.search(names, name)]
        assert len(kinds) == 1, name
        seen += kinds
        expected = INITIALIZATION[kinds[0]][1]
        if kinds[0] == "positions" and position_embedding_type == "sincos":
            assert torch.equal(value, sincos_position_embeddings(128, (4, 4)))
        elif kinds[0] in ("normal", "positions", "uniform"):
            assert_statistics(name, value, 0.0, expected)
        else:
            assert (value == expected).all(), name
        if kinds[0] == "uniform":
            assert value.abs().max() <= PATCH_BOUND, name
    without = {"positions"} if position_embedding_type == "rotary" else set()
    assert set(seen) == set(INITIALIZATION) - without


def test_initializer_range_is_the_std():
    model = make_model(hidden_size=128, initializer_range=0.1)
    assert_statistics("fc1", model.layers[0].mlp.fc1.weight, 0.0, 0.1)


def test_fixed_positions_are_a_buffer_and_are_loaded_on_the_meta_device(tmp_path):
    model = make_model(position_embedding_type="sincos")
    assert "embeddings.position_embeddings" not in dict(model.named_parameters())
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, low_cpu_mem_usage=True)
    for name, value in [*loaded.named_parameters(), *loaded.named_buffers()]:
        assert value.device.type == "cpu", name
        assert torch.equal(value, model.state_dict()[name]), name


def test_fixed_positions_are_computed_if_a_checkpoint_lacks_them(tmp_path):
    model = make_model(position_embedding_type="sincos")
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    positions = weights.pop("embeddings.position_embeddings")
    save_file(weights, file, metadata={"format": "pt"})
    loaded = SelfViTModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.embeddings.position_embeddings, positions)


def test_an_unknown_network_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="network \\('both'\\) must be 'teacher' or 'student'"):
        SelfViTModel.from_pretrained(tmp_path, network="both")


def test_a_checkpoint_without_a_student_is_an_error_for_the_student(tmp_path):
    # it used to be returned with random weights
    SelfViTForImageClassification(tiny_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no student; use network='teacher'"):
        SelfViTModel.from_pretrained(tmp_path, network="student")


def test_copies_and_pickles_give_the_same_output():
    model, images = make_model(layerscale_value=0.1), random_images()
    expected = model(images).pooler_output
    assert torch.equal(copy.deepcopy(model)(images).pooler_output, expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(images).pooler_output, expected)


# Training


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    torch.manual_seed(0)
    drop_path = SelfViTDropPath(0.3).train()
    dropped = drop_path(torch.ones(20000, 3, 2))
    assert torch.equal(dropped, dropped[:, :1, :1].expand(-1, 3, 2))
    torch.testing.assert_close(dropped.unique(), torch.tensor([0.0, 1 / 0.7]))
    standard_error = math.sqrt(0.3 / 0.7 / 20000)
    assert abs(dropped[:, 0, 0].mean().item() - 1) < 5 * standard_error


def test_drop_path_is_active_in_training_only_and_increases_with_depth():
    model, images = make_model(drop_path_rate=0.5), random_images()
    assert [layer.drop_path.drop_probability for layer in model.layers] == [0.0, 0.25, 0.5]
    assert torch.equal(model(images).pooler_output, model(images).pooler_output)
    model.train()
    outputs = [model(images).pooler_output for _ in range(8)]
    assert any(not torch.equal(outputs[0], other) for other in outputs[1:])


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
def test_gradient_checkpointing_gives_the_same_gradients(drop_path_rate):
    images, gradients = random_images(), []
    for checkpointing in (False, True):
        model = make_model(drop_path_rate=drop_path_rate).train()
        if checkpointing:
            model.activation_checkpointing_enable()
            assert all(layer.gradient_checkpointing for layer in model.layers)
        torch.manual_seed(3)
        model(images).pooler_output.square().sum().backward()
        gradients.append({name: value.grad for name, value in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@OPTIONS
def test_every_parameter_receives_a_gradient(options):
    model = make_model(**{**options, "layerscale_value": 0.5, "use_mask_token": True})
    masked = torch.zeros(2, 16, dtype=torch.bool)
    masked[:, 0] = True
    model(random_images(), bool_masked_pos=masked).pooler_output.square().sum().backward()
    for name, parameter in model.named_parameters():
        if not name.endswith("k_proj.bias"):  # softmax cancels it: its gradient is zero
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda entry: entry.name)
def test_every_objective_trains_the_encoder_of_dinov3(objective):
    torch.manual_seed(0)
    options = {**DINOV3, "pos_embed_rescale": 2.0}
    config = SelfViTConfig(**{**objective.config().to_dict(), **options})
    model = objective.model_class(config).train()
    model(**objective.inputs(torch.Generator().manual_seed(0), 4)).loss.backward()
    for name, parameter in model.trained_encoder.named_parameters():
        assert parameter.grad.abs().max() > 0, name


# Projections and MLP


@pytest.mark.parametrize("names", [("key_bias",), ("query_bias", "value_bias")])
def test_each_projection_can_have_a_bias_or_none(names):
    model = make_model(**dict.fromkeys(names, False))
    for part in ("query", "key", "value"):
        projection = getattr(model.layers[0].attention, f"{part[0]}_proj")
        assert (projection.bias is None) == (f"{part}_bias" in names)


def test_the_gate_multiplies_the_hidden_layer():
    mlp = make_model(**DINOV3).layers[0].mlp
    tokens = torch.randn(2, 5, 32)
    hidden = F.silu(mlp.gate_proj(tokens)) * mlp.up_proj(tokens)
    assert hidden.shape == (2, 5, 128)
    torch.testing.assert_close(
        mlp(tokens), F.linear(hidden, mlp.down_proj.weight, mlp.down_proj.bias)
    )


@pytest.mark.parametrize("options", [{}, DINOV3], ids=["mlp", "gated"])
def test_the_mlp_saves_half_of_its_hidden_tensors_and_has_the_same_gradients(options):
    mlp = make_model(**options).layers[0].mlp
    tokens = torch.randn(2, 5, 32, requires_grad=True)

    def plain(tokens):
        if options:
            return mlp.down_proj(mlp.activation(mlp.gate_proj(tokens)) * mlp.up_proj(tokens))
        return mlp.fc2(mlp.activation(mlp.fc1(tokens)))

    gradients, num_saved = [], []
    for call in (plain, mlp):
        saved: dict[int, torch.Tensor] = {}

        def save(tensor, saved=saved):
            saved[tensor.data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            output = call(tokens)
        gradients.append(torch.autograd.grad(output.sum(), [tokens, *mlp.parameters()]))
        num_saved.append(sum(tensor.numel() == 2 * 5 * 128 for tensor in saved.values()))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*gradients, strict=True))
    assert num_saved == ([4, 2] if options else [2, 1])


# Precision and compilation


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.01), (torch.float16, 0.001)])
@pytest.mark.parametrize("pooling", ["cls+mean", "gem"])
def test_half_precision_is_close_to_full_precision(dtype, tolerance, pooling):
    model, images = make_model(pooling=pooling), random_images()
    expected = model(images).pooler_output
    outputs = copy.deepcopy(model).to(dtype)(images)  # float32 images are converted
    assert outputs.pooler_output.dtype == dtype
    similarity = F.cosine_similarity(outputs.pooler_output.float(), expected)
    assert similarity.min() > 1 - tolerance


@pytest.mark.parametrize(
    ("pooling", "options"), [("cls", {}), ("cls+mean", DINOV3), ("concat:2", {})]
)
def test_the_encoder_compiles_as_one_graph(pooling, options):
    model, images = make_model(pooling=pooling, **options), random_images()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled_embed = torch.compile(model.embed, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        expected = model(images).pooler_output
        close = {"rtol": 1e-5, "atol": 1e-5}
        torch.testing.assert_close(compiled(images).pooler_output, expected, **close)
        torch.testing.assert_close(compiled_embed(images), expected, **close)


def test_the_encoder_compiles_as_one_graph_with_dropped_patches():
    model, images, ids_keep = make_model(), random_images(), random_ids(5)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(images, ids_keep=ids_keep).pooler_output,
            model(images, ids_keep=ids_keep).pooler_output,
            rtol=1e-5,
            atol=1e-5,
        )


def test_the_encoder_exports_with_any_batch_size():
    model = make_model(num_register_tokens=1)
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        program = torch.export.export(
            model,
            (),
            {"pixel_values": random_images(3)},
            dynamic_shapes={"pixel_values": {0: batch}},
        )
        images = random_images(5, seed=9)
        torch.testing.assert_close(
            program.module()(pixel_values=images).pooler_output,
            model(images).pooler_output,
            rtol=1e-5,
            atol=1e-5,
        )


# The classifier


def test_the_classifier_returns_logits_and_cross_entropy():
    labels = {0: "cat", 1: "dog", 2: "owl"}
    config = tiny_config(pooling="cls+mean", id2label=labels)
    model = SelfViTForImageClassification(config).eval()
    images, targets = random_images(), torch.tensor([2, 0])
    outputs = model(images, labels=targets, output_hidden_states=True)
    expected = model.classifier(model.vit(images).pooler_output)
    assert outputs.logits.shape == (2, 3)
    assert torch.equal(outputs.logits, expected)
    torch.testing.assert_close(outputs.loss, F.cross_entropy(expected, targets))
    assert len(outputs.hidden_states) == 4
    assert model(images).loss is None


def test_a_round_trip_keeps_the_labels(tmp_path):
    names = ["cat", "dog", "owl"]
    config = tiny_config(
        id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)}
    )
    model = SelfViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    loaded = SelfViTForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.id2label == {0: "cat", 1: "dog", 2: "owl"}
    assert loaded.config.label2id == {"cat": 0, "dog": 1, "owl": 2}
    assert torch.equal(loaded(random_images()).logits, model(random_images()).logits)


def test_a_classifier_without_labels_returns_the_embedding():
    model = SelfViTForImageClassification(tiny_config(num_labels=0)).eval()
    images = random_images()
    assert torch.equal(model(images).logits, model.vit(images).pooler_output)


def test_the_classifier_returns_a_tuple_on_request():
    model = SelfViTForImageClassification(tiny_config(num_labels=3)).eval()
    images = random_images()
    values = model(images, labels=torch.tensor([0, 1]), return_dict=False)
    assert isinstance(values, tuple)
    assert values[0].ndim == 0
    assert torch.equal(values[1], model(images).logits)


def classifier(**overrides: Any) -> SelfViTForImageClassification:
    torch.manual_seed(0)
    config = tiny_config(**{"initializer_range": 0.2, "num_labels": 3, **overrides})
    return SelfViTForImageClassification(config).eval()


SOFT = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.0, 1.0]])


def test_float_labels_are_probabilities_and_their_loss_is_cross_entropy():
    # transformers treats them as multi-label targets
    model, images = classifier(), random_images()
    outputs = model(images, labels=SOFT)
    expected = -(SOFT * outputs.logits.log_softmax(dim=-1)).sum(dim=-1).mean()
    torch.testing.assert_close(outputs.loss, expected)
    hard = model(images, labels=torch.tensor([1, 2])).loss
    one_hot = model(images, labels=F.one_hot(torch.tensor([1, 2]), 3).float()).loss
    torch.testing.assert_close(one_hot, hard)
    # transformers stores the kind of the first labels in the configuration; soft ones still work
    assert model.config.problem_type == "single_label_classification"
    assert torch.equal(model(images, labels=SOFT).loss, outputs.loss)


def test_problem_type_determines_the_meaning_of_float_labels():
    images = random_images()
    several = classifier(problem_type="multi_label_classification")
    outputs = several(images, labels=SOFT)
    expected = F.binary_cross_entropy_with_logits(outputs.logits, SOFT)
    torch.testing.assert_close(outputs.loss, expected)
    regression = classifier(problem_type="regression")
    outputs = regression(images, labels=SOFT)
    torch.testing.assert_close(outputs.loss, F.mse_loss(outputs.logits, SOFT))
    single = classifier(num_labels=1)
    outputs = single(images, labels=torch.tensor([0.3, -2.0]))
    expected = F.mse_loss(outputs.logits[:, 0], torch.tensor([0.3, -2.0]))
    torch.testing.assert_close(outputs.loss, expected)


@pytest.mark.parametrize("labels", [torch.ones(2), torch.ones(2, 4)])
def test_probabilities_of_a_wrong_shape_are_an_error(labels):
    with pytest.raises(ValueError, match=r"must have the shape of the logits, \(2, 3\)"):
        classifier()(random_images(), labels=labels)


def test_the_loss_of_soft_labels_is_float32_under_autocast():
    model, images = classifier(), random_images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(images, labels=SOFT).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, model(images, labels=SOFT).loss, rtol=0.05, atol=0.05)


def probe_after_some_batches(**overrides: Any) -> SelfViTForImageClassification:
    model = classifier(classifier_batch_norm=True, **overrides).train()
    model.vit.eval()
    for seed in range(3):
        model(random_images(batch_size=4, seed=seed))
    return model.eval()


def test_the_batch_norm_standardizes_a_batch_and_has_no_weights():
    model = classifier(classifier_batch_norm=True, pooling="cls+mean").train()
    assert not list(model.classifier_norm.parameters())
    images = random_images(batch_size=6)
    embedding = model.vit(images).pooler_output
    standardized = model.classifier_norm(embedding)
    torch.testing.assert_close(standardized.mean(dim=0), torch.zeros(64), atol=1e-5, rtol=0)
    centered = embedding - embedding.mean(dim=0)
    expected = centered / (centered.square().mean(dim=0) + 1e-6).sqrt()
    torch.testing.assert_close(standardized, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model(images).logits, model.classifier(standardized))


def test_the_batch_norm_uses_running_statistics_in_evaluation():
    model, images = probe_after_some_batches(), random_images(batch_size=4)
    norm = model.classifier_norm
    embedding = model.vit(images).pooler_output
    scaled = (embedding - norm.running_mean) / (norm.running_var + 1e-6).sqrt()
    torch.testing.assert_close(model(images).logits, model.classifier(scaled))
    torch.testing.assert_close(model(images[:1]).logits, model(images).logits[:1])
    assert not torch.equal(norm.running_mean, torch.zeros(32))


def test_a_round_trip_of_the_batch_norm_is_bit_exact(tmp_path):
    model, images = probe_after_some_batches(), random_images(batch_size=3)
    model.save_pretrained(tmp_path)
    for opened in (
        SelfViTForImageClassification.from_pretrained(tmp_path),
        AutoModelForImageClassification.from_pretrained(tmp_path, low_cpu_mem_usage=True),
        load_strictly(SelfViTForImageClassification, tmp_path),
    ):
        assert opened.state_dict().keys() == model.state_dict().keys()
        for name, value in model.state_dict().items():
            assert torch.equal(opened.state_dict()[name], value), name
        assert torch.equal(opened(images).logits, model(images).logits)
    assert torch.equal(
        load_strictly(SelfViTModel, tmp_path)(images).pooler_output, model.vit(images).pooler_output
    )
    SelfViTBackbone.from_pretrained(tmp_path)


def test_a_new_batch_norm_starts_with_mean_zero_and_variance_one(tmp_path):
    # its buffers come from the meta device: uninitialized memory without `_init_weights`
    make_model().save_pretrained(tmp_path)
    model = load_strictly(
        SelfViTForImageClassification,
        tmp_path,
        classifier_batch_norm=True,
        num_labels=3,
        new=(r"^classifier(_norm)?\.",),
    )
    assert torch.equal(model.classifier_norm.running_mean, torch.zeros(32))
    assert torch.equal(model.classifier_norm.running_var, torch.ones(32))
    with pytest.raises(ValueError, match="missing in the checkpoint: .*classifier_norm"):
        load_strictly(
            SelfViTForImageClassification, tmp_path, classifier_batch_norm=True, num_labels=3
        )


def test_a_classifier_without_batch_norm_has_no_other_weights():
    names = set(classifier().state_dict())
    assert {name for name in names if not name.startswith("vit.")} == {
        "classifier.weight",
        "classifier.bias",
    }


# The backbone


def test_feature_maps_are_the_normalized_patches_of_their_block():
    config = tiny_config(num_register_tokens=2, out_features=["stem", "stage1", "stage3"])
    model = SelfViTBackbone(config).eval()
    images = random_images(height=48, width=24)
    outputs = model(images)
    states = model.vit(images, output_hidden_states=True).hidden_states
    assert model.channels == [32, 32, 32]
    assert len(outputs.feature_maps) == 3
    assert outputs.hidden_states is None
    for feature_map, block in zip(outputs.feature_maps, (0, 1, 3), strict=True):
        assert feature_map.shape == (2, 32, 6, 3)
        patches = model.vit.layernorm(states[block])[:, 3:]
        torch.testing.assert_close(feature_map[:, :, 4, 1], patches[:, 4 * 3 + 1])


def test_the_backbone_defaults_to_the_last_block_and_returns_tuples():
    model = AutoBackbone.from_config(tiny_config()).eval()
    assert type(model) is SelfViTBackbone
    images = random_images()
    (feature_map,) = model(images).feature_maps
    assert feature_map.shape == (2, 32, 4, 4)
    values = model(images, return_dict=False)
    assert isinstance(values, tuple)
    assert torch.equal(values[0][0], feature_map)
    assert len(model(images, output_hidden_states=True).hidden_states) == 4


def test_the_backbone_opens_a_pretraining_checkpoint(tmp_path):
    trained = SelfViTForDINO(tiny_config(dino_config=tiny_dino_config()))
    trained.save_pretrained(tmp_path)
    model = SelfViTBackbone.from_pretrained(tmp_path, out_indices=[1, 2])
    assert model.out_features == ["stage1", "stage2"]
    images = random_images()
    expected = trained.vit(images, output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(
        model(images).feature_maps[0].flatten(2).transpose(1, 2),
        trained.vit.layernorm(expected)[:, 1:],
    )
