"""The page of a map in a real browser: offline, hover, click, keyboard, address, hostile names."""

from __future__ import annotations

import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from selfvit.exploration.collection import Collection
from selfvit.exploration.map_files import map_vectors
from selfvit.exploration.page.page import MAX_CLASSES, Page, describe_column, render_page
from selfvit.exploration.page.thumbnails import draw_thumbnails
from selfvit.exploration.search import search

from .browser import open_browser

HOSTILE = [
    "<img src=x onerror=alert(1)>.png",
    "</script><script>alert(2)</script>.png",
    "<!--<script>.png",
    "&quot;'\"`${alert(3)}\\.png",
    "\u2028newline\u2029.png",
    "\udcff.png",  # a byte that is no UTF-8
]


def write_page(page, path):
    path.write_text(render_page(page), encoding="utf-8")


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


def note(errors, message):
    if "willReadFrequently" not in message.text:  # advice about `average`
        errors.append(message.text)


@pytest.fixture
def page(browser):
    """Page of 1200 x 800 pixels that collects requests and errors."""
    opened = browser.new_page(viewport={"width": 1200, "height": 800})
    opened.requests, opened.errors = [], []
    opened.on("request", lambda request: opened.requests.append(request.url))
    opened.on("pageerror", lambda error: opened.errors.append(str(error)))
    opened.on("dialog", lambda dialog: opened.errors.append(dialog.message))
    opened.on("console", lambda message: note(opened.errors, message))
    yield opened
    assert not opened.errors
    opened.close()


@pytest.fixture(scope="module")
def mapped(collection_vectors, tmp_path_factory):
    """Vectors with clusters, and their map."""
    folder = shutil.copytree(collection_vectors, tmp_path_factory.mktemp("mapped") / "v")
    Collection(folder).write_columns(
        "cluster", {"cluster": np.arange(40) % 3, "score": np.linspace(0, 1, 40)}
    )
    path = folder.parent / "map of 40.html"
    map_vectors(folder, path, method="tsne")
    return folder, path


def visit(page, path, fragment=""):
    page.goto(f"{path.as_uri()}{fragment}")
    page.wait_for_selector("html[data-ready]")


def place_of(page, row):
    return page.evaluate("row => selfvitMap.screen(row)", row)


def state(page):
    return page.evaluate("({...selfvitMap.state, ...selfvitMap.view})")


def average(page, selector):
    """Return the mean color of a canvas."""
    script = """canvas => {
        const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        const sums = [0, 0, 0];
        for (let i = 0; i < data.length; i++) if (i % 4 < 3) sums[i % 4] += data[i];
        return sums.map(sum => sum * 4 / data.length);
    }"""
    return np.array(page.eval_on_selector(selector, script))


def test_it_opens_without_any_request_and_draws_with_webgl(page, mapped):
    _, path = mapped
    visit(page, path)
    assert page.evaluate("selfvitMap.renderer") == "WebGL"
    page.mouse.move(*place_of(page, 5))
    page.wait_for_selector("#tip canvas[data-row='5']")
    others = [url for url in page.requests if not url.startswith("data:image/webp;base64,")]
    assert [url.partition("#")[0] for url in others] == [path.as_uri()]
    shown = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    x, y = place_of(page, 20)
    assert shown.getpixel((round(x), round(y))) != (255, 255, 255)
    assert "http" not in re.sub(r"data:[^\"']*", "", path.read_text()).replace("http-equiv", "")


def test_hover_shows_the_image_and_its_name(page, mapped):
    folder, path = mapped
    visit(page, path)
    images = Collection(folder).images()
    for row in (3, 30):
        page.mouse.move(*place_of(page, row))
        page.wait_for_selector(f"#tip canvas[data-row='{row}']")
        name = Collection(folder).ids[row]
        assert page.inner_text("#tip p") == f"{name} · {name[0]}"
        expected = np.asarray(images.picture(row)).mean(axis=(0, 1))
        np.testing.assert_allclose(average(page, "#tip canvas"), expected, atol=6)
    page.mouse.move(5, 790)
    assert page.is_hidden("#tip")


def test_click_shows_the_neighbors_in_the_order_of_search(page, mapped):
    folder, path = mapped
    visit(page, path)
    collection = Collection(folder)
    page.mouse.click(*place_of(page, 7))
    assert page.inner_text("#detail h2") == collection.ids[7]
    titles = "buttons => buttons.map(button => button.title)"
    shown = page.eval_on_selector_all("#detail li button", titles)
    found = search(collection, like=[collection.ids[7]], k=10).results
    assert shown == [match.path for match in found]
    page.wait_for_selector("#detail canvas.large[data-row='7']")
    page.click("#detail li:nth-child(2) button")
    assert page.inner_text("#detail h2") == found[1].path
    page.keyboard.press("Escape")
    assert page.is_hidden("#detail") and state(page)["row"] == -1


def test_wheel_drag_and_keys_move_the_map(page, mapped):
    visit(page, mapped[1])
    start = state(page)
    x, y = place_of(page, 12)
    page.mouse.move(x, y)
    page.mouse.wheel(0, -300)
    page.wait_for_function("selfvitMap.view.zoom > 1.5")
    np.testing.assert_allclose(place_of(page, 12), [x, y], atol=3)  # the pointer is at whole pixels
    x, y = place_of(page, 12)
    page.mouse.move(600, 700)
    page.mouse.down()
    page.mouse.move(640, 660, steps=4)
    page.mouse.up()
    np.testing.assert_allclose(place_of(page, 12), [x + 40, y - 40], atol=0.5)
    assert state(page)["row"] == -1  # a drag is no click
    page.keyboard.press("ArrowRight")
    np.testing.assert_allclose(place_of(page, 12), [x - 40, y - 40], atol=0.5)
    before = state(page)["zoom"]
    page.keyboard.press("+")
    page.keyboard.press("-")
    page.keyboard.press("-")
    assert state(page)["zoom"] == pytest.approx(before / 1.4)
    page.keyboard.press("0")
    assert state(page) == start


def test_colors_classes_and_search(page, mapped):
    visit(page, mapped[1])
    assert page.inner_text("#legend button:nth-child(1)").split() == ["a", "20"]
    page.select_option("#color", label="cluster")
    assert page.inner_text("#legend button:nth-child(1)").split() == ["0", "14"]
    page.click("#legend button:nth-child(2)")
    assert page.inner_text("#status") == "13 of 40 images"
    page.keyboard.press("Escape")
    assert page.inner_text("#status") == "40 images"
    page.select_option("#color", label="score")
    assert page.inner_text("#legend p").split() == ["0", "1"]
    page.keyboard.press("/")
    page.fill("#search", "B/0")
    assert page.inner_text("#status") == "5 of 40 images"
    page.press("#search", "Enter")
    assert page.inner_text("#detail h2") == "b/01.png"


def test_the_address_restores_the_view(page, browser, mapped):
    visit(page, mapped[1])
    page.select_option("#color", label="cluster")
    page.click("#legend button:nth-child(3)")
    page.mouse.move(500, 300)
    page.mouse.wheel(0, -200)
    page.fill("#search", "png")
    row = page.evaluate("[...Array(40).keys()].find(row => row % 3 === 2)")
    page.evaluate("location.hash = location.hash")  # no change
    page.wait_for_timeout(300)
    page.goto(f"{page.url}&image={page.evaluate('row => selfvitMap.names[row]', row)}")
    page.wait_for_timeout(300)
    before, address = state(page), page.url
    assert before["row"] == row and before["only"] is not None and before["zoom"] > 1.5
    other = browser.new_page(viewport={"width": 1200, "height": 800})
    other.goto(address)
    other.wait_for_selector("html[data-ready]")
    after = state(other)
    numbers = {"x", "y", "zoom"}
    assert {k: v for k, v in after.items() if k not in numbers} == {
        k: v for k, v in before.items() if k not in numbers
    }
    for name in numbers:
        assert after[name] == pytest.approx(before[name], rel=1e-5)
    other.goto(f"{mapped[1].as_uri()}#x=no&zoom=-3&color=nothing&image=nowhere&only=z")
    other.wait_for_timeout(200)
    assert state(other)["row"] == -1 and state(other)["zoom"] == 1
    other.close()


def test_hostile_names_and_labels_are_text(page, tmp_path):
    count = len(HOSTILE)
    positions = np.stack([np.arange(count), np.zeros(count)], axis=1)
    others = (np.arange(count)[:, None] + 1) % count
    path = tmp_path / "map.html"
    write_page(
        Page(HOSTILE[1], HOSTILE, positions, others, others * 0.1, {"label": HOSTILE}, "label"),
        path,
    )
    assert path.read_text().count("<script") == 2 and path.read_text().count("</script") == 2
    visit(page, path)
    names = [name.replace("\udcff", "\ufffd") for name in HOSTILE]
    assert page.evaluate("selfvitMap.names") == names and page.title() == HOSTILE[1]
    for row in range(count):
        page.keyboard.press("Escape")
        page.mouse.move(*place_of(page, row))
        page.mouse.click(*place_of(page, row))
        assert page.text_content("#detail h2") == names[row]
    assert page.evaluate("document.querySelectorAll('img, script').length") == 2
    # even markup that got into the page could not run: the policy knows the one script
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=alert(9)>')")
    page.wait_for_timeout(200)
    assert page.errors and not any(error == "9" for error in page.errors)
    page.errors.clear()


@pytest.mark.parametrize("count", [1, 2, 6_000])
def test_any_number_of_points(page, tmp_path, count):
    positions = np.random.default_rng(0).normal(size=(count, 2))
    k = min(10, count - 1)
    near = np.zeros((count, k))
    names = [f"{row}.png" for row in range(count)]
    write_page(Page("points", names, positions, near, near), tmp_path / "map.html")
    visit(page, tmp_path / "map.html")
    row = int(np.abs(positions).sum(axis=1).argmax())  # alone at the edge
    page.mouse.click(*place_of(page, row))
    assert state(page)["row"] == row
    assert len(page.query_selector_all("#detail li")) == k


def test_dark_mode_and_narrow_windows(browser, mapped):
    page = browser.new_page(viewport={"width": 400, "height": 700}, color_scheme="dark")
    visit(page, mapped[1])
    color = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert color == "rgb(22, 24, 27)"
    page.close()


class TestColumns:
    def test_kinds(self):
        found = describe_column("label", ["b", None, "a", "b"])
        assert found["kind"] == "classes" and found["names"] == ["b", "a"]
        assert found["counts"] == [2, 1]
        assert describe_column("cluster", [3, 1, 3])["names"] == ["3", "1"]
        found = describe_column("score", [0.5, None, float("nan"), 2])
        assert (found["kind"], found["low"], found["high"]) == ("numbers", 0.5, 2)
        assert describe_column("row", list(range(100)))["kind"] == "numbers"
        assert describe_column("flag", [True, False])["names"] == ["False", "True"]
        assert describe_column("empty", [None]) is None
        assert describe_column("lists", [[1], [2]]) is None

    def test_rare_classes_are_joined(self):
        found = describe_column("label", [str(row // 2) for row in range(600)] + ["999"])
        assert len(found["names"]) == MAX_CLASSES and found["names"][-1] == "(other)"
        assert sum(found["counts"]) == 601
        json.dumps(found)


class TestThumbnails:
    @staticmethod
    def draw(row, size):
        random = np.random.default_rng(row)
        image = Image.fromarray(random.integers(0, 256, (200, 100, 3), dtype=np.uint8))
        image.thumbnail((size, size))
        return image

    @pytest.mark.parametrize("limit", [10_000_000, 500_000, 6_000])
    def test_the_limit_is_kept(self, limit):
        found = draw_thumbnails(self.draw, 200, limit)
        assert sum(map(len, found.sheets)) <= 1.1 * limit
        assert (found.count == 200) == (limit > 6_000) and found.count
        has = found.slots >= 0
        assert (found.sizes[has][:, 1] == found.tile).all() and not found.sizes[~has].any()
        assert sorted(found.slots[has]) == list(range(found.count))

    def test_tiles_are_not_larger_than_the_images(self):
        found = draw_thumbnails(lambda row, size: Image.new("RGB", (28, 20)), 3)
        assert found.tile == 24 or found.tile == 28
        assert draw_thumbnails(self.draw, 0).count == 0
