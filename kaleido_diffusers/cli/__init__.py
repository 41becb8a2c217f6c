"""The command line: `kaleido VERB ...`, one module a verb, imported when the verb runs."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import tyro

from .._version import __version__
from .config_files import with_config_files
from .errors import Verb, plain, run_verb
from .settings import (
    ConvertSettings,
    DemoSettings,
    EvaluateSettings,
    InfoSettings,
    LoraSettings,
    PosesSettings,
    PushSettings,
    RenderSettings,
    ShardSettings,
    TrainSettings,
    ViewSettings,
)


__all__ = ["main"]

VERBS: dict[str, type] = {
    "render": RenderSettings,
    "poses": PosesSettings,
    "train": TrainSettings,
    "lora": LoraSettings,
    "evaluate": EvaluateSettings,
    "convert": ConvertSettings,
    "push": PushSettings,
    "demo": DemoSettings,
    "view": ViewSettings,
    "shard": ShardSettings,
    "info": InfoSettings,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns its exit status. What goes wrong is said in one line on standard error, see [`run_verb`];
    `--debug` among the words shows tracebacks, and `--config` names YAML files of settings, see [`with_config_files`].

    Args:
        arguments (`Sequence[str]`, *optional*):
            Words after `kaleido`; those of the process when not given.
    """
    warnings.showwarning = _show_warning
    # Norms keep float32 weights on purpose, also where all else is bfloat16
    warnings.filterwarnings("ignore", "Mismatch dtype between input and weight")
    # diffusers imports onnxruntime, where it is installed; that would count its users, and leave a file `.ses`
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words  # of every verb, and no setting of any
    words = [word for word in words if word != "--debug"]
    if words == ["--version"]:
        print(f"kaleido {__version__}")
        return 0
    try:
        words = with_config_files(words)
    except (OSError, ValueError) as error:
        print(f"kaleido: {plain(str(error))}", file=sys.stderr)
        return 1
    if words and words[0] in VERBS:  # alone, so that what is suggested for a mistake is an option of the same verb
        settings = tyro.cli(VERBS[words[0]], prog=f"kaleido {words[0]}", args=words[1:])
    else:
        settings = tyro.extras.subcommand_cli_from_dict(
            VERBS, prog="kaleido", description="Posed photos in, new views out.", args=words
        )
    return run_verb(lambda: _verb(settings).run(), debug)


def _verb(settings: Any) -> Verb:
    """What does the work of settings: the class of a verb's name in the module of a verb's name."""
    name = next(name for name, kind in VERBS.items() if kind is type(settings))
    with _silent_libraries():
        module = import_module(f".{name}", __name__)
        from diffusers.utils import logging as diffusers_logging

    diffusers_logging.disable_progress_bar()  # of the files of a pipeline, which load in a moment
    logging.getLogger("diffusers.models.modeling_utils").addFilter(_is_news)
    return getattr(module, name.capitalize())(**vars(settings))


@contextmanager
def _silent_libraries() -> Iterator[None]:
    """While they are imported, libraries tell of parts of theirs that cannot be loaded, such as kernels of torchao for
    other machines. Nothing that a user asked for depends on them: what does raises."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _is_news(record: logging.LogRecord) -> bool:
    """Not that attention backends are experimental, at each training."""
    return not str(record.msg).startswith("Attention backends are an experimental feature")


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"kaleido: warning: {plain(str(message))}", file=sys.stderr)
