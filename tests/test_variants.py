"""Weights in 16 and 8 bits: written, read back by diffusers, and close to what they were."""

import importlib.util
import runpy
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_pipeline
from diffusers import DiffusionPipeline
from safetensors import safe_open

from kaleido_diffusers import (
    KaleidoTransformer3DModel,
    KaleidoViewSynthesisPipeline,
    bundled_checkpoint,
    load_scene,
    sample_capture,
)
from kaleido_diffusers.evaluation.metrics import psnr


SCRIPT = Path(__file__).parents[1] / "benchmarks" / "variants.py"
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}

with_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")


def render(pipe, steps: int = 4) -> torch.Tensor:
    """Two held-out views of the sample, and how near they are to the photos."""
    pipe.set_progress_bar_config(disable=True)
    scene = load_scene(sample_capture())
    images, cameras = scene.fitted([0, 7, 14, 3, 10], 128, 128)
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": steps, "output_type": "pt", "generator": generator}
    views = pipe(images[:3], cameras[:3], cameras[3:], **options).images
    return views, psnr(views, images[3:]).mean().item()


@pytest.fixture(scope="module")
def full() -> KaleidoViewSynthesisPipeline:
    return KaleidoViewSynthesisPipeline.from_pretrained(bundled_checkpoint(), dtype=torch.float32)


@pytest.mark.parametrize("name", DTYPES)
def test_variants_lie_beside_the_full_weights(name, tmp_path):
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path)
    narrow = KaleidoViewSynthesisPipeline.from_pretrained(tmp_path, dtype=DTYPES[name])
    narrow.save_pretrained(tmp_path, variant=name)
    files = {path.name for path in (tmp_path / "transformer").glob("*.safetensors")}
    assert files == {"diffusion_pytorch_model.safetensors", f"diffusion_pytorch_model.{name}.safetensors"}
    there = DiffusionPipeline.from_pretrained(tmp_path, variant=name, dtype=torch.float32).transformer.state_dict()
    rounded = 0
    for key, value in pipe.transformer.state_dict().items():
        kept = key.startswith("time_embed.") or key.endswith("scale_shift_table")
        expected = value if kept else value.to(DTYPES[name]).float()
        assert torch.equal(there[key], expected), key
        rounded += (expected != value).sum().item()
    assert rounded > 10_000, "the variant is not the full one"
    again = DiffusionPipeline.from_pretrained(tmp_path).transformer.state_dict()
    assert all(torch.equal(again[key], value) for key, value in pipe.transformer.state_dict().items())


def test_16_bits_lose_little(full, tmp_path):
    """Computed in float32: what is lost in storage. The checkpoint that ships is stored in float16."""
    views, score = render(full)
    errors = {}
    for name, dtype in DTYPES.items():
        KaleidoViewSynthesisPipeline.from_pretrained(bundled_checkpoint(), dtype=dtype).save_pretrained(
            tmp_path / name
        )
        there = KaleidoViewSynthesisPipeline.from_pretrained(tmp_path / name, dtype=torch.float32)
        close, its_score = render(there)
        errors[name] = (close - views).abs().max().item()
        assert abs(its_score - score) < 0.3
    assert errors["fp16"] == 0 < errors["bf16"] < 0.25


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_16_bits_compute(dtype):
    """A tiny model in half precision is near itself in float32."""
    pipe = make_pipeline()
    views = torch.randn(1, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    arguments = dict(timestep=torch.tensor([[0.0, 0.0, 500.0]]), num_targets=1)
    expected = pipe.transformer(views, **arguments).sample
    pipe.transformer.to(dtype)
    actual = pipe.transformer(views.to(dtype), **arguments).sample
    assert actual.dtype == dtype
    error = (actual.float() - expected).abs().max()
    assert 0 < error < {torch.float16: 0.02, torch.bfloat16: 0.15}[dtype] * expected.abs().max()


@with_torchao
@pytest.mark.filterwarnings("ignore")
def test_int8_by_torchao(full, tmp_path):
    quantized = runpy.run_path(str(SCRIPT))["quantized"](Path(bundled_checkpoint()) / "transformer")
    from torchao.quantization import Int8Tensor

    inside = {name for name, weight in quantized.named_parameters() if isinstance(weight, Int8Tensor)}
    matrices = {
        name
        for name, weight in full.transformer.named_parameters()
        if name.startswith("transformer_blocks.") and weight.ndim == 2 and "table" not in name
    }
    assert inside == matrices
    pipe = KaleidoViewSynthesisPipeline(quantized, full.scheduler, full.vae)
    pipe.save_pretrained(tmp_path)
    file = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    with safe_open(file, framework="pt") as content:
        stored = sum(content.get_tensor(key).nbytes for key in content.keys())  # noqa: SIM118
    assert stored < 0.45 * sum(weight.nbytes for weight in full.transformer.parameters())

    there = DiffusionPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(there.transformer) is KaleidoTransformer3DModel
    (views, score), (close, its_score), (again, _) = render(full), render(pipe), render(there)
    assert torch.equal(again, close), "read back, it is the same model"
    error = (close - views).abs().max()
    assert 0 < error < 0.5 and abs(score - its_score) < 0.5


@with_torchao
@pytest.mark.filterwarnings("ignore")
def test_activations_in_int8_too(tmp_path):
    """Every matrix, the last one too, which has nothing to do while references are encoded."""
    from diffusers import TorchAoConfig
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    pipe = make_pipeline(num_layers=1, ffn_dim=64)
    pipe.save_pretrained(tmp_path)
    config = TorchAoConfig(Int8DynamicActivationInt8WeightConfig())
    options = {"num_inference_steps": 2, "output_type": "pt", "fov": 50.0}
    images, poses = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.eye(4).repeat(3, 1, 1)
    poses[:, 0, 3] = torch.arange(3)
    expected = pipe(images, poses, generator=torch.Generator().manual_seed(0), **options).images
    pipe.transformer = KaleidoTransformer3DModel.from_pretrained(
        tmp_path, subfolder="transformer", quantization_config=config, dtype=torch.float32
    )
    views = pipe(images, poses, generator=torch.Generator().manual_seed(0), **options).images
    assert type(pipe.transformer.proj_out.weight.data) is not torch.Tensor, "it is quantised"
    assert 0 < (views - expected).abs().max() < 0.2


def test_the_table_of_variants(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--steps", "1"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    lines = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    rows = {cells[0].strip(): [float(cell) for cell in cells[1:]] for cells in lines[2:]}
    assert {"float32", "float16", "bfloat16", "one file, float32"} <= rows.keys()
    megabytes, error, own_error, near, _, loss = rows["bfloat16"]
    assert megabytes < 0.6 * rows["float32"][0] and 0 < error < 0.1 and own_error > 0 and abs(loss) < 1
    assert 25 < near < float("inf"), "views of bfloat16 beside those of float32"
    assert rows["float32"][1:4] == rows["one file, float32"][1:4] == [0, 0, float("inf")]
