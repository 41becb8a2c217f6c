"""What each verb may be told, with what it does without being told: what `kaleido --help` and `kaleido VERB --help`
show. Nothing heavy is imported here; the work stands in one module a verb."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..captures.opening import CaptureOptions
from ..demo.limits import Limits
from ..training.config import TrainConfig
from ..training.recipes import CaptureRecipe


__all__ = [
    "ConfigOptions",
    "ConvertSettings",
    "DemoSettings",
    "EvaluateSettings",
    "InfoSettings",
    "LoraSettings",
    "PosesSettings",
    "ProtocolOptions",
    "PushSettings",
    "RenderSettings",
    "ShardSettings",
    "TrainSettings",
    "ViewSettings",
]


@dataclass
class RenderSettings:
    """Renders views that were kept back from a capture, next to the true photos, and flies through it."""

    capture: Annotated[str, tyro.conf.Positional] = "sample"
    """Folder of the capture (see `kaleido info`), a single photo, or `sample`, `skull` or `room`, which ship
    with the package."""
    checkpoint: str = "bundled"
    """Folder or Hub id of a pipeline or of an adapter, or the name of a bundled checkpoint."""
    lora: str | None = None
    """Folder or Hub id of an adapter to add to it, such as `kaleido lora` makes."""
    references: int | None = None
    """Photos given to the model, spread over the capture; 6, or as many as there are, when not given."""
    targets: str = "held-out"
    """Photos to render: `held-out` (the test split, or every 8th by name), numbers such as `3,7`, or `none`."""
    trajectory: Literal[
        "none", "arc", "orbit", "spiral", "dolly", "dolly-zoom", "pan", "tilt", "lemniscate", "keyframes"
    ] = "none"
    """Camera path of a fly-through; `keyframes` and `arc` fly where the photos are. A single photo is flown along an
    `arc` when none is given."""
    views: int = 48
    """Views of the fly-through."""
    fps: float = 12.0
    """Frames a second of the fly-through."""
    export: Literal["none", "transforms", "colmap"] = "none"
    """Also write the fly-through, with the references, as a capture to train on: `transforms.json` (nerfstudio,
    instant-ngp) or a COLMAP model (3D Gaussian Splatting)."""
    height: int | None = None
    """Height of the views in pixels; the model's own when not given."""
    width: int | None = None
    """Width of the views in pixels; the model's own when not given."""
    steps: int = 10
    """Denoising steps."""
    guidance_scale: float = 1.5
    """Classifier-free guidance; 1 for none."""
    views_per_group: int = 4
    """Views denoised together."""
    max_memory_views: int | None = None
    """Most views that a group attends to; all when not given."""
    generation_order: Literal["given", "nearest", "anchors"] = "given"
    """Order in which targets are generated."""
    joins_memory: Literal["all", "first", "none"] = "all"
    """Generated views that later groups attend to: all, those of the first group alone, or none. Without `all`,
    several processes (`torchrun`) share the groups out."""
    seed: int = 0
    """Seed of the noise."""
    capture_options: Annotated[CaptureOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=CaptureOptions)
    """How the capture is read and split."""
    fov: float | None = None
    """Horizontal field of view in degrees of a single photo, where its EXIF data do not tell."""
    device: str = "auto"
    """`cpu`, `cuda`, `mps`, or `auto`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights; `auto` takes bfloat16 where the device is faster in it, on a CPU by measurement."""
    attention_backend: str | None = None
    """A backend of diffusers, such as `flash` or `xformers`."""
    output: Path = Path("renders")
    """Folder for what is written."""
    overwrite: bool = False
    """Replace what an earlier call wrote there; else that is refused."""
    yes: bool = False
    """Begin also what will take more than an hour, or more memory than there is."""


@dataclass
class PosesSettings:
    """Finds the cameras of a folder of photos, or of a video, by COLMAP: makes a capture that `render` reads."""

    photos: Annotated[Path, tyro.conf.Positional]
    """Folder of photos of something that stands still, or a video of it."""
    output: Path | None = None
    """Folder for the capture, the name of the photos with `-capture` behind it when not given. A run that was stopped
    goes on there."""
    overwrite: bool = False
    """Start anew where a run is; else the same one goes on, and another is refused."""
    matching: Literal["auto", "exhaustive", "sequential"] = "auto"
    """Pairs to match: all of them, or those near in the order and alike. `auto`: all up to 80 photos; sequential for
    more, and for videos."""
    max_image_size: int = 1600
    """Longer side in pixels at which features are found."""
    max_features: int = 8192
    """Most features in a photo."""
    frames: int = 80
    """Of a video: the frames to take, the sharpest in equal parts of the longest shot."""
    start: float = 0.0
    """Of a video: seconds from which to take frames."""
    end: float | None = None
    """Of a video: seconds up to which to take frames; the end when not given."""
    threads: int = -1
    """CPU threads; -1 for all. With 1, a run gives the same cameras each time."""
    seed: int = 0
    """Seed of COLMAP's random draws."""


@dataclass
class LoraSettings:
    """Fine-tunes a checkpoint on one capture, and scores it on photos that training never saw: an adapter of a few
    megabytes, or with `--full` a whole pipeline."""

    capture: Annotated[str, tyro.conf.Positional]
    """Folder of the capture, or `sample`, `skull` or `room`, which ship with the package. Its test split (or every 8th
    photo by name) is kept for the scores."""
    output: Path | None = None
    """Folder for the adapter, checkpoints and pictures, `runs/` and the capture's name when not given. A run in it is
    resumed."""
    overwrite: bool = False
    """Start anew where a run is; else the same one goes on, and another is refused."""
    checkpoint: str = "kaleido-tiny"
    """Pipeline folder (in pixels) to start from, or the name of a bundled checkpoint."""
    capture_options: Annotated[CaptureOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=CaptureOptions)
    """How the capture is read and split."""
    recipe: Annotated[CaptureRecipe, tyro.conf.OmitArgPrefixes] = field(default_factory=CaptureRecipe)
    """How to train."""
    scored_references: tuple[int, ...] = (3, 6, 12)
    """Numbers of references of the final scores."""
    denoising_steps: int = 25
    """Denoising steps of the final scores."""


@dataclass
class ProtocolOptions:
    """A published protocol, instead of this project's own."""

    protocol: str | None = None
    """Name of a published protocol; DATA is then the folder of its data set. `--list-protocols` shows them."""
    list_protocols: bool = False
    """Show the protocols and what each needs, and end."""
    splits: Path | None = None
    """Folder or file of the split, where none ships, or instead of it; its hash goes into the result."""
    only: tuple[str, ...] = ()
    """Scenes to take; the means are then partial."""
    allow_partial: bool = False
    """Score what is there although scenes, frames or files are missing; the means are then partial."""
    part: str | None = None
    """Which scenes this process takes, such as `3/8`: the third of eight."""
    merge: tuple[Path, ...] = ()
    """Folders of parts to bring together in OUTPUT; nothing is drawn."""
    masks: Path | None = None
    """Folder of DTU's masks, for masked scores."""
    pictures: bool = False
    """Write the views, and show the worst, the median and the best in the report."""
    seed: int = 0
    """Of the noise."""
    max_memory_views: int | None = None
    """Most views that a target attends to."""
    joins_memory: Literal["all", "first", "none"] | None = None
    """Which generated views later ones attend to; the pipeline's own choice when not given."""
    best_of_looking_at_the_truth: int = 1
    """Score also the best of so many samples of a target by the truth, under a name that says so."""
    sweep_scale_looking_at_the_truth: bool = False
    """With one reference, score also the best of 20 scales of the scene by the truth, likewise."""


@dataclass
class EvaluateSettings:
    """Scores a checkpoint on the synthetic test split or on a capture, beside the nearest reference, a flat colour and
    a plane sweep; writes JSON, a table, a contact sheet and a plot."""

    data: Annotated[str, tyro.conf.Positional] = "test"
    """`test` or `validation` (synthetic worlds), the folder of a capture, or with --protocol that of a data set."""
    checkpoint: str = "bundled"
    """Folder or Hub id of a pipeline, `bundled`, or `none` for the baselines alone."""
    lora: str | None = None
    """Folder or Hub id of an adapter to add to it, such as `kaleido lora` makes."""
    scenes: int = 200
    """Synthetic worlds."""
    level: Literal["object", "scene", "mixed"] = "mixed"
    """Kind of the synthetic worlds."""
    spread: float = 1.0
    """How far the cameras of a synthetic world are apart, from 0 to 1."""
    max_solids: int = 6
    """Most solids in a synthetic world."""
    references: tuple[int, ...] | None = None
    """Numbers of references; 1, 2, 3, 6 and 12, or those of the protocol, when not given. 0 for all."""
    size: int | None = None
    """Height and width of the views; the model's own (or 64) when not given."""
    steps: int = 25
    """Denoising steps."""
    guidance_scale: float = 1.0
    """Classifier-free guidance; 1 for none."""
    views_per_group: int = 1
    """Targets denoised together."""
    capture: Annotated[CaptureOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=CaptureOptions)
    """How a capture is read and split."""
    lpips: Path | None = None
    """State dict of LPIPS (version 0.1, AlexNet or VGG); without it the perceptual distance is left out."""
    published: Annotated[ProtocolOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=ProtocolOptions)
    """A published protocol, instead of this project's own."""
    device: str = "auto"
    """`cpu`, `cuda`, `mps`, or `auto`."""
    output: Path = Path("runs/evaluation")
    """Folder for what is written. A protocol that was stopped goes on there."""
    overwrite: bool = False
    """Replace what an earlier call wrote there; else that is refused."""


@dataclass
class ConfigOptions:
    """What shapes do not tell, for checkpoints that do not say it."""

    patch_size: int | None = None
    """Pixels (or latent cells) along a token."""
    in_channels: int | None = None
    """Channels of a view."""
    layer_pattern: tuple[str, ...] | None = None
    """Layer kinds, repeated over the depth: `global`, `view`."""
    camera_encoding: Literal["prope", "gta"] | None = None
    """How cameras enter attention."""
    rope_axes_dim: tuple[int, int, int] | None = None
    """Channels of a head that turn with column, row and time."""
    rope_theta: float | None = None
    """Base of the rotary frequencies."""
    rope_time_scale: float | None = None
    """Rotary positions in one second."""
    sample_size: int | None = None
    """Height and width of a view in training."""
    norm_eps: float | None = None
    """Epsilon of the norms."""
    max_focal_length: float | None = None
    """The longest lens that the model knows, as a part of the shorter side of a view."""
    prediction_type: Literal["velocity", "sample"] | None = None
    """What the model predicts."""


@dataclass
class ConvertSettings:
    """Turns a checkpoint into a folder that diffusers loads, or, where `--output` ends in `.safetensors`, into a file.
    Reads safetensors, GGUF, `.pt`/`.pth`/`.bin`/`.ckpt` (weights alone), sharded safetensors, and folders: of
    torch.distributed.checkpoint, of a pipeline, of a transformer, of training."""

    source: Annotated[str, tyro.conf.Positional]
    """What to convert: a file, a folder, or `bundled`."""
    output: Path
    """A folder, or a file that ends in `.safetensors`."""
    overwrite: bool = False
    """Replace the checkpoint that is there; else that is refused."""
    format: Literal["diffusers", "distributed"] = "diffusers"
    """What a folder is written for: `distributed` is what sharded training keeps (torch.distributed.checkpoint)."""
    weights: Literal["auto", "raw", "ema"] = "auto"
    """Which weights; `auto` takes averaged ones where there are any."""
    dtype: Literal["keep", "float32", "float16", "bfloat16"] = "keep"
    """Precision to write. In 16 bits modulation stays float32, as in `from_pretrained(dtype=torch.float16)`."""
    rename: Path | None = None
    """JSON list of `["pattern", "replacement"]` (`null` leaves a tensor out) for names that are not known."""
    channels_last_patches: bool = False
    """The output layer (and a patch embedding that is a matrix) has patches as rows, columns, channels."""
    max_shard_size: str = "10GB"
    """Largest file of weights in a folder."""
    onnx: bool = False
    """Write a folder of ONNX graphs, computed in float32, or in what `--dtype` says: `transformer.onnx` for views that
    attend to a memory, `transformer_uncached.onnx` for references and targets in one pass, and the autoencoder."""
    config: Annotated[ConfigOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=ConfigOptions)
    """What shapes do not tell."""


@dataclass
class PushSettings:
    """Uploads a pipeline or an adapter to the Hugging Face Hub, as whoever `hf auth login` has logged in. A model card
    is made, or brought up to date around what was written by hand. After a broken connection, call again: what has
    arrived is not sent again."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of a pipeline, or of an adapter as `kaleido lora` writes it."""
    repo_id: Annotated[str, tyro.conf.Positional]
    """`name/repository`; made if it is not there."""
    private: bool = False
    """Make the repository a private one. One that is there and public is refused."""
    revision: str | None = None
    """Branch to commit to, made if it is not there; `main` when not given."""
    message: str | None = None
    """First line of the commit's message."""
    license: str | None = None
    """Licence, by the Hub's name for it: `apache-2.0`, `cc-by-4.0`, ...; what the card says when not given."""
    base_model: str | None = None
    """Hub id of an adapter's base."""
    evaluation: Path | None = None
    """Folder of `kaleido evaluate`: its scores and its sheet go along and into the card."""
    replace_card: bool = False
    """Start from the folder's card although the Hub has one."""


@dataclass
class DemoSettings:
    """Serves a page to drop photos on, choose where to look from, and see the views come."""

    checkpoint: str = "bundled"
    """Folder or Hub id of a pipeline, or the name of a bundled one."""
    lora: str | None = None
    """Folder or Hub id of an adapter to add to it, such as `kaleido lora` makes."""
    host: str = "127.0.0.1"
    """Address to listen on: this machine alone, unless it is another one (`0.0.0.0`: all)."""
    port: int = 7860
    """Port to listen on."""
    allow_origin: tuple[str, ...] = ()
    """Origins under which browsers know the page, such as `https://views.example.org` of a proxy in front of it."""
    limits: Annotated[Limits, tyro.conf.OmitArgPrefixes] = field(default_factory=Limits)
    """What visitors may ask."""
    device: str = "auto"
    """`cpu`, `cuda`, `mps`, or `auto`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights; `auto` takes bfloat16 where the device is faster in it, on a CPU by measurement."""


@dataclass
class ViewSettings:
    """Serves a page with the cameras of a capture in space: fly, stop, and see the view from there."""

    capture: Annotated[str, tyro.conf.Positional] = "sample"
    """Folder of the capture (see `kaleido info`), or `sample`, `skull` or `room`, which ship with the package."""
    checkpoint: str = "bundled"
    """Folder or Hub id of a pipeline, or the name of a bundled one."""
    lora: str | None = None
    """Folder or Hub id of an adapter to add to it, such as `kaleido lora` makes."""
    references: int = 12
    """Photos given to the model, spread over the capture."""
    steps: int = 8
    """Denoising steps."""
    guidance_scale: float = 1.0
    """Classifier-free guidance; 1 for none."""
    height: int | None = None
    """Height of the views in pixels; the model's own when not given."""
    width: int | None = None
    """Width of the views in pixels; the model's own when not given."""
    seed: int = 0
    """Seed of the noise."""
    capture_options: Annotated[CaptureOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=CaptureOptions)
    """How the capture is read."""
    host: str = "127.0.0.1"
    """Address to serve on. Others than loopback show the photos to whoever reaches them."""
    port: int = 8080
    """Port to serve on, or the next one that is free; 0 for any."""
    allow_origin: tuple[str, ...] = ()
    """Origins of further pages that may use the viewer, such as `https://views.example.org` of a proxy before it."""
    device: str = "auto"
    """`cpu`, `cuda`, `mps`, or `auto`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights; `auto` takes bfloat16 where the device is faster in it, on a CPU by measurement."""
    output: Path = Path("renders")
    """Folder for flights, which are numbered."""


@dataclass
class TrainSettings(TrainConfig):
    plan: bool = False
    """Say what the run would take, and train nothing: parameters, operations, memory, time."""
    card: Literal["at-hand", "a100", "h100", "h200", "b200", "l40s", "mi300x", "rtx4090"] = "at-hand"
    """What `--plan` counts for."""
    cards: int | None = None
    """How many `--plan` counts for; the copies times the shards, or the processes of this call, when not given."""
    mfu: float = 0.4
    """Share of a card's peak that `--plan` takes for granted."""


TrainSettings.__doc__ = TrainConfig.__doc__


@dataclass
class ShardSettings:
    """Writes training data ahead: synthetic worlds (`object`, `scene`, `mixed`, `video`, `moving`), worlds drawn from
    assets (`worlds`, `objects`, `rooms`, `outdoors`, `scenes`, `photos`, `motion`, `clips`), or captures."""

    output: Path
    """Folder for the shards. A run that was stopped goes on there."""
    overwrite: bool = False
    """Replace shards that were written with other settings; else those are refused."""
    data: tuple[str, ...] = ("mixed",)
    """A kind of world, folders of captures, or shards; `@FILE` stands for the names in a text file, one a line."""
    assets: tuple[Path, ...] = ()
    """Folders of photos, meshes, scenes and panoramas that drawn worlds are made of."""
    arc: tuple[float, float] = (0.03, 1.2)
    """Least and greatest arc of the cameras of a drawn world around what they look at, in radians."""
    zoom: float = 0.3
    """Part of the drawn worlds whose views differ in their field of view."""
    split: str = "train"
    """`train`, `validation` or `test`: worlds of different seeds, or views of a capture."""
    first: int = 0
    """Number of the first world of the split, after which shards are named too: 500 goes on after a run of 500."""
    scenes: int = 1000
    """Synthetic worlds."""
    views: int = 12
    """Views of each synthetic world."""
    size: int = 64
    """Height and width in pixels."""
    spread: float = 1.0
    """How far the cameras of a world are apart, from 0 to 1."""
    max_solids: int = 6
    """Most solids in a world."""
    samples: int = 3
    """Rays along each side of a pixel."""
    scenes_per_shard: int = 500
    """Scenes in a tar file."""
    vae: Path | None = None
    """Image autoencoder (see `kaleido train --vae`): the shards then hold latents for training instead of pictures."""
    device: str = "cpu"
    """Where to render."""
    processes: int = 1
    """How many write shards at a time."""
    part: tuple[int, int] = (0, 1)
    """Which part of how many this call writes, where several machines share the work: `--part 2 8` is the third of
    eight. All are given the same other options."""
    skip_broken: bool = False
    """Leave out scenes that cannot be read. The summary names them."""
    index: bool = False
    """Write the indices that are missing beside the shards in `--output`, and nothing else."""


@dataclass
class InfoSettings:
    """Prints versions, the attention backends that work here, and the bundled checkpoint with its scores; or, of a
    capture, figures and warnings, and draws its cameras; or, of a checkpoint, config, size, fingerprint and card."""

    path: Annotated[str | None, tyro.conf.Positional] = None
    """A capture to describe, in any format that is known, or `sample`, `skull` or `room`, which ship with the package;
    or a checkpoint: a folder, a file, or `bundled`."""
    capture_options: Annotated[CaptureOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=CaptureOptions)
    """How the capture is read and split."""
    output: Path = Path("renders")
    """Folder for the pictures, which are drawn anew."""
