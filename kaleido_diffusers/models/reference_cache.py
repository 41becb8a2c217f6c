"""What the transformer remembers of the views that it has encoded."""

from collections.abc import Sequence
from copy import copy

import torch

from ..loaders.adapter_state import AdapterState


__all__ = ["KaleidoReferenceCache"]


class LayerMemory:
    """
    Keys and values of one layer, in a buffer `[2, B, capacity, L, heads, D]` with room for the views of the pass.

    Blocks get this and not the whole cache: code compiled for one layer then serves all.
    """

    def __init__(self, buffer: torch.Tensor | None = None):
        self.buffer = buffer
        self.start = self.end = 0  # where the views of the present pass are written

    def make_room(self, num_views: int) -> None:
        """Lets the buffer, where there is one, hold `num_views` views behind the memory. Apart from
        [`~LayerMemory.extend`], which is compiled and should find the same case every time."""
        end = self.start + num_views
        if self.buffer is not None and self.buffer.shape[2] < end and not torch.is_grad_enabled():
            grown = self.buffer.new_empty(2, self.buffer.shape[1], end, *self.buffer.shape[3:])
            grown[:, :, : self.start] = self.buffer[:, :, : self.start]
            self.buffer = grown

    def extend(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values `[B, start + V, L, heads, D]`: the memory, then those given `[B, V, L, heads, D]`. The
        latter are written behind the memory, into a buffer that is reused, and belong to it only after
        [`~KaleidoReferenceCache.commit`]. With gradients enabled nothing is written in place."""
        start, end = self.start, self.start + key.shape[1]
        if self.buffer is None or torch.is_grad_enabled():
            new = torch.stack([key, value])
            self.buffer = new if self.buffer is None else torch.cat([self.buffer[:, :, :start], new], dim=2)
        else:
            self.buffer[0, :, start:end] = key
            self.buffer[1, :, start:end] = value
        self.end = end
        return self.buffer[0, :, :end], self.buffer[1, :, :end]


class KaleidoReferenceCache:
    """
    Keys and values of the memory views in every `"global"` layer, position encoding applied.

    Made and grown by [`KaleidoTransformer3DModel.encode_views`]. Memory views never see targets and their timestep is
    0, so what is kept here holds for every sampling step and every target. Poses and times of targets must be given in
    the frame and unit in which those of the memory were given, or for neither.

    Attributes:
        num_views (`int`): views in the memory.
        batch_size (`int`): rows of the batch; 0 while empty.
        tokens_per_view (`int`): tokens of each view; 0 while empty.
        has_poses (`bool`): whether the views have cameras.
        has_times (`bool`): whether the views have times.
        adapters ([`AdapterState`]): the adapters that the views were encoded with; `None` while that is not known.
    """

    def __init__(self):
        self.num_views = 0
        self.batch_size = 0
        self.tokens_per_view = 0
        self.has_poses = self.has_times = False
        self.adapters: AdapterState | None = None
        self._layers: dict[int, LayerMemory] = {}

    def __len__(self) -> int:
        return self.num_views

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers, room for views yet to come included."""
        return sum(layer.buffer.nbytes for layer in self._layers.values())

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values `[B, num_views, L, heads, D]` of one layer.

        Args:
            index (`int`): of the layer.
        """
        keys, values = self._layers[index].buffer[:, :, : self.num_views]
        return keys, values

    def layers(self) -> torch.Tensor:
        """Keys and values of all `"global"` layers in their order, `[layers, 2, B, num_views, L, heads, D]`: a memory
        as one tensor, for programs that take nothing else."""
        return torch.stack([self._layers[index].buffer[:, :, : self.num_views] for index in sorted(self._layers)])

    @classmethod
    def of_layers(
        cls, layers: torch.Tensor, indices: Sequence[int], has_poses: bool = True, has_times: bool = True
    ) -> "KaleidoReferenceCache":
        """
        The inverse of [`~KaleidoReferenceCache.layers`].

        Args:
            layers (`torch.Tensor`): `[layers, 2, B, num_views, L, heads, D]`.
            indices (`Sequence[int]`): of the transformer's blocks that the layers belong to.
            has_poses (`bool`, defaults to `True`): whether the views have cameras.
            has_times (`bool`, defaults to `True`): whether the views have times.
        """
        cache = cls()
        _, _, cache.batch_size, cache.num_views, cache.tokens_per_view = layers.shape[:5]
        cache.has_poses, cache.has_times = has_poses, has_times
        cache._layers = {index: LayerMemory(layer) for index, layer in zip(indices, layers)}
        return cache

    def at(self, index: int, num_views: int) -> "LayerMemory":
        """The memory of one layer, to be extended by `num_views` views in a forward pass.

        Args:
            index (`int`): of the layer.
            num_views (`int`): of the forward pass.
        """
        layer = self._layers.setdefault(index, LayerMemory())
        layer.start = layer.end = self.num_views
        layer.make_room(num_views)
        return layer

    def keep_to(self, adapters: AdapterState | None) -> None:
        """Takes over the adapters of a forward pass while empty; later raises `ValueError` where others are in effect.
        `None`, not known, passes.

        Args:
            adapters (`AdapterState`, *optional*): of the forward pass.
        """
        if not self.num_views:
            self.adapters = adapters
        elif None not in (adapters, self.adapters) and adapters != self.adapters:
            raise ValueError(
                f"`cache` does not fit the transformer's adapters: {self.adapters.difference(adapters)}. Go back to"
                " them, or encode the views into a new cache; a pipeline whose callbacks change adapters needs"
                " `use_reference_cache=False`."
            )

    def commit(self, num_views: int, batch_size: int, tokens_per_view: int, has_poses: bool, has_times: bool) -> None:
        """Takes the `num_views` views last written by [`LayerMemory.extend`] into the memory.

        Args:
            num_views (`int`): how many; a layer that did not get them all raises `RuntimeError` (a step cache that
                skips blocks must be off while views are encoded).
            batch_size (`int`): rows of the batch.
            tokens_per_view (`int`): tokens of each view.
            has_poses (`bool`): whether they have cameras.
            has_times (`bool`): whether they have times.
        """
        total = self.num_views + num_views
        if any(layer.end < total for layer in self._layers.values()):
            raise RuntimeError("A layer was skipped while views were encoded: is a step cache on?")
        self.num_views, self.batch_size, self.tokens_per_view = total, batch_size, tokens_per_view
        self.has_poses, self.has_times = has_poses, has_times

    def select(self, views: torch.Tensor | Sequence[int]) -> "KaleidoReferenceCache":
        """A new cache of some of the views, `views` being indices `[K]`, or `[B, K]` with a choice for each row.

        The views keep what they saw when they were encoded: this is not the same as encoding them alone.
        """
        views = torch.as_tensor(views, dtype=torch.long)
        if views.numel() and not (0 <= views.min() and views.max() < self.num_views):
            raise IndexError(f"`views` must lie between 0 and {self.num_views - 1}, got {views.tolist()}.")
        views = views.expand(self.batch_size, -1)
        rows = torch.arange(self.batch_size).unsqueeze(-1)
        return self._map(lambda buffer: buffer[:, rows.to(buffer.device), views.to(buffer.device)], views.shape[-1])

    def moved(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None):
        """A new cache on another device or in another dtype.

        Not called `to`: offloading hooks call that on every argument, and would grow a copy.

        Args:
            device (`torch.device` or `str`, *optional*): where to.
            dtype (`torch.dtype`, *optional*): of keys and values.
        """
        return self._map(lambda buffer: buffer.to(device=device, dtype=dtype))

    @classmethod
    def cat(cls, caches: Sequence["KaleidoReferenceCache"]) -> "KaleidoReferenceCache":
        """A new cache with the rows of all `caches`, which must hold equally many views, encoded with the same
        adapters."""
        counts = [cache.num_views for cache in caches]
        if len(set(counts)) != 1:
            raise ValueError(f"Caches of one batch must hold equally many views, got {counts}.")
        first = caches[0]
        for other in caches[1:]:
            if counts[0] and None not in (first.adapters, other.adapters) and first.adapters != other.adapters:
                raise ValueError(
                    "Caches of one batch must be made with the same adapters, got one with"
                    f" {first.adapters} and one with {other.adapters}."
                )
        joined = copy(first)
        joined.batch_size = sum(cache.batch_size for cache in caches)
        joined._layers = {
            index: LayerMemory(torch.cat([cache._layers[index].buffer[:, :, : counts[0]] for cache in caches], dim=1))
            for index in first._layers
        }
        return joined

    def _map(self, fn, num_views: int | None = None) -> "KaleidoReferenceCache":
        mapped = copy(self)
        mapped.num_views = self.num_views if num_views is None else num_views
        mapped._layers = {
            index: LayerMemory(fn(layer.buffer[:, :, : self.num_views])) for index, layer in self._layers.items()
        }
        return mapped
