"""Files of adapters, with what they belong to.

A folder of [`save_adapter`] loads into a pipeline by `pipe.load_lora_weights(folder)`. Its weights are kept once,
under the names of diffusers; plain PEFT takes them under another prefix:

    model = peft.PeftModel(transformer, peft.PeftConfig.from_pretrained(folder))
    weights = safetensors.torch.load_file(f"{folder}/pytorch_lora_weights.safetensors")
    weights = {key.replace("transformer.", "base_model.model.", 1): x for key, x in weights.items()}
    peft.set_peft_model_state_dict(model, weights)
"""

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import logging
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file

from ..files import written_whole
from .base_weights import UNKNOWN, base_architecture, base_fingerprint
from .lora_settings import LORA_TARGETS


__all__ = ["AdapterInfo", "read_adapter_info", "save_adapter"]

logger = logging.get_logger(__name__)  # pylint: disable=invalid-name

INFO_KEY = "kaleido_adapter"


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
        targets = [
            name for name, suffixes in LORA_TARGETS.items() if set(suffixes) <= set(config.target_modules or ())
        ]
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
        if header is None or INFO_KEY not in header:
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
