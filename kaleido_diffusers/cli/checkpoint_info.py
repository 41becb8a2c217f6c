"""What `kaleido info CHECKPOINT` tells: config, parameters, precision, fingerprint, and what its card says."""

import json
import re
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from diffusers import ModelMixin
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from huggingface_hub import ModelCard
from safetensors import SafetensorError

from ..bundled import resolve_checkpoint
from ..files import file_digest
from ..loaders.adapter_files import AdapterInfo, read_adapter_info
from ..loaders.base_weights import base_architecture, base_fingerprint
from ..loaders.checkpoints import read_checkpoint
from ..loaders.fitting import convert_weights, load_transformer
from ..loaders.formats import is_weights_file
from ..models.transformer_kaleido import KaleidoTransformer3DModel


__all__ = ["describe_checkpoint", "is_checkpoint", "print_scores"]

PARTS = {  # of the transformer, by what their names have in them; the first that fits
    "attention": ".attn.",
    "feed-forward": ".ff.",
    "norms, modulation": "transformer_blocks.",
    "timestep": "time_embed.",
    "input, output": "",
}


def is_checkpoint(path: str) -> bool:
    """Whether a path is that of a checkpoint and not of a capture: `bundled`, a file of weights, or a folder that has
    weights as training, diffusers or torch.distributed.checkpoint lay them out.

    Args:
        path (`str`): as a command takes it.
    """
    place = Path(resolve_checkpoint(path))
    if not place.is_dir():
        return is_weights_file(place)
    marks = ("model_index.json", "transformer", "transformer_ema", ".metadata")
    if any((place / mark).exists() for mark in marks):
        return True
    names = [file.name for file in place.iterdir() if is_weights_file(file)]  # COLMAP's models are .bin files too
    return any(name.endswith(".safetensors") or "pytorch_model" in name for name in names)


def describe_checkpoint(path: str) -> None:
    """Prints what is known of a checkpoint.

    Args:
        path (`str`): for which [`is_checkpoint`] holds. [`CheckpointError`] if it cannot be read.
    """
    place = Path(resolve_checkpoint(path))
    if (adapter := _adapter_in(place)) is not None:
        print(f"{place}: an adapter")
        for name, value in asdict(adapter).items():
            if name != "base_architecture" and value:
                print(f"  {name:<20} {', '.join(value) if name == 'targets' else value}")
        return
    checkpoint = read_checkpoint(place)
    converted = convert_weights(KaleidoTransformer3DModel, checkpoint)
    transformer = load_transformer(KaleidoTransformer3DModel, converted)
    print(f"{place}: {checkpoint.weights} weights")
    for key, value in json.loads(base_architecture(transformer)).items():
        print(f"  {key:<20} {value}" + (" (assumed)" if key in converted.assumed else ""))
    if checkpoint.scheduler is not None:
        print(f"  {'prediction_type':<20} {checkpoint.scheduler.get('prediction_type', 'velocity')}")
    if (place / "vae" / "config.json").is_file():
        vae = json.loads((place / "vae" / "config.json").read_text(encoding="utf-8"))
        print(f"  {'autoencoder':<20} {vae.get('_class_name')}")
    _print_parameters(transformer)
    print(f"  {'fingerprint':<20} {base_fingerprint(transformer)}")
    if place.is_file():
        print(f"  {'SHA-256':<20} {file_digest(place)}")
    for folder in (place, place.parent) if place.is_dir() else ():
        if (folder / "model_index.json").is_file():
            _print_card(folder)
            break


def _adapter_in(place: Path) -> AdapterInfo | None:
    """What an adapter of ours says of itself; nothing for whatever else there is."""
    file = place / LORA_WEIGHT_NAME_SAFE if place.is_dir() else place
    try:
        return read_adapter_info(file) if file.name == LORA_WEIGHT_NAME_SAFE and file.is_file() else None
    except SafetensorError:  # damaged: told where it is read as a checkpoint
        return None


def print_scores(scores: dict) -> None:
    """Prints scores by name, such as those of [`bundled_scores`].

    Args:
        scores (`dict`): values, or values by name.
    """
    for key, value in scores.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {score}" for name, score in value.items())
        print(f"  {key}: {value}")


def _print_parameters(transformer: ModelMixin) -> None:
    sizes, dtypes = Counter(), Counter()
    for name, parameter in transformer.named_parameters():
        part = next(part for part, mark in PARTS.items() if mark in name)
        sizes[part] += parameter.numel()
        dtypes[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    total = sizes.total()
    print(f"  {'parameters':<20} {total:,}")
    for part in PARTS:
        print(f"    {part:<18} {sizes[part]:,} ({sizes[part] / total:.1%})")
    print(f"  {'dtype':<20} {', '.join(f'{dtype} ({count / total:.1%})' for dtype, count in dtypes.most_common())}")


def _print_card(folder: Path) -> None:
    """Licence, training data and scores, as far as a pipeline folder tells them."""
    if (folder / "README.md").is_file():
        card = ModelCard.load(folder / "README.md")
        print(f"  {'licence':<20} {card.data.get('license') or 'not stated'}")
        if card.data.get("datasets"):
            print(f"  {'datasets':<20} {', '.join(card.data.datasets)}")
        for title, text in re.findall(r"^#+ (.*\b(?:[Dd]ata|[Tt]raining)\b.*)\n+([^\n]+)", card.text, re.MULTILINE):
            print(f"  {title}: {text}")
    if (folder / "scores.json").is_file():
        print_scores(json.loads((folder / "scores.json").read_text(encoding="utf-8")))
