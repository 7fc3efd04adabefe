"""Measure how long a map of 100,000 images takes to open in a browser, from the disk.

    python -m benchmarks.map --output benchmarks/results/map.md

The page is written by the code of `selfvit map`: the images of the Fashion-MNIST sample, repeated,
with synthetic positions and neighbors, as laying out 100,000 vectors takes long. Each run starts a
new chromium (Debian's), without a window and without a GPU, and opens the file by its file:// URL.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Page as BrowserPage
from playwright.sync_api import sync_playwright

from benchmarks.objectives import processor_name
from selfvit import decode_image, open_images
from selfvit.exploration.page.page import Page, render_page
from selfvit.exploration.page.thumbnails import draw_thumbnails

SAMPLE = Path(__file__).parents[1] / "examples" / "fashion_mnist_sample" / "train.parquet"
CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
NEIGHBORS = 10
LIMIT = 10.0  # seconds to open the page
# Moves the map by a key before each frame; returns the milliseconds of each frame.
FRAMES = """async (count) => {
  const times = [];
  let last = performance.now();
  for (let i = 0; i < count; i++) {
    const key = i % 20 < 10 ? 'ArrowRight' : 'ArrowLeft';
    dispatchEvent(new KeyboardEvent('keydown', { key }));
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    times.push(now - last);
    last = now;
  }
  return times;
}"""


def write_map(num_points: int, path: Path) -> dict[str, Any]:
    """Write the page; return its size in MB, and number and size of its thumbnails."""
    source = open_images(SAMPLE)
    images = [decode_image(record.image) for record in source]
    labels, names = source.labels(), source.label_names
    assert labels is not None and names is not None
    rng = np.random.default_rng(0)
    rows = np.arange(num_points) % len(images)
    centers = 10 * rng.normal(size=(len(names), 2))
    positions = centers[labels[rows]] + rng.normal(size=(num_points, 2))

    def open_thumbnail(row: int, size: int) -> Any:
        picture = images[rows[row]].copy()
        picture.thumbnail((size, size))
        return picture

    thumbnails = draw_thumbnails(open_thumbnail, num_points)
    page = Page(
        title=f"{num_points:,} images",
        names=[f"{names[labels[image]]}/{row:06}.png" for row, image in enumerate(rows)],
        positions=positions,
        neighbors=rng.integers(0, num_points, size=(num_points, NEIGHBORS)),
        similarities=rng.uniform(size=(num_points, NEIGHBORS)),
        columns={"label": [names[label] for label in labels[rows]]},
        color="label",
        thumbnails=thumbnails,
    )
    path.write_text(render_page(page), encoding="utf-8")
    return {
        "MB": path.stat().st_size / 1e6,
        "thumbnails": thumbnails.count,
        "pixels": thumbnails.tile,
    }


def measure(path: Path, num_points: int) -> dict[str, Any]:
    """Open the page in a new browser; return times in seconds, and what it requested."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        requested: list[str] = []
        page.on("request", lambda request: requested.append(request.url.partition(",")[0]))
        started = time.perf_counter()
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]")
        opened = time.perf_counter() - started
        thumbnail = _show_thumbnail(page, num_points // 2)
        frames = page.evaluate(FRAMES, 60)
        found = {
            "version": browser.version,
            "renderer": page.evaluate("selfvitMap.renderer"),
            "open": opened,
            "thumbnail": thumbnail,
            "frame": statistics.median(frames) / 1000,
            "requests": sorted({url for url in requested if not url.startswith("data:")}),
        }
        browser.close()
    return found


def _show_thumbnail(page: BrowserPage, row: int) -> float:
    """Point at an image; return the seconds until its thumbnail is drawn."""
    x, y = page.evaluate("row => selfvitMap.screen(row)", row)
    started = time.perf_counter()
    page.mouse.move(x, y)
    page.wait_for_selector("#tip canvas[data-row]")
    return time.perf_counter() - started


def main() -> None:
    """Measure, and write a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "map.html")
        started = time.perf_counter()
        written = write_map(arguments.points, path)
        seconds = time.perf_counter() - started
        runs = [measure(path, arguments.points) for _ in range(arguments.runs)]
    assert all(run["requests"] == [path.as_uri()] for run in runs), "the page made requests"
    lines = [
        f"{arguments.points:,} points, {written['thumbnails']:,} thumbnails of {written['pixels']} "
        f"pixels, {written['MB']:.1f} MB, written in {seconds:.0f} s. CPU: {processor_name()}, "
        f"{os.cpu_count()} cores; chromium {runs[0]['version']} without a GPU "
        f"({runs[0]['renderer']} in software), {len(runs)} runs, load average "
        f"{os.getloadavg()[0]:.0f}. No run requested anything but the file itself.",
        "",
        "| measure | median | largest |",
        "| --- | --- | --- |",
    ]
    for name, title in [
        ("open", "from the URL to the first picture"),
        ("thumbnail", "from pointing at an image to its thumbnail"),
        ("frame", "frame while the map moves"),
    ]:
        values = [run[name] for run in runs]
        lines.append(f"| {title} | {statistics.median(values):.2f} s | {max(values):.2f} s |")
    print("\n".join(lines))
    if arguments.output is not None:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    slowest = max(run["open"] for run in runs)
    if slowest >= LIMIT:
        raise SystemExit(f"the page must open in less than {LIMIT:g} s, but took {slowest:.1f} s.")


if __name__ == "__main__":
    main()
