"""Settings of the trainer."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..captures.opening import CaptureOptions


__all__ = ["LoraOptions", "ModelConfig", "PerceptualOptions", "TrainConfig"]


@dataclass
class ModelConfig:
    """The model to train, when training does not start from a checkpoint."""

    preset: Literal["tiny", "small", "base", "large", "xl"] = "tiny"
    """Architecture; the entries below replace single values of it. Channels follow from the autoencoder."""
    num_layers: int | None = None
    """Transformer blocks."""
    num_attention_heads: int | None = None
    """Query heads of 64 channels."""
    num_key_value_heads: int | None = None
    """Key and value heads."""
    ffn_dim: int | None = None
    """Inner width of the SwiGLU."""
    patch_size: int | None = None
    """Pixels, or latent cells, along a token; 8 for pixels and 2 for latents when not given."""
    layer_pattern: tuple[str, ...] | None = None
    """Layer kinds, repeated over the depth: `global`, `view`."""
    camera_encoding: Literal["prope", "gta"] | None = None
    """How cameras enter attention."""


@dataclass
class LoraOptions:
    """A low-rank adapter to train instead of the model's own weights (Hu et al. 2021)."""

    rank: int = 0
    """Rank of the adapter; 0 trains the model's own weights."""
    alpha: float | None = None
    """The adapter counts alpha / rank times; the rank when not given."""
    targets: tuple[Literal["attention", "ffn"], ...] = ("attention", "ffn")
    """Layers that are adapted: the projections of the attention, those of the SwiGLU."""
    dora: bool = False
    """Adapt lengths and directions apart (DoRA, Liu et al. 2024)."""
    rslora: bool = False
    """Count alpha / sqrt(rank) times (rsLoRA, Kalajdzievski 2023)."""
    dropout: float = 0.0
    """Dropout in front of the adapter."""


@dataclass
class PerceptualOptions:
    """A perceptual loss on generated views, beside the error of the velocity (LPIPS, Zhang et al. 2018)."""

    weights: Path | None = None
    """File of LPIPS with VGG-16, as `evaluate --lpips` takes it; without one there is no such loss. Take the scores
    with AlexNet: the net that a model was trained with flatters it."""
    scale: float = 0.5
    """The loss counts so much."""
    share: float = 0.2
    """Part of the targets of a step that are decoded for it."""
    crop: int = 64
    """Side in pixels of what is compared of each, drawn at random."""

    def __post_init__(self):
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"`scale` of the perceptual loss must be 0 or more, got {self.scale}.")
        if not 0 < self.share <= 1:
            raise ValueError(f"`share` of the perceptual loss must be above 0 and at most 1, got {self.share}.")
        if self.crop < 16:  # VGG-16 halves four times
            raise ValueError(f"`crop` of the perceptual loss must be 16 or more, got {self.crop}.")


@dataclass
class TrainConfig:
    """Trains a Kaleido on views of synthetic worlds, captures or shards."""

    output: Path
    """Folder for checkpoints, the log and validation pictures. A run in it is resumed."""
    overwrite: bool = False
    """Start anew where a run is; else the same one goes on, and another is refused."""
    data: tuple[str, ...] = ("mixed",)
    """Sources with optional weights: `object`, `scene`, `mixed` (synthetic worlds), `video` (clips without cameras),
    `moving` (clips with both), worlds drawn from `assets` (`worlds`, a mix of `objects`, `rooms`, `outdoors`, `scenes`
    and `photos`; `motion`, which moves; `clips`, which moves and has no cameras), a folder of shards or its address
    (`s3://`, `hf://`, `http://`), a capture (its training split); for example `mixed=3 video runs/shards=2`."""
    cache: Path | None = None
    """Folder that keeps pieces of remote shards, for all processes of a machine."""
    cache_gigabytes: float = 100.0
    """Most room that they take; those that were not asked for longest go first."""
    skip_broken: bool = False
    """Take another scene, the same in every run, in place of one that cannot be read, with a warning that names it."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The model to train, when training does not start from a checkpoint."""
    init_from: Path | None = None
    """Pipeline folder to start from, instead of random weights. Its `prediction_type` and its autoencoder are kept."""
    vae: Path | None = None
    """Image autoencoder whose latents the model works on: a folder or Hub id as diffusers has them, or a folder with
    the weights of TAEF2. Pixels when not given."""
    lora: LoraOptions = field(default_factory=LoraOptions)
    """The adapter to train instead of the model's own weights."""
    perceptual: PerceptualOptions = field(default_factory=PerceptualOptions)
    """A perceptual loss beside the error of the velocity."""
    prediction_type: Literal["sample", "velocity"] = "sample"
    """What the model predicts: `sample` suits pixels, `velocity` latents."""
    logit_mean: float = 0.8
    """Mean of logit(sigma) in training: above 0 biased to noise."""
    logit_std: float = 1.0
    """Spread of logit(sigma) in training."""
    training_distribution: Literal["logit_normal", "uniform"] = "logit_normal"
    """Density of the noise levels."""
    size: int = 64
    """Height and width of the views in pixels."""
    batch: int = 8
    """Scenes a step, all processes together."""
    views: int = 9
    """Views of each scene at a step, references and targets."""
    references: tuple[int, ...] = ()
    """Numbers of references to draw from; empty: 0 to views - 1."""
    target_group_sizes: tuple[int, ...] = (1, 2, 4)
    """Sizes of target groups to draw from."""
    reference_dropout: float = 0.1
    """Probability that targets do without their references."""
    ordered_references: float = 0.5
    """Probability that references come in several ordered groups."""
    repeated_references: float = 0.0
    """Probability that a target is the view of a reference once more: where a photo was taken, it is what is seen."""
    view_mix: tuple[float, float, float] = (0.3, 0.2, 0.5)
    """Probabilities of neighbouring, spread and random views."""
    spread: float = 1.0
    """How far the cameras of synthetic worlds are apart, from 0 to 1."""
    scenes: int = 100_000
    """Worlds of each synthetic source."""
    scene_views: int = 12
    """Views of each synthetic world."""
    max_solids: int = 6
    """Most solids in a synthetic world."""
    render_samples: int = 2
    """Rays along each side of a pixel of a synthetic world."""
    assets: tuple[Path, ...] = ()
    """Folders of photos, meshes, scenes and panoramas that drawn worlds are made of."""
    arc: tuple[float, float] = (0.03, 1.2)
    """Least and greatest arc of the cameras of a drawn world around what they look at, in radians."""
    zoom: float = 0.3
    """Part of the drawn worlds whose views differ in their field of view."""
    capture: CaptureOptions = field(default_factory=CaptureOptions)
    """How captures in `data` are read and split."""
    in_memory: bool = False
    """Read or render every source once, at the start."""
    steps: int = 10_000
    """Optimizer steps of the whole run; the schedule counts them. A resumed run may be given more; what decides the
    training must stay."""
    max_minutes: float | None = None
    """Stop (and save) after this many minutes; a later call goes on."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """Muon for the matrices of the blocks and AdamW for the rest, or AdamW for all."""
    matrix_lr: float = 0.02
    """Learning rate of Muon."""
    other_lr: float = 2e-3
    """Learning rate of AdamW."""
    weight_decay: float = 0.0
    """Weight decay of the matrices."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises."""
    cooldown: float = 0.3
    """Last part of the run over which the learning rate falls to zero."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    ema_decay: float = 0.999
    """Decay of the moving average of the weights."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matrix products; `auto` takes the one that is faster here, by measurement. Weights, optimizer and
    average stay float32."""
    threads: int | None = None
    """Threads of the main process on a CPU; torch's choice when not given."""
    muon_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Precision in which Muon orthogonalises. In float32, runs over other numbers of processes agree to rounding."""
    data_parallel_replicate_degree: int = -1
    """Copies of the model that processes keep, each with its own scenes; -1: as many as there is room for."""
    data_parallel_shard_degree: int = 1
    """Processes over which weights, gradients, optimizers and average are split (FSDP); 1: every process holds all of
    them (DDP); -1: all processes of a copy. The cards of one node, at best."""
    reshard_after_forward: bool = True
    """Give up whole blocks between forward and backward pass: less memory, more to send. When sharded."""
    gradient_accumulation_steps: int = 1
    """Parts that the scenes of a step go through in, one after the other."""
    gradient_checkpointing: bool = False
    """Trade time for memory: a third more computation, of activations the inputs of blocks alone."""
    compile: bool = False
    """torch.compile the blocks, anew for each partition of views into groups: worth it when few numbers of references
    and group sizes are drawn, and references are not ordered."""
    save_every: int = 500
    """Steps between checkpoints."""
    keep: int = 2
    """Checkpoints kept."""
    log_every: int = 20
    """Steps between lines of the log."""
    validate_every: int = 1000
    """Steps between validations."""
    validation: str | None = None
    """Source of the scenes that are generated for validation; for worlds and captures in `data`, their own validation
    split when not given. Shards have none."""
    validation_scenes: int = 8
    """Scenes that are generated for validation."""
    validation_steps: int = 8
    """Denoising steps of validation."""
    validation_references: int = 3
    """References that a capture's validation photos are generated from."""
    validation_photos: int = 0
    """Photos of a capture's training split that are kept for validation; 0 validates on two of its test photos, which
    must then decide nothing."""
    patience: int | None = None
    """Keep the weights that score best in validation, and stop after so many validations without a better one."""
    workers: int = 1
    """Processes that prepare batches; 0 for none beside the main one."""
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    """Where scores go, beside log.jsonl."""
    seed: int = 0
    """Decides weights, data and noise."""

    def __post_init__(self):
        above = (
            "max_grad_norm",
            "size",
            "batch",
            "views",
            "steps",
            "save_every",
            "keep",
            "log_every",
            "validate_every",
            "gradient_accumulation_steps",
            "validation_scenes",
            "validation_steps",
            "validation_references",
        )
        for name in above:
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)}.")
        for name in ("ema_decay", "cooldown"):
            if not 0 <= getattr(self, name) < 1 and (name, getattr(self, name)) != ("cooldown", 1.0):
                raise ValueError(f"`{name}` must lie between 0 and 1, got {getattr(self, name)}.")
        for name in ("matrix_lr", "other_lr", "weight_decay", "warmup_steps", "workers"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must be 0 or more, got {getattr(self, name)}.")
        for name in ("data_parallel_replicate_degree", "data_parallel_shard_degree"):
            if getattr(self, name) != -1 and getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be -1 or above 0, got {getattr(self, name)}.")
        if not all(0 <= count < self.views for count in self.references):
            raise ValueError(
                f"`references` must lie between 0 and {self.views - 1}, below `views`, got {self.references}."
            )
        if not self.target_group_sizes or min(self.target_group_sizes) < 1:
            raise ValueError(f"`target_group_sizes` must hold numbers from 1, got {self.target_group_sizes}.")
        if min(self.view_mix) < 0 or not 0 < sum(self.view_mix) < math.inf:
            raise ValueError(f"`view_mix` must hold weights from 0, not all zero, got {self.view_mix}.")
        if self.perceptual.weights and self.size < 16:  # VGG-16 halves four times
            raise ValueError(f"`size` must be 16 or more for the perceptual loss, got {self.size}.")

    def shard_degree(self, processes: int) -> int:
        """Processes that a copy of the model is split over. `ValueError` where copies and shards do not make up all
        processes, or the batch is no multiple of them.

        Args:
            processes (`int`): of the run.
        """
        replicas, shards = self.data_parallel_replicate_degree, self.data_parallel_shard_degree
        if shards == -1:
            shards = processes // max(replicas, 1)
        if replicas == -1:
            replicas = processes // shards
        if replicas * shards != processes:
            raise ValueError(
                f"{replicas} copies of {shards} shards do not make up the {processes} processes: see"
                " `data_parallel_replicate_degree` and `data_parallel_shard_degree`."
            )
        parts = processes * self.gradient_accumulation_steps
        if self.batch % parts:
            split = f"the {processes} processes" + (
                f" times `gradient_accumulation_steps` ({self.gradient_accumulation_steps})"
                if parts != processes
                else ""
            )
            raise ValueError(f"`batch` ({self.batch}) must be a multiple of {split}.")
        return shards
