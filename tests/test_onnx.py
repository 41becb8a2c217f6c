"""Programs without torch: `torch.export` with free sizes, and `kaleido convert --onnx`, run by onnxruntime."""

import re
from pathlib import Path

import pytest
import torch
from conftest import Views, make_model, make_pipeline
from test_pipeline import make_vae

from kaleido_diffusers import KaleidoTransformer3DModel, cli
from kaleido_diffusers.models.latents import decode_views, encode_views


CLOSE = {"rtol": 1e-4, "atol": 1e-4}


class InOnePass(torch.nn.Module):
    def __init__(self, model: KaleidoTransformer3DModel):
        super().__init__()
        self.model = model

    def forward(self, views, timestep, poses, intrinsics):
        return self.model(views, timestep, poses, intrinsics, num_targets=1, return_dict=False)[0]


def example(height: int, width: int, num_views: int = 3, channels: int = 3) -> tuple[torch.Tensor, ...]:
    """Views `[2, V, C, H, W]` with cameras; the last one is noisy."""
    known = {key: x.float() for key, x in Views(num_views).clean(num_views - 1).kwargs().items()}
    pixels = torch.randn(2, num_views, channels, height, width, generator=torch.Generator().manual_seed(height))
    return pixels, known["timestep"], known["poses"], known["intrinsics"]


def test_torch_export_leaves_height_and_width_free():
    module = InOnePass(make_model(num_layers=1))
    free = {3: torch.export.Dim.DYNAMIC, 4: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        program = torch.export.export(module, example(8, 12), dynamic_shapes=(free, None, None, None), strict=False)
        assert not [node for node in program.graph.nodes if "inv" in str(node.target)], "no solver, which ONNX lacks"
        for size in ((8, 12), (16, 8), (20, 24)):
            torch.testing.assert_close(program.module()(*example(*size)), module(*example(*size)), **CLOSE)


def check_documented_loop(pipe, folder):
    """The code of docs/conversion.md gives the view that the pipeline gives."""
    page = (Path(__file__).parents[1] / "docs" / "conversion.md").read_text(encoding="utf-8")
    code = re.search(r"```py\n(.*?)```", page, re.DOTALL)[1].replace("runs/onnx", str(folder / "onnx"))
    made = {}
    exec(code, made)
    images, cameras, noise = made["images"], made["cameras"], torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 10, "output_type": "pt", "height": 128, "width": 128, "generator": noise}
    expected = pipe(images[:3], cameras[:3], cameras[3:], **options).images
    torch.testing.assert_close((torch.from_numpy(made["view"]) / 2 + 0.5).clamp(0, 1), expected, rtol=0, atol=5e-3)


@pytest.mark.slow
def test_onnx_computes_the_same_with_and_without_a_memory(tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    pipe = make_pipeline(vae=make_vae("tiny"), num_layers=2, layer_pattern=("global", "view"), in_channels=4)
    pipe.save_pretrained(tmp_path / "pipeline")
    assert cli.main(["convert", str(tmp_path / "pipeline"), "--output", str(tmp_path / "onnx"), "--onnx"]) == 0
    assert "stays behind" not in capsys.readouterr().out, "the autoencoder is written too"
    names = ("transformer", "transformer_uncached", "vae_encoder", "vae_decoder")
    assert {"weights.bin", "config.json", "scheduler_config.json", *(f"{name}.onnx" for name in names)} == {
        path.name for path in (tmp_path / "onnx").iterdir()
    }
    own = sum(x.nbytes for x in (*pipe.transformer.parameters(), *pipe.vae.parameters()))
    assert (tmp_path / "onnx" / "weights.bin").stat().st_size < 1.2 * own, "both transformers share their weights"
    sessions = {name: onnxruntime.InferenceSession(tmp_path / "onnx" / f"{name}.onnx") for name in names}

    def run(name, **inputs):
        outputs = sessions[name].run(None, {key: x.numpy() for key, x in inputs.items()})
        return [torch.from_numpy(x) for x in outputs]

    for height, width, num_targets in ((8, 12, 1), (12, 8, 2)):
        views, _, poses, intrinsics = example(height, width, 3 + num_targets, channels=4)
        times = torch.rand(views.shape[:2], generator=torch.Generator().manual_seed(1))
        noisy = torch.full((2, num_targets), 300.0)
        geometry = {"poses": poses, "intrinsics": intrinsics, "times": times}
        timestep = torch.cat([torch.zeros(2, 3), noisy], dim=1)
        with torch.no_grad():
            expected = pipe.transformer(views, timestep, **geometry, num_targets=num_targets).sample
        (whole,) = run(
            "transformer_uncached", references=views[:, :3], targets=views[:, 3:], timestep=noisy, **geometry
        )
        torch.testing.assert_close(whole, expected, **CLOSE)

        first, rest = ({key: x[:, part] for key, x in geometry.items()} for part in (slice(3), slice(3, None)))
        nothing = torch.zeros(1, 2, 2, 0, height * width // 16, 2, 32)
        _, memory = run("transformer", views=views[:, :3], timestep=torch.zeros(2, 3), memory=nothing, **first)
        assert memory.shape[3] == 3
        cached, _ = run("transformer", views=views[:, 3:], timestep=noisy, memory=memory, **rest)
        torch.testing.assert_close(cached, expected, **CLOSE)

    check_documented_loop(pipe, tmp_path)
    pixels = torch.rand(3, 3, 16, 24) * 2 - 1
    (latents,) = run("vae_encoder", pixels=pixels)
    torch.testing.assert_close(latents, encode_views(pipe.vae, pixels), **CLOSE)
    torch.testing.assert_close(run("vae_decoder", latents=latents)[0], decode_views(pipe.vae, latents), **CLOSE)
