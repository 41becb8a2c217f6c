# Copyright 2026 The Kaleido for diffusers team.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""What targets may attend to: the views of a scene that are known so far, and where they are."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from ..geometry.cameras import Cameras, SceneFrame
from ..geometry.views import ShownFrame, ViewGeometry
from ..models.reference_cache import KaleidoReferenceCache


__all__ = ["Encode", "SceneMemories", "SceneMemory", "ViewMemory"]

# Encodes latents `[1, n, C, h, w]` and their geometry into a cache
Encode = Callable[[torch.Tensor, ViewGeometry, KaleidoReferenceCache], None]


class ViewMemory:
    """
    What the targets of one scene may attend to: latents of all views known so far, on the CPU, and keys and values of
    at most `max_views` of them.

    Views are encoded when they are first recalled, as a group that attends to the views recalled with it; a view that
    was left out meanwhile is encoded again. What encodes them is given then, so that a memory holds no model and can
    be copied.

    Args:
        latents (`torch.Tensor` of shape `[1, N, C, h, w]`): the references.
        geometry (`ViewGeometry`): theirs.
        max_views (`int`, *optional*): most views that are recalled at once.
    """

    def __init__(
        self,
        latents: torch.Tensor,  # [1, N, C, h, w]
        geometry: ViewGeometry,
        max_views: int | None,
    ):
        self._max_views = max_views
        self._latents, self._geometry = latents.cpu(), geometry
        self._group_sizes = [latents.shape[1]]
        self._cache, self._cached = KaleidoReferenceCache(), []

    def __len__(self) -> int:
        return self._latents.shape[1]

    @property
    def geometry(self) -> ViewGeometry:
        """Where and when the views are, as the model is shown it, `[1, n]`."""
        return self._geometry

    @property
    def max_views(self) -> int | None:
        """Most views that are recalled at once."""
        return self._max_views

    @property
    def overflows(self) -> bool:
        """Whether there are more views than are recalled at once, so that targets decide which."""
        return self._max_views is not None and len(self) > self._max_views

    def add(self, latents: torch.Tensor, geometry: ViewGeometry) -> None:
        """Takes a group of generated views `[1, g, C, h, w]` into the memory.

        Args:
            latents (`torch.Tensor`): `[1, g, C, h, w]`.
            geometry (`ViewGeometry`): theirs.
        """
        self._latents = torch.cat([self._latents, latents.cpu()], dim=1)
        self._geometry = ViewGeometry.cat([self._geometry, geometry])
        self._group_sizes.append(latents.shape[1])

    def fork(self) -> "ViewMemory":
        """A memory that starts out the same and goes its own way."""
        other = ViewMemory(self._latents, self._geometry, self._max_views)
        other._group_sizes = list(self._group_sizes)
        other._cache = self._cache.select(range(len(self._cache)))
        other._cached = list(self._cached)
        return other

    def recall(self, encode: Encode, targets: ViewGeometry | None = None) -> KaleidoReferenceCache:
        """
        Keys and values of all views, or of the `max_views` nearest to any of `targets`.

        Args:
            encode (`Callable`): encodes latents `[1, n, C, h, w]` and their geometry into a cache, which it grows.
            targets (`ViewGeometry` with leading dimensions `[1, m]`, *optional*): needed where the memory overflows.

        Raises:
            `ValueError`: where they are needed and not given.
        """
        chosen = range(len(self))
        if self.overflows:
            if targets is None:
                raise ValueError(
                    f"`targets` must be given: they decide which {self._max_views} of {len(self)} views are recalled."
                )
            nearest = self._geometry.distances(targets).amin(-1)[0].argsort(stable=True)
            chosen = sorted(nearest[: self._max_views].tolist())
        kept = [place for place, view in enumerate(self._cached) if view in chosen]
        if len(kept) < len(self._cached):
            self._cache = self._cache.select(kept)
            self._cached = [self._cached[place] for place in kept]
        fresh = [view for view in chosen if view not in self._cached]
        if fresh:
            encode(self._latents[:, fresh], self._geometry.select(fresh), self._cache)
            self._cached += fresh
        return self._cache

    def views(self) -> tuple[torch.Tensor, ViewGeometry, list[int]]:
        """All latents `[1, n, C, h, w]`, their geometry, and their group numbers."""
        groups = [number for number, size in enumerate(self._group_sizes) for _ in range(size)]
        return self._latents, self._geometry, groups


@dataclass(frozen=True, eq=False)
class SceneMemory:
    """
    The references of one scene, encoded once for any number of calls: `pipe(memory=memory, target_poses=...)`. Made by
    [`~KaleidoViewSynthesisPipeline.encode_references`]. A call leaves it as it is; its output has the memory with the
    generated views.

    Attributes:
        pipeline ([`KaleidoViewSynthesisPipeline`]): the one that encoded it and can use it.
        views ([`ViewMemory`]): latents of all views, keys and values.
        height (`int`): of the views in pixels.
        width (`int`): likewise.
        shown ([`ShownFrame`]): frame, unit and first second that the views were encoded in.
        lens ([`Cameras`], *optional*): the first reference's camera at the size of the views.
        max_memory_views (`int`, *optional*): most views that a group attends to.
    """

    pipeline: DiffusionPipeline = field(repr=False)
    views: ViewMemory = field(repr=False)
    height: int
    width: int
    shown: ShownFrame
    lens: Cameras | None = None
    max_memory_views: int | None = None

    def __len__(self) -> int:
        return len(self.views)

    @property
    def frame(self) -> SceneFrame | None:
        """Frame and unit of the poses; `None` for video."""
        return self.shown.frame


@dataclass(frozen=True, eq=False)
class SceneMemories:
    """
    The references of one scene or of a batch, encoded once for any number of runs of a modular pipeline, which leave
    it as it is. It holds tensors alone, so that a state with it can be copied.

    Attributes:
        scenes (`list[ViewMemory]` of length B): latents of all views, keys and values.
        is_batch (`bool`): whether a batch of scenes was given, or one scene.
        height (`int`): of the views in pixels.
        width (`int`): likewise.
        shown ([`ShownFrame`]): frame, unit and first second that the views were encoded in.
        lens ([`Cameras`], *optional*): of one scene with cameras, the first reference's at the size of the views.
    """

    scenes: list[ViewMemory] = field(repr=False)
    is_batch: bool
    height: int
    width: int
    shown: ShownFrame
    lens: Cameras | None = None

    def __len__(self) -> int:
        return len(self.scenes)
