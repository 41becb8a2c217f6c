"""Writes a checkpoint in every format, reads each back through diffusers, and prints what it costs.

    python benchmarks/variants.py

Two columns are errors of the model's output, computed in float32 (what was lost in storage) and in the precision of
the variant. The views are rendered in that precision, by an autoencoder in float32, and compared with those of float32
and with the photos. int8 needs `pip install 'kaleido-diffusers[quantization]'`, GGUF `'kaleido-diffusers[gguf]'`.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import tyro
from diffusers import GGUFQuantizationConfig

from kaleido_diffusers import KaleidoTransformer3DModel, KaleidoViewSynthesisPipeline, load_scene, sample_capture
from kaleido_diffusers.bundled import resolve_checkpoint
from kaleido_diffusers.cli.convert import Convert
from kaleido_diffusers.evaluation.metrics import psnr
from kaleido_diffusers.evaluation.protocol import EvaluationCase, capture_case, evaluate
from kaleido_diffusers.evaluation.report import markdown_table
from kaleido_diffusers.geometry.choosing import split_views
from kaleido_diffusers.geometry.views import Views, as_shown


# What stays as it is in int8: small layers at the ends, and what is computed once a view.
KEPT = ["patch_embed", "time_embed", "proj_out"]

COLUMNS = {
    "format": "",
    "MB": ".2f",
    "error": ".2e",
    "error, own precision": ".2e",
    "PSNR to float32": ".2f",
    "PSNR": ".3f",
    "loss (dB)": ".3f",
}


@dataclass
class Config:
    checkpoint: str = "bundled"
    """Pipeline folder, or the name of a checkpoint that ships."""
    capture: str = sample_capture()
    """Capture whose test views are rendered."""
    references: int = 3
    """How many of its other views are given."""
    steps: int = 25
    """Denoising steps."""


def main(config: Config) -> None:
    source = resolve_checkpoint(config.checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        variants = write_variants(source, Path(folder))
        models = {name: load(path, torch.float32) for name, (path, load, _) in variants.items()}
        sizes = {name: size(path) / 1e6 for name, (path, _, _) in variants.items()}
        own = {name: load(path, dtype) for name, (path, load, dtype) in variants.items()}

    pipe = KaleidoViewSynthesisPipeline.from_pretrained(source, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    scene, edge = load_scene(config.capture), pipe.default_sample_size
    targets, rest = (
        split_views(len(scene), scene.splits, split, order=scene.text_order) for split in ("test", "train")
    )
    case = capture_case(scene, targets, edge, edge, max(config.references, 12), rest)
    expected, best, rows = predict(pipe, models["float32"], case), None, []
    for name, model in models.items():
        pipe.transformer = own[name]
        result = evaluate(pipe, [case], (config.references,), baselines=False, num_inference_steps=config.steps)
        score = sum(one.psnr for one in result.scores) / len(result.scores)
        views = result.pictures[0]["kaleido"]
        best = (score, views) if best is None else best
        errors = ((predict(pipe, one, case) - expected).abs().max().item() for one in (model, own[name]))
        near = psnr(views, best[1]).mean().item()
        rows.append(dict(zip(COLUMNS, (name, sizes[name], *errors, near, score, best[0] - score))))
    print(markdown_table(rows, COLUMNS))


def write_variants(source: str, folder: Path) -> dict[str, tuple[Path, Callable, torch.dtype]]:
    """By name: the weights, what loads them in a precision, and the precision that they are stored in."""
    load, single = KaleidoTransformer3DModel.from_pretrained, KaleidoTransformer3DModel.from_single_file
    variants = {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        Convert(source, folder / name, dtype=name).run()
        variants[name] = (folder / name / "transformer", lambda path, dtype: load(path, dtype=dtype), dtype)
    file = folder / "single.safetensors"
    Convert(str(folder / "float32"), file).run()
    variants["one file, float32"] = (file, lambda path, dtype: single(path, dtype=dtype), torch.float32)
    if find_spec("torchao") is not None:
        for name, dynamic in (("torchao int8", False), ("torchao int8, activations too", True)):
            quantized(folder / "float32" / "transformer", dynamic).save_pretrained(folder / name)
            variants[name] = (folder / name, lambda path, dtype: load(path, dtype=dtype), torch.float32)
    if find_spec("gguf") is not None:
        path, config = folder / "q8.gguf", str(folder / "float32" / "transformer")
        write_gguf(path, load(config))
        options = {"config": config, "quantization_config": GGUFQuantizationConfig(torch.float32)}
        variants["GGUF Q8_0"] = (path, lambda path, dtype: single(path, dtype=dtype, **options), torch.float32)
    return variants


def quantized(transformer: Path, dynamic: bool = False) -> KaleidoTransformer3DModel:
    """The matrices of the blocks in int8, a scale a row; computed in float32, or, if `dynamic`, by integers from
    activations that are rounded to int8, a scale a token."""
    from diffusers import TorchAoConfig
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig

    kind = Int8DynamicActivationInt8WeightConfig() if dynamic else Int8WeightOnlyConfig()
    config = TorchAoConfig(kind, modules_to_not_convert=KEPT)
    return KaleidoTransformer3DModel.from_pretrained(transformer, quantization_config=config, dtype=torch.float32)


def write_gguf(path: Path, model: KaleidoTransformer3DModel) -> None:
    """The matrices of the blocks in Q8_0, the rest in float32."""
    import gguf

    kind, writer = gguf.GGMLQuantizationType.Q8_0, gguf.GGUFWriter(path, "kaleido")
    for name, value in model.state_dict().items():
        value = value.float().numpy()
        if name.startswith("transformer_blocks.") and name.endswith(".weight") and value.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def size(path: Path) -> int:
    """Bytes of weights."""
    files = path.glob("*.safetensors") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


@torch.no_grad()
def predict(
    pipe: KaleidoViewSynthesisPipeline, model: KaleidoTransformer3DModel, case: EvaluationCase
) -> torch.Tensor:
    """The model's output for the first target, half noise, in the precision of its patch embedding."""
    count = len(case.images) - case.num_targets + 1
    views = pipe.encode_images(2 * case.images[None, :count] - 1)
    noise = torch.randn(views[:, -1:].shape, generator=torch.Generator().manual_seed(0))
    views = torch.cat([views[:, :-1], (views[:, -1:] + noise) / 2], dim=1).to(model.patch_embed.weight.dtype)
    timestep = torch.tensor([[0.0] * (count - 1) + [500.0]])
    longest = pipe.transformer.config.max_focal_length
    shown = as_shown(Views.stack([case.views.select(range(count))]), count - 1, max_focal_length=longest)
    return model(views, timestep, **shown.arguments(), num_targets=1).sample.float()


if __name__ == "__main__":
    main(tyro.cli(Config))
