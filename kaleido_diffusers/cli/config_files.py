"""Settings of a verb from YAML files, beside those on the command line."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


__all__ = ["with_config_files"]

OPTION = "--config"


def with_config_files(words: Sequence[str]) -> list[str]:
    """
    The words of a command with those of its `--config FILE.yaml ...` in front, so that later files count more than
    earlier ones, and the command line counts most.

    Args:
        words (`Sequence[str]`): the verb, and what follows it.

    Raises:
        `ValueError`: for a file that is not YAML, or holds no settings by their names.
    """
    if OPTION not in words:
        return list(words)
    place = words.index(OPTION)
    files: list[str] = []
    for word in words[place + 1 :]:
        if word.startswith("--"):
            break
        files.append(word)
    rest = words[place + 1 + len(files) :]
    return [words[0], *(word for file in files for word in _words_of(Path(file))), *words[1:place], *rest]


def _words_of(file: Path) -> Iterator[str]:
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: is not YAML ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: must hold settings by their names, `size: 512`.")
    yield from _options(content, "")


def _options(content: dict[str, Any], prefix: str) -> Iterator[str]:
    for name, value in content.items():
        key = f"{prefix}{str(name).replace('_', '-')}"
        if isinstance(value, dict):
            yield from _options(value, f"{key}.")
        elif isinstance(value, bool):
            *groups, last = key.split(".")
            yield "--" + ".".join([*groups, last if value else f"no-{last}"])
        elif isinstance(value, list):
            yield from (f"--{key}", *map(str, value))
        elif value is not None:
            yield from (f"--{key}", str(value))
