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

from kaleido_diffusers import load_scene, sample_capture
from kaleido_diffusers.captures.export import write_video


pytest.importorskip("gradio", reason="needs the extra `demo`")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
av = pytest.importorskip("av")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")

DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
BOTH = pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
WAIT = 120_000  # milliseconds: a busy machine is slow, not wrong

# Notes every state of the bar, of the sentence above it, and of Stop: whether it can be pressed; and whether all that
# one works with has been on the screen while views were generated.
WATCH = """
window.seen = [];
const isOnScreen = selector => {
  const box = document.querySelector(selector)?.getBoundingClientRect();
  return box && box.height > 0 && box.top >= -1 && box.bottom <= innerHeight + 1;
};
new MutationObserver(() => {
  const bar = document.querySelector('#status progress'), line = document.querySelector('#status .sentence');
  const stop = document.querySelector('#stop');
  const now = [bar ? bar.value : null, line ? line.innerText : '', Boolean(stop && !stop.disabled)];
  if (now[1].startsWith('Generating'))
    window.workOnScreen ||= ['#go', '#stop', '#status', '#views'].every(isOnScreen);
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
        page.wait_for_selector("#film video", state="attached")  # of the example
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not foreign and not broken


def choose(page, path: str) -> None:
    page.locator(f'#path input[value="{path}"]').check(force=True)


def wish(page, path: str, views: int, steps: int) -> None:
    choose(page, path)
    page.get_by_role("button", name="More settings").click()
    wish_more(page, views=views, steps=steps)


def wish_more(page, **values: int) -> None:
    for name, value in values.items():
        box = page.locator(f"#{name.replace('views', 'views-count')} input[type=number]")
        box.fill(str(value))
        box.press("Tab")


def table(page) -> None:
    page.click("#example-sample")
    page.wait_for_function("document.querySelector('#status').innerText.includes('Table (drawn): 40 photos')")


def said(page, words: str, where: str = "#status") -> None:
    page.wait_for_function(f"document.querySelector('{where}')?.innerText.includes({words!r})")


def generate(page, count: int) -> None:
    page.click("#go:not([disabled])")
    said(page, f"Done: {count} of {count} views")
    page.wait_for_selector("#go:not([disabled])")


def tab(page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def download(page, which: str) -> bytes:
    page.wait_for_selector(f"#{which}:not([disabled])", state="attached")
    with page.expect_download() as waiting:
        page.click(f"#{which}")
    return Path(waiting.value.path()).read_bytes()


def frames(mp4: bytes) -> list[tuple[int, int]]:
    with av.open(io.BytesIO(mp4)) as container:
        return [(frame.width, frame.height) for frame in container.decode(video=0)]


def views(page) -> int:
    tab(page, "Views")
    page.wait_for_selector("#views .thumbnails button")
    return page.locator("#views .thumbnails button").count()


def plays(page) -> float:
    """Waits until the film plays; returns its length in seconds."""
    tab(page, "Film")
    page.wait_for_function("(v => v && !v.paused && v.currentTime > 0)(document.querySelector('#film video'))")
    return page.evaluate("document.querySelector('#film video').duration")


def is_on_screen(page, *selectors: str) -> bool:
    """Whether all are in the window as it is scrolled, from top to bottom."""
    boxes = [page.locator(selector).bounding_box() for selector in selectors]
    height = page.viewport_size["height"]
    return all(box and box["y"] >= -1 and box["y"] + box["height"] <= height + 1 for box in boxes)


def fits(page) -> bool:
    width = page.viewport_size["width"]
    return page.evaluate("document.documentElement.scrollWidth") <= width


@BOTH
def test_the_first_screen_shows_what_it_is_and_what_to_do(viewport, visit):
    page = visit(viewport)
    assert fits(page) and "invented" in page.inner_text("#header"), "what to expect is said before the upload"
    assert is_on_screen(page, "#header", "#examples", "#files")
    page.wait_for_function("document.querySelectorAll('#photos button.thumbnail-item').length === 9")
    assert page.eval_on_selector("#photos .grid-wrap", "strip => strip.scrollHeight <= strip.clientHeight"), (
        "whole rows"
    )
    assert plays(page) == pytest.approx(3.0, abs=0.05), "24 views, 8 a second, of the example"
    page.locator("#make").evaluate("element => element.scrollIntoView({block: 'start'})")
    assert is_on_screen(page, "#make", "#status", "#film video", "#speed"), "all of the work is in one screen"
    if viewport is DESKTOP:
        page.evaluate("scrollTo(0, 0)")
        assert is_on_screen(page, "#path", "#views-count", "#go", "#status", "#film video", "#advice")
    size = page.locator("#film video").bounding_box()
    assert size["width"] >= 300 and size["height"] == pytest.approx(size["width"], abs=1)
    page.get_by_label("twice").check()
    page.wait_for_function("document.querySelector('#film video').playbackRate === 2")
    assert views(page) == 24
    shown = "#views img[data-testid=detailed-image][alt='view {}']"
    page.locator("#views .thumbnails button").nth(4).click()  # when it answers, it listens to keys, too
    page.wait_for_selector(shown.format(5))
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(shown.format(6))
    box = page.locator("#views img[data-testid=detailed-image]").bounding_box()
    assert min(box["width"], box["height"]) >= 280, "large enough to see"


@BOTH
def test_the_sample_capture_from_start_to_download(viewport, visit):
    page = visit(viewport)
    table(page)
    wish(page, "orbit", views=4, steps=2)
    said(page, " 4 views to generate", "#caption")
    said(page, "What you see was made for an earlier choice", "#advice")
    said(page, "where hardly a photo does", "#advice")
    page.click("#go:not([disabled])")
    said(page, "Done: 4 of 4 views")
    assert page.evaluate("window.workOnScreen"), "while views came"
    if viewport is PHONE:
        page.wait_for_function("document.querySelector('#make').getBoundingClientRect().y < 5")
    seen = page.evaluate("window.seen")
    done = [value for value, text, _ in seen if value is not None and text.startswith("Generating views 1 to 4 of 4")]
    assert done and done == sorted(done), seen
    assert any(stops for _, text, stops in seen if text.startswith("Generating")), "what is at work can be stopped"
    assert not any(stops for _, text, stops in seen if text.startswith("Done")), seen
    assert plays(page) == pytest.approx(0.5, abs=0.05)
    assert "earlier choice" not in page.inner_text("#advice")
    assert views(page) == 4
    page.wait_for_function("[...document.querySelectorAll('#views img')].every(image => image.complete)")
    assert page.eval_on_selector("#views img[data-testid=detailed-image]", "image => image.naturalWidth") == 128
    tab(page, "Save")
    assert PIL.Image.open(io.BytesIO(download(page, "png"))).size == (512, 512)
    page.get_by_label("256 (enlarged)").check()
    page.wait_for_selector("#png[disabled]", state="attached")
    assert frames(download(page, "mp4")) == [(256, 256)] * 4
    assert PIL.Image.open(io.BytesIO(download(page, "gif"))).n_frames == 4
    with zipfile.ZipFile(io.BytesIO(download(page, "zip"))) as archive:
        names = set(archive.namelist())
    assert {"kaleido/transforms.json", "kaleido/views/view_0004.png"} <= names
    assert sum(name.startswith("kaleido/references/photo_") for name in names) == 12
    assert fits(page)

    page.reload()  # finds its result again
    page.wait_for_function("document.querySelector('#film figcaption')?.innerText.includes('4 generated views')")
    assert plays(page) == pytest.approx(0.5, abs=0.05) and views(page) == 4
    assert page.locator('#path input[value="orbit"]').is_checked()


def test_views_are_compared_with_photos_by_mouse_and_by_keys(visit):
    page = visit(DESKTOP)
    table(page)
    wish(page, "photos kept back", views=3, steps=1)
    generate(page, 3)
    said(page, "the true photo, photo 1.", "#sides")
    tab(page, "Views")
    page.locator("#views .thumbnails button").nth(2).click()
    tab(page, "Compare")
    said(page, "view 3. Right: the true photo, photo 17", "#sides")
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
    page.get_by_label("the nearest reference").check()
    said(page, "the nearest reference", "#sides")
    page.wait_for_selector("#compare", state="hidden")
    left, right = page.locator("#left img").bounding_box(), page.locator("#right img").bounding_box()
    assert left["y"] == pytest.approx(right["y"], abs=1) and left["x"] + left["width"] <= right["x"]


def test_a_free_camera_follows_who_turns_the_picture(visit):
    page = visit(DESKTOP)
    table(page)
    choose(page, "one free camera")
    page.wait_for_selector("#space canvas")
    page.wait_for_selector("#live img")
    assert not page.locator("#views-count").is_visible(), "one camera is no path"
    first = page.locator("#live img").get_attribute("src")
    box = page.locator("#space").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 100, y, steps=4)
    page.mouse.up()
    page.wait_for_function("document.querySelector('#azimuth input[type=number]').value !== '0'")
    page.wait_for_function("first => document.querySelector('#live img').src !== first", arg=first)
    assert is_on_screen(page, "#go", "#space", "#live")


def test_references_are_chosen_by_clicking_photos(visit):
    page = visit(DESKTOP)
    tab(page, "Cameras")
    for photo in (1, 4):
        page.locator("#photos button.thumbnail-item").nth(photo).click()
        said(page, "references (2)" if photo == 1 else "references (2, 5)", "#caption")
    assert not page.locator("#references").is_visible(), "their number is not asked for any more"


def test_the_page_is_used_by_keys_alone(visit):
    page = visit(DESKTOP)
    page.focus("#example-sample")
    page.keyboard.press("Enter")
    said(page, "Table (drawn): 40 photos")
    page.locator('#path input[value="one free camera"]').focus()
    page.keyboard.press("Space")
    said(page, "one view", "#caption")
    page.wait_for_selector("text=Around (degrees)")
    page.focus("#go:not([disabled])")
    page.keyboard.press("Enter")
    said(page, "Done: 1 of 1 views")
    assert views(page) == 1


def test_work_is_stopped_in_the_middle(visit):
    page = visit(PHONE)
    table(page)
    wish(page, "spiral", views=48, steps=50)
    page.wait_for_selector("#advice .old")
    page.click("#go:not([disabled])")
    said(page, "Generating views 5 to 8 of 48")
    assert not page.locator("#advice .old").is_visible(), "what is asked for is being done"
    page.click("#stop")
    said(page, "Stopped after")
    count = int(re.search(r"Stopped after (\d+) of 48 views", page.inner_text("#status")).group(1))
    assert 4 <= count < 48
    page.wait_for_selector("#go:not([disabled])")
    assert page.locator("#stop").is_disabled()
    assert plays(page) == pytest.approx(count / 8, abs=0.05) and views(page) == count


def test_three_in_line_are_told_place_and_time(visit):
    pages = [visit(DESKTOP) for _ in range(3)]
    for page in pages:
        wish(page, "arc", views=48, steps=30)
    for page in pages:
        page.click("#go:not([disabled])")
        said(page, "Generating" if page is pages[0] else "before you, about")
    assert re.search(r"Waiting: One other is before you, about \d+ s", pages[1].inner_text("#status"))
    assert re.search(r"Waiting: 2 others are before you, about \d+ s", pages[2].inner_text("#status"))
    pages[0].click("#stop")
    said(pages[1], "Generating")
    said(pages[2], "Waiting: One other is before you")
    for page in pages[1:]:
        page.click("#stop")
        said(page, "Stopped after")


@BOTH
def test_a_bad_photo_among_good_ones(viewport, visit, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "good.jpg")
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:700])
    page = visit(viewport)
    page.set_input_files("#files input[type=file]", [tmp_path / "good.jpg", tmp_path / "broken.jpg"])
    said(page, "Your photo: 1 photo. Left out: broken.jpg: the image is damaged")
    page.wait_for_selector("#go:not([disabled])")
    assert not page.locator('#path input[value="keyframes"]').count(), "one photo leaves none to fly through"
    page.get_by_role("button", name="Clear").first.click()
    page.set_input_files("#files input[type=file]", [tmp_path / "broken.jpg"])
    page.wait_for_selector("#status .problem")
    problem = page.inner_text("#status .problem")
    assert problem.startswith("Left out: broken.jpg: the image is damaged") and "/" not in problem
    text = page.inner_text("body")
    assert "Traceback" not in text and 'File "' not in text
    assert page.locator("#go").is_disabled() and not page.locator("#film video").count() and fits(page)


@pytest.fixture(scope="module")
def large_photo(tmp_path_factory):
    pytest.importorskip("pillow_heif").register_heif_opener()
    photo = tmp_path_factory.mktemp("phone") / "IMG_48.HEIC"
    PIL.Image.new("RGB", (8064, 6048), (200, 120, 40)).save(photo, quality=20, enc_params={"preset": "ultrafast"})
    return photo


@BOTH
def test_a_large_photo_of_a_phone(viewport, visit, large_photo):
    page = visit(viewport)
    page.set_input_files("#files input[type=file]", [large_photo])
    said(page, "Your photo: 1 photo. The photo does not tell its lens")
    wish(page, "pan", views=2, steps=1)
    generate(page, 2)
    assert plays(page) == pytest.approx(0.25, abs=0.05) and fits(page)


@pytest.mark.slow
@BOTH
def test_a_video_is_posed_and_flown_through(viewport, visit, tmp_path):
    pytest.importorskip("pycolmap")
    video = tmp_path / "walk.mp4"
    write_video(video, load_scene(sample_capture()).images[:8], 5)
    page = visit(viewport)
    page.set_input_files("#files input[type=file]", [video])
    said(page, "Your video: 8 photos.")
    assert any(text.startswith("Looking for the sharpest frames") for _, text, _ in page.evaluate("window.seen"))
    wish(page, "keyframes", views=4, steps=2)
    generate(page, 4)
    assert plays(page) == pytest.approx(0.5, abs=0.05)


def two_models(folder: Path) -> Path:
    """A zip of a capture that COLMAP has broken into two."""
    with zipfile.ZipFile(folder / "scan.zip", "w") as archive:
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 255, (60, 80, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(folder / f"{number}.jpg")
            archive.write(folder / f"{number}.jpg", f"images/{number}.jpg")
        for name, count in (("0", 2), ("1", 4)):
            archive.writestr(f"sparse/{name}/cameras.txt", "1 PINHOLE 80 60 90 90 40 30\n")
            lines = "".join(f"{n} 1 0 0 0 {n} 0 0 1 {n}.jpg\n\n" for n in range(count))
            archive.writestr(f"sparse/{name}/images.txt", lines)
    return folder / "scan.zip"


def test_what_visitors_bring_is_read_or_refused_where_they_can_read_it(visit, tmp_path):
    page = visit(PHONE)

    def given(*files: Path, said: str) -> None:
        page.set_input_files("#files input[type=file]", files)
        page.wait_for_function("said => document.body.innerText.includes(said)", arg=said)
        assert "Traceback" not in page.inner_text("body") and fits(page)
        page.get_by_role("button", name="Clear").first.click()

    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    turned = tmp_path / "turned.jpg"
    PIL.Image.new("RGB", (80, 40), "red").save(turned, exif=exif)
    given(turned, said="The photo does not tell its lens: a field of view of 60 degrees is assumed.")
    given(two_models(tmp_path), said="1, the largest, with 4 photos is read; not sparse/0 with 2")
    phone = tmp_path / "phone.zip"
    with zipfile.ZipFile(phone, "w") as archive:
        archive.writestr("IMG_0001.DNG", b"II*")
    given(phone, said="IMG_0001.DNG: DNG photos are not read: convert them to JPEG or PNG")
    given(turned, tmp_path / "0.jpg", said="Two photos are too few")
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(phone.read_bytes()[:40])
    given(damaged, said="The zip cannot be read")


def test_no_file_of_the_server_is_shown(visit, server):
    page = visit(DESKTOP)
    for path in ("/etc/passwd", "../../../../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd"):
        for prefix in ("gradio_api/file=", "file=", "gradio_api/file/"):
            answer = page.request.get(f"{server.url}/{prefix}{path}")
            assert answer.status in (403, 404) and "root:" not in answer.text()


@pytest.mark.slow
@BOTH
def test_plain_photos_are_posed_and_seen_from_elsewhere(viewport, visit, tmp_path):
    pytest.importorskip("pycolmap")
    photos = sorted(shared("captures/kermit/images").glob("*.jpg"))
    assert len(photos) == 11
    page = visit(viewport)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photos[0].read_bytes()[:5000])
    page.set_input_files("#files input[type=file]", [*photos, broken])
    page.wait_for_function(
        "document.querySelector('#status').innerText.includes('Your photos: 11 photos.')", timeout=10 * WAIT
    )
    assert "Left out: broken.jpg" in page.inner_text("#status")
    seen = page.evaluate("window.seen")
    for what in ("Finding details in the photos", "Finding the same details", "Placing the cameras"):
        assert any(text.startswith(what) for _, text, _ in seen), seen
    placed = [value for value, text, _ in seen if text.startswith("Placing")]
    assert placed == sorted(placed) and len(set(placed)) >= 2
    generate(page, 24)  # with what the page proposes
    assert plays(page) == pytest.approx(3.0, abs=0.05) and views(page) == 24
    tab(page, "Save")
    assert len(frames(download(page, "mp4"))) == 24
