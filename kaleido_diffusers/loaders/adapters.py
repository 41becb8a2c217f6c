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

"""Adapters of a transformer: diffusers' own, and what is in effect in a forward pass."""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from uuid import uuid4

import torch
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from peft.tuners.tuners_utils import BaseTunerLayer

from .adapter_state import AdapterState
from .alignment import align_weights, check_finite
from .base_weights import adapter_weights, base_fingerprint, is_adapter_weight, weights_digest


__all__ = ["KaleidoAdapterMixin", "scales_adapters"]


def scales_adapters(forward: Callable) -> Callable:
    """
    Decorates a `forward`: `attention_kwargs={"scale": s}`, given by keyword, multiplies the adapters during the pass.

    As `diffusers.utils.apply_lora_scale`, but afterwards scalings are what they were, to the bit. That one divides
    them again, and sets them to 1 after a scale of 0, whatever `set_adapters` had said.
    """

    @wraps(forward)
    def wrapper(self, *args, **kwargs):
        scale = 1.0
        if kwargs.get("attention_kwargs"):
            kwargs["attention_kwargs"] = dict(kwargs["attention_kwargs"])
            scale = kwargs["attention_kwargs"].pop("scale", 1.0)
        if scale == 1.0:
            return forward(self, *args, **kwargs)
        # Fused adapters cannot be scaled; PEFT needs their scalings as they are to take them out again.
        layers = [(name, layer) for name, layer in self._adapted_layers() if not layer.merged_adapters]
        self._scaling_of_call = scale, {name: layer.scaling for name, layer in layers}
        try:
            for _, layer in layers:
                layer.scaling = {adapter: value * scale for adapter, value in layer.scaling.items()}
            return forward(self, *args, **kwargs)
        finally:
            for name, layer in layers:
                layer.scaling = self._scaling_of_call[1][name]
            self._scaling_of_call = 1.0, {}

    return wrapper


class KaleidoAdapterMixin(PeftAdapterMixin):
    """diffusers' adapters for a transformer, which also keeps account of what is in effect (see
    [`KaleidoAdapterMixin.adapter_state`]) and does not save a model that could not be loaded."""

    _adapted: tuple = ((), ())  # names of adapters, then (name, layer) of all layers that hold any
    _scaling_of_call: tuple[float, dict[str, dict]] = (
        1.0,
        {},
    )  # see `scales_adapters`: the scale, scalings without it
    _adapter_digests: dict[str, str] = {}
    _fused_adapters: dict[str, tuple] = {}  # digest and scalings with which they were fused
    _fused_for_good = 0
    _unfused_fingerprint: str | None = None  # of the base before fusing, which unfusing restores but for rounding
    _scaling_values: dict[int, tuple[torch.Tensor, int, float]] = {}  # see `_scaling_value`

    def adapter_state(self) -> AdapterState | None:
        """
        The adapters that take part in a forward pass at this moment. Reads no weights and waits for no device.

        Returns:
            [`AdapterState`]: equal states give equal keys and values. `None` (not known) while `torch.compile` traces
            the whole transformer, whose graph would otherwise depend on it.
        """
        if torch.compiler.is_compiling():
            return None
        layers, sources = [], {}
        factor, scalings = self._scaling_of_call
        for name, layer in self._adapted_layers():
            if layer.disable_adapters:
                continue
            if layer.merged_adapters:
                known, entries = self._fused_adapters, tuple((adapter, "fused") for adapter in layer.merged_adapters)
            else:
                known = self._adapter_digests
                entries = self._scalings_in_effect(layer, factor, scalings.get(name, layer.scaling))
            for adapter, _ in entries:
                sources[adapter] = known.get(adapter)
            if entries:
                layers.append((name, entries))
        return AdapterState(tuple(layers), tuple(sources.items()), self._fused_for_good)

    def _scalings_in_effect(self, layer: BaseTunerLayer, factor: float, scalings: dict) -> tuple:
        entries = []
        variants = getattr(layer, "lora_variant", {})
        for adapter in layer.active_adapters:
            if adapter in scalings:
                value = round(self._scaling_value(scalings[adapter]) * factor, 6)
                if value or adapter in variants:  # DoRA at 0 is not the base: its lengths stay
                    entries.append((adapter, value))
        return tuple(sorted(entries))

    def _scaling_value(self, scaling: float | torch.Tensor) -> float:
        """As a number. After `enable_lora_hotswap` scalings are tensors: each is read from its device once."""
        if not torch.is_tensor(scaling):
            return scaling
        known = self._scaling_values.get(id(scaling))
        if known is None or known[0] is not scaling or known[1] != scaling._version:
            known = (scaling, scaling._version, scaling.item())
            self._scaling_values = {**self._scaling_values, id(scaling): known}
        return known[2]

    def _adapted_layers(self) -> Sequence[tuple[str, BaseTunerLayer]]:
        adapters = tuple(self.__dict__.get("peft_config") or ())
        if self._adapted[0] != adapters:
            self._adapted = (
                adapters,
                [(name, layer) for name, layer in self.named_modules() if isinstance(layer, BaseTunerLayer)],
            )
        return self._adapted[1] if adapters else ()

    def _fused_names(self) -> set[str]:
        return {adapter for _, layer in self._adapted_layers() for adapter in layer.merged_adapters}

    def _adapters_changed(self, fresh: Iterable[str] = ()) -> None:
        """To be called after layers came or went, with the names of adapters whose weights are new."""
        self._adapted, self._scaling_values = ((), ()), {}
        for adapter in fresh:
            digest = weights_digest(adapter_weights(self, adapter)) or uuid4().hex
            self._adapter_digests = {**self._adapter_digests, adapter: digest}

    def _refuse_fused_projections(self) -> None:
        if any(getattr(module, "fused_projections", False) for module in self.modules()):
            raise ValueError(
                "Adapters of queries, keys and values have no part in fused projections: call"
                " `unfuse_qkv_projections()` first."
            )

    def add_adapter(self, adapter_config, adapter_name: str = "default") -> None:
        """As in diffusers."""
        self._refuse_fused_projections()
        super().add_adapter(adapter_config, adapter_name)
        self._adapters_changed([adapter_name])

    def load_lora_adapter(
        self, pretrained_model_name_or_path_or_dict, prefix="transformer", hotswap: bool = False, **kwargs
    ) -> None:
        """As in diffusers; a hot swap also takes over rank and alpha, so that `set_adapters` and saving stay true.
        `ValueError` for hot swaps that PEFT would botch."""
        self._refuse_fused_projections()
        source, before = pretrained_model_name_or_path_or_dict, set(self.__dict__.get("peft_config") or ())
        if hotswap and kwargs.get("adapter_name") in before:
            self._check_hotswap(source, kwargs["adapter_name"])
        swaps = hotswap or self._prepare_lora_hotswap_kwargs is not None
        super().load_lora_adapter(source, prefix=prefix, hotswap=hotswap, **kwargs)
        align_weights(self)
        fresh = {kwargs["adapter_name"]} if hotswap else set(self.__dict__.get("peft_config") or ()) - before
        if not fresh:
            raise ValueError(f"Nothing was loaded: no name of the weights begins with {prefix!r}.")
        self._adapters_changed(fresh)
        self._refuse_useless(fresh)
        for adapter in fresh if swaps else ():
            self._take_over_rank(adapter)

    def _refuse_useless(self, fresh: set[str]) -> None:
        """Raises `ValueError` for an adapter that fits no layer, or is not finite, and takes it out again."""
        for adapter in fresh:
            weights = adapter_weights(self, adapter)
            try:
                if not weights:
                    raise ValueError("None of the weights of this adapter fits a layer of the transformer.")
                check_finite(weights.items(), f"The adapter {adapter!r}")
            except ValueError:
                self.delete_adapters(adapter)
                raise

    def _check_hotswap(self, source, adapter: str) -> None:
        """What PEFT would do: delete the old adapter, then fail; blank all weights with `adapter` in their names."""
        new_is_dora = isinstance(source, dict) and any("lora_magnitude_vector" in key for key in source)
        if new_is_dora or getattr(self.peft_config[adapter], "use_dora", False):
            raise ValueError("DoRA adapters cannot be hot-swapped: unload the one, then load the other.")
        for name, _ in self.named_parameters():
            if is_adapter_weight(name) and adapter in name and f".{adapter}." not in name:
                raise ValueError(
                    f"The adapter {adapter!r} cannot be hot-swapped beside others whose weights have its name within"
                    f" theirs ({name}): load it under a longer name."
                )

    def _take_over_rank(self, adapter: str) -> None:
        """PEFT pads and swaps weights without telling the layers' rank and alpha, or the config."""
        config, ranks, alphas = self.peft_config[adapter], {}, {}
        for name, layer in self._adapted_layers():
            if adapter in getattr(layer, "lora_A", ()):
                rank = len(layer.lora_A[adapter].weight)
                unit = math.sqrt(rank) if layer.use_rslora[adapter] else rank
                ranks[name], alphas[name] = rank, self._scaling_value(layer.scaling[adapter]) * unit
                layer.r[adapter], layer.lora_alpha[adapter] = ranks[name], alphas[name]
        config.r, config.lora_alpha = next(iter(ranks.values())), next(iter(alphas.values()))
        config.rank_pattern = {name: rank for name, rank in ranks.items() if rank != config.r}
        config.alpha_pattern = {name: alpha for name, alpha in alphas.items() if alpha != config.lora_alpha}

    def fuse_lora(self, lora_scale: float = 1.0, safe_fusing: bool = False, adapter_names=None) -> None:
        """As in diffusers."""
        before = self._fused_names()
        self._unfused_fingerprint = base_fingerprint(self)
        super().fuse_lora(lora_scale=lora_scale, safe_fusing=safe_fusing, adapter_names=adapter_names)
        for adapter in self._fused_names() - before:
            scalings = [layer.scaling[adapter] for _, layer in self._adapted_layers() if adapter in layer.scaling]
            record = (self._adapter_digests.get(adapter), tuple(self._scaling_value(x) for x in scalings))
            self._fused_adapters = {**self._fused_adapters, adapter: record}

    def _stay_fused(self, adapters: set[str]) -> None:
        if adapters:
            self._fused_for_good, self._unfused_fingerprint = self._fused_for_good + 1, None

    def unload_lora(self) -> None:
        """As in diffusers: what is fused stays in the base weights."""
        self._stay_fused(self._fused_names())
        super().unload_lora()
        self._adapters_changed()

    def delete_adapters(self, adapter_names: list[str] | str) -> None:
        """As in diffusers: what is fused stays in the base weights."""
        names = {adapter_names} if isinstance(adapter_names, str) else set(adapter_names)
        self._stay_fused(names & self._fused_names())
        super().delete_adapters(adapter_names)
        self._adapters_changed()

    def fuse_qkv_projections(self) -> None:
        """As in diffusers. `ValueError` while adapters are loaded: they would have no part in it."""
        if self._adapted_layers():
            raise ValueError("`fuse_qkv_projections()` would drop adapters: fuse them and unload them first.")
        super().fuse_qkv_projections()

    @classmethod
    @wraps(ModelMixin.from_pretrained.__func__, assigned=())  # pipelines look at its signature
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike | None, **kwargs):
        """As in diffusers. The weights are aligned, so that a loaded model computes what the saved one did, to the
        bit."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with `output_loading_info`
        align_weights(model)
        check_finite(model.named_parameters(), pretrained_model_name_or_path)
        return loaded

    @wraps(ModelMixin.save_pretrained, assigned=())  # pipelines look at its signature
    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """As in diffusers. `ValueError` while adapters are loaded: the names of the weights are others then, and
        `from_pretrained` would leave their layers at random."""
        if self._adapted_layers():
            raise ValueError(
                "The transformer holds adapters, which `save_pretrained` cannot save. Unload them first (after"
                " `fuse_lora`, to keep what they do); `save_adapter` or `save_lora_weights` save an adapter alone."
            )
        super().save_pretrained(save_directory, *args, **kwargs)
