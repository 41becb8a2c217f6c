"""Shards at the size of a lab: a million scenes opened at once, read over a network that fails, written by many."""

import json
import threading
import time
import tracemalloc
import urllib.parse
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import HubServer, Repo, client
from interpreters import run_alone

from kaleido_diffusers.captures.images import CaptureError
from kaleido_diffusers.captures.readers import shard_files
from kaleido_diffusers.captures.readers.shard_files import ShardCache
from kaleido_diffusers.captures.readers.shard_index import HEADER, INDEX, RECORD, scan_tar
from kaleido_diffusers.cli import main
from kaleido_diffusers.geometry.views import Views
from kaleido_diffusers.training.batches import StepBatches, open_sources
from kaleido_diffusers.training.config import TrainConfig
from kaleido_diffusers.worlds.shard_writing import write_shards
from kaleido_diffusers.worlds.sources import ShardSource


def scene(number: int, views: int = 3) -> Views:
    """A scene whose pictures and times tell its number."""
    pixels = torch.full((views, 3, 8, 8), number, dtype=torch.uint8)
    return Views(pixels=pixels, times=number + torch.arange(float(views)))


def make_shards(folder: Path, scenes: int = 6, each: int = 2) -> Path:
    write_shards(folder, (scene(10 * number) for number in range(scenes)), scenes_per_shard=each)
    return folder


def numbers(source: ShardSource) -> list[float]:
    return [source[index].times[0].item() for index in range(len(source))]


class Server(SimpleHTTPRequestHandler):
    """A folder with ranged reads, and faults by file: `gone`, `hangs`, or `fails` a number of times."""

    faults: dict[str, str | int] = {}
    asked: list[str] = []

    def do_GET(self):
        name = self.path.strip("/")
        self.asked.append(f"{name} {self.headers.get('Range', '')}".strip())
        fault = self.faults.get(name)
        if fault == "hangs":
            time.sleep(3)
            return
        if fault == "gone":
            self.send_error(404)
            return
        if fault:
            self.faults[name] -= 1
            self.send_error(503)
            return
        path = Path(self.directory) / name
        if not path.is_file():
            super().do_GET()
            return
        content = path.read_bytes()
        if span := self.headers.get("Range"):
            first, last = span.removeprefix("bytes=").split("-")
            content = content[int(first) : int(last) + 1]
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Three shards of two scenes, their address, and what goes wrong there."""
    pytest.importorskip("aiohttp")
    make_shards(tmp_path / "shards")
    monkeypatch.setattr(shard_files, "_PAUSE", 0.01)
    monkeypatch.setattr(shard_files, "_SECONDS", 0.5)
    monkeypatch.setattr(Server, "faults", {})
    monkeypatch.setattr(Server, "asked", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(tmp_path / "shards")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_million_scenes_open_at_once(tmp_path):
    """2,000 indices of 500 scenes. Only their sizes and first records are read: 50 MB and 2 s of this process are far
    above what it takes (2 MB, a tenth of a second)."""
    records = np.zeros(500, RECORD)
    records["end"], records["views"] = 1024, 12
    header = np.array([(b"KALEIDO1", 0, 500, 12, b"")], HEADER)
    content = header.tobytes() + records.tobytes()
    for number in range(2000):
        (tmp_path / f"shard-{number:06d}.tar").touch()
        (tmp_path / f"shard-{number:06d}{INDEX}").write_bytes(content)
    tracemalloc.start()
    started = time.process_time()
    source = ShardSource(tmp_path)
    assert (len(source), source.fewest_views) == (1_000_000, 12)
    assert source.locate(777_777)[0].endswith("shard-001555.tar")
    assert time.process_time() - started < 2 and tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_an_index_is_what_its_tar_says(tmp_path):
    make_shards(tmp_path)
    indexed = numbers(ShardSource(tmp_path))
    assert indexed == [0.0, 10, 20, 30, 40, 50]
    tar = tmp_path / "shard-000001.tar"
    stored = np.frombuffer(tar.with_suffix(INDEX).read_bytes()[64:], RECORD)
    scanned = scan_tar(tar)
    assert stored[["start", "end", "views", "name"]].tolist() == scanned[["start", "end", "views", "name"]].tolist()
    assert (stored["checksum"] > 0).all() and HEADER.itemsize == RECORD.itemsize == 64
    tar.with_suffix(INDEX).unlink()
    assert numbers(ShardSource(tmp_path)) == indexed, "shards of others have none"
    assert main(["shard", "--index", "--output", str(tmp_path)]) == 0
    assert np.frombuffer(tar.with_suffix(INDEX).read_bytes()[64:], RECORD).tolist() == stored.tolist()


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def test_damage_is_named_and_left_out_only_if_asked(tmp_path):
    make_shards(tmp_path)
    broken = tmp_path / "shard-000001.tar"
    record = np.frombuffer(broken.with_suffix(INDEX).read_bytes()[64:], RECORD)[1]
    flip(broken, int(record["end"]) - 600)  # within the last picture of the scene that begins with 30
    source = ShardSource(tmp_path)
    with pytest.raises(CaptureError, match="shard-000001.tar, scene '00000003': is damaged"):
        source[3]
    assert source[2].times[0] == 20, "its neighbour is well"
    config = TrainConfig(output=tmp_path / "run", data=(str(tmp_path),), batch=8, views=3, size=8)
    with pytest.raises(CaptureError, match="shard-000001.tar"):
        StepBatches(config, *open_sources(config))[0]
    config.skip_broken = True
    with pytest.warns(UserWarning, match="Left out: .*shard-000001.tar, scene '00000003'"):
        first, again = (StepBatches(config, *open_sources(config))[0] for _ in range(2))
    assert 30 not in first.batch.times[:, 0] // 10 * 10 and torch.equal(first.batch.times, again.batch.times)

    broken.write_bytes(broken.read_bytes()[:-5000])
    with pytest.raises(CaptureError, match="is the index of a shard of .* cut short or changed"):
        open_sources(TrainConfig(output=tmp_path / "run", data=(str(tmp_path),), views=3))
    broken.unlink()
    assert len(ShardSource(tmp_path)) == 6
    with pytest.raises(CaptureError, match="shard-000001.tar: cannot be read"):
        ShardSource(tmp_path)[2]


def test_remote_shards_are_read_in_ranges_through_a_bounded_cache(served, tmp_path):
    cache = ShardCache(tmp_path / "cache", 20_000)
    source = ShardSource(served, cache=cache)
    assert numbers(source) == [0.0, 10, 20, 30, 40, 50]
    spans = [line for line in Server.asked if ".tar" in line]
    assert len(spans) == 6 and all("bytes=" in line for line in spans), "a scene is one piece"
    assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*/*")) <= 20_000 * 1.05 + 10_000
    Server.asked.clear()
    large = ShardSource(served, cache=ShardCache(tmp_path / "large", 10**9))
    assert numbers(large) == numbers(large)
    assert len([line for line in Server.asked if ".tar" in line]) == 6, "the second time from the disk"
    named = ShardSource(served + "/shard-{000000..000002}.tar")
    assert numbers(named) == numbers(large)


def test_a_server_that_fails(served, tmp_path):
    source = ShardSource(served)
    assert source[0].times[0] == 0
    Server.faults = {"shard-000000.tar": 2}
    assert source[1].times[0] == 10, "the third try"
    Server.faults = {"shard-000000.tar": "gone", "shard-000001.tar": "hangs", "shard-000002.tar": 9}
    for index, said in ((0, "is not there"), (2, "3 tries .*Timeout"), (4, "3 tries .*503")):
        with pytest.raises(CaptureError, match=f"http://.*shard-00000{index // 2}.tar: .*{said}"):
            source[index]
    Server.faults = {"shard-000001.tar": "gone"}
    config = TrainConfig(output=tmp_path, data=(served,), batch=8, views=3, size=8, skip_broken=True)
    with pytest.warns(UserWarning, match="shard-000001.tar: is not there"):
        times = StepBatches(config, *open_sources(config))[0].batch.times
    assert {float(first) // 10 for first in times[:, 0]} <= {0.0, 1, 4, 5}
    with pytest.raises(CaptureError, match="http://127.0.0.1:9"):
        ShardSource("http://127.0.0.1:9/nothing")


class Bucket(Server):
    """The same folder as a bucket called `lab`, as S3 lists it and gives it out."""

    def do_GET(self):
        path = urllib.parse.urlsplit(self.path)
        if "list-type" not in path.query:
            self.path = path.path.removeprefix("/lab/shards")
            super().do_GET()
            return
        files = [file for file in Path(self.directory).iterdir() if "prefix=shards" in path.query]
        entries = "".join(
            f"<Contents><Key>shards/{file.name}</Key><Size>{file.stat().st_size}</Size></Contents>" for file in files
        )
        count = f"<KeyCount>{len(files)}</KeyCount><IsTruncated>false</IsTruncated>"
        content = (
            f'<?xml version="1.0"?><ListBucketResult><Name>lab</Name>{count}{entries}</ListBucketResult>'.encode()
        )
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def test_shards_in_a_bucket(tmp_path, monkeypatch):
    pytest.importorskip("s3fs")
    make_shards(tmp_path / "shards")
    monkeypatch.setattr(Server, "asked", [])
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Bucket, directory=str(tmp_path / "shards")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in (("ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}"), ("ACCESS_KEY_ID", "me")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    source = ShardSource("s3://lab/shards")
    assert len(source) == 6 and not [line for line in Server.asked if ".tar" in line or INDEX in line], (
        "by the listing"
    )
    assert numbers(source) == [0.0, 10, 20, 30, 40, 50]
    monkeypatch.setattr(shard_files, "_PAUSE", 0.01)
    with pytest.raises(CaptureError, match="s3://lab/elsewhere: .*(is not there|no .*shards)"):
        ShardSource("s3://lab/elsewhere")
    server.shutdown()


def test_shards_on_the_hub(tmp_path):
    make_shards(tmp_path / "shards")
    code = "from kaleido_diffusers.worlds.sources import ShardSource; source = ShardSource('hf://you/shards')"
    code += "; print([source[index].times[0].item() for index in range(len(source))])"
    with HubServer() as server:
        repo = server.repos["you/shards"] = Repo(private=False)
        repo.commit("main", {path.name: path.read_bytes() for path in (tmp_path / "shards").iterdir()})
        said = run_alone(code, env=client(server, tmp_path / "home"))
        asked = server.requests("GET", "resolve/main/.*tar")
    assert said == "[0.0, 10.0, 20.0, 30.0, 40.0, 50.0]\n"
    assert len(asked) == 6 and all(headers["range"].startswith("bytes=") for headers in asked)


@pytest.mark.parametrize("processes", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_machines_share_the_writing_and_say_what_was_left_out(processes, tmp_path, capsys):
    """Two machines, each with so many processes; one of five captures is no capture."""
    make_shards(tmp_path / "source", scenes=1)
    (tmp_path / "empty").mkdir()
    good = str(tmp_path / "source" / "shard-000000.tar")
    (tmp_path / "list.txt").write_text("\n".join([good, good, str(tmp_path / "empty"), good, good]))
    words = ["shard", "--data", f"@{tmp_path / 'list.txt'}", "--output", str(tmp_path / "out"), "--size", "8"]
    words += ["--scenes-per-shard", "2", "--skip-broken"]
    assert main([*words, "--part", "0", "2", "--processes", processes]) == 0
    assert main([*words, "--part", "1", "2"]) == 0
    said = capsys.readouterr().out
    assert "3 shards, 4 scenes, 1 left out" in said
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["shards"], summary["scenes"]) == (3, 4) and summary["left_out"][0]["scene"].startswith(
        str(tmp_path / "empty")
    )
    assert [len(ShardSource(tmp_path / "out" / f"shard-00000{shard}.tar")) for shard in range(3)] == [2, 1, 1]
    before = (tmp_path / "out" / "shard-000001.tar").stat().st_mtime_ns
    (tmp_path / "out" / "shard-000002.tar").unlink()
    assert main(words) == 0, "what is missing is written"
    assert (tmp_path / "out" / "shard-000001.tar").stat().st_mtime_ns == before
    assert len(ShardSource(tmp_path / "out")) == 4
    assert main([*words, "--size", "16"]) == 1, "other settings"
