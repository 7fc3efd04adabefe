"""Tabs of the app and their events: each event makes a new `View`, and each view is rendered."""

# Gradio reads the annotations of events, so they must not be strings: no import of `annotations`.

import time
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from ...data.decoding import UnreadableImageError
from . import markup
from .explorer import EXEMPLARS, MAX_SHOWN, Explorer
from .uploads import MAX_BYTES
from .view import View

TABLE_ROWS = 1000  # shown at once; the CSV has all
MAX_VALUES = 500  # of the filter of a column
MAX_CLUSTERS = 100  # shown at once; the list of clusters has all
# Names of the components that a view changes.
PARTS = (
    "status", "query", "results", "map", "cluster", "clusters", "duplicates", "text", "column",
    "value", "table", "download",
)  # fmt: skip
# The map reports its own view; it is kept in the address too. A file that is too large is refused
# before it is sent, as Gradio would only say that there is an error.
HEAD = """<script>
for (const name of ['change', 'drop']) {
  addEventListener(name, (event) => {
    const files = event.target.closest?.('#upload') && (event.dataTransfer || event.target).files;
    if (!files?.length || files[0].size <= MAX_BYTES) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    document.querySelector('#status p').textContent = `The file cannot be used: it has ` +
      `${files[0].size.toLocaleString('en')} bytes, but at most MAX_TEXT are allowed.`;
  }, true);
}
addEventListener('message', (event) => {
  if (event.origin !== location.origin || typeof event.data?.selfvitMap !== 'string') return;
  const query = new URLSearchParams(location.search);
  query.set('map', event.data.selfvitMap);
  history.replaceState(history.state, '', `?${query}`);
});
</script>""".replace("MAX_BYTES", str(MAX_BYTES)).replace("MAX_TEXT", f"{MAX_BYTES:,}")
SAVE = """(address) => {
  if (!address) return;
  const query = new URLSearchParams(address);
  const map = new URLSearchParams(location.search).get('map');
  if (map) query.set('map', map);
  history.replaceState(history.state, '', `?${query}`);
}"""


def render(explorer: Explorer, view: View) -> dict[str, Any]:
    """Return the parts that a view shows, by their names in `PARTS`.

    Args:
        explorer: Collection.
        view: State of the app.
    """
    started = time.perf_counter()
    try:
        parts = RENDERERS[view.tab](explorer, view)
    except (ValueError, OSError, ImportError) as error:
        parts = {"status": f"error: {error}"}
    seconds = time.perf_counter() - started
    parts["status"] = markup.message(f"{parts.get('status', '')} ({seconds:.2f} s)")
    return parts


def _search(explorer: Explorer, view: View) -> dict[str, Any]:
    result = explorer.search(view)
    if result is None:
        rows = range(min(len(explorer.collection), 24))
        tiles = [(row, explorer.collection.ids[row], "") for row in rows]
        note = "that upload is no longer kept; drop it again" if view.upload else ""
        return {
            "query": "",
            "results": markup.grid(tiles),
            "status": note or "Drop an image, or click one of the first images to search with it.",
        }
    if view.upload:
        picture = explorer.uploads.get(view.upload)
        query = "" if picture is None else markup.query_picture(picture)
    else:
        query = markup.query_row(explorer.query_row(view), view.image)
    tiles = [(match.row, match.path, f"{match.similarity:.3f}") for match in result.results]
    count = len(explorer.collection)
    status = f"{len(tiles)} images most similar to {result.query[0]}, of {count:,}"
    if result.note:
        status += f"; {result.note}"
    return {"query": query, "results": markup.grid(tiles), "status": status}


def _map(explorer: Explorer, view: View) -> dict[str, Any]:
    fragment = "#" + quote(view.map.lstrip("#"), safe="=&+%") if view.map else ""
    frame = f'<iframe src="/map.html{markup.text(fragment)}" title="Map"></iframe>'
    return {
        "map": f'<div class="selfvit-map">{frame}</div>',
        "status": f"map of {len(explorer.collection):,} images",
    }


def _clusters(explorer: Explorer, view: View) -> dict[str, Any]:
    import gradio as gr

    clusters = explorer.clusters
    if not clusters:
        folder = explorer.collection.folder
        return {
            "clusters": markup.message(f"There are no clusters yet; run selfvit cluster {folder}"),
            "status": "no clusters",
        }
    names = explorer.collection.ids
    wanted = view.cluster if view.cluster in clusters else ""
    shown = {wanted: clusters[wanted]} if wanted else clusters
    limit = MAX_SHOWN if wanted else EXEMPLARS
    count = len(clusters[wanted]) if wanted else len(clusters)
    groups = [
        markup.group(
            f"cluster {name}: {len(rows):,} images",
            markup.grid((row, names[row], "") for row in rows[:limit]),
        )
        for name, rows in list(shown.items())[:MAX_CLUSTERS]
    ]
    choices = [("all", ""), *((f"{name} ({len(rows)})", name) for name, rows in clusters.items())]
    what = _first_of(MAX_CLUSTERS, count, "clusters")
    if wanted:
        what = f"cluster {wanted}, {_first_of(MAX_SHOWN, count, 'images')}"
    return {
        "cluster": gr.Dropdown(choices=choices, value=wanted),  # type: ignore[arg-type]
        "clusters": "".join(groups),
        "status": f"{what}, the most typical images first",
    }


def _duplicates(explorer: Explorer, view: View) -> dict[str, Any]:
    found = explorer.duplicates
    names = explorer.collection.ids
    groups = []
    for number, (keeper, duplicates) in enumerate(list(found.rows.items())[:MAX_SHOWN]):
        kept = markup.grid([(keeper, names[keeper], "keep")])
        members = markup.grid((member.row, names[member.row], "") for member in duplicates)
        groups.append(
            markup.group(f"group {number + 1}", f'<div class="selfvit-pair">{kept}{members}</div>')
        )
    count, threshold = _first_of(MAX_SHOWN, len(found.rows), "groups"), found.threshold
    limit = "exact copies only" if threshold is None else f"threshold {threshold:.3f}"
    return {
        "duplicates": "".join(groups) or markup.message("There are no duplicates."),
        "status": f"{count} of duplicates, {limit}; nothing is deleted",
    }


def _first_of(limit: int, count: int, noun: str) -> str:
    """Return a number of parts, and how many of them are shown if these are not all."""
    return f"first {limit} of {count:,} {noun}" if count > limit else f"{count:,} {noun}"


def _table(explorer: Explorer, view: View) -> dict[str, Any]:
    import gradio as gr

    rows = explorer.rows_of(view)
    header, lines = explorer.table(rows[:TABLE_ROWS])
    values: list[str] = []
    if view.column in explorer.columns:
        values = sorted({str(value) for value in explorer.columns[view.column]})[:MAX_VALUES]
    query = urlencode({"text": view.text, "column": view.column, "value": view.value})
    link = f'<a href="/selection.csv?{markup.text(query)}" download>CSV of {len(rows):,} rows</a>'
    shown = f", {TABLE_ROWS:,} are shown" if len(rows) > TABLE_ROWS else ""
    return {
        "text": view.text,
        "column": gr.Dropdown(choices=["", *explorer.columns], value=view.column),
        "value": gr.Dropdown(choices=["", *values], value=view.value),
        "table": gr.Dataframe(
            value=[["" if cell is None else str(cell) for cell in line] for line in lines],
            headers=header,
            datatype="str",
        ),
        "download": link,
        "status": f"{len(rows):,} of {len(explorer.collection):,} rows{shown}",
    }


RENDERERS = {
    "search": _search,
    "map": _map,
    "clusters": _clusters,
    "duplicates": _duplicates,
    "table": _table,
}


def build(explorer: Explorer) -> Any:
    """Return the Gradio blocks of the app.

    Args:
        explorer: Collection.
    """
    import gradio as gr

    parts: dict[str, Any] = {}
    title = f"{explorer.name}: {len(explorer.collection):,} images"
    with gr.Blocks(title=title, analytics_enabled=False, fill_width=True) as blocks:
        gr.HTML(f"<h1>{markup.text(title)}</h1>")
        parts["status"] = gr.HTML(elem_id="status")
        address = gr.Textbox(visible=False)
        with gr.Tabs() as tabs:
            tab_of, upload = _add_tabs(explorer, parts)
        outputs = [address, *(parts[name] for name in PARTS)]
        _connect(explorer, blocks, tabs, tab_of, upload, parts, address, outputs)
    return blocks


def _add_tabs(explorer: Explorer, parts: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Add the tabs; return them by id, and the component for uploads."""
    import gradio as gr

    def new_grid(name: str) -> Any:
        return gr.HTML(elem_id=name, js_on_load=markup.GRID_SCRIPT)

    tab_of = {}
    with gr.Tab("Search", id="search") as tab_of["search"], gr.Row():
        with gr.Column(scale=1, min_width=220):
            upload = gr.File(label="Drop an image", type="binary", elem_id="upload")
            parts["query"] = gr.HTML(elem_id="query")
        with gr.Column(scale=4):
            parts["results"] = new_grid("results")
    with gr.Tab("Map", id="map") as tab_of["map"]:
        parts["map"] = gr.HTML(elem_id="map")
    with gr.Tab("Clusters", id="clusters") as tab_of["clusters"]:
        parts["cluster"] = gr.Dropdown(
            choices=[("all", "")], value="", label="Cluster", elem_id="cluster"
        )
        parts["clusters"] = new_grid("clusters")
    with gr.Tab("Duplicates", id="duplicates") as tab_of["duplicates"]:
        parts["duplicates"] = new_grid("duplicates")
    with gr.Tab("Table", id="table") as tab_of["table"]:
        with gr.Row():
            parts["text"] = gr.Textbox(label="Path contains", elem_id="text")
            parts["column"] = gr.Dropdown(
                choices=["", *explorer.columns], value="", label="Column", elem_id="column"
            )
            parts["value"] = gr.Dropdown(choices=[""], value="", label="Value", elem_id="value")
        parts["download"] = gr.HTML(elem_id="download")
        parts["table"] = gr.Dataframe(interactive=False, elem_id="table", wrap=True)
    return tab_of, upload


def _connect(
    explorer: Explorer,
    blocks: Any,
    tabs: Any,
    tab_of: dict[str, Any],
    upload: Any,
    parts: dict[str, Any],
    address: Any,
    outputs: list[Any],
) -> None:
    """Connect the events: each one changes the view, renders it and saves it in the address."""
    import gradio as gr

    def shown(view: View) -> list[Any]:
        rendered = render(explorer, view)
        return [view.to_query(), *(rendered.get(name, gr.skip()) for name in PARTS)]

    def current(query: str) -> View:
        return View.from_query(dict(parse_qsl(query)))

    def save(event: Any) -> None:
        event.then(None, [address], None, js=SAVE)

    def open_address(request: gr.Request) -> list[Any]:
        view = View.from_query(dict(request.query_params))
        return [gr.Tabs(selected=view.tab), *shown(view)]

    def open_tab(name: str) -> Any:
        def render_tab(query: str) -> list[Any]:
            if not query:  # the first tab selects itself before the address is read
                return [gr.skip()] * len(outputs)
            return shown(replace(current(query), tab=name))

        return render_tab

    def open_image(query: str, event: gr.EventData) -> list[Any]:
        row = int(event._data["row"])
        if not 0 <= row < len(explorer.collection):
            raise gr.Error("there is no such image.")
        name = explorer.collection.ids[row]
        view = replace(current(query), tab="search", image=name, row=str(row), upload="")
        return [gr.Tabs(selected="search"), *shown(view)]

    def open_upload(query: str, content: bytes | None) -> list[Any]:
        if content is None:
            return shown(replace(current(query), upload=""))
        try:
            digest = explorer.uploads.add(content)
        except UnreadableImageError as error:
            gr.Warning(markup.text(f"The file cannot be used: {error}."))
            status = markup.message(f"The file cannot be used: {error}.")
            return [gr.skip(), status, *[gr.skip()] * (len(PARTS) - 1)]
        except (ValueError, OSError, ImportError) as error:  # of the checkpoint and its engine
            raise gr.Error(markup.text(error)) from error
        return shown(replace(current(query), tab="search", image="", row="", upload=digest))

    def change(name: str) -> Any:
        resets = {"value": ""} if name == "column" else {}
        return lambda query, value: shown(
            replace(current(query), **{name: str(value or "")}, **resets)
        )

    hidden: dict[str, Any] = {"api_visibility": "private"}
    save(blocks.load(open_address, None, [tabs, *outputs], **hidden))
    for name, tab in tab_of.items():
        save(tab.select(open_tab(name), [address], outputs, **hidden))
    for name in ("results", "clusters", "duplicates"):
        save(parts[name].click(open_image, [address], [tabs, *outputs], **hidden))
    save(upload.upload(open_upload, [address, upload], outputs, **hidden))
    for name in ("cluster", "column", "value"):
        save(parts[name].input(change(name), [address, parts[name]], outputs, **hidden))
    save(parts["text"].submit(change("text"), [address, parts["text"]], outputs, **hidden))


__all__ = ["HEAD", "build", "render"]
