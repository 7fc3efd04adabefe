"""The app of `selfvit explore` in a real browser, and what it refuses."""

from __future__ import annotations

import io
import json
import re
import shutil
import socket
import zlib
from urllib.parse import quote

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from selfvit.cli import app
from selfvit.data.decoding import UnreadableImageError
from selfvit.exploration.app.explorer import Explorer
from selfvit.exploration.app.interface import render
from selfvit.exploration.app.markup import text
from selfvit.exploration.app.server import create_app
from selfvit.exploration.app.uploads import Uploads, decode_upload
from selfvit.exploration.app.view import View
from selfvit.exploration.clusters import cluster, draw_clusters
from selfvit.exploration.collection import Collection
from selfvit.exploration.duplicates import DuplicatesResult
from selfvit.exploration.duplication.groups import Member
from selfvit.exploration.maps import lay_out
from selfvit.exploration.search import query_pictures, search
from selfvit.exploration.sheets import SheetRow, Tile, compose_sheet

from .. import image_files
from .app_server import serve
from .browser import open_browser
from .conftest import embed, write_vectors

HOSTILE = "<img src=x onerror=alert(1)>${alert(2)}{{alert(3)}}.png"


def bomb() -> bytes:
    """Return a PNG of 10,000 x 10,000 pixels in few bytes."""

    def chunk(name, content):
        check = zlib.crc32(name + content)
        return len(content).to_bytes(4, "big") + name + content + check.to_bytes(4, "big")

    side = (10_000).to_bytes(4, "big")
    lines = zlib.compressobj(1)
    pixels = b"".join(lines.compress(bytes(30_001)) for _ in range(10_000)) + lines.flush()
    header = chunk(b"IHDR", side + side + b"\x08\x02\x00\x00\x00")
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def vectors(tiny_checkpoint, collection_images, tmp_path_factory):
    """42 images: one with a hostile name, one a copy, one a link to a file outside; a map."""
    folder = tmp_path_factory.mktemp("app")
    images = shutil.copytree(collection_images, folder / "images")
    image_files.noise(24, 24, seed=50).save(images / "a" / HOSTILE)
    image_files.noise(24, 24, seed=51).save(folder / "secret.png")
    shutil.copy(images / "b" / "03.png", images / "b" / "copy.png")
    found = embed(tiny_checkpoint, images, folder / "v")
    (images / "b" / "39.png").unlink()
    (images / "b" / "39.png").symlink_to(folder / "secret.png")
    collection = Collection(found)
    collection.write_columns("cluster", {"cluster": np.arange(42) % 3})
    lay_out(collection, method="tsne")
    return found


@pytest.fixture(scope="module")
def address(vectors):
    with serve(Explorer(vectors)) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    """Browser whose pages share a cache, so that the files of the app are loaded once."""
    with open_browser() as opened:
        yield opened.new_context(viewport={"width": 1200, "height": 800})


@pytest.fixture
def page(browser, address):
    """Page that reports errors, dialogs and requests to other servers."""
    opened = browser.new_page()
    found = []
    opened.on("pageerror", lambda error: found.append(str(error)))
    opened.on("dialog", lambda dialog: found.append(dialog.message))

    def check(request):
        if not request.url.startswith((address, "data:", "blob:")):
            found.append(request.url)

    opened.on("request", check)
    yield opened
    assert not found
    opened.close()


def visit(page, address, query=""):
    page.goto(f"{address}/?{query}")
    page.wait_for_function("document.querySelector('#status')?.textContent.includes(' s)')")


def wait_for(page, words):
    page.wait_for_function(
        "words => document.querySelector('#status')?.textContent.includes(words)", arg=words
    )


def names(page, grid="#results"):
    script = "buttons => buttons.map(button => button.title)"
    return page.eval_on_selector_all(f"{grid} button[data-row]", script)


def drop(page, path):
    page.set_input_files("#upload input[type=file]", path)


def search_json(vectors, *words):
    result = CliRunner().invoke(app, ["search", str(vectors), *map(str, words), "--json"])
    return [match["path"] for match in json.loads(result.stdout)["results"]]


class TestBrowser:
    def test_a_dropped_image_finds_what_search_finds_and_reload_shows_it_again(
        self, page, address, vectors, collection_images
    ):
        visit(page, address)
        path = collection_images / "a" / "04.png"
        drop(page, path)
        wait_for(page, "10 images most similar to the image that you dropped")
        expected = search_json(vectors, path)
        assert names(page) == expected and expected[0] == "a/04.png"
        page.wait_for_function("location.search.includes('upload=')")
        page.reload()
        wait_for(page, "most similar to the image that you dropped")
        assert names(page) == expected

    def test_duplicates_are_side_by_side_with_the_image_to_keep(self, page, address):
        visit(page, address)
        page.get_by_role("tab", name="Duplicates").click()
        wait_for(page, "1 groups of duplicates, exact copies only; nothing is deleted")
        assert names(page, "#duplicates") == ["b/03.png", "b/copy.png"]

    def test_a_click_searches_and_the_address_shows_the_same(self, page, address, vectors):
        visit(page, address)
        page.click("#results button[data-row='7']")
        name = Collection(vectors).ids[7]
        wait_for(page, f"most similar to {name}")
        expected = search_json(vectors, "--like", name)
        assert names(page) == expected
        page.wait_for_function("location.search.includes('row=7')")
        visit(page, address, page.url.partition("?")[2])
        assert names(page) == expected
        page.focus("#results button[data-row]")
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.title") == expected[1]
        page.keyboard.press("Enter")
        wait_for(page, f"most similar to {expected[1]}")

    def test_clusters_show_exemplars_and_lead_to_a_search(self, page, address):
        visit(page, address)
        page.get_by_role("tab", name="Clusters").click()
        wait_for(page, "3 clusters")
        assert len(page.query_selector_all("#clusters section")) == 3
        page.wait_for_function("location.search.includes('tab=clusters')")
        page.click("#cluster input")
        page.get_by_role("option", name="2 (14)").click()
        wait_for(page, "cluster 2")
        assert len(names(page, "#clusters")) == 14
        first = names(page, "#clusters")[0]
        page.click("#clusters button[data-row]")
        wait_for(page, f"most similar to {first}")

    def test_the_map_keeps_its_view_in_the_address(self, page, address):
        visit(page, address, "tab=map")
        frame = page.frame_locator("#map iframe")
        frame.locator("html[data-ready]").wait_for(state="attached")
        frame.locator("#search").fill("a/0")
        page.wait_for_function("decodeURIComponent(location.search).includes('search=a')")
        visit(page, address, page.url.partition("?")[2])
        assert frame.locator("#search").input_value() == "a/0"
        assert "5 of 42 images" in frame.locator("#status").inner_text()

    def test_the_table_is_filtered_and_saved_as_csv(self, page, address):
        visit(page, address, "tab=table&column=cluster&value=1&text=a/")
        wait_for(page, "7 of 42 rows")
        assert page.inner_text("#download a") == "CSV of 7 rows"
        link = page.get_attribute("#download a", "href")
        lines = httpx.get(address + link).text.splitlines()
        assert lines[0] == "row,path,label,cluster" and len(lines) == 8
        page.fill("#text input, #text textarea", "a/0")
        page.press("#text input, #text textarea", "Enter")
        wait_for(page, "2 of 42 rows")
        page.wait_for_function("location.search.includes('text=a%2F0')")

    def test_hostile_names_are_text_everywhere(self, page, address):
        visit(page, address, f"image={quote('a/' + HOSTILE)}")
        assert HOSTILE in page.inner_text("#query")
        visit(page, address, f"tab=table&text={quote('onerror')}")
        wait_for(page, "1 of 42 rows")
        page.wait_for_timeout(300)
        assert HOSTILE in page.inner_text("#table")
        visit(page, address, f"image={quote('<script>alert(1)</script>')}&tab={quote('<b>')}")
        assert "has no image" in page.inner_text("#status")

    @pytest.mark.parametrize(
        "make, message",
        [
            (lambda: b"no image, just text", "cannot be used"),
            (bomb, "10,000 x 10,000 pixels, but at most 50,000,000"),
            (lambda: bytes(21_000_000), "21,000,000 bytes, but at most 20,000,000 are allowed"),
        ],
        ids=["text", "bomb", "large"],
    )
    def test_what_cannot_be_used_is_a_message(self, page, address, make, message, tmp_path):
        visit(page, address)
        before = names(page)
        (tmp_path / "query.png").write_bytes(make())
        drop(page, tmp_path / "query.png")
        wait_for(page, message)
        assert names(page) == before

    def test_it_is_light_or_dark_as_the_system_is(self, page, address):
        for scheme, is_dark in [("light", False), ("dark", True)]:
            page.emulate_media(color_scheme=scheme)
            visit(page, address)
            color = page.evaluate("getComputedStyle(document.body).backgroundColor")
            red = int(color.partition("(")[2].partition(",")[0])
            assert (red < 128) == is_dark


SECRETS = [
    "/etc/passwd", "etc/passwd", "../../../../../../etc/passwd", "file:///etc/passwd",
    "%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
]  # fmt: skip


def templates(routes):
    """Yield the paths of all routes, those of mounted apps and routers too."""
    for route in routes:
        below = getattr(route, "original_router", None) or getattr(route, "app", None)
        if hasattr(route, "methods"):
            yield route.path
        elif hasattr(below, "routes"):
            yield from templates(below.routes)


class TestSecurity:
    def test_no_route_serves_a_file_of_the_machine(self, vectors, address):
        found = set(templates(create_app(Explorer(vectors)).routes))
        assert {"/images/{row:int}", "/gradio_api/file={path_or_url:path}"} <= found
        assert len(found) > 60
        with httpx.Client(base_url=address) as client:
            for template in sorted(found):
                start = template.partition("{")[0]
                for secret in SECRETS if "{" in template else ():
                    for method in ("GET", "POST"):
                        answer = client.request(method, f"{start}{secret}")
                        assert b"root:" not in answer.content, (method, start, secret)
                        assert answer.status_code != 200 or b"<html" in answer.content
            large = client.post("/gradio_api/upload", files={"files": bytes(21_000_000)})
            assert large.status_code == 413
            answer = client.get(f"/gradio_api/file={vectors}/metadata.json")
            assert answer.status_code == 404
            for path in ("/gradio_api/run-history/records", "/docs", "/openapi.json"):
                assert client.get(path).status_code == 404

    @pytest.mark.parametrize(
        "file",
        [
            {"path": "/etc/passwd"},
            {"path": "/etc/passwd", "url": "http://127.0.0.1:1/x"},
            {"path": "file:///etc/passwd"},
        ],
        ids=["path", "url", "scheme"],
    )
    def test_an_event_cannot_name_a_file_of_the_machine(self, address, vectors, file):
        file |= {"orig_name": "x.png", "meta": {"_type": "gradio.FileData"}}
        with httpx.Client(base_url=address) as client:
            for number, event in enumerate(client.get("/config").json()["dependencies"]):
                data = [None if i % 2 == 0 else file for i in range(len(event["inputs"]))]
                job = {"data": data, "fn_index": number, "session_hash": "s", "event_data": None}
                client.post("/gradio_api/queue/join", json=job)
            with client.stream("GET", "/gradio_api/queue/data?session_hash=s") as stream:
                printed = ""
                for line in stream.iter_lines():
                    printed += line
                    if "close_stream" in line:
                        break
        assert "root:" not in printed

    def test_a_link_out_of_the_folder_is_not_served(self, address, vectors):
        row = Collection(vectors).row_of("b/39.png")
        assert httpx.get(f"{address}/images/{row}").status_code == 404
        other = httpx.get(f"{address}/images/0?size=640")
        assert other.status_code == 200 and other.headers["content-type"] == "image/jpeg"
        for path in ("42", "-1", "0?size=100000", "0?size=x", "x", "0/../../x"):
            assert httpx.get(f"{address}/images/{path}").status_code == 404
        explorer = Explorer(vectors)
        gray = explorer._thumbnail(row, 32)
        assert gray.getcolors() == [(1024, (128, 128, 128))]

    def test_other_names_of_the_machine_are_refused(self, address):
        answer = httpx.get(address, headers={"Host": "evil.example"})
        assert answer.status_code == 400

    def test_the_server_listens_on_this_machine_only(self, vectors, address):
        port = address.rpartition(":")[2]
        result = CliRunner().invoke(app, ["explore", str(vectors), "--port", port])
        assert result.exit_code == 2 and f"port {port} of 127.0.0.1 is in use" in result.output
        with socket.socket() as other, pytest.raises(OSError):
            other.connect((socket.gethostbyname(socket.gethostname()), int(port)))
            if socket.gethostbyname(socket.gethostname()).startswith("127."):
                raise OSError("this machine has no other address")


class TestParts:
    def test_a_view_survives_its_address(self):
        view = View("table", image="a b/ü&=.png", text="#x", column="c", map="#x=1&y=2")
        from urllib.parse import parse_qsl

        assert View.from_query(dict(parse_qsl(view.to_query()))) == view
        assert View.from_query({"tab": "nothing", "other": "x"}) == View()

    def test_images_of_one_name_are_told_apart(self, tiny_checkpoint, tmp_path):
        """All of them were shown as the first one, and a click on one was an error."""
        files = []
        for seed in (0, 1, 1, 2):
            file = io.BytesIO()
            image_files.noise(24, 24, seed).save(file, "PNG")
            files.append({"bytes": file.getvalue()})
        table = pa.table({"image": pa.array(files), "id": ["a", "a", "b", "b"]})
        pq.write_table(table, tmp_path / "t.parquet")
        folder = embed(tiny_checkpoint, tmp_path / "t.parquet", tmp_path / "v")
        explorer = Explorer(folder, device="cpu")

        def rows(part):
            return re.findall(r'data-row="(\d)"', part)

        assert rows(render(explorer, View("duplicates"))["duplicates"]) == ["1", "2"]
        shown = render(explorer, View(image="b", row="3"))
        assert "/images/3?" in shown["query"] and sorted(rows(shown["results"])) == ["0", "1", "2"]
        for row in ("", "0", "4", "x"):  # of no image of this name
            assert "must be one image" in render(explorer, View(image="b", row=row))["status"]
        result = cluster(explorer.collection, num_clusters=1, num_seeds=1, write=False)
        draw_clusters(result, explorer.images, tmp_path / "sheet.png")
        (found,) = result.clusters
        assert sorted(found.rows) == [0, 1, 2, 3]
        tiles = [
            Tile(explorer.images.picture(row), "ab"[row // 2], row == found.rows[0])
            for row in found.rows
        ]
        expected = compose_sheet([SheetRow(tiles, "cluster 0: 4 images")])
        with Image.open(tmp_path / "sheet.png") as sheet:
            assert sheet.tobytes() == expected.tobytes()

    def test_the_status_tells_how_much_of_the_whole_is_shown(self, tmp_path):
        image_files.noise(8, 8).save(tmp_path / "0.png")
        vectors = np.random.default_rng(0).normal(size=(410, 4))
        folder = write_vectors(tmp_path / "v", vectors, [f"{row}.png" for row in range(410)])
        explorer = Explorer(folder, tmp_path / "0.png")
        clusters = np.maximum(np.arange(410) - 289, 0)  # 290 images in cluster 0, then 120 of one
        explorer.collection.write_columns("cluster", {"cluster": clusters})
        groups = {row: [Member(row + 1, True, 1.0, 1.0)] for row in range(0, 410, 2)}
        explorer.duplicates = DuplicatesResult(None, [], [], rows=groups)
        for view, shown, status in [
            (View("clusters"), 100, "first 100 of 121 clusters, "),
            (View("clusters", cluster="0"), 1, "cluster 0, first 200 of 290 images, "),
            (View("clusters", cluster="1"), 1, "cluster 1, 1 images, "),
            (View("duplicates"), 200, "first 200 of 205 groups of duplicates, "),
        ]:
            parts = render(explorer, view)
            assert parts[view.tab].count("<section") == shown and status in parts["status"]

    def test_text_is_escaped_for_html_and_for_templates_of_gradio(self):
        assert not set("<>${}`\"'") & set(text(HOSTILE + "'\"`"))

    def test_uploads_are_bounded(self):
        file = io.BytesIO()
        Image.new("RGB", (8000, 7000)).save(file, "PNG")
        with pytest.raises(UnreadableImageError, match="8,000 x 7,000 pixels"):
            decode_upload(file.getvalue())
        with pytest.raises(UnreadableImageError, match="at most 20,000,000"):
            decode_upload(bytes(20_000_001))
        added = []
        uploads = Uploads(lambda digest, content: added.append(content))
        digests = []
        for seed in range(34):
            file = io.BytesIO()
            image_files.noise(700, 30, seed).save(file, "PNG")
            digests.append(uploads.add(file.getvalue()))
        assert added[-1] == file.getvalue() and uploads.get(digests[-1]).size == (640, 27)
        assert uploads.get(digests[0]) is None

    def test_an_upload_is_read_and_embedded_as_a_query_of_search(self, tiny_checkpoint, tmp_path):
        """A copy of eight bits was embedded, and 12 bits were read as 16: almost black."""
        for seed in range(3):
            pixels = np.asarray(image_files.noise(24, 24, seed).convert("L"), np.uint16) * 16 + 7
            Image.fromarray(pixels).save(tmp_path / f"{seed}.png")
        folder = embed(tiny_checkpoint, tmp_path, tmp_path / "v", pixel_range=(0, 4095))
        explorer, path = Explorer(folder, device="cpu"), tmp_path / "1.png"
        digest = explorer.uploads.add(path.read_bytes())
        collection, found = explorer.collection, explorer.search(View(upload=digest)).results
        assert found == search(collection, [path], device="cpu").results
        assert found[0].path == "1.png" and found[0].similarity == pytest.approx(1, abs=1e-6)
        expected = explorer.images.picture(1)
        (drawn,) = query_pictures(collection, explorer.images, [], [str(path)])
        assert explorer.uploads.get(digest).tobytes() == drawn.tobytes() == expected.tobytes()

    @pytest.mark.parametrize("num_images", [1, 2])
    def test_small_collections(self, tiny_checkpoint, tmp_path, num_images):
        for index in range(num_images):
            image_files.noise(24, 24, seed=0).save(tmp_path / f"{index}.png")  # the same image
        explorer = Explorer(embed(tiny_checkpoint, tmp_path, tmp_path / "v"))
        assert explorer.clusters == {} and b"selfvit map" in explorer.map_page
        cluster(explorer.collection, num_clusters=1, num_seeds=1)  # while the app is open
        assert explorer.clusters == {"0": list(range(num_images))} and "cluster" in explorer.columns
        assert len(explorer.search(View(image="0.png")).results) == num_images - 1
        assert explorer.csv(View()).count(b"\n") == num_images + 1

    def test_errors_of_the_command_are_one_line(self, tmp_path):
        result = CliRunner().invoke(app, ["explore", str(tmp_path)])
        assert (
            result.exit_code == 2 and "must be a folder that selfvit embed wrote" in result.output
        )
