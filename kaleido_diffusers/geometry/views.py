"""Views as tensors: where and when they are, alone or with their pixels, and what of it the model is shown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch

from .cameras import Cameras, SceneFrame, common_focus, scene_frame, through_shorter_lenses, view_distances


__all__ = ["ShownFrame", "ViewGeometry", "Views", "as_shown"]

# Dimensions of an entry of each field, after those of batch and views.
_ENTRY_DIMS = {"poses": 2, "intrinsics": 2, "times": 0, "pixels": 3}

Bundle = TypeVar("Bundle", bound="ViewGeometry")


@dataclass(frozen=True, eq=False)
class ViewGeometry:
    """
    Where and when views are. Leading dimensions `[V]`, the views of one scene, or `[B, V]`.

    Attributes:
        poses (`torch.Tensor` of shape `[..., V, 4, 4]`, *optional*): `world_from_camera`; not in video.
        intrinsics (`torch.Tensor` of shape `[..., V, 3, 3]`, *optional*): normalised by width and height.
        times (`torch.Tensor` of shape `[..., V]`, *optional*): seconds; not in a still world.
    """

    poses: torch.Tensor | None = None
    intrinsics: torch.Tensor | None = None
    times: torch.Tensor | None = None

    @classmethod
    def of(cls, cameras: Cameras | None, times: torch.Tensor | None = None) -> "ViewGeometry":
        """That of `cameras` `[..., V]` and `times` `[..., V]` in seconds, each where given."""
        if cameras is None:
            return ViewGeometry(times=times)
        return ViewGeometry(cameras.world_from_camera, cameras.normalized_intrinsics, times)

    @property
    def leading(self) -> torch.Size:
        """The leading dimensions, `[V]` or `[B, V]`."""
        for name, tensor in self._tensors().items():
            return tensor.shape[: tensor.ndim - _ENTRY_DIMS[name]]
        raise ValueError("These views have neither poses nor times.")

    def __len__(self) -> int:
        """V."""
        return self.leading[-1]

    def geometry(self) -> "ViewGeometry":
        """The geometry alone."""
        return ViewGeometry(self.poses, self.intrinsics, self.times)

    def arguments(self) -> dict[str, torch.Tensor | None]:
        """What the transformer takes of it, by name."""
        return {"poses": self.poses, "intrinsics": self.intrinsics, "times": self.times}

    def select(self: Bundle, views: torch.Tensor | Sequence[int] | slice) -> Bundle:
        """Some of the views, in the order given: the same of each row, or `views` `[B, K]`, a choice for each."""
        if torch.is_tensor(views) and views.ndim == 2:
            rows = torch.arange(len(views)).unsqueeze(-1)
            return self._each(lambda tensor, _: tensor[rows, views.to(tensor.device)])
        places = views if isinstance(views, slice) else list(views)
        return self._each(lambda tensor, dims: tensor[(..., places, *[slice(None)] * dims)])

    def rows(self: Bundle, rows: torch.Tensor | Sequence[int] | slice) -> Bundle:
        """Some of the scenes of a batch: those with the numbers `rows`, in their order."""
        return self._each(lambda tensor, _: tensor[rows])

    def to(self: Bundle, device: torch.device | str) -> Bundle:
        """The same on another `device`."""
        return self._each(lambda tensor, _: tensor.to(device))

    def distances(self, other: "ViewGeometry") -> torch.Tensor:
        """From these views to those of `other`, `[..., V, V']`, see [`view_distances`]."""
        return view_distances(self.poses, other.poses, self.times, other.times)

    @classmethod
    def cat(cls: type[Bundle], parts: Sequence[Bundle]) -> Bundle:
        """Joins `parts`, views of the same scenes. `ValueError` where some have poses or times and some none."""
        return cls._joined(parts, lambda tensors, dims: torch.cat(tensors, dim=-1 - dims))

    @classmethod
    def cat_rows(cls: type[Bundle], parts: Sequence[Bundle]) -> Bundle:
        """Joins `parts`, batches of scenes, likewise."""
        return cls._joined(parts, lambda tensors, _: torch.cat(tensors))

    @classmethod
    def stack(cls: type[Bundle], parts: Sequence[Bundle]) -> Bundle:
        """Joins `parts`, scenes `[V]`, to a batch `[B, V]`, likewise."""
        return cls._joined(parts, lambda tensors, _: torch.stack(tensors))

    def _tensors(self) -> dict[str, torch.Tensor]:
        """What is given, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def _each(self: Bundle, change: Callable[[torch.Tensor, int], torch.Tensor]) -> Bundle:
        changed = {name: change(tensor, _ENTRY_DIMS[name]) for name, tensor in self._tensors().items()}
        return replace(self, **changed)

    @classmethod
    def _joined(cls: type[Bundle], parts: Sequence[Bundle], join) -> Bundle:
        given = [part._tensors() for part in parts]
        for name in sorted(set().union(*given)):
            if not all(name in tensors for tensors in given):
                raise ValueError(f"Views with and without {name} cannot be joined.")
        return cls(**{name: join([tensors[name] for tensors in given], _ENTRY_DIMS[name]) for name in given[0]})


@dataclass(frozen=True, eq=False, kw_only=True)
class Views(ViewGeometry):
    """
    Views with where and when they are.

    Attributes:
        poses (`torch.Tensor` of shape `[..., V, 4, 4]`, *optional*): as in [`ViewGeometry`].
        intrinsics (`torch.Tensor` of shape `[..., V, 3, 3]`, *optional*): likewise.
        times (`torch.Tensor` of shape `[..., V]`, *optional*): likewise.
        pixels (`torch.Tensor` of shape `[..., V, C, H, W]`): uint8, or floating point in the range that whoever holds
            them says; or latents.
    """

    pixels: torch.Tensor

    @classmethod
    def seen(cls, pixels: torch.Tensor, geometry: ViewGeometry) -> "Views":
        """`pixels` `[..., V, C, H, W]` with the `geometry` of the same views."""
        return cls(pixels=pixels, **geometry.arguments())

    @property
    def leading(self) -> torch.Size:
        return self.pixels.shape[:-3]

    @property
    def cameras(self) -> Cameras | None:
        """Cameras of the views, if they have any."""
        if self.poses is None:
            return None
        return Cameras.from_normalized(self.poses, self.intrinsics, self.pixels.shape[-2:])


@dataclass(frozen=True, eq=False)
class ShownFrame:
    """
    Where the model sees a scene from.

    Attributes:
        frame ([`SceneFrame`], *optional*): frame and unit of the poses; `None` for video.
        start (`torch.Tensor` of shape `[..., 1]`, *optional*): seconds of the first view; `None` for a still world.
        focus (`torch.Tensor` of shape `[..., 3]`, *optional*): what the references look at, see [`common_focus`];
            `None` where lenses are shown as they are.
        zoom (`torch.Tensor` of shape `[..., 1]`, *optional*): what focal lengths are multiplied by: then the longest
            of the references is one that the model knows; likewise.
    """

    frame: SceneFrame | None = None
    start: torch.Tensor | None = None
    focus: torch.Tensor | None = None
    zoom: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        views: ViewGeometry,
        num_references: int,
        camera_scale: float = 1.0,
        max_focal_length: float | None = None,
    ) -> "ShownFrame":
        """
        That of a scene, see [`scene_frame`].

        Args:
            views ([`ViewGeometry`]): views in any frame and unit, references first.
            num_references (`int`): how many are references.
            camera_scale (`float`, defaults to `1.0`): multiplies normalised translations.
            max_focal_length (`float`, *optional*): the model's, see [`KaleidoTransformer3DModel`]. With one reference,
                all views decide on what is looked at and how long lenses are, as they do on the unit.
        """
        shown = cls(None, None if views.times is None else views.times[..., :1])
        if views.poses is None:
            return shown
        if max_focal_length is not None and views.intrinsics is not None:
            deciding = slice(num_references) if num_references > 1 else slice(None)
            lenses = views.intrinsics[..., deciding, :, :]
            longest = torch.maximum(lenses[..., 0, 0], lenses[..., 1, 1]).amax(-1, keepdim=True)
            focus = common_focus(views.poses[..., deciding, :, :], lenses)
            shown = replace(shown, focus=focus, zoom=(max_focal_length / longest).clamp(max=1.0))
        return replace(shown, frame=scene_frame(shown._nearer(views)[0], num_references, camera_scale))

    def show(self, views: ViewGeometry) -> ViewGeometry:
        """Where and when `views` are as the model is shown it: poses in the frame and unit of the scene, lenses
        shorter by `zoom`, seconds since its first view, all in float32."""
        poses, intrinsics = self._nearer(views)
        poses = None if self.frame is None else self.frame.normalize(poses).float()
        intrinsics = None if intrinsics is None else intrinsics.float()
        return ViewGeometry(poses, intrinsics, None if self.start is None else (views.times - self.start).float())

    def _nearer(self, views: ViewGeometry) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Poses and intrinsics of `views` through lenses that are shorter by `zoom`."""
        if self.focus is None or self.zoom is None:
            return views.poses, views.intrinsics
        return through_shorter_lenses(views.poses, views.intrinsics, self.focus, self.zoom)


def as_shown(
    views: ViewGeometry, num_references: int, camera_scale: float = 1.0, max_focal_length: float | None = None
) -> ViewGeometry:
    """
    What the model is shown of where and when views are, in sampling and in training alike.

    Args:
        views ([`ViewGeometry`]): views in any frame and unit, references first.
        num_references (`int`): how many are references: they set frame and unit, see [`scene_frame`].
        camera_scale (`float`, defaults to `1.0`): multiplies normalised translations.
        max_focal_length (`float`, *optional*): `transformer.config.max_focal_length`.

    Returns:
        [`ViewGeometry`]: without pixels, float32.
    """
    return ShownFrame.of(views, num_references, camera_scale, max_focal_length).show(views)
