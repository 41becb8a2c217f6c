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

"""Low-rank adapters: their files, the base weights that they belong to, and what is in effect in a forward pass.

A folder of [`save_adapter`] loads into a pipeline by `pipe.load_lora_weights(folder)`. Its weights are kept once,
under the names of diffusers; plain PEFT takes them under another prefix:

    model = peft.PeftModel(transformer, peft.PeftConfig.from_pretrained(folder))
    weights = safetensors.torch.load_file(f"{folder}/pytorch_lora_weights.safetensors")
    weights = {key.replace("transformer.", "base_model.model.", 1): x for key, x in weights.items()}
    peft.set_peft_model_state_dict(model, weights)
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import wraps
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from diffusers.loaders import CogVideoXLoraLoaderMixin, PeftAdapterMixin
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE, _fetch_state_dict
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import logging
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file

from ..files import written_whole
from .adapter_state import AdapterState
from .alignment import align_weights


__all__ = [
    "LORA_TARGETS",
    "AdapterInfo",
    "KaleidoAdapterMixin",
    "KaleidoLoraLoaderMixin",
    "base_architecture",
    "base_fingerprint",
    "make_lora_config",
    "read_adapter_info",
    "save_adapter",
    "scales_adapters",
]

logger = logging.get_logger(__name__)  # pylint: disable=invalid-name

LORA_TARGETS: dict[str, tuple[str, ...]] = {  # groups of layers, by the ends of their names
    "attention": ("to_q", "to_k", "to_v", "to_out.0"),
    "ffn": ("gate_proj", "up_proj", "down_proj"),
}
INFO_KEY = "kaleido_adapter"
UNKNOWN = "unknown"
HASHED_VALUES = 4096  # of each tensor: billions of weights are told apart in well under a second


def make_lora_config(
    rank: int,
    alpha: float | None = None,
    targets: Sequence[str] = ("attention", "ffn"),
    dora: bool = False,
    rslora: bool = False,
    dropout: float = 0.0,
) -> LoraConfig:
    """
    Settings of a new adapter (LoRA, arXiv 2106.09685), for `transformer.add_adapter`.

    Args:
        rank (`int`): rank of the update of each matrix.
        alpha (`float`, *optional*): the update counts `alpha / rank` times; `rank` when not given.
        targets (`Sequence[str]`, defaults to `("attention", "ffn")`): names of [`LORA_TARGETS`].
        dora (`bool`, defaults to `False`): adapt lengths and directions apart (DoRA, arXiv 2402.09353).
        rslora (`bool`, defaults to `False`): count `alpha / sqrt(rank)` times (rsLoRA, arXiv 2312.03732).
        dropout (`float`, defaults to `0.0`): dropout in front of the adapter, in training.

    Raises:
        `ValueError`: for a rank below 1, and for targets that are unknown or none.
    """
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"`rank` must be a positive integer, got {rank!r}.")
    unknown = [target for target in targets if target not in LORA_TARGETS]
    if isinstance(targets, str) or unknown or not targets:
        raise ValueError(f"`targets` must name one or more of {tuple(LORA_TARGETS)}, got {targets!r}.")
    return LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,
        target_modules=[suffix for target in targets for suffix in LORA_TARGETS[target]],
        use_dora=dora,
        use_rslora=rslora,
        lora_dropout=dropout,
    )


# The base of an adapter


def base_architecture(transformer: ModelMixin) -> str:
    """The transformer's config as JSON, its entries in order: what decides shapes and their meaning.

    Args:
        transformer (`ModelMixin`): the model.
    """
    config = {key: value for key, value in transformer.config.items() if not key.startswith("_")}
    config["out_channels"] = config["out_channels"] or config["in_channels"]
    return json.dumps(config, sort_keys=True)


def base_fingerprint(transformer: ModelMixin) -> str:
    """
    Tells base weights apart: two halves of SHA-256, `"<32 hex digits>-<32 hex digits>"`, or `"unknown"`.

    Adapters do not count: neither loaded ones nor, until they are unloaded, those that `fuse_lora` fused. Values are
    rounded to bfloat16 first, in the second half after float16. So both halves are the same for a float16 checkpoint
    loaded in float32, float16 or bfloat16, and one of them for a float32 checkpoint loaded in float32 and in either of
    the others. Weights that are quantised, cast to 8 bits, sharded or offloaded to the meta device are `"unknown"`.

    Args:
        transformer (`ModelMixin`): the model.
    """
    unfused = getattr(transformer, "_unfused_fingerprint", None)
    if unfused is not None:
        return unfused
    fused = any(layer.merged_adapters for layer in transformer.modules() if isinstance(layer, BaseTunerLayer))
    if fused or getattr(transformer, "hf_quantizer", None) is not None:
        return UNKNOWN
    weights = {
        name.replace(".base_layer.", "."): weight
        for name, weight in transformer.named_parameters()
        if not _is_adapter_weight(name) and ".to_qkv." not in name
    }
    return _digest(weights) or UNKNOWN


def _is_adapter_weight(name: str) -> bool:
    return ".lora_" in name or ".lokr_" in name


def _digest(weights: dict[str, torch.Tensor]) -> str | None:
    """See [`base_fingerprint`]; `None` where values cannot be read."""
    digests = hashlib.sha256(), hashlib.sha256()
    for name, weight in sorted(weights.items()):
        readable = weight.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
        if not readable or weight.is_meta or type(weight.data) is not torch.Tensor:
            return None
        values = weight.detach().reshape(-1)[:HASHED_VALUES].cpu()
        for digest, rounded in zip(digests, (values.bfloat16(), values.half().bfloat16())):
            digest.update(f"{name} {list(weight.shape)}".encode())
            digest.update(rounded.view(torch.int16).numpy().tobytes())
    return "-".join(digest.hexdigest()[:32] for digest in digests)


# Files


@dataclass
class AdapterInfo:
    """What an adapter belongs to and how it came about; kept in the header of its weights.

    Args:
        base_name (`str`): path or Hub id of the base, for people to read.
        base_architecture (`str`): see [`base_architecture`].
        base_fingerprint (`str`): see [`base_fingerprint`].
        rank (`int`): rank of the updates.
        alpha (`float`): scale of the updates, over `rank` (over its square root in rsLoRA).
        targets (`list[str]`): names of [`LORA_TARGETS`].
        capture (`str`): name of the capture that it was trained on.
        steps (`int`): optimizer steps.
        size (`int`): height and width of the training views in pixels.
        scores (`dict[str, float]`): what was measured, by name.
    """

    base_name: str
    base_architecture: str
    base_fingerprint: str
    rank: int
    alpha: float
    targets: list[str]
    capture: str = ""
    steps: int = 0
    size: int = 0
    scores: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls, transformer: ModelMixin, adapter_name: str = "default", base_name: str | None = None, **about: Any
    ) -> "AdapterInfo":
        """
        Describes an adapter of a transformer and its base.

        Args:
            transformer ([`KaleidoTransformer3DModel`]): holds the adapter.
            adapter_name (`str`, defaults to `"default"`): which one.
            base_name (`str`, *optional*): path or Hub id of the base; where `transformer` came from when not given.
            about: `capture`, `steps`, `size` and `scores`.
        """
        config = _adapter_config(transformer, adapter_name)
        targets = [name for name, suffixes in LORA_TARGETS.items() if set(suffixes) <= set(config.target_modules)]
        return cls(
            base_name=base_name or transformer.config.get("_name_or_path") or UNKNOWN,
            base_architecture=base_architecture(transformer),
            base_fingerprint=base_fingerprint(transformer),
            rank=config.r,
            alpha=config.lora_alpha,
            targets=targets,
            **about,
        )

    def check_base(self, transformer: ModelMixin) -> None:
        """Raises `ValueError` if the adapter was made for another architecture or for other base weights than those of
        `transformer`. Fingerprints that are unknown are passed over with a warning."""
        here = transformer.config.get("_name_or_path") or f"this {type(transformer).__name__}"
        there, mine = json.loads(self.base_architecture), json.loads(base_architecture(transformer))
        different = [
            f"{key} {value} there, {mine.get(key)} here" for key, value in there.items() if value != mine.get(key)
        ]
        fingerprint = base_fingerprint(transformer)
        if different:
            reason = f"the architectures differ ({'; '.join(different)})"
        elif UNKNOWN in (fingerprint, self.base_fingerprint):
            logger.warning(
                f"Whether the adapter was made for the weights of {here} cannot be told: they are quantised,"
                " cast or offloaded, or were so when it was saved."
            )
            return
        elif not any(a == b for a, b in zip(fingerprint.split("-"), self.base_fingerprint.split("-"))):
            reason = f"the weights differ (fingerprints {self.base_fingerprint[:8]} there, {fingerprint[:8]} here)"
        else:
            return
        raise ValueError(
            f"The adapter was made for the base {self.base_name}, not for {here}: {reason}. Load it into its own base;"
            " `check_base=False` loads it regardless, if its shapes fit."
        )

    @classmethod
    def from_header(cls, header: dict[str, str] | None) -> "AdapterInfo | None":
        """From the metadata of a safetensors file; `None` if there is nothing of ours. Entries of later versions are
        left out; `ValueError` if one is missing.

        Args:
            header (`dict[str, str]`, *optional*): metadata of the file.
        """
        if INFO_KEY not in (header or {}):
            return None
        content, known = json.loads(header[INFO_KEY]), {entry.name for entry in fields(cls)}
        try:
            return cls(**{key: value for key, value in content.items() if key in known})
        except TypeError as error:
            raise ValueError(f"The adapter's `{INFO_KEY}` entry cannot be read: {error}.") from error


def save_adapter(
    folder: str | os.PathLike, transformer: ModelMixin, info: AdapterInfo, adapter_name: str = "default"
) -> Path:
    """
    Writes an adapter: `pytorch_lora_weights.safetensors` as diffusers lays it out, `info` in its header, and PEFT's
    `adapter_config.json`. Each file is written whole or not at all.

    Args:
        folder (`str` or `os.PathLike`): where to; made if it is not there.
        transformer ([`KaleidoTransformer3DModel`]): holds the adapter.
        info ([`AdapterInfo`]): what to tell about it, see [`AdapterInfo.of`].
        adapter_name (`str`, defaults to `"default"`): which one.

    Returns:
        `Path`: the weights. `ValueError` if there is no such adapter.
    """
    settings = _adapter_config(transformer, adapter_name).to_dict()
    settings = {key: sorted(x) if isinstance(x, set) else x for key, x in settings.items()}
    weights = get_peft_model_state_dict(transformer, adapter_name=adapter_name)
    weights = {f"transformer.{key}": weight.detach().contiguous().cpu() for key, weight in weights.items()}
    header = {
        "format": "pt",
        LORA_ADAPTER_METADATA_KEY: json.dumps(
            {f"transformer.{key}": x for key, x in settings.items()}, sort_keys=True
        ),
        INFO_KEY: json.dumps(asdict(info), sort_keys=True),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LORA_WEIGHT_NAME_SAFE
    with written_whole(path) as part:
        save_file(weights, part, metadata=header)
    settings |= {"base_model_name_or_path": info.base_name, "inference_mode": True}
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    with written_whole(folder / "adapter_config.json") as part:
        part.write_text(text, encoding="utf-8")
    return path


def read_adapter_info(path: str | os.PathLike) -> AdapterInfo | None:
    """What the header of an adapter says: `path` is its file, or the folder of [`save_adapter`]. `None` for files of
    others."""
    path = Path(path)
    with safe_open(path / LORA_WEIGHT_NAME_SAFE if path.is_dir() else path, framework="pt") as file:
        return AdapterInfo.from_header(file.metadata())


def _adapter_config(transformer: ModelMixin, adapter_name: str) -> LoraConfig:
    configs = getattr(transformer, "peft_config", {})
    if adapter_name not in configs:
        raise ValueError(f"The transformer has no adapter {adapter_name!r}; it has {list(configs) or 'none'}.")
    return configs[adapter_name]


# Adapters of a transformer


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
            weights = {
                name: weight
                for name, weight in self.named_parameters()
                if _is_adapter_weight(name) and f".{adapter}." in f"{name}."
            }
            self._adapter_digests = {**self._adapter_digests, adapter: _digest(weights) or uuid4().hex}

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
        self._adapters_changed(fresh)
        for adapter in fresh if swaps else ():
            self._take_over_rank(adapter)

    def _check_hotswap(self, source, adapter: str) -> None:
        """What PEFT would do: delete the old adapter, then fail; blank all weights with `adapter` in their names."""
        new_is_dora = isinstance(source, dict) and any("lora_magnitude_vector" in key for key in source)
        if new_is_dora or getattr(self.peft_config[adapter], "use_dora", False):
            raise ValueError("DoRA adapters cannot be hot-swapped: unload the one, then load the other.")
        for name, _ in self.named_parameters():
            if _is_adapter_weight(name) and adapter in name and f".{adapter}." not in name:
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
        align_weights(loaded[0] if isinstance(loaded, tuple) else loaded)  # with `output_loading_info`
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


# Adapters of a pipeline


class KaleidoLoraLoaderMixin(CogVideoXLoraLoaderMixin):
    """diffusers' adapters for a pipeline with a transformer; those that name their base are refused by others."""

    @classmethod
    def lora_state_dict(
        cls, pretrained_model_name_or_path_or_dict, base: ModelMixin | None = None, **kwargs
    ) -> dict[str, torch.Tensor] | tuple[dict[str, torch.Tensor], dict | None]:
        """
        The weights of an adapter, as in diffusers.

        Args:
            pretrained_model_name_or_path_or_dict (`str`, `os.PathLike` or `dict`): a Hub id, folder, file or weights.
            base ([`KaleidoTransformer3DModel`], *optional*): refuse adapters that name another base.
            kwargs: as in diffusers, `return_lora_metadata` among them.
        """
        with_metadata = kwargs.pop("return_lora_metadata", False)
        use_safetensors = kwargs.pop("use_safetensors", None)
        options = {"cache_dir", "proxies", "local_files_only", "token", "revision", "subfolder", "weight_name"}
        state_dict, metadata, header = _fetch_state_dict(
            pretrained_model_name_or_path_or_dict,
            **{name: kwargs.get(name) for name in options},
            force_download=kwargs.get("force_download", False),
            use_safetensors=use_safetensors is not False,
            allow_pickle=use_safetensors is None,
            user_agent={"file_type": "attn_procs_weights", "framework": "pytorch"},
            return_file_metadata=True,
        )
        info = AdapterInfo.from_header(header)
        if base is not None and info is not None:
            info.check_base(base)
        state_dict = super().lora_state_dict(state_dict)
        return (state_dict, metadata) if with_metadata else state_dict

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict,
        adapter_name: str | None = None,
        hotswap: bool = False,
        check_base: bool = True,
        **kwargs,
    ) -> None:
        """
        Loads an adapter into the transformer, as in diffusers.

        Args:
            pretrained_model_name_or_path_or_dict (`str`, `os.PathLike` or `dict`):
                A Hub id, a folder, a file, or weights.
            adapter_name (`str`, *optional*):
                What to call it; `default_0` and so on when not given.
            hotswap (`bool`, defaults to `False`):
                Put its weights in the place of those of the loaded adapter `adapter_name`.
            check_base (`bool`, defaults to `True`):
                Raise `ValueError` for adapters of [`save_adapter`] that were made for other base weights or another
                architecture. Files that do not say so are loaded if their shapes fit.
            kwargs:
                As in diffusers (`weight_name`, `subfolder`, `revision`, `token`, `low_cpu_mem_usage`, ...).
        """
        super().load_lora_weights(
            pretrained_model_name_or_path_or_dict,
            adapter_name=adapter_name,
            hotswap=hotswap,
            base=self.transformer if check_base else None,
            **kwargs,
        )
