"""The model of a run, before it has learnt anything."""

from contextlib import nullcontext
from pathlib import Path

import torch
from diffusers.models.modeling_utils import ModelMixin

from ..loaders.lora_settings import make_lora_config
from ..models.latents import compression, latent_channels
from ..models.transformer_kaleido import KaleidoTransformer3DModel
from ..schedulers.scheduling_rectified_flow_view import RectifiedFlowViewScheduler
from .config import TrainConfig


__all__ = ["blank_transformer", "make_scheduler", "make_transformer", "with_adapter"]


def blank_transformer(config: TrainConfig, vae: ModelMixin | None) -> KaleidoTransformer3DModel:
    """The transformer that `config.model` asks for, with random weights.

    Args:
        config (`TrainConfig`): settings of the run.
        vae (`ModelMixin`, *optional*): the autoencoder, whose weights are not read.
    """
    overrides = {key: value for key, value in vars(config.model).items() if value is not None}
    preset, ratio = overrides.pop("preset"), compression(vae)
    patch_size = 8 if vae is None else 1 if ratio >= 32 else 2  # a cell of 32 pixels is a token already
    overrides = {"patch_size": patch_size, **overrides, "in_channels": latent_channels(vae)}
    return KaleidoTransformer3DModel.from_preset(preset, **{**overrides, "sample_size": config.size // ratio})


def make_transformer(
    config: TrainConfig, vae: ModelMixin | None, checkpoint: Path | None, with_weights: bool
) -> KaleidoTransformer3DModel:
    """
    The model to train, in float32: as the run's newest checkpoint has it, as another pipeline does, or a new one, with
    the adapter where one is trained. Weights of `checkpoint` are read later.

    Args:
        config (`TrainConfig`): settings of the run.
        vae (`ModelMixin`, *optional*): the autoencoder.
        checkpoint (`Path`, *optional*): the newest one of the run.
        with_weights (`bool`): whether this process wants weights; else the model lies on the meta device.

    Raises:
        `ValueError`: if an adapter has nothing to adapt, or the model works on other views than training sees.
    """
    source = config.init_from if checkpoint is None or config.lora.rank else checkpoint
    if config.lora.rank and source is None:
        raise ValueError("An adapter needs weights that it adapts: pass --init-from.")
    with nullcontext() if with_weights else torch.device("meta"):
        if source is None:
            transformer = blank_transformer(config, vae)
        elif with_weights and source != checkpoint:
            transformer = KaleidoTransformer3DModel.from_pretrained(source, subfolder="transformer")
        else:
            stored = KaleidoTransformer3DModel.load_config(source, subfolder="transformer")
            transformer = KaleidoTransformer3DModel.from_config(stored)
        if transformer.config.in_channels != latent_channels(vae):
            what = "pixels" if vae is None else f"latents of {latent_channels(vae)} channels"
            raise ValueError(
                f"{source} works on views of {transformer.config.in_channels} channels, but training sees {what}:"
                " pass the autoencoder that it was trained with by --vae."
            )
        return with_adapter(config, transformer.float())


def with_adapter(config: TrainConfig, transformer: KaleidoTransformer3DModel) -> KaleidoTransformer3DModel:
    """The model, frozen below a new adapter, where one is trained.

    Args:
        config (`TrainConfig`): settings of the run.
        transformer ([`KaleidoTransformer3DModel`]): changed in place.
    """
    if config.lora.rank:
        transformer.requires_grad_(False)
        transformer.add_adapter(make_lora_config(**vars(config.lora)))
    return transformer


def make_scheduler(config: TrainConfig, checkpoint: Path | None) -> RectifiedFlowViewScheduler:
    """The scheduler of the run, with its noise levels; what the model predicts stays as where it comes from.

    Args:
        config (`TrainConfig`): settings of the run.
        checkpoint (`Path`, *optional*): the newest one of the run.
    """
    options = {name: getattr(config, name) for name in ("training_distribution", "logit_mean", "logit_std")}
    source = config.init_from if checkpoint is None or config.lora.rank else checkpoint
    if source is None:
        return RectifiedFlowViewScheduler(prediction_type=config.prediction_type, **options)
    stored = RectifiedFlowViewScheduler.from_pretrained(source, subfolder="scheduler").config
    return RectifiedFlowViewScheduler.from_config(stored, **options)
