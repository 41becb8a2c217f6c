"""The command line: `kaleido VERB ...`, one module a verb."""

import sys
import warnings
from collections.abc import Sequence

import tyro

from .convert import Convert
from .demo import Demo
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
    """Runs one verb; returns its exit status. Bad input ends in one line on standard error and status 1.

    Args:
        arguments (`Sequence[str]`, *optional*):
            Words after `kaleido`; those of the process when not given.
    """
    warnings.showwarning = _show_warning
    command = tyro.extras.subcommand_cli_from_dict(
        VERBS, prog="kaleido", description="Posed photos in, new views out.", args=arguments
    )
    try:
        command.run()
    except (ValueError, ImportError, OSError) as error:
        print(f"kaleido: {error}", file=sys.stderr)
        return 1
    return 0


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"kaleido: warning: {message}", file=sys.stderr)
