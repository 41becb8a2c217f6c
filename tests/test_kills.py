"""SIGKILL at twenty random moments of each command: nothing half stands under a final name, and the same command goes
on to what an unbroken run writes. `KALEIDO_KILLS` is how many kills of each, `KALEIDO_SEED` decides when."""

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import av
import PIL.Image
import pytest
import torch
from conftest import make_pipeline
from safetensors.torch import load_file
from test_trainer import arguments

from kaleido_diffusers import sample_capture


pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("KALEIDO_KILLS", "20"))
SEED = int(os.environ.get("KALEIDO_SEED", "0"))

# Imports what a verb needs and forks for each call, so that kills fall into its work. They are counted in what the
# call does to files in its folder, and come a random while after one of these.
FORKING = """
import importlib, json, os, signal, sys, time
from kaleido_diffusers import cli

verb, folder, log = sys.argv[1:]
importlib.import_module(f"kaleido_diffusers.cli.{verb}")
TOUCHES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir", "sqlite3.connect"}


def work(words, moment, pipe):
    touched = 0

    def hook(name, given):
        nonlocal touched
        if name in TOUCHES and any(isinstance(value, str) and value.startswith(folder) for value in map(str, given)):
            touched += 1
            if touched == moment:
                os.write(pipe, b"!")

    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    sys.addaudithook(hook)
    status = 99
    try:
        status = cli.main(words)
    finally:
        os.write(pipe, b"%d" % touched)
        os._exit(status)


for line in sys.stdin:
    words, moment, delay = json.loads(line)
    receives, sends = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if not child:
        os.close(receives)
        work(words, moment, sends)
    os.close(sends)
    said = os.read(receives, 1)
    if said == b"!":
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    while more := os.read(receives, 99):
        said += more
    os.close(receives)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([status, int(said.strip(b"!") or 0), time.monotonic() - started]), flush=True)
"""


class Ended(NamedTuple):
    status: int  # -9: killed
    touches: int  # of files, by a call that was not killed
    seconds: float


@contextmanager
def forking(verb: str, folder: Path) -> Iterator[Callable[..., Ended]]:
    """A function that calls a verb, and kills it at a moment."""
    log = folder / "log.txt"
    process = subprocess.Popen(
        [sys.executable, "-c", FORKING, verb, str(folder), str(log)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )

    def call(words: list[str], moment: int = 0, delay: float = 0.0) -> Ended:
        process.stdin.write(json.dumps([words, moment, delay]) + "\n")
        process.stdin.flush()
        ended = Ended(*json.loads(process.stdout.readline()))
        assert ended.status in (0, -9), log.read_text()[-3000:]
        return ended

    try:
        yield call
    finally:
        process.stdin.close()
        process.wait()


def final(folder: Path) -> dict[str, Path]:
    """Files under final names; what is hidden, or called a part, stands aside."""
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name: path
        for name, path in files.items()
        if not any(part.startswith(".") or ".part" in part for part in Path(name).parts)
    }


def assert_whole(path: Path) -> None:
    """That a file can be read to its end."""
    if path.suffix == ".mp4":
        with av.open(str(path)) as video:
            assert sum(1 for _ in video.decode(video=0)) == 8
    elif path.suffix in (".png", ".jpg"):
        PIL.Image.open(path).load()
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".jsonl":
        assert all(json.loads(line) for line in path.read_text().splitlines())
    elif path.suffix == ".safetensors":
        assert all(tensor.isfinite().all() for tensor in load_file(path).values())
    elif path.suffix == ".pt":
        assert "step" in torch.load(path, weights_only=True)
    elif path.suffix == ".tar":
        with tarfile.open(path) as tar:
            assert len([tar.extractfile(member).read() for member in tar if member.isfile()]) == 6
    elif path.suffix == ".db":
        with sqlite3.connect(path) as database:
            assert database.execute("pragma integrity_check").fetchone() == ("ok",)
    elif path.suffix not in (".db-wal", ".db-shm"):  # SQLite's own, read with their database; a kill leaves them empty
        assert path.stat().st_size, path


def units(folder: Path, patterns: tuple[str, ...]) -> dict[str, set[str]]:
    """Folders that are there whole or not at all, and what files they hold."""
    found = [path for pattern in patterns for path in folder.glob(pattern)]
    return {str(path.relative_to(folder)): set(final(path)) for path in found}


class Job(NamedTuple):
    words: Callable[[Path], list[str]]
    units: tuple[str, ...] = ()
    same: tuple[str, ...] = ("*.png", "*.mp4", "*.tar", "*.safetensors", "*/transforms.json")  # to the byte


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_pipeline().save_pretrained(folder)
    return folder


def flight(base: Path, *words: str) -> Callable[[Path], list[str]]:
    fixed = ["render", "sample", "--checkpoint", str(base), "--references", "3", "--steps", "1", "--views", "8"]
    fixed += ["--dtype", "float32", "--trajectory", "orbit", "--overwrite", *words]
    return lambda folder: [*fixed, "--output", str(folder)]


def job(name: str, base: Path) -> Job:
    shards = ["shard", "--data", "object", "--scenes", "6", "--scenes-per-shard", "2", "--views", "2", "--size", "16"]
    poses = ["poses", str(Path(sample_capture("skull"), "images")), "--threads", "1", "--max-image-size", "400"]
    convert = ["convert", str(base), "--max-shard-size", "100KB"]
    options = {"steps": 6, "save_every": 2, "validate_every": 3, "patience": 9, "data": ("object",)}
    return {
        "render": Job(flight(base, "--targets", "0,8")),
        "export": Job(flight(base, "--targets", "none", "--export", "transforms"), ("*_transforms",)),
        "shard": Job(lambda folder: [*shards, "--output", str(folder)]),
        "train": Job(lambda folder: arguments(folder, **options), ("pipeline", "checkpoint-*", "best-*")),
        "poses": Job(lambda folder: [*poses, "--output", str(folder)], ("sparse/0",), ("images/*",)),
        "convert": Job(lambda folder: [*convert, "--output", str(folder / "whole")], ("whole",)),
        "convert to a file": Job(lambda folder: [*convert, "--output", str(folder / "whole.safetensors")]),
    }[name]


@pytest.mark.parametrize("name", ["render", "export", "shard", "train", "poses", "convert", "convert to a file"])
def test_twenty_kills(name, base, tmp_path):
    todo, dice = job(name, base), random.Random(f"{SEED} {name}")
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    with forking(todo.words(whole)[0], tmp_path) as call:
        unbroken, killed = call(todo.words(whole)), 0
        assert unbroken.status == 0 and unbroken.touches > 5
        expected = final(whole)
        inside = {key.rpartition("-")[0] or key: files for key, files in units(whole, todo.units).items()}
        while killed < KILLS:
            if set(final(folder)) >= set(expected):
                shutil.rmtree(folder)  # all is there: from the beginning
            moment, delay = dice.randint(1, unbroken.touches), dice.random() * unbroken.seconds / unbroken.touches
            killed += call(todo.words(folder), moment, delay).status == -9
            for path in final(folder).values():
                assert_whole(path)
            for key, files in units(folder, todo.units).items():
                assert files == inside[key.rpartition("-")[0] or key], (key, files)
        if set(final(folder)) >= set(expected):
            shutil.rmtree(folder)
            call(todo.words(folder), unbroken.touches // 2)
        assert call(todo.words(folder)).status == 0
    assert set(final(folder)) == set(expected)
    assert set(map(str, folder.rglob("*"))) <= {str(folder / path.relative_to(whole)) for path in whole.rglob("*")}
    for file, path in expected.items():
        if any(fnmatch(file, pattern) for pattern in todo.same):
            assert (folder / file).read_bytes() == path.read_bytes(), file


def test_training_with_default_options_resumes_to_the_bit(tmp_path):
    """Killed three times in three runs: mixed worlds, matrix products in the fast precision, a worker, Muon."""
    small = ["--steps", "9", "--batch", "2", "--views", "4", "--size", "32", "--scenes", "16", "--save-every", "2"]
    words = [*small, "--model.num-layers", "2", "--validate-every", "4", "--validation-scenes", "1"]
    dice = random.Random(SEED)
    with forking("train", tmp_path) as call:
        unbroken = call(["train", "--output", str(tmp_path / "whole"), *words])
        assert unbroken.status == 0
        expected = {name: path.read_bytes() for name, path in final(tmp_path / "whole" / "pipeline").items()}
        assert any(name.endswith(".safetensors") for name in expected)
        for number in range(3):
            folder, killed = tmp_path / f"killed{number}", 0
            while not (folder / "pipeline").is_dir():
                moment = dice.randint(unbroken.touches // 4, 3 * unbroken.touches // 4) if killed < 3 else 0
                delay = dice.random() * unbroken.seconds / unbroken.touches
                ended = call(["train", "--output", str(folder), *words], moment, delay)
                killed += ended.status == -9
            assert killed
            assert {name: path.read_bytes() for name, path in final(folder / "pipeline").items()} == expected
