"""WebDataset shards, written; they are read in `captures/readers/shards.py`, and are a source in `sources.py`."""

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from diffusers.models.modeling_utils import ModelMixin

from ..captures.images import tensor_to_image
from ..captures.readers.shard_index import LATENTS, write_index
from ..captures.readers.shards import ARRAYS
from ..files import written_whole
from ..geometry.views import Views
from ..models.latents import encode_views
from ..models.precision import fast_dtype


__all__ = ["encoded_samples", "shard_name", "write_shards"]


def write_shards(
    folder: str | os.PathLike,
    samples: Iterable[Views],
    scenes_per_shard: int = 500,
    quality: int = 95,
    first: int = 0,
    replaces: bool = False,
) -> list[Path]:
    """
    Writes scenes as WebDataset shards `shard-NNNNNN.tar`, each complete or not there at all, with its index beside it.

    Args:
        folder (`str` or `Path`):
            Where to; made if missing. Raises `FileExistsError` when a shard of that name lies there already, and
            does not give way.
        samples (`Iterable[Views]`):
            The scenes, of pixels (kept as JPEG) or of latents (kept in float16).
        scenes_per_shard (`int`, defaults to `500`):
            Scenes in a tar file.
        quality (`int`, defaults to `95`):
            JPEG quality (4:4:4).
        first (`int`, defaults to `0`):
            Number of the first scene, after which scenes and shards are named.
        replaces (`bool`, defaults to `False`):
            Whether a shard that is there gives way, once the new one is whole.

    Returns:
        `list[Path]`: the shards.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    numbered = enumerate(samples, start=first)
    shards = groupby(numbered, key=lambda scene: scene[0] // scenes_per_shard)
    names = ((shard_name(number * scenes_per_shard, scenes_per_shard), scenes) for number, scenes in shards)
    return [_write_shard(folder / name, scenes, quality, replaces) for name, scenes in names]


def shard_name(number: int, scenes_per_shard: int) -> str:
    """What the shard of a scene is called.

    Args:
        number (`int`): of the scene.
        scenes_per_shard (`int`): scenes in a tar file.
    """
    return f"shard-{number // scenes_per_shard:06d}.tar"


def encoded_samples(samples: Iterable[Views], vae: ModelMixin) -> Iterator[Views]:
    """Scenes of pixels as scenes of latents, in bfloat16 products where those are faster.

    Args:
        samples (`Iterable[Views]`): scenes of pixels.
        vae (`ModelMixin`): image autoencoder, see [`load_autoencoder`].
    """
    device = vae.device
    for sample in samples:
        with torch.autocast(device.type, fast_dtype(device.type), enabled=fast_dtype(device.type) != torch.float32):
            latents = encode_views(vae, sample.pixels.to(device).float() / 127.5 - 1)
        yield replace(sample, pixels=latents.half().cpu())


def _write_shard(path: Path, scenes: Iterable[tuple[int, Views]], quality: int, replaces: bool) -> Path:
    if path.exists() and not replaces:
        raise FileExistsError(f"{path} exists already.")
    with written_whole(path) as part, tarfile.open(part, "w") as tar:
        for number, sample in scenes:
            _add_scene(tar, f"{number:08d}", sample, quality)
    write_index(path)
    return path


def _add_scene(tar: tarfile.TarFile, name: str, sample: Views, quality: int) -> None:
    meta = {key: getattr(sample, key).tolist() for key in ARRAYS if getattr(sample, key) is not None}
    _add(tar, f"{name}/scene.json", json.dumps(meta).encode())
    if sample.pixels.is_floating_point():
        buffer = io.BytesIO()
        np.save(buffer, sample.pixels.half().numpy())
        _add(tar, f"{name}/{LATENTS}", buffer.getvalue())
        return
    for number, view in enumerate(sample.pixels):
        buffer = io.BytesIO()
        tensor_to_image(view / 255).save(buffer, "JPEG", quality=quality, subsampling=0)
        _add(tar, f"{name}/{number:03d}.jpg", buffer.getvalue())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
