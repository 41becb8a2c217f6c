"""`from_single_file`, as diffusers has it, for all that can be read here.

A checkpoint is opened (`formats.py`: weights alone, memory mapped), its names are freed from wrappers and renamed by a
table (`names.py`), its config is inferred from shapes where nothing tells it, and its tensors are cut to ours
(`fitting.py`). Nothing is left over and nothing is missing, or [`CheckpointError`] names it.
"""

import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

from diffusers.loaders import FromOriginalModelMixin
from diffusers.loaders.single_file_utils import load_single_file_checkpoint

from .alignment import align_weights
from .checkpoints import checkpoint_from_dict, read_checkpoint
from .fitting import config_defaults, convert_weights, on_meta
from .names import Renames, WhichWeights


__all__ = ["KaleidoSingleFileMixin"]


class KaleidoSingleFileMixin(FromOriginalModelMixin):
    """`from_single_file` for all that [`read_checkpoint`] reads."""

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path_or_dict: str | os.PathLike | Mapping | None = None,
        weights: WhichWeights = "auto",
        renames: Renames | None = None,
        channels_last_patches: bool = False,
        **kwargs,
    ):
        """
        As in diffusers, but needs no `config`: it comes from the file, or is inferred from its shapes. A warning says
        what shapes did not tell. Of GGUF, matrices stay quantised with `quantization_config=GGUFQuantizationConfig()`,
        and become floating point without.

        Args:
            pretrained_model_link_or_path_or_dict (`str`, `os.PathLike` or `Mapping`):
                What [`read_checkpoint`] takes, a link to a file on the Hub, or a state dict.
            weights (`str`, defaults to `"auto"`):
                As in [`read_checkpoint`].
            renames (`list[tuple[str, str | None]]`, *optional*):
                As in [`read_checkpoint`].
            channels_last_patches (`bool`, defaults to `False`):
                As in [`convert_weights`].
            kwargs:
                As in diffusers (`config`, `subfolder`, `dtype`, `quantization_config`, ...), and config entries.
        """
        source = pretrained_model_link_or_path_or_dict
        hub = {key: kwargs[key] for key in ("token", "local_files_only", "cache_dir") if key in kwargs}
        if isinstance(source, Mapping):
            checkpoint = checkpoint_from_dict(source, weights, renames)
        elif source is not None and Path(source).exists():
            checkpoint = read_checkpoint(source, weights, renames)
        else:
            linked = {key: kwargs[key] for key in ("revision", "force_download", "proxies") if key in kwargs}
            checkpoint = checkpoint_from_dict(load_single_file_checkpoint(source, **linked, **hub), weights, renames)
        if kwargs.get("config") is not None:
            where = {"subfolder": kwargs.get("subfolder"), "revision": kwargs.get("config_revision")}
            checkpoint.config = cls.load_config(kwargs["config"], **where, **hub)
        given = {name: kwargs.pop(name) for name in config_defaults(cls) if name in kwargs}
        quantized = kwargs.get("quantization_config") is not None
        converted = convert_weights(cls, checkpoint, given, channels_last_patches, keep_quantized=quantized)
        if converted.assumed:
            listed = ", ".join(f"{name}={converted.config[name]}" for name in converted.assumed)
            warnings.warn(
                f"{checkpoint.path} does not say, and its shapes do not tell: {listed} are assumed. Pass those that"
                " are otherwise, or `config=` with a folder or Hub id of the model.",
                stacklevel=2,
            )
        with tempfile.TemporaryDirectory() as folder:
            on_meta(cls, converted.config).save_config(folder)
            options = {**kwargs, "config": folder, "subfolder": None}
            model = super().from_single_file(converted.tensors, **options)
        align_weights(model)
        return model
