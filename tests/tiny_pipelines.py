"""Pipelines of diffusers that the documentation chains with ours: the real classes, tiny, with random weights, under
the names that the pages give."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    MarigoldDepthPipeline,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


__all__ = ["TINY_PIPELINES"]


def _make_text_parts(folder: Path) -> dict[str, Any]:
    """An encoder of width 16, and a tokenizer that knows the start and the end of a text."""
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    config = CLIPTextConfig(
        vocab_size=2, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    return {"text_encoder": CLIPTextModel(config), "tokenizer": tokenizer}


def _make_unet(in_channels: int, **options: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        in_channels=in_channels,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=16,
        **options,
    )


def _make_vae(blocks: int, **options: Any) -> AutoencoderKL:
    """With latents of a cell for `2 ** (blocks - 1)` pixels a side."""
    return AutoencoderKL(
        block_out_channels=blocks * (8,),
        down_block_types=blocks * ("DownEncoderBlock2D",),
        up_block_types=blocks * ("UpDecoderBlock2D",),
        norm_num_groups=4,
        **options,
    )


def _make_depth(folder: Path) -> DiffusionPipeline:
    return MarigoldDepthPipeline(
        unet=_make_unet(in_channels=8),
        vae=_make_vae(blocks=4),
        scheduler=DDIMScheduler(),
        prediction_type="depth",
        default_denoising_steps=1,
        default_processing_resolution=64,
        **_make_text_parts(folder),
    )


def _make_upscaler(folder: Path) -> DiffusionPipeline:
    return StableDiffusionUpscalePipeline(
        unet=_make_unet(in_channels=7, num_class_embeds=1000),
        vae=_make_vae(blocks=3, scaling_factor=0.08333),
        low_res_scheduler=DDPMScheduler(),
        scheduler=DDIMScheduler(),
        **_make_text_parts(folder),
    )


# By their names on the Hub, each made with a folder to work in
TINY_PIPELINES: dict[str, Callable[[Path], DiffusionPipeline]] = {
    "prs-eth/marigold-depth-v1-1": _make_depth,
    "stabilityai/stable-diffusion-x4-upscaler": _make_upscaler,
}
