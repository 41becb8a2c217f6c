"""The command line: `kaleido VERB ...`, one module a verb."""

import sys
import warnings
from collections.abc import Sequence

import tyro

from .convert import Convert
from .demo import Demo
from .errors import plain, run_verb
from .evaluate import Evaluate
from .info import Info
from .lora import Lora
from .poses import Poses
from .push import Push
from .render import Render
from .shard import Shard
from .train import Train
from .view import View


__all__ = ["main"]

VERBS = {
    "render": Render,
    "poses": Poses,
    "train": Train,
    "lora": Lora,
    "evaluate": Evaluate,
    "convert": Convert,
    "push": Push,
    "demo": Demo,
    "view": View,
    "shard": Shard,
    "info": Info,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns its exit status. What goes wrong is said in one line on standard error, see [`run_verb`];
    `--debug` among the words shows tracebacks.

    Args:
        arguments (`Sequence[str]`, *optional*):
            Words after `kaleido`; those of the process when not given.
    """
    warnings.showwarning = _show_warning
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words  # of every verb, and no setting of any
    words = [word for word in words if word != "--debug"]
    command = tyro.extras.subcommand_cli_from_dict(
        VERBS, prog="kaleido", description="Posed photos in, new views out.", args=words
    )
    return run_verb(command, debug)


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"kaleido: warning: {plain(str(message))}", file=sys.stderr)
