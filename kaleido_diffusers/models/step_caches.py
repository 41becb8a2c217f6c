"""diffusers' step caches on a model that is called once for each branch of guidance, and to encode its memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from diffusers.hooks.faster_cache import (
    FasterCacheBlockHook,
    FasterCacheBlockState,
    FasterCacheConfig,
    FasterCacheDenoiserHook,
)
from diffusers.hooks.hooks import HookRegistry
from diffusers.hooks.pyramid_attention_broadcast import PyramidAttentionBroadcastHook
from diffusers.hooks.sea_cache import SeaCacheConfig
from diffusers.hooks.text_kv_cache import TextKVCacheConfig
from diffusers.models.cache_utils import CacheMixin
from diffusers.utils.torch_utils import unwrap_module


__all__ = ["KaleidoCacheMixin"]

# Of these a layer has one state, whichever branch it computes; of the others one for each `cache_context`
_OF_ONE_STATE = (PyramidAttentionBroadcastHook, FasterCacheBlockHook, FasterCacheDenoiserHook)


class KaleidoCacheMixin(CacheMixin):
    """
    As [`CacheMixin`], with a state for each name of `cache_context` in every step cache: without and with guidance a
    branch then never gets what another one computed. PyramidAttentionBroadcast and FasterCache know one state alone.
    """

    def enable_cache(self, config: Any) -> None:
        """
        As in diffusers.

        Args:
            config (`Any`): of a step cache. SeaCache gets to know which latents are the views, if it was not told.

        Raises:
            `ValueError`: for FasterCache without `is_guidance_distilled=True`, and for TextKVCache.
        """
        if isinstance(config, FasterCacheConfig) and not config.is_guidance_distilled:
            raise ValueError(
                "FasterCache would split each batch into an unconditional and a conditional half, but this model is"
                " called once for each. Pass `FasterCacheConfig(is_guidance_distilled=True, ...)`, which skips"
                " attention in both and computes both."
            )
        if isinstance(config, TextKVCacheConfig):
            raise ValueError("TextKVCache keeps keys and values of text, of which this model reads none.")
        if isinstance(config, SeaCacheConfig) and config.raw_vision_callback is None:
            config = replace(config, raw_vision_callback=_views_as_videos)
        super().enable_cache(config)

    @contextmanager
    def cache_context(self, name: str, **kwargs) -> Iterator[None]:
        """
        As in diffusers.

        Args:
            name (`str`): of the branch.
            kwargs (`Any`): where the sampling is, see `diffusers.hooks.hooks.CacheContext`.
        """
        hooks = self._hooks_of_one_state()
        if hooks:
            states = self.__dict__.setdefault("_branch_states", {})
            for hook, state in zip(hooks, states.setdefault(name, [_fresh_state(hook) for hook in hooks])):
                hook.state = state
        with super().cache_context(name, **kwargs):
            yield

    def _reset_stateful_cache(self, recurse: bool = True) -> None:
        """Also where a step cache was applied by `apply_...` and not by `enable_cache`, which would have told the list
        of hooks that `cache_context` goes by."""
        self._hook_registry().invalidate_child_registries_cache()
        super()._reset_stateful_cache(recurse)
        self.__dict__.pop("_branch_states", None)
        for hook in self._hooks_of_one_state():
            hook.state = _fresh_state(hook)

    def _hook_registry(self) -> HookRegistry:
        return HookRegistry.check_if_exists_or_initialize(unwrap_module(self))

    def _hooks_of_one_state(self) -> list[Any]:
        registry = self._hook_registry()
        registries = [registry, *registry._get_child_registries()]
        return [hook for child in registries for hook in child.hooks.values() if isinstance(hook, _OF_ONE_STATE)]


def _fresh_state(hook: Any) -> Any:
    """A state of nothing yet, from which the next call computes."""
    state = type(hook.state)()
    if isinstance(state, FasterCacheBlockState):
        state.iteration = hook.block_skip_range  # at 0 it would skip, and find nothing to take instead
    return state


def _views_as_videos(_module, args: tuple, kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """Latents `[B, V, C, H, W]` as SeaCache looks at them, `[C, V, H, W]` of each row."""
    latents = args[0] if args else kwargs["hidden_states"]
    return list(latents.transpose(1, 2))
