"""Files that are written whole or not at all, and told apart by what they hold."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


__all__ = [
    "OR_OVERWRITE",
    "DiskFullError",
    "check_room",
    "file_digest",
    "folder_updated_whole",
    "folder_written_whole",
    "refuse_existing",
    "remove_folder",
    "remove_written",
    "same_command",
    "sync_files",
    "write_json",
    "write_text",
    "written_whole",
]

_NEARLY_FULL = (
    1 << 20
)  # bytes: writers that do not say why they failed did so for want of room, if this little is left


OR_OVERWRITE = "name another output, or pass --overwrite, which replaces it."  # ends what refuses to write over


class DiskFullError(OSError):
    """A disk has no room for what was to be written: the message names it, and says how much it takes."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path to write to, `NAME.part`, which takes the name `path` when the block ends well and is removed when it
    does not. What was there before stays till then.

    Args:
        path (`Path`): of a file; its folder must be there.

    Raises:
        [`DiskFullError`]: whatever the writer raised, if the disk was full.
    """
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)  # that of a killed run takes room which may be short
    try:
        with _room_for(part):
            yield part
            sync_files(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(path: Path, replaces: bool = False, needs: int = 0) -> Iterator[Path]:
    """A hidden folder beside `path`, not there yet, which takes its name when the block ends well and is removed when
    it does not.

    Args:
        path (`Path`): of the folder; an empty one may be there.
        replaces (`bool`, defaults to `False`):
            Whether a folder that is there gives way. It stays till the other is complete, and comes back if the
            process is killed between the two.
        needs (`int`, defaults to `0`): bytes that it will take, so that a full disk is known before it is written.

    Raises:
        [`DiskFullError`]: whatever the writer raised, if the disk was full.
    """
    path = path.absolute()
    part, old = (path.with_name(f".{path.name}.{end}") for end in ("part", "old"))
    if old.exists() and not path.exists():
        os.rename(old, path)
    for rest in (part, old):
        shutil.rmtree(rest, ignore_errors=True)
    try:
        with _room_for(part, needs):
            yield part
            sync_files(part)
        if replaces and path.exists():
            os.rename(path, old)
        os.rename(part, path)
    finally:
        for rest in (part, old) if path.exists() else (part,):
            shutil.rmtree(rest, ignore_errors=True)


@contextmanager
def folder_updated_whole(path: Path) -> Iterator[Path]:
    """As [`folder_written_whole`], for a folder of which parts stay: where to write, a copy of what is there.

    Args:
        path (`Path`): of the folder; it may be missing.
    """
    with folder_written_whole(path, replaces=True) as part:
        if path.is_dir():
            shutil.copytree(path, part)
        else:
            part.mkdir(parents=True)
        yield part


def refuse_existing(*paths: Path) -> None:
    """Raises `FileExistsError`, with what to do, if there is something already where somebody is about to write.

    Args:
        paths (`Path`): of files or folders.
    """
    for path in paths:
        if path.exists():
            raise FileExistsError(f"{path} exists already: {OR_OVERWRITE}")


def same_command(overwrite: bool) -> str:
    """How an interrupted call is named that goes on by being called again: it must not start anew.

    Args:
        overwrite (`bool`): whether it was called with `--overwrite`.
    """
    return "the same command" + ", without --overwrite," * overwrite


def remove_written(folder: Path, *patterns: str) -> None:
    """Removes files and folders of a folder, in the order of their patterns, and nothing else.

    Args:
        folder (`Path`): where they lie.
        patterns (`str`): of their names.
    """
    for pattern in patterns:
        for path in [*folder.glob(pattern)]:
            if path.is_dir() and not path.is_symlink():
                remove_folder(path)
            else:
                path.unlink()


def remove_folder(path: Path) -> None:
    """Removes a folder, of which a kill leaves no half under its name.

    Args:
        path (`Path`): of the folder.
    """
    rest = path.with_name(f".{path.name}.old.part")
    shutil.rmtree(rest, ignore_errors=True)
    os.rename(path, rest)
    shutil.rmtree(rest)


def sync_files(path: Path) -> None:
    """Sends a file, or all of a folder, to the disk: a rename does not wait for what it names.

    Args:
        path (`Path`): of a file or a folder.
    """
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with open(file, "rb") as stream:
                os.fsync(stream.fileno())


def check_room(folder: Path, needs: int) -> None:
    """Raises [`DiskFullError`] if the disk has less room than is needed.

    Args:
        folder (`Path`): a folder on the disk.
        needs (`int`): bytes.
    """
    free = shutil.disk_usage(folder).free if needs else 0
    if needs > free:
        raise DiskFullError(
            f"The disk of {folder} is too full: {_megabytes(needs)} are needed and {_megabytes(free)} free."
            " Make room and run the same command again."
        )


@contextmanager
def _room_for(path: Path, needs: int = 0) -> Iterator[None]:
    """Tells a full disk from other failures: many writers say something else, or nothing."""
    check_room(path.parent, needs)
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFullError) or not _is_for_want_of_room(error, path.parent):
            raise
        size = sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())
        raise DiskFullError(
            f"The disk of {path.parent} is full: no more than {_megabytes(size)} of {path.name} could be written. What"
            " was there before is as it was. Make room and run the same command again."
        ) from error


def _is_for_want_of_room(error: Exception, folder: Path) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    told = "No space left" in str(error) or "os error 28" in str(error)
    return told or not isinstance(error, ValueError) and shutil.disk_usage(folder).free < _NEARLY_FULL


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Args:
        path (`Path`): the file.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, content: dict) -> None:
    """Writes a JSON file, whole or not at all.

    Args:
        path (`Path`): the file.
        content (`dict`): what it holds.
    """
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all.

    Args:
        path (`Path`): the file.
        text (`str`): what it holds.
    """
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8")
