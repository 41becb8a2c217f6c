"""What several verbs share."""

import difflib
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE

from ..bundled import BUNDLED, resolve_checkpoint
from ..loaders.adapter_files import read_adapter_info
from ..models.precision import fast_dtype
from ..pipelines.hub import explain_hub_error
from ..pipelines.pipeline_kaleido import KaleidoViewSynthesisPipeline
from .errors import plain


__all__ = ["check_name", "finished", "load_pipeline", "loading_of", "say_next", "where_it_runs"]


def finished(output: Path) -> str:
    """The words for a run that is given again.

    Args:
        output (`Path`): its folder.
    """
    return f"{output} was finished before: nothing is changed (--overwrite starts anew)"


def say_next(*words: str | Path | None, **options: str | Path | None) -> None:
    """Prints the very next command.

    Args:
        words (`str` or `Path`): after `kaleido`.
        options (`str` or `Path`): by their names; `None`, and `bundled` where it is what a verb does anyway, are left
            out.
    """
    command = ["kaleido", *map(str, words)]
    for name, value in options.items():
        if value is not None and value != "bundled":
            command += [f"--{name.replace('_', '-')}", str(value)]
    print(f"next: {shlex.join(command)}")


@contextmanager
def loading_of(checkpoint: str) -> Iterator[None]:
    """Turns what libraries raise at damaged or foreign files into a sentence.

    Args:
        checkpoint (`str`): what is loaded, as the user named it.
    """
    try:
        yield
    except OSError as error:
        told = explain_hub_error(error, checkpoint)
        if told and "connection" in told and not Path(checkpoint).exists():
            told = f"No folder here is called {checkpoint}, so the Hub was asked. {told}"
        raise OSError(plain(told or str(error))) from error
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # JSON of any shape, headers of any length: their readers raise whatever they meet
        lines = str(error).strip().splitlines() or ["no reason is given"]
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{checkpoint} cannot be loaded. {kind}{plain(' '.join(lines))[:500]}") from error


def load_pipeline(
    checkpoint: str, device: str = "auto", dtype: str = "float32", lora: str | None = None
) -> KaleidoViewSynthesisPipeline:
    """A pipeline on its device; of an adapter, its base with the adapter attached.

    Args:
        checkpoint (`str`): folder, Hub id, `bundled`, or the name of a bundled checkpoint; or a folder of an adapter
            (see `kaleido lora`) whose base is one of these. Where the base is not found, raises `ValueError`.
        device (`str`, defaults to `"auto"`): `cpu`, `cuda`, `mps`, or the best there is. One that is not
            there raises `ValueError`.
        dtype (`str`, defaults to `"float32"`): precision of the weights; `auto` is [`fast_dtype`] of the device.
        lora (`str`, *optional*): folder or Hub id of an adapter to add.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    precision = fast_dtype(device.split(":")[0]) if dtype == "auto" else getattr(torch, dtype)
    folder, adapter = resolve_checkpoint(checkpoint), None
    check_name("--checkpoint", folder)
    if lora is not None:
        check_name("--lora", lora)
    if (Path(folder) / LORA_WEIGHT_NAME_SAFE).is_file():
        adapter, folder = folder, _base_of(folder)
    with loading_of(checkpoint):
        pipe = KaleidoViewSynthesisPipeline.from_pretrained(folder, dtype=precision)
        if adapter is not None:
            pipe.load_lora_weights(adapter)
    if lora is not None:
        with loading_of(lora):
            pipe.load_lora_weights(lora, adapter_name="added")
            pipe.set_adapters([*(["default_0"] if adapter is not None else []), "added"])
    try:
        return pipe.to(device)
    except (RuntimeError, AssertionError) as error:  # torch raises either
        raise ValueError(f"--device {device!r} cannot be used here ({str(error).splitlines()[0]}).") from error


def where_it_runs(pipe: KaleidoViewSynthesisPipeline) -> str:
    """The precision and the device of a pipeline, in words for the log.

    Args:
        pipe ([`KaleidoViewSynthesisPipeline`]): as loaded.
    """
    return f"{str(pipe.dtype).removeprefix('torch.')} on {pipe.device}"


def check_name(option: str, name: str) -> None:
    """Raises `ValueError` for what is neither a folder here nor can be a Hub id, before anybody is asked for it.

    Args:
        option (`str`): that names it.
        name (`str`): as it was given.
    """
    if Path(name).exists() or re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        return
    near = difflib.get_close_matches(name, BUNDLED, 1)
    meant = f" Did you mean {near[0]}?" if near else ""
    raise ValueError(
        f"{option} {name!r}: there is no such folder, and no checkpoint that ships is called so"
        f" ({', '.join(BUNDLED)}).{meant} A Hub id is written NAME/REPOSITORY."
    )


def _base_of(adapter: str) -> str:
    """The folder or Hub id of the base that an adapter was trained on."""
    info = read_adapter_info(adapter)
    if info is None:
        raise ValueError(f"{adapter}: an adapter that does not say which base it belongs to; load it in Python.")
    base = resolve_checkpoint(info.base_name)
    if base == info.base_name and "/" not in base and not Path(base).is_dir():
        raise ValueError(
            f"{adapter}: its base {base!r} neither ships nor lies here. Name both: --checkpoint BASE --lora {adapter}."
        )
    return base
