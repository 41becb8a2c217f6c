"""Checkpoints of other codes and of training, read safely and fitted to [`KaleidoTransformer3DModel`].

A checkpoint is opened (weights alone, memory mapped), its names are freed from wrappers (`module.`, `ema.`, ...) and
renamed by a table, its config is inferred from shapes where nothing tells it, and its tensors are cut to ours. Nothing
is left over and nothing is missing, or [`CheckpointError`] names it.
"""

import inspect
import json
import math
import os
import pickle
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import torch
from diffusers.loaders import FromOriginalModelMixin
from diffusers.loaders.single_file_utils import load_single_file_checkpoint
from diffusers.models.modeling_utils import ModelMixin
from safetensors import safe_open
from tqdm.auto import tqdm

from ..files import written_whole
from .alignment import align_weights


__all__ = [
    "RENAMES",
    "Checkpoint",
    "CheckpointError",
    "ConvertedWeights",
    "KaleidoSingleFileMixin",
    "channels_first",
    "checkpoint_from_dict",
    "convert_weights",
    "infer_config",
    "is_weights_file",
    "load_transformer",
    "read_checkpoint",
    "read_renames",
    "rename",
    "select_weights",
    "write_safetensors",
]

Renames = list[tuple[str, str | None]]
WhichWeights = Literal["auto", "raw", "ema"]

# Parts of a name that say nothing, wherever they stand; those that say nothing in front; those of averaged weights;
# and what else a training checkpoint holds.
TRANSPARENT = set("module _orig_mod _fsdp_wrapped_module _checkpoint_wrapped_module base_layer".split())
WRAPPERS = set(
    "state_dict model_state_dict model online_model diffusion_model transformer net network denoiser backbone".split()
)
AVERAGED = set("ema ema_model model_ema ema_state_dict ema_weights transformer_ema averaged_model".split())
TRAINING_STATE = set(
    "optimizer optimizers optimizer_states optim opt lr_scheduler lr_schedulers scheduler scaler grad_scaler rng"
    " rng_state callbacks loops".split()
)

# Regular expressions and what they turn into, applied one after the other; `None` leaves a tensor out. Our own names
# come through unchanged, and so do names that no rule knows.
RENAMES: Renames = [
    # Computed, not learned; counters of averaging
    (r"^(?:.*\.)?(?:freqs|freqs_cis|inv_freq|n_averaged|initted)$", None),
    # Ends of the network
    (r"^(?:x_embedder|patch_embedder|patch_embedding|patch_embed|img_in|proj_in)(?:\.proj)?\.", "patch_embed."),
    (r"^adaln_single\.emb\.", ""),
    (r"^(?:t_embedder|time_embedder|time_embedding|timestep_embedder)(?:\.mlp)?\.", "time_mlp."),
    (r"^time_mlp\.(?:0|linear_1)\.", "time_embed.embedder.linear_1."),
    (r"^time_mlp\.(?:2|linear_2)\.", "time_embed.embedder.linear_2."),
    (r"^(?:t_block|adaln_single|adaLN_modulation|time_projection)\.(?:1|linear)\.", "time_embed.linear."),
    (r"^(?:final_layer|head)\.(?:norm_final|norm)\.", "norm_out."),
    (r"^(?:norm|norm_f|final_norm|norm_final)\.", "norm_out."),
    (r"^(?:final_layer|head)\.(?:linear|head|proj)\.", "proj_out."),
    (r"^(?:final_layer|head)\.(?:scale_shift_table|modulation)$", "scale_shift_table"),
    # Blocks
    (r"^(?:blocks|layers|h)\.(\d+)\.", r"transformer_blocks.\1."),
    (r"\.modulation$", ".scale_shift_table"),
    (r"\.(?:attention_norm1|input_layernorm|pre_attn_norm|attn_norm)\.", ".norm1."),
    (r"\.(?:attention_norm2|post_attention_layernorm|post_attn_norm)\.", ".norm2."),
    (r"\.(?:ffn_norm1|pre_feedforward_layernorm|pre_ffn?_norm|ffn?_norm|mlp_norm)\.", ".norm3."),
    (r"\.(?:ffn_norm2|post_feedforward_layernorm|post_ffn?_norm)\.", ".norm4."),
    # Attention
    (r"\.(?:attention|self_attn|self_attention|attn1)\.", ".attn."),
    (r"\.attn\.(?:norm\.)?([qk])(?:uery|ey)?_?norm\.", r".attn.norm_\1."),
    (r"\.attn\.(?:[wW]?qkv|qkv_proj)\.", ".attn.to_qkv."),
    (r"\.attn\.w?([qkv])(?:_proj)?\.", r".attn.to_\1."),
    (r"\.attn\.(?:wo|o|o_proj|out|out_proj|proj|to_out)\.(?=weight$)", ".attn.to_out.0."),
    # Feed-forward
    (r"^(transformer_blocks\.\d+)\.(?:mlp|ffn|feed_forward|swiglu)\.", r"\1.ff."),
    (r"\.ff\.(?:w13|gate_up)\.", ".ff.gate_up_proj."),
    (r"\.ff\.net\.0\.proj\.", ".ff.up_gate_proj."),
    (r"\.ff\.(?:w1|gate)\.", ".ff.gate_proj."),
    (r"\.ff\.(?:w3|up)\.", ".ff.up_proj."),
    (r"\.ff\.(?:w2|down|net\.2)\.", ".ff.down_proj."),
    # Scales of norms
    (r"norm(\w*)\.(?:scale|gamma)$", r"norm\1.weight"),
]

# Layers that hold several of ours, stacked along their outputs (all query heads, then key heads, then value heads).
FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "up_gate_proj": ("up_proj", "gate_proj"),
}

# What shapes cannot tell. `patch_size` and `in_channels` join where the patch embedding is a matrix.
ASSUMED = tuple("layer_pattern camera_encoding rope_axes_dim rope_theta rope_time_scale sample_size norm_eps".split())

CONFIG_KEY, SCHEDULER_KEY = "kaleido_config", "kaleido_scheduler"  # in the header of our single files
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
DTYPE_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, is refused, or does not fit. One line, with the names of the tensors."""


@dataclass
class Checkpoint:
    """
    Weights with what is known of them. Tensors of files are memory mapped: they cost memory when they are read.

    Args:
        path (`str`): where they came from, for people.
        tensors (`dict[str, torch.Tensor]`): weights under our names; fused and unusual shapes are still as they came.
        weights (`str`): `"raw"` or `"ema"`: which were taken.
        origins (`dict[str, str]`): the name in the checkpoint of each tensor.
        config (`dict`, *optional*): config of the transformer, where something tells it.
        scheduler (`dict`, *optional*): config of the scheduler, likewise.
    """

    path: str
    tensors: dict[str, torch.Tensor]
    weights: str
    origins: dict[str, str]
    config: dict[str, Any] | None = None
    scheduler: dict[str, Any] | None = None


class ConvertedWeights(NamedTuple):
    """Weights `tensors` that fit a transformer of `config` exactly, and the entries of `config` that were assumed."""

    tensors: dict[str, torch.Tensor]
    config: dict[str, Any]
    assumed: list[str]


# Reading


class _Opened(NamedTuple):
    """Names of the tensors of a file, what reads one of them, and the header."""

    keys: Iterable[str]
    fetch: Callable[[str], torch.Tensor]
    header: dict[str, str]


def is_weights_file(path: str | os.PathLike) -> bool:
    """Whether a file is named as weights are: `.safetensors`, `.pt`, `.pth`, `.bin`, `.ckpt`, or a shard index.

    Args:
        path (`str` or `os.PathLike`): the file.
    """
    name = Path(path).name
    return name.endswith((".safetensors", ".safetensors.index.json", *TORCH_SUFFIXES))


def read_checkpoint(
    path: str | os.PathLike, weights: WhichWeights = "auto", renames: Renames | None = None
) -> Checkpoint:
    """
    Reads weights. No code of the checkpoint is run: pickles are loaded with `weights_only=True`, and the metadata of a
    torch.distributed.checkpoint folder by an unpickler that knows only the classes of that metadata.

    Args:
        path (`str` or `os.PathLike`):
            A `.safetensors`, `.pt`, `.pth`, `.bin` or `.ckpt` file, an index of safetensors shards, or a folder: of a
            pipeline, of a transformer, a `checkpoint-N` of training, or one of torch.distributed.checkpoint.
        weights (`str`, defaults to `"auto"`):
            `"raw"` or averaged (`"ema"`) ones; `"auto"` takes averaged ones where there are any.
        renames (`list[tuple[str, str | None]]`, *optional*):
            Rules to apply; [`RENAMES`] when not given, see [`read_renames`].

    Raises:
        [`CheckpointError`]: for what is not there, cannot be read, or could run code.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint.")
    source, taken = _transformer_folder(path, weights) if path.is_dir() else (path, None)
    opened = _open(source)
    names, found = select_weights(opened.keys, "auto" if taken else weights)
    checkpoint = _fetched(str(path), opened, names, taken or found, renames)
    folder = source if source.is_dir() else source.parent
    if source.is_dir() or source.name.startswith("diffusion_pytorch_model"):
        checkpoint.config = checkpoint.config or _json_of_class(folder / "config.json", "KaleidoTransformer3DModel")
        checkpoint.scheduler = checkpoint.scheduler or _json_of_class(
            folder.parent / "scheduler" / "scheduler_config.json"
        )
    return checkpoint


def checkpoint_from_dict(
    content: Mapping, weights: WhichWeights = "auto", renames: Renames | None = None
) -> Checkpoint:
    """
    A [`Checkpoint`] of weights that are in memory.

    Args:
        content (`Mapping`): a state dict, or a nested dictionary that holds one.
        weights (`str`, defaults to `"auto"`): as in [`read_checkpoint`].
        renames (`list[tuple[str, str | None]]`, *optional*): as in [`read_checkpoint`].
    """
    opened = _open_dict(content, "The dictionary")
    names, taken = select_weights(opened.keys, weights)
    return _fetched("The dictionary", opened, names, taken, renames)


def _fetched(path: str, opened: _Opened, names: dict[str, str], taken: str, renames: Renames | None) -> Checkpoint:
    origins: dict[str, str] = {}
    for name, key in names.items():
        renamed = rename(name, RENAMES if renames is None else renames)
        if renamed in origins:
            raise CheckpointError(f"{path}: `{key}` and `{origins[renamed]}` are both `{renamed}`.")
        if renamed is not None:
            origins[renamed] = key
    tensors = {name: opened.fetch(key).detach() for name, key in origins.items()}
    try:
        config, scheduler = (json.loads(opened.header.get(key, "null")) for key in (CONFIG_KEY, SCHEDULER_KEY))
    except ValueError as error:
        raise CheckpointError(f"{path}: its header is not JSON where it should be ({error}).") from error
    return Checkpoint(path, tensors, taken, origins, config, scheduler)


def _transformer_folder(path: Path, weights: WhichWeights) -> tuple[Path, str | None]:
    """The folder that holds weights, and which they are where it has one folder for raw and one for averaged ones."""
    folders = {"raw": path / "transformer", "ema": path / "transformer_ema"}
    there = [which for which, folder in folders.items() if folder.is_dir()]
    if not there:
        return path, None
    wanted = there[-1] if weights == "auto" else weights
    if wanted not in there:
        raise CheckpointError(f"{path} holds no {wanted} weights: no folder `{folders[wanted].name}`.")
    return folders[wanted], wanted


def _json_of_class(path: Path, class_name: str | None = None) -> dict[str, Any] | None:
    """A config file, unless it is not there or is that of another class."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}.") from error
    if class_name is not None and content.get("_class_name") != class_name:
        return None
    return content


def _open(source: Path) -> _Opened:
    if source.is_dir():
        if (source / ".metadata").is_file():
            return _open_distributed(source)
        source = _only_weights_file(source)
    if source.name.endswith(".index.json"):
        return _open_shards(source)
    if source.suffix == ".safetensors":
        return _open_safetensors(source)
    if source.suffix in TORCH_SUFFIXES:
        return _open_torch(source)
    raise CheckpointError(f"{source}: weights are .safetensors, {', '.join(TORCH_SUFFIXES)}, or an .index.json.")


def _only_weights_file(folder: Path) -> Path:
    indices = sorted(folder.glob("*.safetensors.index.json"))
    found = indices or sorted(path for path in folder.iterdir() if is_weights_file(path))
    if len(found) > 1:
        found = [path for path in found if path.name.startswith("diffusion_pytorch_model.safetensors")] or found
    if len(found) != 1:
        listed = ", ".join(path.name for path in found) or "none"
        raise CheckpointError(f"{folder} must hold one file of weights, or an index of shards; it holds {listed}.")
    return found[0]


def _open_safetensors(path: Path) -> _Opened:
    try:
        file = safe_open(path, framework="pt")
    except Exception as error:  # its own type, or an OSError
        raise _unreadable(path, error) from error
    return _Opened(file.keys(), file.get_tensor, file.metadata() or {})


def _open_shards(index: Path) -> _Opened:
    try:
        shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = {name: (index.parent / name) for name in sorted(set(shard_of.values()))}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not an index of shards ({type(error).__name__}: {error}).") from error
    _check_inside(index.parent, shards)
    absent = [name for name, path in shards.items() if not path.is_file()]
    if absent:
        raise CheckpointError(f"{index} names files that are missing: {', '.join(absent)}.")
    opened = {name: _open_safetensors(path) for name, path in shards.items()}
    keys = {name: set(shard.keys) for name, shard in opened.items()}
    absent = [key for key, name in shard_of.items() if key not in keys[name]]
    if absent:
        raise CheckpointError(f"{index} names tensors that its files do not hold: {', '.join(absent)}.")
    return _Opened(shard_of, lambda key: opened[shard_of[key]].fetch(key), {})


def _open_torch(path: Path) -> _Opened:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an odd protocol of a damaged pickle
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # whatever torch raises on what it does not know
        raise _unreadable(path, error) from error
    return _open_dict(content, str(path))


def _open_dict(content: Any, path: str) -> _Opened:
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors.")
    flat = {}

    def flatten(branch: Mapping, prefix: str) -> None:
        for key, value in branch.items():
            if isinstance(value, Mapping):
                flatten(value, f"{prefix}{key}.")
            elif torch.is_tensor(value):
                flat[f"{prefix}{key}"] = value

    flatten(content, "")
    return _Opened(flat, flat.__getitem__, {})


class _MetadataUnpickler(pickle.Unpickler):
    """Knows the classes of the `.metadata` of torch.distributed.checkpoint, plain values, and nothing else."""

    ALLOWED = {
        "torch.distributed.checkpoint.metadata": (
            "Metadata MetadataIndex StorageMeta TensorStorageMetadata BytesStorageMetadata ChunkStorageMetadata"
            " TensorProperties _MEM_FORMAT_ENCODING".split()
        ),
        "torch.distributed.checkpoint.filesystem": ["_StorageInfo"],
        "torch.serialization": ["_get_layout"],
        "torch": ["Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))],
    }

    def find_class(self, module: str, name: str) -> Any:
        if module in ("pathlib", "pathlib._local") and name in ("PosixPath", "WindowsPath"):
            return PurePosixPath  # where it was saved, on whatever system
        if name not in self.ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return super().find_class(module, name)


def _open_distributed(folder: Path) -> _Opened:
    """A folder of torch.distributed.checkpoint. torch would unpickle its metadata, and what in it is no tensor. Here
    [`_MetadataUnpickler`] reads the metadata, and only tensors are asked for, which torch loads by `weights_only`."""
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    try:
        with open(folder / ".metadata", "rb") as stream:
            metadata = _MetadataUnpickler(stream).load()
        entries = metadata.state_dict_metadata
        entries = {key: entry for key, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}
        files = {info.relative_path for info in metadata.storage_data.values()}
    except Exception as error:  # damaged pickles raise anything
        raise _unreadable(folder / ".metadata", error) from error
    _check_inside(folder, files)

    class Reader(dcp.FileSystemReader):
        def read_metadata(self, *args, **kwargs):
            return metadata

    def fetch(key: str) -> torch.Tensor:
        try:
            tensor = torch.empty(entries[key].size, dtype=entries[key].properties.dtype)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that one process is alone, and an odd protocol of a damaged pickle
                dcp.load({key: tensor}, storage_reader=Reader(folder))
        except (Exception, CheckpointException) as error:  # the latter is no Exception
            raise _unreadable(f"{folder}: tensor `{key}`", error) from error
        return tensor

    return _Opened(entries, fetch, {})


def _check_inside(folder: Path, names: Iterable[str]) -> None:
    outside = [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]
    if outside:
        raise CheckpointError(f"{folder} names files outside of it: {', '.join(outside)}.")


def _unreadable(what: str | Path, error: BaseException) -> CheckpointError:
    message = str(error)
    forbidden = re.search(r"GLOBAL ([\w.]+)", message)
    if forbidden:
        return CheckpointError(
            f"{what} is refused: it asks for `{forbidden[1]}`, and a pickle that loads more than tensors can run any"
            " code. Save its state dict alone, best as safetensors."
        )
    reason = "not a file of tensors" if isinstance(error, pickle.UnpicklingError) else message.partition("\n")[0][:200]
    return CheckpointError(f"{what} cannot be read, it may be truncated or damaged ({reason}).")


# Names


def select_weights(keys: Iterable[str], weights: WhichWeights = "auto") -> tuple[dict[str, str], str]:
    """
    Frees names from wrappers in any nesting (`module.`, `_orig_mod.`, `model.`, `ema.`, `base_layer.`, ...) and takes
    the raw or the averaged ones. What else training keeps (optimizers and the like) is left out.

    Args:
        keys (`Iterable[str]`): names of tensors; nested dictionaries are joined by dots.
        weights (`str`, defaults to `"auto"`): as in [`read_checkpoint`].

    Returns:
        `tuple[dict[str, str], str]`: freed names to the names they come from, and `"raw"` or `"ema"`.
        [`CheckpointError`] if there are none, or two of one name.
    """
    found: dict[str, dict[str, list[str]]] = {"raw": {}, "ema": {}}
    for key in keys:
        parts, which = [part for part in key.split(".") if part not in TRANSPARENT], "raw"
        while len(parts) > 1 and parts[0] in WRAPPERS | AVERAGED:
            which = "ema" if parts.pop(0) in AVERAGED else which
        if parts and parts[0] not in TRAINING_STATE:
            found[which].setdefault(".".join(parts), []).append(key)
    taken = weights if weights != "auto" else "ema" if found["ema"] else "raw"
    if not found[taken]:
        raise CheckpointError(f"The checkpoint holds no {taken} weights" + (".", " (--weights).")[weights != "auto"])
    double = [" and ".join(names) for names in found[taken].values() if len(names) > 1]
    if double:
        raise CheckpointError(f"The checkpoint holds tensors twice: {'; '.join(double)}.")
    return {name: names[0] for name, names in found[taken].items()}, taken


def rename(name: str, renames: Renames) -> str | None:
    """
    Applies all rules in their order.

    Args:
        name (`str`): name of a tensor, freed from wrappers.
        renames (`list[tuple[str, str | None]]`): rules, as [`RENAMES`].

    Returns:
        `str` or `None`: the name here, or that the tensor is left out.
    """
    for pattern, replacement in renames:
        if replacement is None:
            if re.search(pattern, name):
                return None
        else:
            name = re.sub(pattern, replacement, name)
    return name


def read_renames(path: str | os.PathLike) -> Renames:
    """
    Rules of a JSON file, `[["pattern", "replacement"], ["pattern", null], ...]` as in [`RENAMES`], followed by those
    of [`RENAMES`]: only what differs needs to be said.

    Args:
        path (`str` or `os.PathLike`): the file.

    Raises:
        [`CheckpointError`]: if it is not such a list, or a pattern is no regular expression.
    """
    try:
        rules = json.loads(Path(path).read_text(encoding="utf-8"))
        rules = [(pattern, replacement) for pattern, replacement in rules]
        for pattern, replacement in rules:
            # An empty alternative matches, so that the replacement is looked at too
            re.sub(f"{pattern}|", replacement or "", "")
    except (ValueError, TypeError, re.error) as error:
        raise CheckpointError(f"{path} must be a list of [pattern, replacement or null] ({error}).") from error
    return rules + RENAMES


# Shapes


def infer_config(
    tensors: Mapping[str, torch.Tensor], given: Mapping[str, Any], defaults: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """
    The config that shapes tell: layers, heads, key heads, head width, inner width, channels and patch size.

    Args:
        tensors (`Mapping[str, torch.Tensor]`): weights under our names, fused or not.
        given (`Mapping[str, Any]`): entries of the config that are known.
        defaults (`Mapping[str, Any]`): entries of the config for what shapes do not tell.

    Returns:
        `tuple[dict, list[str]]`: the config, and the entries that neither shapes tell nor `given`.
    """
    block = "transformer_blocks.0"
    fused = f"{block}.attn.to_qkv.weight"
    keys = fused if fused in tensors else f"{block}.attn.to_k.weight"
    needed = {f"{block}.norm1.weight": 1, f"{block}.attn.norm_q.weight": 1, keys: 2, f"{block}.ff.down_proj.weight": 2}
    needed |= {"patch_embed.weight": 2, "proj_out.weight": 2}
    absent = [name for name, axes in needed.items() if name not in tensors or tensors[name].ndim < axes]
    if absent:
        held = sorted({re.sub(r"\b\d+\b", "N", name) for name in tensors})
        raise CheckpointError(
            f"The config cannot be told from the shapes, for want of {', '.join(absent)}. There are {', '.join(held)}."
            " --rename takes rules for other names."
        )
    shapes = {name: tensors[name].shape for name in needed}
    width, head = shapes[f"{block}.norm1.weight"][0], shapes[f"{block}.attn.norm_q.weight"][0]
    key_rows = (shapes[keys][0] - width) // 2 if keys == fused else shapes[keys][0]
    if width % head or key_rows < head or key_rows % head:
        raise CheckpointError(
            f"Heads of {head} channels (`{block}.attn.norm_q.weight`) do not divide the width {width} and the"
            f" {key_rows} channels of keys."
        )
    blocks = {match[1] for name in tensors if (match := re.match(r"transformer_blocks\.(\d+)\.", name))}
    told = {
        "num_layers": len(blocks),
        "num_attention_heads": width // head,
        "num_key_value_heads": key_rows // head,
        "attention_head_dim": head,
        "ffn_dim": shapes[f"{block}.ff.down_proj.weight"][1],
    }
    patches, assumed = _infer_patches(tensors["patch_embed.weight"], width, given)
    told |= patches
    outputs = shapes["proj_out.weight"][0] // told["patch_size"] ** 2
    told["out_channels"] = None if outputs == told["in_channels"] else outputs
    guesses = {
        **defaults,
        "rope_axes_dim": _default_axes(head),
        "sample_size": max(defaults["sample_size"] // told["patch_size"], 1) * told["patch_size"],
    }
    assumed += [name for name in ASSUMED if name not in given]
    return {**{name: guesses[name] for name in ASSUMED}, **told, **given}, assumed


def _default_axes(head: int) -> tuple[int, int, int]:
    """Rotary channels of columns, rows and time: 12, 12 and 8 of 64, and near that share of other even halves."""
    side = 2 * round(3 * head / 32)
    return side, side, head // 2 - 2 * side


def _infer_patches(weight: torch.Tensor, width: int, given: Mapping[str, Any]) -> tuple[dict[str, int], list[str]]:
    """Channels and patch size, and which of them are assumed: a matrix tells their product alone."""
    if weight.ndim > 2:
        return {"in_channels": weight.shape[1], "patch_size": weight.shape[-1]}, []
    inputs = weight.shape[1] if weight.shape[0] == width else weight.shape[0]
    if "patch_size" in given:
        patch = given["patch_size"]
    elif "in_channels" in given:
        patch = max(math.isqrt(inputs // given["in_channels"]), 1)
    else:
        pixels = math.isqrt(inputs // 3)
        patch = pixels if inputs == 3 * pixels**2 else 2 if inputs % 4 == 0 else 1
    known = "patch_size" in given or "in_channels" in given
    return {"in_channels": inputs // patch**2, "patch_size": patch}, [] if known else ["patch_size", "in_channels"]


def convert_weights(
    model_class: type[ModelMixin],
    checkpoint: Checkpoint,
    given: Mapping[str, Any] | None = None,
    channels_last_patches: bool = False,
) -> ConvertedWeights:
    """
    Fits weights to our transformer: fused layers are split; patch embeddings that are convolutions or transposed, and
    modulation tables with an axis of one, become ours. Tensors stay memory mapped.

    Args:
        model_class (`type`): [`KaleidoTransformer3DModel`].
        checkpoint ([`Checkpoint`]): the weights.
        given (`Mapping[str, Any]`, *optional*): entries of the config, which go before those that the checkpoint has.
        channels_last_patches (`bool`, defaults to `False`): whether the output layer, and a patch embedding that is a
            matrix, have a patch as rows, columns, channels, as DiT's, not channels first.

    Raises:
        [`CheckpointError`]: names every tensor that is left over, missing or of a wrong shape.
    """
    given = dict(given or {})
    tensors, assumed = dict(checkpoint.tensors), []
    if checkpoint.config is not None:
        stored = {key: value for key, value in checkpoint.config.items() if not key.startswith("_")}
        config = {**stored, **given}
    else:
        config, assumed = infer_config(tensors, given, _config_defaults(model_class))
    model = _on_meta(model_class, config)
    expected = model.state_dict()
    wrong = _split_fused(tensors, expected)
    for name in [name for name in tensors if name in expected]:
        fitted = _fitted(name, tensors[name], expected[name].shape)
        if fitted is None or fitted.dtype not in DTYPE_NAMES:
            form = f"{list(tensors[name].shape)} in {tensors[name].dtype}".replace("torch.", "")
            wrong[name] = f"{name} (is {form}, must be {list(expected[name].shape)} in floating point)"
        elif channels_last_patches and name == "patch_embed.weight" and tensors[name].ndim == 2:
            fitted = channels_first(fitted, 1, model.config.patch_size)
        elif channels_last_patches and name.startswith("proj_out."):
            fitted = channels_first(fitted, 0, model.config.patch_size)
        tensors[name] = fitted
    left_over = [_told(name, checkpoint.origins) for name in tensors if name not in expected and name not in wrong]
    covered = {part for name in wrong for part in _parts_of(name)}
    missing = [name for name in expected if name not in tensors and name not in covered]
    problems = {"not known": left_over, "missing": missing, "of a wrong shape": list(wrong.values())}
    if any(problems.values()):
        listed = "; ".join(f"{what}: {', '.join(names)}" for what, names in problems.items() if names)
        raise CheckpointError(f"{checkpoint.path} does not fit. Tensors {listed}.")
    return ConvertedWeights({name: tensors[name] for name in expected}, config, assumed)


def load_transformer(model_class: type[ModelMixin], converted: ConvertedWeights) -> ModelMixin:
    """
    A transformer whose parameters are the tensors themselves, memory mapped where they were: nothing is allocated.

    Args:
        model_class (`type`): [`KaleidoTransformer3DModel`].
        converted ([`ConvertedWeights`]): its config and weights.
    """
    model = _on_meta(model_class, converted.config)
    model.load_state_dict(converted.tensors, strict=True, assign=True)
    return model.eval()


def _config_defaults(model_class: type[ModelMixin]) -> dict[str, Any]:
    parameters = inspect.signature(model_class.__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items() if name != "self"}


def _on_meta(model_class: type[ModelMixin], config: dict[str, Any]) -> ModelMixin:
    with torch.device("meta"):
        return model_class.from_config(config)


def _parts_of(name: str) -> list[str]:
    """Our names of the layers in a fused one; none for other names."""
    stem, _, end = name.rpartition(".")
    stem, _, layer = stem.rpartition(".")
    return [f"{stem}.{part}.{end}" for part in FUSED.get(layer, ())]


def _split_fused(tensors: dict[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Replaces fused layers by theirs, in place; returns what is wrong with those that cannot be."""
    wrong = {}
    for name in list(tensors):
        parts = _parts_of(name)
        if not parts or not all(part in expected for part in parts):
            continue
        double = [part for part in parts if part in tensors]
        sizes = [expected[part].shape[0] for part in parts]
        if double:
            wrong[name] = f"{name} (beside {', '.join(double)})"
        elif tensors[name].shape != (sum(sizes), *expected[parts[0]].shape[1:]):
            wrong[name] = (
                f"{name} (is {list(tensors[name].shape)}, must be {[sum(sizes), *expected[parts[0]].shape[1:]]})"
            )
        else:
            tensors.update(zip(parts, tensors.pop(name).split(sizes)))
    return wrong


def _fitted(name: str, weight: torch.Tensor, shape: torch.Size) -> torch.Tensor | None:
    """The tensor in our shape, if it is the same in another form."""
    if weight.shape == shape:
        return weight
    if name == "patch_embed.weight":
        if weight.ndim > 2:  # a convolution, over one frame where it has time
            weight = weight.flatten(1)
        return weight if weight.shape == shape else weight.T if weight.shape == shape[::-1] else None
    if name.endswith("scale_shift_table") and weight.numel() == shape.numel():
        return weight.reshape(shape)
    return None


def channels_first(weight: torch.Tensor, axis: int, patch_size: int) -> torch.Tensor:
    """
    Reorders patches of rows, columns, channels to channels, rows, columns.

    Args:
        weight (`torch.Tensor`): with patches along one axis.
        axis (`int`): that axis, counted from the front.
        patch_size (`int`): rows and columns of a patch.
    """
    return weight.unflatten(axis, (patch_size, patch_size, -1)).movedim(axis + 2, axis).flatten(axis, axis + 2)


def _told(name: str, origins: Mapping[str, str]) -> str:
    origin = origins.get(name, name)
    return name if origin == name else f"{origin} (read as {name})"


# Writing


def write_safetensors(
    path: str | os.PathLike,
    tensors: Mapping[str, torch.Tensor],
    dtypes: Mapping[str, torch.dtype],
    metadata: Mapping[str, str],
) -> None:
    """
    Writes a file, whole or not at all, one tensor after the other: memory holds one converted tensor at a time, where
    `safetensors.torch.save_file` needs all of them.

    Args:
        path (`str` or `os.PathLike`): the file.
        tensors (`Mapping[str, torch.Tensor]`): what to write.
        dtypes (`Mapping[str, torch.dtype]`): precision of each, of 16 to 64 bits.
        metadata (`Mapping[str, str]`): goes into the header.

    Raises:
        [`CheckpointError`]: if values are not finite, or would not be in their precision.
    """
    path = Path(path)
    order = sorted(tensors, key=lambda name: (-dtypes[name].itemsize, name))  # aligned, as the library lays them out
    header, end = {"__metadata__": dict(metadata)}, 0
    for name in order:
        start, end = end, end + tensors[name].numel() * dtypes[name].itemsize
        form = {"dtype": DTYPE_NAMES[dtypes[name]], "shape": list(tensors[name].shape)}
        header[name] = {**form, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with written_whole(path) as part, open(part, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in tqdm(order, desc=path.name, delay=2, disable=None):
            values = tensors[name].detach().to("cpu", dtypes[name]).contiguous()
            if not torch.stack(values.aminmax()).isfinite().all():
                raise CheckpointError(f"`{name}` has values that are not finite in {dtypes[name]}.")
            stream.write(values.flatten().view(torch.uint8).numpy())


# In diffusers


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
        As in diffusers, but needs no `config`: it comes from the file, or is inferred from its shapes.

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
        given = {name: kwargs.pop(name) for name in _config_defaults(cls) if name in kwargs}
        converted = convert_weights(cls, checkpoint, given, channels_last_patches)
        with tempfile.TemporaryDirectory() as folder:
            _on_meta(cls, converted.config).save_config(folder)
            options = {**kwargs, "config": folder, "subfolder": None}
            model = super().from_single_file(converted.tensors, **options)
        align_weights(model)
        return model
