"use strict";
// Everything is drawn from the JSON of the page. Names and labels are set as text, never as HTML.
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const { names, columns, sheets, thumbnail } = data;
  const count = names.length;
  function bytes(text) {
    const letters = atob(text), values = new Uint8Array(letters.length);
    for (let i = 0; i < letters.length; i++) values[i] = letters.charCodeAt(i);
    return values;
  }
  const positions = new Float32Array(bytes(data.positions).buffer); // x, y of each row
  const neighbors = new Int32Array(bytes(data.neighbors).buffer); // of each row, nearest first
  const similarities = new Float32Array(bytes(data.similarities).buffer);
  const perRow = count ? neighbors.length / count : 0;
  const slots = thumbnail ? new Int32Array(bytes(thumbnail.slots).buffer) : null; // -1: none
  const sizes = thumbnail ? new Uint8Array(bytes(thumbnail.sizes).buffer) : null; // width, height
  for (const column of columns) {
    const raw = bytes(column.values).buffer;
    column.values = column.kind === "numbers" ? new Float32Array(raw) : new Uint16Array(raw);
  }

  // in `selfvit explore`, the map is a part of another page
  const isEmbedded = parent !== window && location.protocol !== "file:";

  // ---- view: the center of the window in units of the map, and pixels per unit
  const canvas = $("map");
  const bounds = extent();
  const view = { x: 0, y: 0, zoom: 1 };
  const state = { color: -1, only: null, query: "", row: -1 };
  let found = null; // rows that match the query, or null
  let dirty = true;

  function extent() {
    let [left, right, low, high] = [Infinity, -Infinity, Infinity, -Infinity];
    for (let row = 0; row < count; row++) {
      const x = positions[2 * row], y = positions[2 * row + 1];
      left = Math.min(left, x); right = Math.max(right, x);
      low = Math.min(low, y); high = Math.max(high, y);
    }
    return count ? { left, right, low, high } : { left: 0, right: 1, low: 0, high: 1 };
  }
  const width = () => canvas.clientWidth, height = () => canvas.clientHeight;
  function fitting() { // pixels per unit at zoom 1
    const spanX = bounds.right - bounds.left || 1, spanY = bounds.high - bounds.low || 1;
    return 0.86 * Math.min(width() / spanX, height() / spanY);
  }
  const scale = () => fitting() * view.zoom;
  const screen = (row) => [
    width() / 2 + (positions[2 * row] - view.x) * scale(),
    height() / 2 - (positions[2 * row + 1] - view.y) * scale(),
  ];
  function home() {
    view.x = (bounds.left + bounds.right) / 2;
    view.y = (bounds.low + bounds.high) / 2;
    view.zoom = 1;
  }
  function zoomAt(x, y, factor) {
    const before = scale();
    view.zoom = Math.min(1e5, Math.max(0.2, view.zoom * factor));
    const change = 1 / before - 1 / scale();
    view.x += (x - width() / 2) * change;
    view.y -= (y - height() / 2) * change;
    moved();
  }
  function pan(dx, dy) {
    view.x -= dx / scale();
    view.y += dy / scale();
    moved();
  }
  function moved() { dirty = true; saveSoon(); }

  // ---- colors
  const TEN = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#8f9296",
    "#bcbd22", "#17becf"];
  const NONE = "#9aa2ac"; // no value
  function colorOf(code) {
    return code < TEN.length ? TEN[code] : `hsl(${(code * 137.508) % 360}deg 60% ${45 + 15 * (code % 2)}%)`;
  }
  const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]; // viridis
  function ramp(part) {
    const place = Math.min(0.9999, Math.max(0, part)) * (RAMP.length - 1);
    const start = Math.floor(place), rest = place - start;
    return RAMP[start].map((value, i) => Math.round(value + (RAMP[start + 1][i] - value) * rest));
  }
  const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  function rgb(color) {
    paint.fillStyle = color;
    paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data.slice(0, 3)];
  }
  const colors = new Uint8Array(4 * count);
  function isShown(row) {
    if (found && !found.has(row)) return false;
    return state.only === null || columns[state.color].values[row] === state.only;
  }
  function recolor() {
    const column = columns[state.color];
    const palette = column && column.kind === "classes" ? column.names.map((name, i) => rgb(colorOf(i))) : [];
    const none = rgb(NONE), single = rgb(TEN[0]);
    for (let row = 0; row < count; row++) {
      let color = single;
      if (column && column.kind === "classes") color = palette[column.values[row]] || none;
      else if (column) {
        const value = column.values[row];
        color = Number.isFinite(value) ? ramp((value - column.low) / (column.high - column.low || 1)) : none;
      }
      colors.set(color, 4 * row);
      colors[4 * row + 3] = isShown(row) ? 220 : 14;
    }
    renderer.colors();
    dirty = true;
  }

  // ---- drawing: WebGL, or a plain canvas where there is none
  const pointSize = () => Math.min(16, Math.max(2.5, 260 / Math.sqrt(count + 1)) * Math.pow(view.zoom, 0.3));
  const ratio = () => window.devicePixelRatio || 1;
  function webgl() {
    const gl = canvas.getContext("webgl", { antialias: false, premultipliedAlpha: false, preserveDrawingBuffer: true });
    if (!gl) return null;
    const compile = (kind, source) => {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      return shader;
    };
    const program = gl.createProgram();
    gl.attachShader(program, compile(gl.VERTEX_SHADER, `
      attribute vec2 position; attribute vec4 color; uniform vec2 center; uniform vec2 factor;
      uniform float size; varying vec4 shade; varying float across;
      void main() {
        gl_Position = vec4((position - center) * factor, 0.0, 1.0);
        gl_PointSize = size; across = size; shade = color;
      }`));
    gl.attachShader(program, compile(gl.FRAGMENT_SHADER, `
      precision mediump float; varying vec4 shade; varying float across;
      void main() {
        float distance = length(gl_PointCoord - 0.5) * across;
        float cover = clamp(across * 0.5 - distance + 0.5, 0.0, 1.0);
        if (cover <= 0.0) discard;
        gl_FragColor = vec4(shade.rgb, shade.a * cover);
      }`));
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    gl.useProgram(program);
    const buffer = (name, values, size, type, normalized) => {
      const place = gl.getAttribLocation(program, name), made = gl.createBuffer();
      gl.bindBuffer(gl.ARRAY_BUFFER, made);
      gl.bufferData(gl.ARRAY_BUFFER, values, gl.STATIC_DRAW);
      gl.enableVertexAttribArray(place);
      gl.vertexAttribPointer(place, size, type, normalized, 0, 0);
      return made;
    };
    // positions relative to the middle of the map keep their precision when zoomed in
    const middle = [(bounds.left + bounds.right) / 2, (bounds.low + bounds.high) / 2];
    buffer("position", positions.map((value, i) => value - middle[i % 2]), 2, gl.FLOAT, false);
    const shades = buffer("color", colors, 4, gl.UNSIGNED_BYTE, true);
    const uniform = (name) => gl.getUniformLocation(program, name);
    const [center, factor, size] = ["center", "factor", "size"].map(uniform);
    gl.enable(gl.BLEND);
    gl.blendFuncSeparate(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA, gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    return {
      name: "WebGL",
      colors() {
        gl.bindBuffer(gl.ARRAY_BUFFER, shades);
        gl.bufferData(gl.ARRAY_BUFFER, colors, gl.STATIC_DRAW);
      },
      draw() {
        gl.viewport(0, 0, canvas.width, canvas.height);
        gl.clearColor(0, 0, 0, 0);
        gl.clear(gl.COLOR_BUFFER_BIT);
        gl.uniform2f(center, view.x - middle[0], view.y - middle[1]);
        gl.uniform2f(factor, 2 * scale() / width(), 2 * scale() / height());
        gl.uniform1f(size, pointSize() * ratio());
        gl.drawArrays(gl.POINTS, 0, count);
      },
    };
  }
  function plain() {
    const context = canvas.getContext("2d");
    return {
      name: "canvas",
      colors() {},
      draw() {
        context.setTransform(ratio(), 0, 0, ratio(), 0, 0);
        context.clearRect(0, 0, width(), height());
        const size = pointSize();
        for (let row = 0; row < count; row++) {
          const [x, y] = screen(row), at = 4 * row;
          context.fillStyle = `rgba(${colors[at]},${colors[at + 1]},${colors[at + 2]},${colors[at + 3] / 255})`;
          context.fillRect(x - size / 2, y - size / 2, size, size);
        }
      },
    };
  }
  function resize() {
    canvas.width = Math.round(width() * ratio());
    canvas.height = Math.round(height() * ratio());
    dirty = true;
  }
  const ring = document.createElement("div"); // around the selected point
  ring.setAttribute("aria-hidden", "true");
  Object.assign(ring.style, { position: "fixed", width: "22px", height: "22px", borderRadius: "50%",
    border: "3px solid var(--accent)", pointerEvents: "none", display: "none" });
  document.body.append(ring);
  function frame() {
    if (dirty) {
      dirty = false;
      renderer.draw();
      const [x, y] = state.row >= 0 ? screen(state.row) : [0, 0];
      Object.assign(ring.style, { display: state.row >= 0 ? "" : "none", left: `${x - 11}px`, top: `${y - 11}px` });
    }
    requestAnimationFrame(frame);
  }

  // ---- the point below the pointer: rows by cell of a grid
  const side = Math.max(1, Math.ceil(Math.sqrt(count / 2)));
  const cellX = (x) => Math.min(side - 1, Math.max(0, Math.floor((x - bounds.left) / (bounds.right - bounds.left || 1) * side)));
  const cellY = (y) => Math.min(side - 1, Math.max(0, Math.floor((y - bounds.low) / (bounds.high - bounds.low || 1) * side)));
  const starts = new Int32Array(side * side + 1), inCells = new Int32Array(count);
  for (let row = 0; row < count; row++) starts[cellY(positions[2 * row + 1]) * side + cellX(positions[2 * row]) + 1]++;
  for (let cell = 0; cell < side * side; cell++) starts[cell + 1] += starts[cell];
  const next = starts.slice();
  for (let row = 0; row < count; row++) inCells[next[cellY(positions[2 * row + 1]) * side + cellX(positions[2 * row])]++] = row;
  function rowAt(x, y) {
    const reach = Math.max(8, pointSize());
    const mapX = view.x + (x - width() / 2) / scale(), mapY = view.y - (y - height() / 2) / scale();
    const around = reach / scale();
    let best = -1, least = reach * reach;
    for (let j = cellY(mapY - around); j <= cellY(mapY + around); j++) {
      for (let i = cellX(mapX - around); i <= cellX(mapX + around); i++) {
        for (let at = starts[j * side + i]; at < starts[j * side + i + 1]; at++) {
          const row = inCells[at], [px, py] = screen(row);
          const gap = (px - x) ** 2 + (py - y) ** 2;
          if (gap <= least && isShown(row)) { best = row; least = gap; }
        }
      }
    }
    return best;
  }

  // ---- thumbnails
  const opened = new Map();
  function sheet(number) {
    if (!opened.has(number)) {
      const image = new Image();
      opened.set(number, new Promise((done) => {
        image.onload = () => done(image);
        image.onerror = () => done(null);
      }));
      image.src = `data:image/webp;base64,${sheets[number]}`;
    }
    return opened.get(number);
  }
  const hasThumbnail = (row) => slots !== null && slots[row] >= 0;
  async function drawThumbnail(target, row, longest) {
    if (!hasThumbnail(row)) { target.hidden = true; return; }
    const slot = slots[row], w = sizes[2 * row], h = sizes[2 * row + 1];
    const factor = longest / Math.max(w, h);
    target.hidden = false;
    target.width = Math.max(1, Math.round(w * factor * ratio()));
    target.height = Math.max(1, Math.round(h * factor * ratio()));
    target.style.width = `${Math.round(w * factor)}px`;
    target.dataset.row = "";
    target.wanted = row;
    const image = await sheet(Math.floor(slot / thumbnail.perSheet));
    if (!image || target.wanted !== row) return; // another image was wanted since
    const place = slot % thumbnail.perSheet, tile = thumbnail.tile;
    const context = target.getContext("2d");
    context.imageSmoothingEnabled = factor * ratio() < 4; // pixels of tiny images stay squares
    context.drawImage(image, (place % thumbnail.perLine) * tile, Math.floor(place / thumbnail.perLine) * tile,
      w, h, 0, 0, target.width, target.height);
    target.dataset.row = row;
  }
  function valueOf(column, row) {
    const value = column.values[row];
    if (column.kind === "numbers") return Number.isFinite(value) ? String(+value.toPrecision(6)) : "";
    return column.names[value] ?? "";
  }

  // ---- hover
  const tip = $("tip");
  let hovered = -1;
  function hover(row, x, y) {
    canvas.classList.toggle("over", row >= 0);
    tip.hidden = row < 0;
    if (row < 0) { hovered = -1; return; }
    if (row !== hovered) {
      hovered = row;
      drawThumbnail(tip.firstElementChild, row, 128);
      const value = columns[state.color] ? valueOf(columns[state.color], row) : "";
      tip.lastElementChild.textContent = value ? `${names[row]} · ${value}` : names[row];
    }
    tip.style.left = `${Math.min(x + 16, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(y + 16, innerHeight - tip.offsetHeight - 8)}px`;
  }

  // ---- the selected image and its neighbors
  function element(kind, text, name) {
    const made = document.createElement(kind);
    if (text !== undefined) made.textContent = text;
    if (name) made.className = name;
    return made;
  }
  const detail = $("detail");
  function select(row, bring) {
    state.row = row;
    detail.replaceChildren();
    detail.hidden = row < 0;
    if (row >= 0) {
      const close = element("button", "×", "close");
      close.setAttribute("aria-label", "Close");
      close.onclick = () => select(-1);
      const large = element("canvas", undefined, "large");
      drawThumbnail(large, row, 274);
      const facts = element("dl");
      for (const column of columns) facts.append(element("dt", column.name), element("dd", valueOf(column, row)));
      const list = element("ol");
      for (let at = row * perRow; at < (row + 1) * perRow; at++) list.append(neighbor(neighbors[at], similarities[at]));
      detail.append(close, element("h2", names[row]), large, ...searchLink(row), facts, element("h3", "Most similar images"), list);
      detail.scrollTop = 0;
      if (bring) bringIntoView(row);
    }
    moved();
  }
  function searchLink(row) {
    if (!isEmbedded) return [];
    const link = element("a", "Search with this image");
    link.href = `/?${new URLSearchParams({ tab: "search", image: names[row] })}`;
    link.target = "_top";
    return [link];
  }
  function neighbor(row, similarity) {
    const item = element("li"), button = element("button");
    button.title = names[row];
    button.dataset.row = row;
    const picture = element("canvas");
    drawThumbnail(picture, row, 48);
    button.append(picture);
    if (!hasThumbnail(row)) button.append(element("span", names[row].split("/").pop()));
    button.append(element("span", similarity.toFixed(3)));
    button.onclick = () => select(row, true);
    item.append(button);
    return item;
  }
  function bringIntoView(row) {
    const [x, y] = screen(row);
    const right = width() - (width() > 700 ? 320 : 20);
    if (x < 20 || y < 60 || x > right || y > height() - 20) {
      view.x = positions[2 * row];
      view.y = positions[2 * row + 1];
    }
  }

  // ---- legend and search
  const legend = $("legend");
  function showLegend() {
    legend.replaceChildren();
    const column = columns[state.color];
    if (column && column.kind === "numbers") {
      const bar = element("div");
      bar.style.cssText = `height:10px;min-width:140px;margin:4px 6px;background:linear-gradient(90deg,${RAMP.map((c) => `rgb(${c})`)})`;
      const ends = element("p");
      ends.append(element("span", +column.low.toPrecision(4)), element("span", +column.high.toPrecision(4)));
      legend.append(bar, ends);
    } else if (column) {
      column.names.forEach((name, code) => legend.append(entry(column, name, code)));
    }
  }
  function entry(column, name, code) {
    const button = element("button");
    button.setAttribute("aria-pressed", state.only === code);
    const swatch = element("b");
    swatch.style.cssText = `width:12px;height:12px;flex:none;border-radius:50%;background:${colorOf(code)}`;
    const text = element("span", name);
    text.title = name;
    button.append(swatch, text, element("small", column.counts[code].toLocaleString("en")));
    button.onclick = () => { state.only = state.only === code ? null : code; refresh(); };
    return button;
  }
  const lower = names.map((name) => name.toLowerCase());
  function search() {
    const query = state.query.trim().toLowerCase();
    found = null;
    if (query) {
      found = new Set();
      for (let row = 0; row < count; row++) if (lower[row].includes(query)) found.add(row);
    }
  }
  function refresh() {
    search();
    showLegend();
    recolor();
    hover(-1);
    let shown = 0;
    for (let row = 0; row < count; row++) if (isShown(row)) shown++;
    $("status").textContent = shown === count ? `${count.toLocaleString("en")} images`
      : `${shown.toLocaleString("en")} of ${count.toLocaleString("en")} images`;
    saveSoon();
  }
  function nextFound() {
    const rows = [...(found || [])].filter(isShown);
    if (rows.length) select(rows.find((row) => row > state.row) ?? rows[0], true);
  }

  // ---- the view in the address
  let timer = 0, written = "";
  function saveSoon() { clearTimeout(timer); timer = setTimeout(save, 120); }
  function save() {
    const parts = new URLSearchParams();
    const digits = (value) => String(+value.toPrecision(7));
    parts.set("x", digits(view.x)); parts.set("y", digits(view.y)); parts.set("zoom", digits(view.zoom));
    parts.set("color", columns[state.color] ? columns[state.color].name : "");
    if (state.only !== null) parts.set("only", columns[state.color].names[state.only]);
    if (state.query) parts.set("search", state.query);
    if (state.row >= 0) parts.set("image", names[state.row]);
    written = `#${parts}`;
    history.replaceState(null, "", written);
    if (isEmbedded) parent.postMessage({ selfvitMap: written }, location.origin);
  }
  function restore() {
    const parts = new URLSearchParams(location.hash.slice(1));
    home();
    for (const [key, name] of [["x", "x"], ["y", "y"], ["zoom", "zoom"]]) {
      const value = parseFloat(parts.get(name));
      if (Number.isFinite(value) && (key !== "zoom" || value > 0)) view[key] = value;
    }
    const wanted = parts.has("color") ? parts.get("color") : data.color;
    state.color = columns.findIndex((column) => column.name === wanted);
    const column = columns[state.color];
    const only = column && column.kind === "classes" && parts.has("only") ? column.names.indexOf(parts.get("only")) : -1;
    state.only = only < 0 ? null : only;
    state.query = parts.get("search") || "";
    $("search").value = state.query;
    $("color").value = String(state.color);
    refresh();
    select(parts.has("image") ? names.indexOf(parts.get("image")) : -1);
  }

  // ---- input
  const pointers = new Map();
  let travelled = 0;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
    if (pointers.size === 1) travelled = 0;
    canvas.classList.add("dragging");
  });
  canvas.addEventListener("pointermove", (event) => {
    const here = [event.clientX, event.clientY], last = pointers.get(event.pointerId);
    if (!last) { hover(rowAt(...here), ...here); return; }
    const [dx, dy] = [here[0] - last[0], here[1] - last[1]];
    travelled += Math.abs(dx) + Math.abs(dy);
    if (pointers.size === 2) {
      const [, other] = [...pointers].find(([id]) => id !== event.pointerId);
      const gap = (place) => Math.hypot(place[0] - other[0], place[1] - other[1]) || 1;
      zoomAt((here[0] + other[0]) / 2, (here[1] + other[1]) / 2, gap(here) / gap(last));
      pan(dx / 2, dy / 2);
    } else if (travelled > 4) {
      hover(-1);
      pan(dx, dy);
    }
    pointers.set(event.pointerId, here);
  });
  const release = (event) => {
    const was = pointers.size;
    pointers.delete(event.pointerId);
    canvas.classList.remove("dragging");
    if (event.type === "pointerup" && was === 1 && travelled <= 4) {
      canvas.focus();
      select(rowAt(event.clientX, event.clientY));
    }
  };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("pointerleave", () => hover(-1));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const pixels = event.deltaY * (event.deltaMode === 1 ? 16 : 1);
    zoomAt(event.clientX, event.clientY, Math.exp(-Math.max(-200, Math.min(200, pixels)) * 0.004));
    hover(-1);
  }, { passive: false });
  const STEP = 80;
  const KEYS = {
    ArrowLeft: () => pan(STEP, 0), ArrowRight: () => pan(-STEP, 0),
    ArrowUp: () => pan(0, STEP), ArrowDown: () => pan(0, -STEP),
    "+": () => zoomAt(width() / 2, height() / 2, 1.4), "=": () => zoomAt(width() / 2, height() / 2, 1.4),
    "-": () => zoomAt(width() / 2, height() / 2, 1 / 1.4),
    0: () => { home(); moved(); },
    "/": () => $("search").focus(),
  };
  addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      if (state.row >= 0) select(-1);
      else { state.only = null; state.query = $("search").value = ""; refresh(); }
      canvas.focus();
      return;
    }
    const isTyping = ["INPUT", "SELECT"].includes(document.activeElement.tagName);
    if (isTyping || event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  $("search").addEventListener("input", (event) => { state.query = event.target.value; refresh(); });
  $("search").addEventListener("keydown", (event) => { if (event.key === "Enter") nextFound(); });
  $("color").addEventListener("change", (event) => {
    state.color = Number(event.target.value);
    state.only = null;
    refresh();
  });
  addEventListener("resize", resize);
  addEventListener("hashchange", () => { if (location.hash !== written) restore(); });

  // ---- start
  const choices = [["-1", "none"], ...columns.map((column, i) => [String(i), column.name])];
  for (const [value, name] of choices) {
    const option = element("option", name);
    option.value = value;
    $("color").append(option);
  }
  $("coloring").hidden = columns.length === 0;
  $("footer").textContent = [data.note, "drag to move, scroll to zoom, click an image, Escape to go back"]
    .filter(Boolean).join(" · ");
  const renderer = webgl() || plain();
  resize();
  restore();
  requestAnimationFrame(frame);
  // read by tests and by other scripts
  window.selfvitMap = { count, renderer: renderer.name, screen, state, view, names };
  requestAnimationFrame(() => { document.documentElement.dataset.ready = "true"; });
})();
