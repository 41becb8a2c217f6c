"""The page as a visitor uses it: headless Chromium, an empty profile, and the server that `kaleido demo` starts."""

import io
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from conftest import shared
from demo_server import Server, demo_server


pytest.importorskip("gradio", reason="needs the extra `demo`")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
av = pytest.importorskip("av")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
WAIT = 120_000  # milliseconds: a busy machine is slow, not wrong

# Notes every state of the bar and of the sentence above it.
WATCH = """
window.seen = [];
new MutationObserver(() => {
  const bar = document.querySelector('#status progress'), line = document.querySelector('#status .sentence');
  const now = [bar ? bar.value : null, line ? line.innerText : ''];
  if (JSON.stringify(now) !== JSON.stringify(window.seen.at(-1))) window.seen.push(now);
}).observe(document, {subtree: true, childList: true, characterData: true, attributes: true});
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with demo_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, server: Server):
    """Opens the page in a profile of its own; afterwards nothing may have been asked of another server."""
    contexts, foreign, broken = [], [], []

    def is_elsewhere(url: str) -> bool:
        return not url.startswith((server.url, "data:", "blob:"))

    def open_page(viewport):
        context = browser.new_context(viewport=viewport, accept_downloads=True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("request", lambda request: foreign.append(request.url) if is_elsewhere(request.url) else None)
        page.on("pageerror", lambda error: broken.append(str(error)))
        page.on("console", lambda message: broken.append(message.text) if message.type == "error" else None)
        page.add_init_script(f"document.addEventListener('DOMContentLoaded', () => {{ {WATCH} }});")
        page.goto(server.url)
        page.wait_for_selector("#go")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not foreign and not broken


def wish(page, path: str, views: int, steps: int) -> None:
    page.get_by_role("radio", name=path, exact=True).check()
    page.get_by_role("button", name="More settings").click()
    for slider, value in (("views-count", views), ("steps", steps)):
        page.locator(f"#{slider} input[type=number]").fill(str(value))
        page.locator(f"#{slider} input[type=number]").press("Tab")


def generate(page) -> None:
    page.click("#go:not([disabled])")
    page.wait_for_selector("#mp4", state="visible")


def download(page, which: str) -> bytes:
    with page.expect_download() as waiting:
        page.click(f"#{which}")
    return Path(waiting.value.path()).read_bytes()


def frames(mp4: bytes) -> int:
    with av.open(io.BytesIO(mp4)) as container:
        return sum(1 for _ in container.decode(video=0))


def shown_views(page) -> list[tuple[str, int]]:
    page.wait_for_function("[...document.querySelectorAll('#views img')].every(image => image.complete)")
    return page.eval_on_selector_all("#views img", "images => images.map(image => [image.alt, image.naturalWidth])")


def fits(page) -> bool:
    width = page.viewport_size["width"]
    return page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_sample_capture_from_start_to_download(viewport, visit):
    page = visit(viewport)
    assert fits(page) and page.locator("#go").is_disabled()
    page.click("#sample")
    page.wait_for_selector("#space canvas")
    assert "24 views" in page.inner_text("#caption"), "the path is drawn before anything is computed"
    assert fits(page)
    wish(page, "orbit", views=4, steps=4)
    page.wait_for_function("document.querySelector('#caption').innerText.includes(' 4 views')")
    assert not page.locator("#views img").count()
    generate(page)
    seen = page.evaluate("window.seen")
    done = [value for value, text in seen if value is not None and text.startswith("Group")]
    assert done == sorted(done) and len(set(done)) >= 2, seen
    assert any(re.fullmatch(r"Group 1 of 1, step \d of 4", text) for _, text in seen), seen
    assert seen[-1][1] == "Done: 4 of 4 views"
    assert shown_views(page) == [[f"view {number}", 128] for number in (1, 2, 3, 4)]
    assert frames(download(page, "mp4")) == 4
    assert PIL.Image.open(io.BytesIO(download(page, "gif"))).n_frames == 4
    with zipfile.ZipFile(io.BytesIO(download(page, "zip"))) as archive:
        assert {"kaleido/transforms.json", "kaleido/images/0009.png"} <= set(archive.namelist())
    assert fits(page)


def test_views_are_compared_with_photos_by_mouse_and_by_keys(visit):
    page = visit(DESKTOP)
    page.click("#sample")
    page.wait_for_selector("#space canvas")
    wish(page, "photos kept back", views=3, steps=2)
    generate(page)
    page.wait_for_function("document.querySelector('#sides').innerText.includes('the true photo, photo 1.')")
    page.locator("#views button.thumbnail-item").nth(2).click()
    page.wait_for_function(
        "document.querySelector('#sides').innerText.includes('view 3. Right: the true photo, photo 17')"
    )
    page.get_by_label("the nearest reference").check()
    page.wait_for_function("document.querySelector('#sides').innerText.includes('the nearest reference')")
    alts = page.eval_on_selector_all("#compare img", "images => images.map(image => image.alt)")
    assert alts == ["Left: the generated view", "Right: the photo to compare with"]
    handle = page.get_by_role("slider", name="Divider between the generated view and the photo")
    before = handle.bounding_box()["x"]
    handle.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "before => document.querySelector('#compare [data-testid=slider]').getBoundingClientRect().x > before + 40",
        arg=before,
    )


def test_the_page_is_used_by_keys_alone(visit):
    page = visit(DESKTOP)
    page.focus("#sample")
    page.keyboard.press("Enter")
    page.wait_for_selector("#space canvas")
    page.get_by_role("radio", name="orbit").focus()
    page.keyboard.press("Tab")  # Gradio's radio buttons are no group: Tab goes on, Space chooses
    page.keyboard.press("Space")
    sync_api.expect(page.get_by_role("radio", name="spiral")).to_be_checked(timeout=20_000)
    page.get_by_label("one free camera").focus()
    page.keyboard.press("Space")
    page.wait_for_function("document.querySelector('#caption').innerText.includes('one view')")
    page.wait_for_selector("text=Around (degrees)")
    page.focus("#go")
    page.keyboard.press("Enter")
    page.wait_for_selector("#mp4", state="visible")
    assert shown_views(page) == [["view 1", 128]]


def test_work_is_stopped_in_the_middle(visit):
    page = visit(DESKTOP)
    page.click("#sample")
    page.wait_for_selector("#space canvas")
    wish(page, "spiral", views=48, steps=50)
    page.click("#go:not([disabled])")
    page.wait_for_function("document.querySelector('#status').innerText.includes('Group 2 of 12')")
    page.click("#stop")
    page.wait_for_function("document.querySelector('#status').innerText.includes('Stopped after')")
    views = int(re.search(r"Stopped after (\d+) of 48 views", page.inner_text("#status")).group(1))
    assert 4 <= views < 48
    page.wait_for_selector("#mp4", state="visible")
    assert len(shown_views(page)) == views and frames(download(page, "mp4")) == views
    page.wait_for_selector("#go:not([disabled])")
    assert page.locator("#stop").is_disabled()


def test_a_damaged_photo_is_refused_with_a_sentence(visit, tmp_path):
    files = []
    for name in ("good.jpg", "other.jpg", "broken.jpg"):
        pixels = np.random.default_rng(len(files)).integers(0, 255, (60, 80, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / name)
        files.append(tmp_path / name)
    files[-1].write_bytes(files[-1].read_bytes()[:700])
    page = visit(PHONE)
    page.set_input_files("#files input[type=file]", files)
    page.wait_for_selector("#status .problem")
    said = page.inner_text("#status .problem")
    assert said.startswith("broken.jpg: the image is damaged") and "/" not in said
    text = page.inner_text("body")
    assert "Traceback" not in text and 'File "' not in text
    assert page.locator("#go").is_disabled() and fits(page)


def test_no_file_of_the_server_is_shown(visit, server):
    page = visit(DESKTOP)
    for path in ("/etc/passwd", "../../../../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd"):
        for prefix in ("gradio_api/file=", "file=", "gradio_api/file/"):
            answer = page.request.get(f"{server.url}/{prefix}{path}")
            assert answer.status in (403, 404) and "root:" not in answer.text()


@pytest.mark.slow
def test_plain_photos_are_posed_and_seen_from_elsewhere(visit, tmp_path):
    pytest.importorskip("pycolmap")
    photos = sorted(shared("captures/kermit/images").glob("*.jpg"))
    assert len(photos) == 11
    page = visit(DESKTOP)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photos[0].read_bytes()[:5000])
    page.set_input_files("#files input[type=file]", [*photos[:3], broken])
    page.wait_for_selector("#status .problem")
    assert page.inner_text("#status .problem").startswith("broken.jpg: ")

    page.get_by_role("button", name="Clear").first.click()
    page.set_input_files("#files input[type=file]", photos)
    page.wait_for_selector("#space canvas", timeout=10 * WAIT)
    seen = page.evaluate("window.seen")
    for what in ("Finding details in the photos", "Finding the same details", "Placing the cameras"):
        assert any(text.startswith(what) for _, text in seen), seen
    placed = [value for value, text in seen if text.startswith("Placing")]
    assert placed == sorted(placed) and len(set(placed)) >= 2
    assert "Your photos, 11 photos" in page.inner_text("#caption")
    wish(page, "orbit", views=4, steps=4)
    generate(page)
    assert shown_views(page) == [[f"view {number}", 128] for number in (1, 2, 3, 4)]
    assert frames(download(page, "mp4")) == 4

    wish_more(page, views=48, steps=50)
    page.click("#go:not([disabled])")
    page.wait_for_function("document.querySelector('#status').innerText.includes('Group 2 of 12')")
    page.click("#stop")
    page.wait_for_function("document.querySelector('#status').innerText.includes('Stopped after')")


def wish_more(page, **values: int) -> None:
    for name, value in values.items():
        box = page.locator(f"#{name.replace('views', 'views-count')} input[type=number]")
        box.fill(str(value))
        box.press("Tab")
