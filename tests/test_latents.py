"""Latents of our tiny autoencoder and of those of diffusers: in the pipeline, in shards, in training."""

import json

import PIL.Image
import pytest
import torch
from conftest import shared
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, DiffusionPipeline

from kaleido_diffusers import AutoencoderTAEF2, KaleidoViewSynthesisPipeline, load_scene, sample_capture
from kaleido_diffusers.captures.images import CaptureError, as_image_tensor
from kaleido_diffusers.captures.readers.shards import ShardReader
from kaleido_diffusers.models.latents import (
    compression,
    decode_views,
    encode_views,
    latent_channels,
    load_autoencoder,
    measure_statistics,
)
from kaleido_diffusers.models.precision import fast_dtype, product_speed
from kaleido_diffusers.training.config import ModelConfig, TrainConfig
from kaleido_diffusers.training.loop import Trainer
from kaleido_diffusers.worlds.shard_writing import encoded_samples, write_shards
from kaleido_diffusers.worlds.sources import ShardSource, SyntheticSource


def small_taef2() -> AutoencoderTAEF2:
    torch.manual_seed(0)
    return AutoencoderTAEF2(latent_channels=6, block_out_channels=(8, 8, 8, 8), scaling_factor=0.5, shift_factor=0.25)


def small_kl(**options) -> AutoencoderKL:
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
        "norm_num_groups": 4,
    }
    return AutoencoderKL(latent_channels=4, **blocks, **options).eval()


def small_dc() -> AutoencoderDC:
    torch.manual_seed(0)
    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock",) * 3,
        decoder_block_types=("ResBlock",) * 3,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        scaling_factor=0.4,
    ).eval()


def small_tiny() -> AutoencoderTiny:
    torch.manual_seed(0)
    blocks = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    return AutoencoderTiny(latent_channels=4, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), **blocks).eval()


def test_taef2_sees_photos_as_its_authors_say():
    """The note beside the weights: 35.5 dB on this photo at 512 pixels, latents of about unit spread."""
    vae = load_autoencoder(shared("weights/taef2"))
    image = load_scene(shared("captures/snowmiku")).images[0].resize((512, 384), PIL.Image.Resampling.LANCZOS)
    photo = as_image_tensor(image)
    pixels = photo[None] * 2 - 1
    with torch.no_grad():
        latents = vae.encode(pixels).latents
        back = vae.decode(latents).sample
    assert latents.shape == (1, 32, 48, 64) and 0.6 < latents.std() < 1.0 and latents.mean().abs() < 0.1
    error = (back / 2 - pixels / 2).square().mean()
    assert 33 < -10 * error.log10() < 38


def test_taef2_saves_loads_and_slices(tmp_path):
    vae = small_taef2()
    vae.save_pretrained(tmp_path / "vae")
    again = load_autoencoder(tmp_path / "vae")
    pixels = torch.rand(3, 3, 16, 24) * 2 - 1
    latents = vae.encode(pixels).latents
    assert latents.shape == (3, 6, 2, 3)
    torch.testing.assert_close(again.encode(pixels).latents, latents)
    whole = vae.decode(latents).sample
    assert whole.shape == pixels.shape and whole.abs().max() <= 1
    vae.enable_slicing()
    torch.testing.assert_close(vae.decode(latents).sample, whole)
    with pytest.raises(NotImplementedError):
        vae.enable_tiling()
    with pytest.raises(ValueError, match="equal"):
        AutoencoderTAEF2(block_out_channels=(8, 8, 16, 16))
    with pytest.raises(ValueError, match="holds no autoencoder"):
        load_autoencoder(tmp_path.parent)


STATISTICS = {"scaling_factor": 0.5, "latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [2.0, 1.0, 0.5, 4.0]}


@pytest.mark.parametrize(
    "vae, ratio, channels",
    [
        (small_kl(scaling_factor=0.3, shift_factor=0.2), 2, 4),
        (small_kl(**STATISTICS), 2, 4),
        (small_dc(), 4, 4),
        (small_tiny(), 2, 4),
        (small_taef2(), 8, 6),
    ],
    ids=["kl", "statistics", "dc", "tiny", "taef2"],
)
@torch.no_grad()
def test_latents_are_scaled_and_shifted_as_the_config_says(vae, ratio, channels):
    assert (compression(vae), latent_channels(vae)) == (ratio, channels)
    pixels = torch.rand(2, 3, 3, 16, 16) * 2 - 1
    latents = encode_views(vae, pixels)
    assert latents.shape == (2, 3, channels, 16 // ratio, 16 // ratio)
    encoded = vae.encode(pixels[1, 2:])
    raw = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded[0]
    config = vae.config
    mean = torch.tensor(config.get("latents_mean") or [config.get("shift_factor") or 0.0]).reshape(-1, 1, 1)
    std = torch.tensor(config.get("latents_std") or [1.0]).reshape(-1, 1, 1)
    torch.testing.assert_close(latents[1, 2:], (raw - mean) / std * config.scaling_factor)
    pictures = decode_views(vae, latents)
    torch.testing.assert_close(pictures[1, 2:], vae.decode(raw).sample, atol=1e-5, rtol=1e-4)
    assert encode_views(vae, pixels[:, :0]).shape == (2, 0, channels, 16 // ratio, 16 // ratio)


@pytest.mark.parametrize("make", [small_dc, small_kl, small_taef2])
@torch.no_grad()
def test_statistics_are_measured_once_and_stored(make, tmp_path):
    """Latents of the views that were measured have mean 0 and spread 1 in each channel, after saving and loading too,
    and come back as the same pictures."""
    vae = make()
    views = torch.rand(3, 4, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    pictures = decode_views(vae, encode_views(vae, views))
    vae.register_to_config(**measure_statistics(vae, views))
    vae.save_pretrained(tmp_path)
    again = load_autoencoder(tmp_path)
    latents = encode_views(again, views)
    std, mean = torch.std_mean(latents, dim=(0, 1, 3, 4), correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-4, rtol=0)
    torch.testing.assert_close(std, torch.ones_like(std), atol=1e-4, rtol=0)
    torch.testing.assert_close(decode_views(again, latents), pictures, atol=1e-4, rtol=1e-4)


def test_pixels_pass_without_an_autoencoder():
    pixels = torch.rand(1, 2, 3, 8, 8)
    assert encode_views(None, pixels) is pixels and decode_views(None, pixels) is pixels
    assert (compression(None), latent_channels(None)) == (1, 3)


def test_shards_hold_latents(tmp_path):
    source, vae = SyntheticSource(num_scenes=3, num_views=4, size=16), small_taef2()
    samples = list(encoded_samples((source[index] for index in range(3)), vae))
    (path,) = write_shards(tmp_path, samples)
    read = ShardSource(path)
    assert len(read) == 3 and read.fewest_views == 4
    with torch.no_grad():
        expected = encode_views(vae, source[2].pixels.float() / 127.5 - 1)
    assert read[2].pixels.dtype == torch.float16
    torch.testing.assert_close(read[2].pixels.float(), expected, atol=0.02, rtol=0.02)
    torch.testing.assert_close(read[2].poses, source[2].poses)
    with pytest.raises(CaptureError, match="no pictures"):
        ShardReader(path).parts(0)


def config(output, **options) -> TrainConfig:
    defaults = {
        "size": 32, "batch": 2, "views": 4, "scenes": 4, "scene_views": 5, "render_samples": 1, "steps": 4,
        "warmup_steps": 1, "validation_scenes": 1, "validation_steps": 1, "log_every": 1, "tracker": "none",
        "workers": 0, "data": ("object",), "dtype": "float32",
    }  # fmt: skip
    sizes = {"num_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "ffn_dim": 32}
    return TrainConfig(output=output, model=ModelConfig(**sizes), **{**defaults, **options})


def test_training_on_latents_is_the_same_on_the_fly_and_from_shards(tmp_path):
    """And its pipeline has the autoencoder, renders, and can be trained further."""
    small_taef2().save_pretrained(tmp_path / "vae")
    settings = {"vae": tmp_path / "vae", "scenes": 4}
    trainer = Trainer(config(tmp_path / "fly", validate_every=2, **settings))
    assert (trainer.transformer.config.in_channels, trainer.transformer.config.patch_size) == (6, 2)
    folder = trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "fly" / "log.jsonl").read_text().splitlines()]
    assert any("validation_psnr" in line for line in lines)
    counted = [line["operations"] for line in lines if "operations" in line]
    assert (
        counted == sorted(counted) and counted[0] > 0 and all(line["tflops"] > 0 for line in lines if "loss" in line)
    )

    source = SyntheticSource("object", num_scenes=4, num_views=5, size=32, max_solids=6, samples=1)
    write_shards(tmp_path / "shards", encoded_samples((source[i] for i in range(4)), small_taef2()))
    from_shards = Trainer(config(tmp_path / "ahead", data=(str(tmp_path / "shards"),), **settings))
    from_shards.train()
    losses = [json.loads(line)["loss"] for line in (tmp_path / "ahead" / "log.jsonl").read_text().splitlines()]
    assert losses == pytest.approx([line["loss"] for line in lines if "loss" in line], rel=0.02)

    pipe = KaleidoViewSynthesisPipeline.from_pretrained(folder)
    assert isinstance(pipe.vae, AutoencoderTAEF2) and pipe.default_sample_size == 32
    assert isinstance(DiffusionPipeline.from_pretrained(folder).vae, AutoencoderTAEF2)
    scene = load_scene(sample_capture())
    view = pipe(scene.images[:2], scene.cameras[:2], scene.cameras[2:3], num_inference_steps=1).images[0]
    assert view.size == (32, 32)
    further = Trainer(config(tmp_path / "further", init_from=folder, steps=1))
    assert isinstance(further.vae, AutoencoderTAEF2) and further.train().is_dir()


def test_data_may_change_when_a_run_is_resumed(tmp_path):
    Trainer(config(tmp_path, size=16, steps=2)).train()
    trainer = Trainer(config(tmp_path, size=16, steps=3, data=("scene",)))
    assert trainer.step == 2
    trainer.train()
    with pytest.raises(ValueError, match="batch=2"):
        Trainer(config(tmp_path, size=16, steps=3, batch=3))


def test_the_fast_precision_is_the_one_that_is_measured():
    speeds = {dtype: product_speed(dtype, 0.05) for dtype in (torch.float32, torch.bfloat16)}
    slow, fast = sorted(speeds, key=speeds.get)
    assert speeds[slow] > 0
    if speeds[fast] > 1.5 * speeds[slow]:  # near each other either is right
        assert fast_dtype("cpu") == fast
