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

import torch
from diffusers.loaders import CogVideoXLoraLoaderMixin
from diffusers.loaders.lora_base import _fetch_state_dict
from diffusers.models.modeling_utils import ModelMixin

from .adapter_files import AdapterInfo


__all__ = ["KaleidoLoraLoaderMixin"]


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
        source = pretrained_model_name_or_path_or_dict
        base = self.transformer if check_base else None
        before = set(getattr(self.transformer, "peft_config", None) or ())
        try:
            super().load_lora_weights(source, adapter_name=adapter_name, hotswap=hotswap, base=base, **kwargs)
        except (ValueError, OSError, ImportError, MemoryError):
            raise
        except Exception as error:  # at damaged files, other shapes and foreign headers, libraries raise anything
            what = "these weights" if isinstance(source, dict) else source
            reason = " ".join(str(error).split())[:500]
            raise ValueError(f"The adapter {what} cannot be loaded. {type(error).__name__}: {reason}") from error
        if not hotswap and set(getattr(self.transformer, "peft_config", None) or ()) == before:
            raise ValueError("Nothing was loaded: none of the names of the weights is of an adapter of a transformer.")
