"""What users hand to the pipeline, checked and brought to tensors: images, cameras and times, one scene or many."""

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch

from ..captures.images import REDUCED_PIXELS, as_image_tensor, fit_cameras, fit_image, fit_views, load_image
from ..captures.scene import SceneImages
from ..geometry.cameras import Cameras, check_rigid, homogeneous
from ..geometry.views import ViewGeometry, Views


__all__ = ["ViewInputs", "prepare_references", "prepare_view_inputs"]

DEFAULT_FOV = 60.0


@dataclass(frozen=True)
class ViewInputs:
    """
    References and targets of B scenes at the working size.

    Attributes:
        references (`Views` of shape `[B, N]`): pixels in [-1, 1], poses in float64.
        targets (`ViewGeometry` of shape `[B, M]`): likewise.
        is_batch (`bool`): whether a batch of scenes was given, or one scene.
    """

    references: Views
    targets: ViewGeometry
    is_batch: bool

    @property
    def geometry(self) -> ViewGeometry:
        """Of all views `[B, N + M]`, references first."""
        return ViewGeometry.cat([self.references.geometry(), self.targets])


def prepare_references(
    images: Any,
    poses: Any,
    intrinsics: Any,
    fov: float | None,
    frame_times: Any,
    height: int,
    width: int,
) -> Views:
    """
    Checks the references of one scene and brings them together, as [`prepare_view_inputs`] does, for targets to come.

    Args:
        images (`Any`): as in [`~KaleidoViewSynthesisPipeline.encode_references`].
        poses (`Any`): likewise.
        intrinsics (`Any`): likewise.
        fov (`float`, *optional*): likewise.
        frame_times (`Any`): likewise.
        height (`int`): of the views in pixels.
        width (`int`): likewise.

    Returns:
        [`Views`]: `[1, N]`, pixels in [-1, 1].
    """
    images = list(images) if isinstance(images, Iterator) else images
    if images is None or (hasattr(images, "__len__") and not len(images)):
        raise ValueError("`images` must hold at least one reference, got none.")
    if _is_batch(images):
        raise ValueError("`images` must hold the references of one scene, got a batch of scenes.")
    images, sizes = _opened(images, height, width)
    times = None if frame_times is None else _times(frame_times, (), len(images))
    cameras = None
    if poses is not None:
        poses = _reference_poses(poses, len(images))
        _check_fov(poses, intrinsics, fov)
        cameras = _with_lens(poses, intrinsics, fov, sizes, "poses", "intrinsics")
        cameras = fit_cameras(cameras, height, width)
    _check_described(cameras, times, intrinsics, fov)
    references = Views.seen(_stacked(images, height, width), ViewGeometry.of(cameras, times))
    return Views.stack([references])


def prepare_view_inputs(
    images: Any,
    poses: Any,
    target_poses: Any,
    intrinsics: Any,
    target_intrinsics: Any,
    fov: float | None,
    frame_times: Any,
    target_times: Any,
    height: int,
    width: int,
) -> ViewInputs:
    """Checks the inputs of [`KaleidoViewSynthesisPipeline`] (its docstring describes them) and brings them together.

    Raises `ValueError` that names the argument, what was expected and what came.

    Args:
        images (`Any`): as in a call.
        poses (`Any`): as in a call.
        target_poses (`Any`): as in a call.
        intrinsics (`Any`): as in a call.
        target_intrinsics (`Any`): as in a call.
        fov (`float`, *optional*): as in a call.
        frame_times (`Any`): as in a call.
        target_times (`Any`): as in a call.
        height (`int`): of all views, in pixels.
        width (`int`): of all views, in pixels.
    """
    images = [] if images is None else list(images) if isinstance(images, Iterator) else images
    is_batch = _is_batch(images)
    scenes = list(images) if is_batch else [images]
    batch_size = len(scenes)
    shared = {"fov": fov, "height": height, "width": width}
    arguments = {
        "poses": poses,
        "target_poses": target_poses,
        "intrinsics": intrinsics,
        "target_intrinsics": target_intrinsics,
        "frame_times": frame_times,
        "target_times": target_times,
    }
    if is_batch:
        _check_lenses(arguments, scenes)
        arguments = {name: _split(value, batch_size, name) for name, value in arguments.items()}
    else:
        arguments = {name: [value] for name, value in arguments.items()}
    prepared = []
    for number, scene_images in enumerate(scenes):
        scene_arguments = {name: values[number] for name, values in arguments.items()}
        prepared.append(_prepare_scene(scene_images, **scene_arguments, **shared))
    shapes = {(len(pixels), len(geometry)) for pixels, geometry in prepared}
    if len(shapes) != 1:
        raise ValueError(
            f"The scenes of a batch must share their numbers of references and targets, got (references, all views)"
            f" {sorted(shapes)}."
        )
    pixels, geometries = zip(*prepared)
    pixels, geometry = torch.stack(pixels), ViewGeometry.stack(geometries)
    count = pixels.shape[1]
    references = Views.seen(pixels, geometry.select(slice(count)))
    return ViewInputs(references, geometry.select(slice(count, None)), is_batch)


def _prepare_scene(
    images,
    poses,
    target_poses,
    intrinsics,
    target_intrinsics,
    fov: float | None,
    frame_times,
    target_times,
    height: int,
    width: int,
) -> tuple[torch.Tensor, ViewGeometry]:
    """References `[N, 3, height, width]` in [-1, 1] of one scene, and the geometry of its views `[V]`."""
    images, sizes = _opened(images, height, width)
    times = _times(frame_times, target_times, len(images))
    cameras = None
    if poses is not None or target_poses is not None:
        cameras = _cameras(poses, target_poses, intrinsics, target_intrinsics, fov, sizes, (height, width))
        cameras = fit_cameras(cameras, height, width)
    _check_described(cameras, times, intrinsics, target_intrinsics, fov)
    if cameras is not None and times is not None and len(cameras) != len(times):
        raise ValueError(f"`poses` describe {len(cameras)} views, but the times {len(times)}.")
    geometry = ViewGeometry.of(cameras, times)
    if len(geometry) <= len(images):
        raise ValueError(f"There is nothing to generate: {len(images)} images and {len(geometry)} poses or times.")
    return _stacked(images, height, width), geometry


def _opened(images, height: int, width: int) -> tuple[list[torch.Tensor], list[tuple[int, int]]]:
    """One or many images at the working size `[3, height, width]` in [0, 1], and the sizes that they had, (height,
    width). One after the other: photos may be large."""
    if isinstance(images, (str, os.PathLike, PIL.Image.Image)) or (hasattr(images, "ndim") and images.ndim == 3):
        images = [images]
    is_lazy = isinstance(images, SceneImages)
    views = images.fitted(height, width) if is_lazy else (_fitted(image, height, width) for image in images)
    views = list(views)
    return [view for view, _ in views], [size for _, size in views]


def _stacked(images: list[torch.Tensor], height: int, width: int) -> torch.Tensor:
    """`[N, 3, height, width]` in [-1, 1]."""
    return torch.stack(images) * 2 - 1 if images else torch.zeros(0, 3, height, width, dtype=torch.float32)


def _check_described(cameras: Cameras | None, times: torch.Tensor | None, *lens) -> None:
    """Raises `ValueError` for views without poses and times, and for a lens without poses."""
    if cameras is None and times is None:
        raise ValueError("Views need `poses`, or `frame_times` and `target_times` (video), or both; got neither.")
    if cameras is None and any(given is not None for given in lens):
        raise ValueError("`intrinsics`, `target_intrinsics` and `fov` were given without `poses`.")


def _fitted(image, height: int, width: int) -> tuple[torch.Tensor, tuple[int, int]]:
    """One reference in [0, 1] and in its size, and the size that it had, (height, width)."""
    if isinstance(image, (str, os.PathLike)):
        image = load_image(image)
    elif isinstance(image, PIL.Image.Image) and image.width * image.height > REDUCED_PIXELS:
        image = PIL.ImageOps.exif_transpose(image)
    if isinstance(image, PIL.Image.Image) and image.width * image.height > REDUCED_PIXELS:
        return fit_image(image, height, width), (image.height, image.width)
    tensor = as_image_tensor(image)
    rows, columns = tensor.shape[-2:]
    return fit_views(tensor, None, height, width)[0], (rows, columns)


def _cameras(poses, target_poses, intrinsics, target_intrinsics, fov, sizes, default_size) -> Cameras:
    """Cameras `[V]` of references, whose images have `sizes`, and targets."""
    _check_fov(poses, intrinsics, fov)
    num_references = len(sizes)
    if target_poses is None:
        poses = _poses(poses, "poses")
        if len(poses) <= num_references:
            raise ValueError(
                f"`poses` must hold a pose for each of the {num_references} images and at least one more to generate,"
                f" got {len(poses)}; or pass the targets as `target_poses`."
            )
        poses, target_poses = poses[:num_references], poses[num_references:]
        if intrinsics is not None and target_intrinsics is None and _ndim(intrinsics) == 3:
            intrinsics, target_intrinsics = intrinsics[:num_references], intrinsics[num_references:]
            target_intrinsics = target_intrinsics if len(target_intrinsics) else None
    else:
        target_poses = _poses(target_poses, "target_poses")
        poses = _reference_poses(target_poses[:0] if poses is None else poses, num_references)
        if not len(target_poses):
            raise ValueError("`target_poses` is empty: there is nothing to generate.")
    if num_references:
        references = _with_lens(poses, intrinsics, fov, sizes, "poses", "intrinsics")
        default = (references.intrinsics[0], sizes[0])
    else:
        references, default = None, None
        target_intrinsics = intrinsics if target_intrinsics is None else target_intrinsics
    if isinstance(target_poses, Cameras):
        if target_intrinsics is not None:
            raise ValueError("`target_intrinsics` was given, but the target cameras have intrinsics already.")
        targets = target_poses
    else:
        size = default_size if default is None else default[1]
        if target_intrinsics is None and default is not None:
            target_intrinsics = default[0]
        names = ("target_poses", "target_intrinsics")
        targets = _with_lens(target_poses, target_intrinsics, fov, [size] * len(target_poses), *names)
    return targets if references is None else Cameras.cat([references, targets])


def _reference_poses(poses, num_references: int):
    """Poses, or cameras, of as many references as there are images."""
    poses = _poses(poses, "poses")
    if len(poses) != num_references:
        raise ValueError(f"`poses` must hold a pose for each of the {num_references} images, got {len(poses)}.")
    return poses


def _check_fov(poses, intrinsics, fov) -> None:
    if fov is not None and (intrinsics is not None or isinstance(poses, Cameras)):
        raise ValueError("`fov` is for poses without intrinsics; intrinsics were given too.")


def _with_lens(poses, intrinsics, fov, sizes, name: str, intrinsics_name: str) -> Cameras:
    """Cameras of poses `[V]` and images of `sizes` (height, width)."""
    if isinstance(poses, Cameras):
        if intrinsics is not None:
            raise ValueError(f"`{intrinsics_name}` was given, but the cameras in `{name}` have intrinsics already.")
        for number, (size, expected) in enumerate(zip(sizes, poses.image_sizes.tolist())):
            if list(size) != expected:
                raise ValueError(
                    f"Image {number} is {size[1]} x {size[0]} pixels, but its camera in `{name}` is for"
                    f" {expected[1]} x {expected[0]}. Use `Cameras.resized` or `Cameras.cropped`."
                )
        return poses
    image_sizes = torch.tensor(sizes)
    if intrinsics is not None:
        return Cameras(poses, _numbers(intrinsics, intrinsics_name), image_sizes)
    if fov is None:
        warnings.warn(
            f"No intrinsics: a horizontal field of view of {DEFAULT_FOV:g} degrees is assumed. Pass `intrinsics`,"
            " `fov` or `Cameras` if you know better.",
            stacklevel=2,
        )
    return Cameras.from_fov(poses, DEFAULT_FOV if fov is None else fov, image_sizes)


def _poses(value, name: str):
    """`Cameras` `[V]`, or float64 poses `[V, 4, 4]`, also of `[V, 3, 4]`."""
    if isinstance(value, Cameras):
        if len(value.shape) != 1:
            raise ValueError(f"`{name}` must be cameras of shape [V], got {list(value.shape)}.")
        return value.to("cpu", torch.float64)
    poses = homogeneous(_numbers(value, name))
    if poses.ndim != 3:
        raise ValueError(f"`{name}` must have shape [V, 4, 4], got {list(poses.shape)}.")
    check_rigid(poses, name)
    return poses


def _times(frame_times, target_times, num_references: int) -> torch.Tensor | None:
    if frame_times is None and target_times is None:
        return None
    if target_times is None or (frame_times is None and num_references):
        raise ValueError("`frame_times` and `target_times` must be given together.")
    parts = []
    for value, name in ((() if frame_times is None else frame_times, "frame_times"), (target_times, "target_times")):
        part = _numbers(value, name)
        if part.ndim != 1 or not part.isfinite().all():
            raise ValueError(f"`{name}` must be finite seconds [V], got {value!r}.")
        parts.append(part)
    if len(parts[0]) != num_references:
        raise ValueError(f"`frame_times` must hold a time for each of the {num_references} images, got {frame_times}.")
    return torch.cat(parts)


def _numbers(value, name: str) -> torch.Tensor:
    """Anything array-like as a float64 tensor on the CPU."""
    try:
        if isinstance(value, Sequence) and len(value) and torch.is_tensor(value[0]):
            value = torch.stack(list(value))
        tensor = value if torch.is_tensor(value) else torch.from_numpy(np.asarray(value, dtype=np.float64))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"`{name}` must be an array of numbers ({error}).") from error
    return tensor.detach().to("cpu", torch.float64)


def _is_batch(images) -> bool:
    """Whether `images` is a batch of scenes: a sequence of sequences of images."""
    if torch.is_tensor(images) or isinstance(images, np.ndarray):
        return images.ndim == 5
    if isinstance(images, (str, os.PathLike, PIL.Image.Image)) or not len(images):
        return False
    if not isinstance(images, (list, tuple)):  # lazily decoded images of one scene
        return False
    first = images[0]
    if torch.is_tensor(first) or isinstance(first, np.ndarray):
        return first.ndim == 4
    return isinstance(first, Sequence) and not isinstance(first, str)


def _split(value, batch_size: int, name: str) -> list:
    """One value a scene."""
    if value is None:
        return [None] * batch_size
    if isinstance(value, Cameras) and len(value.shape) < 2:
        raise ValueError(f"`{name}` must hold cameras for each of the {batch_size} scenes: a list of `Cameras`.")
    if (name.endswith("times") and _ndim(value) == 1) or (name.endswith("intrinsics") and _ndim(value) == 2):
        return [value] * batch_size  # shared by all scenes
    if len(value) != batch_size:
        raise ValueError(f"`{name}` must hold one entry for each of the {batch_size} scenes, got {len(value)}.")
    return [value[i] for i in range(batch_size)]


def _is_list(value: Any) -> bool:
    """Whether something holds views, as a single camera does not."""
    return hasattr(value, "__len__") and not (isinstance(value, Cameras) and not value.shape)


def _check_lenses(arguments: dict[str, Any], scenes: Sequence) -> None:
    """Raises `ValueError` for intrinsics `[B, 3, 3]` of a batch, which may be meant for its B scenes or, as in one
    scene, for as many views."""
    of_scenes = [value for name in ("poses", "target_poses") if (value := arguments[name]) is not None]
    counts = {len(scenes[0])} | {len(value[0]) for value in of_scenes if len(value) and _is_list(value[0])}
    for name in ("intrinsics", "target_intrinsics"):
        value = arguments[name]
        if value is not None and _ndim(value) == 3 and len(value) == len(scenes) and len(value) in counts:
            raise ValueError(
                f"`{name}` of {len(value)} lenses may be one for each of the {len(scenes)} scenes, or for each view:"
                f" pass [3, 3] for all, or [{len(scenes)}, V, 3, 3]."
            )


def _ndim(value) -> int:
    """Dimensions of an array, or of nested sequences."""
    if hasattr(value, "ndim"):
        return value.ndim
    return 1 + (_ndim(value[0]) if len(value) else 0) if isinstance(value, Sequence) else 0
