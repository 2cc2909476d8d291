"""Models of libraries by the names that --model takes, tiny, in every workload that they can."""

import importlib.util
import json

import pytest
import torch
from models.held import BATCH, EXACT, Family, hold

from gradbench.analysis.generation import growth
from gradbench.experiment.matrix import OF_BATCHES, OF_TOKENS, Cell
from gradbench.experiment.model_source import ModelSource
from gradbench.experiment.plan import Plan
from gradbench.records.measurements import Breakdown, Measurement, Skipped
from gradbench.runner import memory_pass, prediction_pass
from gradbench.workloads.models import Model
from gradbench.workloads.own_models import model_of

pytestmark = [
    pytest.mark.usefixtures("measured_here"),
    pytest.mark.slow,
    pytest.mark.thorough,
    pytest.mark.filterwarnings("ignore"),
]

WITHOUT_HEAD = [workload for workload in OF_BATCHES if workload != "frozen_backbone"]
IMAGES = ("B,3,64,64",)
VISION = {
    "torchvision:resnet50": IMAGES,
    "torchvision:convnext_tiny": IMAGES,
    "torchvision:vit_b_32": ("B,3,224,224",),
    "torchvision:efficientnet_b0": IMAGES,
    "timm:resnet50": IMAGES,
    "timm:convnext_atto": IMAGES,
    "timm:test_vit": (),
    "timm:efficientnet_b0": IMAGES,
}
DETECTION = "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn"

SMALL = {"vocab_size": 60, "max_position_embeddings": 16}
TEXT = {
    **SMALL,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
TRANSFORMERS = {
    "bert": TEXT,
    "gpt2": {"vocab_size": 60, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "llama": {**TEXT, "num_key_value_heads": 1, "architectures": ["LlamaForCausalLM"]},
    "t5": {"vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
    "whisper": {
        "vocab_size": 60,
        "d_model": 16,
        "num_mel_bins": 8,
        "max_source_positions": 8,
        "max_target_positions": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "pad_token_id": 0,
    },
    "clip": {
        "projection_dim": 8,
        "text_config": TEXT,
        "vision_config": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "image_size": 32,
            "patch_size": 16,
        },
    },
}
HEADS = {"bert": "pooler", "llama": "lm_head"}
WITHOUT_OPERATORS = (
    "torchvision's operators are not here: the package index has it for torch with CUDA alone"
)


def has_operators() -> bool:
    return hasattr(torch.ops.torchvision, "roi_align")


@pytest.fixture(scope="module")
def torchvision():
    """torchvision, whose own operators are declared where its build is for another torch.

    Its classifiers and timm need none of them, but to be imported both want to know two.
    """
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed: tox -e models")
    try:
        import torchvision as found
    except RuntimeError as error:
        assert "does not exist" in str(error)
        declared = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision as found

        found.declared = declared  # or the declarations would end with it
    return found


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize("workload", OF_BATCHES)
@pytest.mark.parametrize("name", VISION)
def test_a_model_of_images_has_figures_that_hold(name, workload):
    if name.startswith("timm"):
        pytest.importorskip("timm")
    model = model_of(ModelSource(build=name, input=VISION[name]))
    hold(Family(model), workload)


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize("workload", WITHOUT_HEAD)
def test_a_detector_takes_images_in_a_list_and_returns_boxes_or_losses(workload):
    if not has_operators():
        pytest.skip(WITHOUT_OPERATORS)
    hold(Family(model_of(ModelSource(build=DETECTION)), batch=1), workload)


@pytest.mark.parametrize("workload", OF_BATCHES)
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_a_model_of_transformers_has_figures_that_hold(kind, workload, tmp_path, request):
    pytest.importorskip("transformers")
    if importlib.util.find_spec("torchvision") is not None:
        request.getfixturevalue("torchvision")  # which transformers imports if it is there
    if workload == "frozen_backbone" and kind not in HEADS:
        pytest.skip("it has no head of its own")
    folder = tmp_path / kind
    folder.mkdir()
    text = json.dumps({"model_type": kind, **TRANSFORMERS[kind]})
    (folder / "config.json").write_text(text, "utf-8")
    source = ModelSource(build=f"transformers:{folder}", head=HEADS.get(kind, ""))
    hold(Family(model_of(source)), workload)


# of a token in the cache: layers, keys and values, sequences, heads with keys, their size, bytes
CACHED = {"gpt2": 2 * 2 * BATCH * 2 * 8 * 4, "llama": 2 * 2 * BATCH * 1 * 8 * 4}


@pytest.mark.parametrize("workload", OF_TOKENS)
@pytest.mark.parametrize("kind", CACHED)
def test_a_causal_model_of_transformers_makes_tokens_with_a_cache_as_counted(
    kind, workload, tmp_path, request
):
    pytest.importorskip("transformers")
    if importlib.util.find_spec("torchvision") is not None:
        request.getfixturevalue("torchvision")
    text = json.dumps({"model_type": kind, **TRANSFORMERS[kind]})
    (tmp_path / "config.json").write_text(text, "utf-8")
    model = model_of(ModelSource(build=f"transformers:{tmp_path}"))
    axes = {"model": "it", "workload": workload, "batch_size": BATCH, "prompt": 4, "new_tokens": 5}
    cell = Cell(grad_mode="no_grad", **axes)
    messages = [
        *memory_pass.memory_block([cell], model, Plan(), EXACT),
        *prediction_pass.predict_block([cell], model, Plan(), ["predicted_peak"]),
    ]
    found = {m.meter: m for m in messages if isinstance(m, Measurement | Breakdown | Skipped)}
    assert found["predicted_peak"].values == found["peak_allocated"].values
    assert found["leaked"].values == (0,)
    if workload == "decode":  # 4 tokens of the prompt, and 4 of 5: the last is what comes in
        assert found["breakdown"].timeline["cache"][0] == CACHED[kind] * (4 + 5 - 1)
    if workload == "generate":
        assert growth(found["breakdown"]).cache_bytes == CACHED[kind]


def denoiser():
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
    )


def noise(size: int) -> dict[str, object]:
    return {"sample": torch.randn(size, 3, 8, 8), "timestep": 10}


@pytest.mark.parametrize("workload", WITHOUT_HEAD)
def test_a_unet_of_diffusers_has_figures_that_hold(workload, request):
    assert pytest.importorskip("diffusers").UNet2DModel  # imported here: no step's tensors
    if importlib.util.find_spec("torchvision") is not None:
        request.getfixturevalue("torchvision")
    hold(Family(Model(denoiser, noise)), workload)
