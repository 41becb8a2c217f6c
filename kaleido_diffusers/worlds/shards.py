"""WebDataset shards: tar files of scenes, written and read."""

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers.models.modeling_utils import ModelMixin

from ..captures.images import as_image_tensor, fit_cameras, fit_views, load_image, tensor_to_image
from ..captures.readers.shards import ARRAYS, LATENTS, ShardReader
from ..files import written_whole
from ..geometry.cameras import Cameras
from ..models.latents import encode_views
from ..models.precision import fast_dtype
from .samples import SceneSample


__all__ = ["ShardSource", "encoded_samples", "shard_name", "write_shards"]


class ShardSource(ShardReader):
    """
    Scenes in WebDataset shards, see [`ShardReader`].

    Args:
        path (`str` or `Path`): a folder of `*.tar`, or one of them.
        size (`int`, *optional*): height and width to crop and resize to; as stored when not given.
    """

    def __init__(self, path: str | os.PathLike, size: int | None = None):
        super().__init__(path)
        self.size = size

    def __getitem__(self, index: int) -> SceneSample:
        if (latents := self.latents(index)) is not None:
            views, arrays = latents
            intrinsics = arrays.get("intrinsics")
            intrinsics = None if intrinsics is None else intrinsics.float()
            return SceneSample(views, arrays.get("poses"), intrinsics, arrays.get("times"))
        encoded, arrays = self.parts(index)
        file, name, _ = self._scenes[index]
        where = f"{file}, scene {name!r}"
        images = [as_image_tensor(load_image(io.BytesIO(content), exif=False, name=where)) for content in encoded]
        return self._sample(images, arrays)

    def _sample(self, images: list[torch.Tensor], arrays: dict[str, torch.Tensor]) -> SceneSample:
        intrinsics = arrays.get("intrinsics")
        if self.size is not None:
            if intrinsics is not None:
                sizes = torch.tensor([image.shape[-2:] for image in images])
                scale = torch.nn.functional.pad(sizes.flip(-1), (0, 1), value=1).unsqueeze(-1)
                cameras = fit_cameras(Cameras(arrays["poses"], intrinsics * scale, sizes), self.size, self.size)
                intrinsics = cameras.normalized_intrinsics
            images = [fit_views(image, None, self.size, self.size)[0] for image in images]
        views = (torch.stack(images) * 255).round().to(torch.uint8)
        intrinsics = None if intrinsics is None else intrinsics.float()
        return SceneSample(views, arrays.get("poses"), intrinsics, arrays.get("times"))


def write_shards(
    folder: str | os.PathLike,
    samples: Iterable[SceneSample],
    scenes_per_shard: int = 500,
    quality: int = 95,
    first: int = 0,
) -> list[Path]:
    """
    Writes scenes as WebDataset shards `shard-NNNNNN.tar`, each complete or not there at all.

    Args:
        folder (`str` or `Path`):
            Where to; made if missing. Raises `FileExistsError` when a shard of that name lies there already.
        samples (`Iterable[SceneSample]`):
            The scenes, of pixels (kept as JPEG) or of latents (kept in float16).
        scenes_per_shard (`int`, defaults to `500`):
            Scenes in a tar file.
        quality (`int`, defaults to `95`):
            JPEG quality (4:4:4).
        first (`int`, defaults to `0`):
            Number of the first scene, after which scenes and shards are named.

    Returns:
        `list[Path]`: the shards.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    waiting, number = iter(samples), first
    while (sample := next(waiting, None)) is not None:
        path = folder / shard_name(number, scenes_per_shard)
        if path.exists():
            raise FileExistsError(f"{path} exists already.")
        with written_whole(path) as part, tarfile.open(part, "w") as tar:
            while sample is not None:
                _add_scene(tar, f"{number:08d}", sample, quality)
                number += 1
                sample = next(waiting, None) if number % scenes_per_shard else None
        written.append(path)
    return written


def shard_name(number: int, scenes_per_shard: int) -> str:
    """What the shard of a scene is called.

    Args:
        number (`int`): of the scene.
        scenes_per_shard (`int`): scenes in a tar file.
    """
    return f"shard-{number // scenes_per_shard:06d}.tar"


def encoded_samples(samples: Iterable[SceneSample], vae: ModelMixin) -> Iterator[SceneSample]:
    """Scenes of pixels as scenes of latents, in bfloat16 products where those are faster.

    Args:
        samples (`Iterable[SceneSample]`): scenes of pixels.
        vae (`ModelMixin`): image autoencoder, see [`load_autoencoder`].
    """
    device = vae.device
    for sample in samples:
        with torch.autocast(device.type, fast_dtype(device.type), enabled=fast_dtype(device.type) != torch.float32):
            latents = encode_views(vae, sample.views.to(device).float() / 127.5 - 1)
        yield replace(sample, views=latents.half().cpu())


def _add_scene(tar: tarfile.TarFile, name: str, sample: SceneSample, quality: int) -> None:
    meta = {key: getattr(sample, key).tolist() for key in ARRAYS if getattr(sample, key) is not None}
    _add(tar, f"{name}/scene.json", json.dumps(meta).encode())
    if sample.views.is_floating_point():
        buffer = io.BytesIO()
        np.save(buffer, sample.views.half().numpy())
        _add(tar, f"{name}/{LATENTS}", buffer.getvalue())
        return
    for number, view in enumerate(sample.views):
        buffer = io.BytesIO()
        tensor_to_image(view / 255).save(buffer, "JPEG", quality=quality, subsampling=0)
        _add(tar, f"{name}/{number:03d}.jpg", buffer.getvalue())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
