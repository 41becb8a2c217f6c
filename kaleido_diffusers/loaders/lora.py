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

"""Adapters of a pipeline."""

import os
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import CogVideoXLoraLoaderMixin
from diffusers.loaders.lora_base import _fetch_state_dict
from diffusers.models.modeling_utils import ModelMixin
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id

from .adapter_files import AdapterInfo
from .adapter_layouts import as_diffusers, metadata_of_peft


__all__ = ["KaleidoLoraLoaderMixin"]

CONFIG = "adapter_config.json"  # of PEFT


class KaleidoLoraLoaderMixin(CogVideoXLoraLoaderMixin):
    """diffusers' adapters for a pipeline with a transformer; those that name their base are refused by others."""

    @classmethod
    def lora_state_dict(
        cls,
        pretrained_model_name_or_path_or_dict,
        base: ModelMixin | None = None,
        modules: Collection[str] | None = None,
        **kwargs,
    ) -> dict[str, torch.Tensor] | tuple[dict[str, torch.Tensor], dict | None]:
        """
        The weights of an adapter, as in diffusers.

        Args:
            pretrained_model_name_or_path_or_dict (`str`, `os.PathLike` or `dict`): a Hub id, folder, file or weights.
            base ([`KaleidoTransformer3DModel`], *optional*): refuse adapters that name another base.
            modules (`Collection[str]`, *optional*): names of the transformer's modules, under which layouts of others
                are brought; without them the weights keep their names.
            kwargs: as in diffusers, `return_lora_metadata` among them.

        Raises:
            `OSError`: where nothing is at that place.
        """
        source = pretrained_model_name_or_path_or_dict
        _check_place(source)
        with_metadata = kwargs.pop("return_lora_metadata", False)
        use_safetensors = kwargs.pop("use_safetensors", None)
        options = {"cache_dir", "proxies", "local_files_only", "token", "revision", "subfolder", "weight_name"}
        options = {name: kwargs.get(name) for name in options}
        try:
            state_dict, metadata, header = _fetch_state_dict(
                source,
                **options,
                force_download=kwargs.get("force_download", False),
                use_safetensors=use_safetensors is not False,
                allow_pickle=use_safetensors is None,
                user_agent={"file_type": "attn_procs_weights", "framework": "pytorch"},
                return_file_metadata=True,
            )
        except (OSError, ValueError) as error:
            if isinstance(source, dict) or Path(source).exists():
                raise
            reason = " ".join(str(error).split())[:300]
            raise OSError(f"{source}: no folder or file here, nor an adapter that the Hub gives ({reason})") from error
        info = AdapterInfo.from_header(header)
        if base is not None and info is not None:
            info.check_base(base)
        if metadata is None and any(key.startswith("base_model.model.") for key in state_dict):
            metadata = _peft_metadata(source, options)
        if modules is not None:
            what = "these weights" if isinstance(source, dict) else source
            state_dict = as_diffusers(state_dict, modules, what)
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
        source = pretrained_model_name_or_path_or_dict
        base = self.transformer if check_base else None
        modules = {name for name, _ in self.transformer.named_modules()}
        try:
            options = {"adapter_name": adapter_name, "hotswap": hotswap, "base": base, "modules": modules, **kwargs}
            super().load_lora_weights(source, **options)
        except (ValueError, OSError, ImportError, MemoryError):
            raise
        except Exception as error:  # at damaged files, other shapes and foreign headers, libraries raise anything
            what = "these weights" if isinstance(source, dict) else source
            reason = " ".join(str(error).split())[:500]
            raise ValueError(f"The adapter {what} cannot be loaded. {type(error).__name__}: {reason}") from error


def _check_place(source: str | os.PathLike | dict) -> None:
    """Raises `OSError` for what can be no Hub id, and is no folder or file either."""
    if isinstance(source, dict) or Path(source).exists() or isinstance(source, str) and _may_be_on_the_hub(source):
        return
    raise OSError(f"{source}: there is no such folder or file of an adapter.")


def _may_be_on_the_hub(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _peft_metadata(source: str | os.PathLike | dict, options: dict[str, Any]) -> dict[str, Any] | None:
    """What PEFT's `adapter_config.json` beside the weights says; a warning where there is none."""
    path = None
    if not isinstance(source, dict):
        place = Path(source)
        folder = place.parent if place.is_file() else place / (options["subfolder"] or "")
        if place.exists():
            path = folder / CONFIG if (folder / CONFIG).is_file() else None
        else:
            path = _from_the_hub(str(source), options)
    if path is None:
        warnings.warn(
            f"The adapter has PEFT's names and no {CONFIG} beside it: its scale (alpha / rank) is taken for 1.",
            stacklevel=4,
        )
        return None
    return metadata_of_peft(Path(path))


def _from_the_hub(repo_id: str, options: dict[str, Any]) -> str | None:
    names = ("cache_dir", "revision", "token", "subfolder")
    wanted = {name: options[name] for name in names} | {"local_files_only": bool(options["local_files_only"])}
    try:
        return hf_hub_download(repo_id, CONFIG, **wanted)
    except (EntryNotFoundError, LocalEntryNotFoundError):
        return None
