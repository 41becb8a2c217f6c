"""Nobody gets in: pages of other sites, names that were made to lead here, files that lie elsewhere, large bodies."""

import html
import http.client
import json
import os
import re
import shutil
import threading
import time
from urllib.parse import urlsplit

import pytest
from demo_server import PATIENCE, demo_server
from markdown_it import MarkdownIt

from kaleido_diffusers import bundled_checkpoint, load_scene, sample_capture
from kaleido_diffusers.demo.server import sweep
from kaleido_diffusers.web.origins import OriginRule
from kaleido_diffusers.web.texts import as_markdown


@pytest.mark.parametrize(
    "host, origin",
    [
        ("localhost:8080", None),
        ("127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("[::1]:8080", "http://[::1]:8080"),
        ("192.168.1.7:8080", "http://192.168.1.7:8080"),
        ("LOCALHOST:8080", "http://localhost:8080"),
        ("views.example.org", "https://views.example.org"),
        ("127.0.0.1:8080", "https://views.example.org"),
        ("192.168.1.7", "https://192.168.1.7"),
    ],
)
def test_its_own_page_is_answered(host, origin):
    assert OriginRule(["https://views.example.org"]).refusal(host, origin) is None


@pytest.mark.parametrize(
    "host, origin",
    [
        ("localhost:8080", "https://evil.example"),
        ("127.0.0.1:8080", "http://127.0.0.1:3000"),
        ("127.0.0.1:8080", "http://localhost:8080"),
        ("127.0.0.1:8080", "null"),
        ("evil.example:8080", "http://evil.example:8080"),
        ("evil.example:8080", None),
        ("127.0.0.1.evil.example:8080", None),
        ("127.0.0.1:8080", "http://127.0.0.1:8080@evil.example"),
        ("127.0.0.1:8080", "file:///etc"),
        ("views.example.org:99999", None),
        ("", None),
        (None, None),
    ],
)
def test_others_are_refused(host, origin):
    assert OriginRule(["https://views.example.org"]).refusal(host, origin)


def test_a_space_allows_itself_and_what_is_no_origin_is_refused(monkeypatch):
    monkeypatch.setenv("SPACE_HOST", "somebody-views.hf.space")
    assert OriginRule().refusal("somebody-views.hf.space", "https://somebody-views.hf.space") is None
    for wrong in ("views.example.org", "https://views.example.org/page", "ftp://a"):
        with pytest.raises(ValueError, match="An allowed origin looks like"):
            OriginRule([wrong])


def test_the_viewer_shows_its_photos_to_its_own_page_alone(tmp_path):
    viser = pytest.importorskip("viser")
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    from kaleido_diffusers import KaleidoViewSynthesisPipeline
    from kaleido_diffusers.viewer.page import LiveScene, Viewer

    pipe = KaleidoViewSynthesisPipeline.from_pretrained(bundled_checkpoint())
    live = LiveScene(pipe, load_scene(sample_capture()), 2)
    viewer = Viewer(live, tmp_path, port=0, allow_origin=["https://views.example.org"])
    try:
        place = urlsplit(viewer.url).netloc
        options = {"subprotocols": [f"viser-v{viser.__version__}"]}
        for origin in (viewer.url, "https://views.example.org", None):
            with connect(f"ws://{place}", origin=origin, **options) as socket:
                assert len(socket.recv(timeout=PATIENCE)) > 10
        for origin in ("https://evil.example", "null", "http://localhost:1"):
            with pytest.raises(InvalidStatus, match="403"):
                connect(f"ws://{place}", origin=origin, **options)
        connection = http.client.HTTPConnection(place)
        connection.request("GET", "/", headers={"Host": "evil.example"})
        assert connection.getresponse().status == 403
        connection = http.client.HTTPConnection(place)
        connection.request("GET", "/")
        assert connection.getresponse().status == 200
    finally:
        viewer.close()


# The demo


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("gradio")
    options = ("--keep-minutes", "0.05", "--upload-mb", "5", "--allow-origin", "https://views.example.org")
    with demo_server(tmp_path_factory.mktemp("demo"), *options) as server:
        yield server


def ask(server, method: str, path: str, body: bytes | None = None, **headers) -> tuple[int, str]:
    place = urlsplit(server.url).netloc
    connection = http.client.HTTPConnection(place, timeout=PATIENCE)
    connection.request(method, path, body, {"Host": place, **{k.replace("_", "-"): v for k, v in headers.items()}})
    answer = connection.getresponse()
    return answer.status, answer.read().decode("utf-8", "replace")


def join(server, content, **headers) -> tuple[int, str]:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return ask(server, "POST", "/gradio_api/queue/join", body, Content_Type="application/json", **headers)


def request(**changes) -> dict:
    return {"data": [], "fn_index": 0, "session_hash": "visitor", "trigger_id": 1, **changes}


def test_the_demo_answers_its_own_page_alone(server):
    assert ask(server, "GET", "/")[0] == 200
    assert ask(server, "GET", "/", Origin=server.url)[0] == 200
    assert ask(server, "GET", "/", Origin="https://views.example.org")[0] == 200
    assert ask(server, "GET", "/", Host="views.example.org")[0] == 200
    assert ask(server, "GET", "/", Host="evil.example")[0] == 403
    assert join(server, request(), Origin="https://evil.example")[0] == 403
    assert join(server, request(), Origin="null")[0] == 403
    assert join(server, request(), Origin=server.url)[0] == 200


@pytest.mark.parametrize(
    "path",
    ["http://evil.example/a.jpg", "HTTPS://evil.example/a", "//evil.example/a", "file:///etc/passwd", "data:,a"],
)
def test_the_demo_takes_uploaded_files_alone(server, path):
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    for data in ([[file]], [file], [{"deep": [{"er": file}]}]):
        status, said = join(server, request(data=data))
        assert status == 403 and "uploads alone" in said


def test_every_body_is_limited(server):
    large = json.dumps(request(data=["x" * 2_000_000])).encode()
    ask(server, "GET", "/")  # what the first visitor makes it load is not of these bodies
    ask(server, "POST", "/gradio_api/queue/join", b"{}", Content_Type="application/json")
    before = server.resident_mb()
    for path in ("/gradio_api/queue/join", "/gradio_api/run/preview", "/gradio_api/call/preview", "/anything"):
        assert ask(server, "POST", path, large, Content_Type="application/json")[0] == 413
    place = urlsplit(server.url)
    connection = http.client.HTTPConnection(place.netloc, timeout=PATIENCE)  # says nothing of its size
    try:
        pieces = (b"[" + b"1," * 500_000 for _ in range(300))
        connection.request("POST", "/gradio_api/queue/join", pieces, encode_chunked=True)
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # closed in the middle
    assert server.resident_mb() < before + 50
    assert ask(server, "POST", "/gradio_api/upload", b"x" * 6_000_000, Content_Type="multipart/form-data")[0] == 413


def test_requests_that_gradio_would_fail_at_are_refused_in_a_sentence(server):
    assert join(server, request(session_hash=""))[0] == 422
    assert join(server, request(session_hash="../../etc"))[0] == 422
    assert join(server, request(fn_index=999)) == (404, "There is no such function.")
    for number in ([0], {"a": 0}, True, "0", -1):
        assert join(server, request(fn_index=number))[0] == 404
    for body in (b"{not json", b"[" * 100_000, b'{"data": [NaN]}', b'{"data": ["\\ud800"]}', b'{"data": [1e999]}'):
        assert join(server, body)[0] == 400
    for way in ("run", "api", "call", "call/v2"):
        body = json.dumps(request(fn_index=None, api_name=["generate"])).encode()
        options = {"body": body, "Content_Type": "application/json"}
        assert ask(server, "POST", f"/gradio_api/{way}/none", **options) == (404, "There is no such function.")
        status, said = ask(server, "POST", f"/gradio_api/{way}/generate", **options)
        assert status == 422 and "takes 10 values" in said
    nobody = json.dumps({"data": [], "fn_index": 0}).encode()
    assert ask(server, "POST", "/gradio_api/run/generate", nobody, Content_Type="application/json")[0] == 422


def test_who_asks_for_a_line_that_nobody_stands_in_is_told_so_and_the_log_stays_short(server):
    before = len(server.log.read_text())
    for session in ("", "nobody", "..%2f.."):
        status, said = ask(server, "GET", f"/gradio_api/queue/data?session_hash={session}")
        assert status == 200 and '"session_not_found":true' in said
    assert "Traceback" not in server.log.read_text()[before:]


def test_broken_uploads_and_old_files_go_and_the_log_stays_short(server):
    place = urlsplit(server.url).netloc
    before = len(server.log.read_text())
    for _ in range(2):
        connection = http.client.HTTPConnection(place, timeout=PATIENCE)
        connection.putrequest("POST", "/gradio_api/upload")
        connection.putheader("Content-Type", "multipart/form-data; boundary=x")
        connection.putheader("Content-Length", "4000000")
        connection.endheaders()
        head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n'
        connection.send(head + b"x" * 2_000_000)
        time.sleep(0.5)
        connection.close()
    form = head + b"y" * 1000 + b"\r\n--x--\r\n"
    assert ask(server, "POST", "/gradio_api/upload", form, Content_Type="multipart/form-data; boundary=x")[0] == 200
    deadline = time.monotonic() + PATIENCE
    while sum(path.stat().st_size for path in server.files() if path.exists()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not server.files(), "back to nothing after --keep-minutes"
    assert "Traceback" not in server.log.read_text()[before:]


def test_sweeping_keeps_what_is_young_and_what_is_worked_on(tmp_path):
    files = {"gradio/ab/old.png": 500, "gradio/ab/young.png": 5, "gradio/tmpx": 200, "work-1/photo.jpg": 500}
    for name, age in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
        os.utime(path, (1000 - age, 1000 - age))
    sweep(tmp_path, 300, now=1000)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"gradio/ab/young.png", "work-1/photo.jpg"}


def test_what_is_removed_meanwhile_is_no_error(tmp_path):
    ended = threading.Event()

    def churn() -> None:
        while not ended.is_set():
            folder = tmp_path / "work-1" / "photos"
            folder.mkdir(parents=True)
            (folder / "a.jpg").write_bytes(b"x")
            shutil.rmtree(tmp_path / "work-1")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(2000):
            sweep(tmp_path, 300)
    finally:
        ended.set()
        thread.join()


def test_the_policy_lets_in_no_other_script(server):
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc)
    connection.request("GET", "/")
    policy = connection.getresponse().headers["content-security-policy"]
    (scripts,) = [part for part in policy.split(";") if part.strip().startswith("script-src")]
    assert "unsafe-inline" not in scripts and "sha256-" in scripts


def test_names_of_captures_are_text():
    name = "[a](https://evil.example) <img src=x> ![b](c) `d` **e**\x1b[31m"
    shown = MarkdownIt().render(as_markdown(name))
    assert not re.search("<(a|img|code|strong|em)[ >]", shown) and "\x1b" not in shown
    assert html.unescape(shown) == f"<p>{name[:-5]}[31m</p>\n"
    assert as_markdown("plain words 12") == "plain words 12"
