"use strict";
const at = id => document.getElementById(id);
const byId = new Map(atlas.units.map(unit => [unit.id, unit]));
const column = new Map(atlas.columns.map(each => [each.key, each]));
const VIEWS = [["light", "light on what is active"], ["plain", "plain frames"], ["field", "what the peak sees"],
  ["close", "close-up of the peak"]].filter(([key]) => key !== "field" || atlas.field);
const below = "Below: its highest activation on the frame, and the level.";
const LEGENDS = { light: `Light: how strongly it is active there, of its peak on the frame (box). ${below}`, plain: below,
  field: `The part of the frame that the position of its peak can see; grey: beyond the frame. ${below}`,
  close: `24 pixels around its peak. ${below}` };
const pictures = new Map();
let shown = [], current = null, view = VIEWS[0][0], layout = "pictures", descending = true;

function make(tag, parent, properties = {}) {
  const element = Object.assign(document.createElement(tag), properties);
  parent.append(element);
  return element;
}
function picture(path) {
  if (!pictures.has(path)) {
    const image = new Image();
    const ready = new Promise(done => { image.onload = done; });
    image.src = path;
    pictures.set(path, { image, ready });
  }
  return pictures.get(path);
}
function number(value, key) {
  if (value === null || value === undefined) return "–";
  const style = (column.get(key) || {}).style;
  if (style === "share") return (100 * value).toPrecision(value >= 0.1 ? 3 : 2) + " %";
  if (style === "fixed") return value.toFixed(2);
  return Math.abs(value) >= 1000 || (value !== 0 && Math.abs(value) < 0.001) ? value.toExponential(1) : value.toPrecision(3);
}

// a tile of a sheet, with light where the unit is active and a box around its peak
function tile(canvas, path, index, columns, example = null, mode = "plain") {
  const size = 64, scale = 3;
  canvas.width = canvas.height = size * scale;
  const pen = canvas.getContext("2d");
  const { image, ready } = picture(path);
  ready.then(() => {
    pen.imageSmoothingEnabled = false;
    let [left, top, wide, high] = [0, 0, size, size];
    if (example && mode === "field") [top, left, high, wide] = field(example.peak);
    if (example && mode === "close") {
      wide = high = 24;
      [top, left] = middle(example.peak).map(place => Math.round(place - 12));
    }
    const zoom = size * scale / Math.max(wide, high);
    pen.fillStyle = "#808080";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    // only the tile itself: what lies outside it on the sheet is another frame
    const [x0, y0] = [Math.max(left, 0), Math.max(top, 0)];
    const [x1, y1] = [Math.min(left + wide, size), Math.min(top + high, size)];
    pen.drawImage(image, size * (index % columns) + x0, size * Math.floor(index / columns) + y0, x1 - x0, y1 - y0,
      (x0 - left) * zoom, (y0 - top) * zoom, (x1 - x0) * zoom, (y1 - y0) * zoom);
    if (!example || mode !== "light" || atlas.size[0] * atlas.size[1] === 1) return;
    const [rows, across] = atlas.size, heat = atob(example.heat);
    for (let place = 0; place < rows * across; place++) {
      const [y, x] = [Math.floor(place / across), place % across];
      const edge = value => Math.round(size * scale * value);
      pen.fillStyle = `rgba(0,0,0,${0.48 * (1 - Math.sqrt(heat.charCodeAt(place) / 255))})`;
      pen.fillRect(edge(x / across), edge(y / rows), edge((x + 1) / across) - edge(x / across),
        edge((y + 1) / rows) - edge(y / rows));
    }
    const [step, stride] = [size * scale / rows, size * scale / across];
    pen.strokeStyle = "#ff4081";
    pen.lineWidth = 2;
    pen.strokeRect(example.peak[1] * stride - 1, example.peak[0] * step - 1, stride + 2, step + 2);
  });
}
const field = ([y, x]) => [atlas.field.offset[0] + atlas.field.stride[0] * y, atlas.field.offset[1] + atlas.field.stride[1] * x,
  ...atlas.field.size];
const middle = peak => peak.map((place, axis) => (place + 0.5) * 64 / atlas.size[axis]);
const thumb = (canvas, unit, which) => tile(canvas, "thumbnails.png", 2 * unit.number_in_all + which, atlas.thumbnailColumns);

// the list
function wanted(unit, terms, words) {
  return terms.every(([key, sign, limit]) => {
    const value = unit.numbers[key];
    if (value === null || value === undefined) return false;
    return sign === ">" ? value > limit : sign === "<" ? value < limit : sign === ">=" ? value >= limit : value <= limit;
  }) && words.every(word => `${unit.name} ${unit.line}`.toLowerCase().includes(word));
}
function parse(text) {
  const terms = [], unknown = [];
  const rest = text.replace(/([a-z_]+)\s*(>=|<=|>|<)\s*(-?[\d.]+)\s*(%?)/gi, (_, key, sign, value, percent) => {
    if (column.has(key.toLowerCase())) terms.push([key.toLowerCase(), sign, Number(value) / (percent ? 100 : 1)]);
    else unknown.push(key);
    return " ";
  });
  return { terms, unknown, words: rest.toLowerCase().split(/\s+/).filter(Boolean) };
}
function list() {
  const { terms, unknown, words } = parse(at("filter").value), key = at("sort").value, kind = at("kind").value;
  shown = atlas.units.filter(unit => (kind === "all" || unit.kind === kind) && wanted(unit, terms, words));
  const sign = descending ? -1 : 1, last = value => value === null || value === undefined;
  if (key !== "number") shown.sort((a, b) => {
    const [first, second] = [a.numbers[key], b.numbers[key]];
    if (last(first) || last(second)) return last(first) - last(second); // unknown ones come last either way
    return sign * (first - second);
  });
  else if (descending) shown.reverse();
  at("count").textContent = unknown.length ? `no number is called ${unknown[0]}` : `${shown.length} of ${atlas.units.length}`;
  at("count").className = unknown.length ? "wrong" : "faint";
  at("order").textContent = descending ? "↓ highest first" : "↑ lowest first";
  at("layout").textContent = layout === "pictures" ? "▤ table" : "▦ pictures";
  at("gallery").hidden = at("legend").hidden = layout !== "pictures";
  at("table").hidden = layout !== "table";
  (layout === "pictures" ? gallery : table)(key);
}
function gallery(key) {
  at("gallery").replaceChildren();
  for (const unit of shown) {
    const card = make("a", at("gallery"), { className: "unit" + (unit.numbers.maximum > 0 ? "" : " dead"), href: "#" + unit.id });
    const pair = make("div", card, { className: "pair" });
    for (const which of [0, 1]) thumb(make("canvas", pair), unit, which);
    const line = make("div", card, { className: "line" });
    make("b", line, { textContent: unit.name });
    const value = key === "number" ? number(unit.numbers.frequency, "frequency") : number(unit.numbers[key], key);
    make("span", line, { className: "num", textContent: `${key === "number" ? "fires" : column.get(key).label} ${value}`, title: column.get(key === "number" ? "frequency" : key).help });
    make("small", card, { textContent: unit.line, title: unit.line });
  }
}
function table(key) {
  const box = at("table");
  box.replaceChildren();
  const head = make("tr", make("thead", box));
  for (const each of [{ key: "number", label: "unit", help: "in order of numbers" }, { label: "" }, ...atlas.columns]) {
    const cell = make("th", head);
    if (!each.key) { cell.textContent = each.label; continue; }
    const mark = each.key === key ? (descending ? " ↓" : " ↑") : "";
    cell.setAttribute("aria-sort", mark ? (descending ? "descending" : "ascending") : "none");
    make("button", cell, { textContent: each.label + mark, title: each.help }).onclick = () => sortBy(each.key);
  }
  const body = make("tbody", box);
  for (const unit of shown) {
    const row = make("tr", body);
    make("a", make("td", row), { textContent: unit.name, href: "#" + unit.id });
    thumb(make("canvas", make("td", row)), unit, 1);
    for (const { key: name, strength } of atlas.columns) {
      const cell = make("span", make("td", row), { className: "heat", textContent: number(unit.numbers[name], name) });
      const deep = strength && unit.numbers[name] !== null ? Math.min(1, Math.max(0, (unit.numbers[name] - strength[0]) / (strength[1] - strength[0]))) : 0;
      if (deep > 0.05) cell.style.background = `color-mix(in srgb, var(--mark) ${Math.round(deep * 55)}%, transparent)`;
    }
  }
}
function sortBy(key) {
  descending = at("sort").value === key ? !descending : key !== "number";
  at("sort").value = key;
  changed();
}
function changed() {
  list();
  const state = new URLSearchParams({ kind: at("kind").value, sort: at("sort").value, order: descending ? "down" : "up",
    layout, filter: at("filter").value });
  history.replaceState(null, "", "#?" + state);
}

// one unit
function open(unit) {
  current = unit;
  at("name").textContent = unit.name;
  const place = shown.indexOf(unit);
  at("where").textContent = place < 0 ? "" : `${place + 1} of ${shown.length}`;
  document.title = `${unit.name} · ${atlas.title}`;
  const page = at("page");
  page.replaceChildren();
  const left = make("div", page), right = make("div", page);
  left_side(unit, left);
  right_side(unit, right);
}
function left_side(unit, box) {
  make("h2", box, { textContent: "What it wants to see" });
  const made = make("div", box, { className: "made" });
  unit.made.forEach((caption, index) => {
    const figure = make("figure", made);
    tile(make("canvas", figure), unit.sheet, index, unit.columns);
    make("figcaption", figure, { textContent: caption });
  });
  const numbers = make("dl", box);
  numbers.style.marginTop = "14px";
  for (const each of atlas.columns.filter(each => !each.panel)) {
    make("dt", numbers, { textContent: each.label, title: each.help });
    make("dd", numbers, { textContent: number(unit.numbers[each.key], each.key) });
  }
  make("h2", box, { textContent: "How strongly, where active" });
  const most = Math.max(...unit.histogram, 1), bars = unit.histogram.length;
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${bars} 100`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", "histogram of its activation");
  unit.histogram.forEach((count, place) => {
    const bar = document.createElementNS(svg.namespaceURI, "rect");
    const high = count > 0 ? 4 + 92 * Math.log1p(count) / Math.log1p(most) : 0;
    for (const [name, value] of [["x", place + 0.06], ["y", 100 - high], ["width", 0.88], ["height", high]]) bar.setAttribute(name, value);
    svg.append(bar);
  });
  box.append(svg);
  const ends = make("div", box, { className: "ends faint" });
  make("span", ends, { textContent: "0" });
  make("span", ends, { textContent: "activation; bars: positions, logarithmic" });
  make("span", ends, { textContent: number(unit.numbers.maximum) });
}
function right_side(unit, box) {
  for (const section of unit.sections) {
    make("h2", box, { textContent: section.name });
    if (section === unit.sections[0]) make("small", box, { textContent: LEGENDS[view] });
    const strip = make("div", box, { className: "strip" });
    if (!section.examples.length) make("small", strip, { textContent: "none" });
    for (const example of section.examples) {
      const figure = make("figure", strip);
      tile(make("canvas", figure, { title: `frame ${example.place}, peak in row ${example.peak[0]}, column ${example.peak[1]}` }),
        unit.sheet, example.tile, unit.columns, example, view);
      make("figcaption", figure, { textContent: number(example.score) + (example.level < 0 ? "" : `\nlevel ${example.level}`) });
    }
  }
  const panels = make("div", box, { className: "panels" });
  if (unit.entities.some(value => value !== null)) {
    const panel = make("div", panels);
    make("h2", panel, { textContent: "Does it mark …", title: "AUC of its activation at a position for an entity's presence there: 0.5 knows nothing, 1 tells always" });
    atlas.entities.forEach((name, index) => {
      const value = unit.entities[index];
      bar(panel, name, number(value, "auc"), value === null ? 0 : 0.5, value === null ? 0 : value, false);
    });
    make("small", panel, { textContent: "AUC of presence at that position; 0.5 is chance" });
  }
  if (unit.directions) {
    const panel = make("div", panels);
    make("h2", panel, { textContent: "By the direction of the way" });
    const top = Math.max(...unit.directions, 1e-12);
    atlas.directions.forEach((name, index) => bar(panel, name, number(unit.directions[index]), 0, unit.directions[index] / top, true));
    make("small", panel, { textContent: "mean over the map, by the shortest way's first move" });
  }
  if (unit.effects) {
    const panel = make("div", panels);
    make("h2", panel, { textContent: "What it adds to the logits" });
    const compass = make("div", panel, { className: "compass" });
    const strongest = Math.max(...unit.effects.map(Math.abs), 1e-12);
    for (const action of atlas.compass) {
      const value = unit.effects[action], cell = make("div", compass, { title: atlas.actions[action] });
      const share = Math.round(75 * Math.abs(value) / strongest);
      cell.style.background = `color-mix(in srgb, var(${value < 0 ? "--less" : "--mark"}) ${share}%, var(--card))`;
      make("b", cell, { textContent: atlas.arrows[action] });
      cell.append((value < 0 ? "−" : "+") + Math.abs(value).toFixed(2));
    }
    make("small", panel, { textContent: `with it less without it, mean of ${unit.effectFrames} frames where it is active` });
  }
  for (const [name, help, near] of [["Points the same way", "cosine of what they add to the tap", unit.alike],
    ["Active together with", "correlation of being active at a position", unit.together]]) {
    if (!near.length) continue;
    make("h2", box, { textContent: name, title: help }).style.marginTop = "16px";
    const row = make("div", box, { className: "near" });
    for (const [id, value] of near) {
      const other = byId.get(id), link = make("a", row, { className: "unit", href: "#" + id });
      thumb(make("canvas", link), other, 1);
      const line = make("div", link, { className: "line" });
      make("span", line, { textContent: other.name });
      make("small", line, { textContent: value.toFixed(2), className: "num" });
      make("small", link, { textContent: other.line, title: other.line });
    }
  }
}
function bar(parent, name, text, from, to, zero) {
  const row = make("div", parent, { className: "row" });
  make("span", row, { textContent: name });
  const track = make("span", row, { className: "track" + (zero ? " zero" : "") });
  const part = make("i", track, { className: to < from ? "less" : "" });
  part.style.left = `${100 * Math.min(from, to)}%`;
  part.style.width = `${100 * Math.abs(to - from)}%`;
  make("span", row, { className: "value", textContent: text });
}

// where we are is in the address
function route() {
  const hash = decodeURIComponent(location.hash.slice(1)), unit = byId.get(hash);
  at("index").hidden = Boolean(unit);
  at("unit").hidden = !unit;
  at("about").hidden = Boolean(unit);
  if (unit) { open(unit); scrollTo(0, 0); return; }
  const before = current;
  current = null;
  document.title = atlas.title;
  if (hash.startsWith("?")) {
    const state = new URLSearchParams(location.hash.slice(2));
    for (const id of ["kind", "sort"]) if ([...at(id).options].some(o => o.value === state.get(id))) at(id).value = state.get(id);
    at("filter").value = state.get("filter") || "";
    descending = state.get("order") !== "up";
    layout = state.get("layout") === "table" ? "table" : "pictures";
  }
  list();
  const card = before && document.querySelector(`#index a[href="#${before.id}"]`);
  if (card) { card.scrollIntoView({ block: "center" }); card.focus({ preventScroll: true }); }
}
function step(by) {
  const order = shown.includes(current) ? shown : atlas.units;
  location.hash = order[(order.indexOf(current) + by + order.length) % order.length].id;
}
function chooseView(next) {
  view = at("view").value = next;
  if (current) open(current);
}
const back = () => { changed(); route(); };
function move(card, key) {
  const cards = [...document.querySelectorAll("#gallery a")], place = cards.indexOf(card);
  const wide = cards.filter(each => each.offsetTop === cards[0].offsetTop).length;
  const next = cards[place + { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -wide, ArrowDown: wide }[key]];
  if (next) next.focus();
}
addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = /INPUT|SELECT/.test(event.target.tagName);
  if (event.key === "Escape") { event.target.blur(); if (current) back(); return; }
  if (typing) return;
  if (current && event.key === "ArrowLeft") step(-1);
  else if (current && event.key === "ArrowRight") step(1);
  else if (current && event.key.toLowerCase() === "v") chooseView(VIEWS[(VIEWS.findIndex(([key]) => key === view) + 1) % VIEWS.length][0]);
  else if (event.key === "/") { event.preventDefault(); if (current) back(); at("filter").focus(); }
  else if (!current && event.key.toLowerCase() === "l") at("layout").click();
  else if (!current && event.key.startsWith("Arrow") && event.target.matches("#gallery a")) { event.preventDefault(); move(event.target, event.key); }
});
at("back").onclick = event => { event.preventDefault(); back(); };
at("previous").onclick = () => step(-1);
at("next").onclick = () => step(1);
at("order").onclick = () => { descending = !descending; changed(); };
at("layout").onclick = () => { layout = layout === "pictures" ? "table" : "pictures"; changed(); };
at("link").onclick = () => {
  const said = text => { at("link").textContent = text; setTimeout(() => { at("link").textContent = "copy link"; }, 1500); };
  const copied = navigator.clipboard ? navigator.clipboard.writeText(location.href) : Promise.reject();
  copied.then(() => said("copied"), () => said("it is in the address bar"));
};
for (const button of document.querySelectorAll(".theme")) button.onclick = () => {
  const now = document.documentElement.style.colorScheme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  document.documentElement.style.colorScheme = now === "dark" ? "light" : "dark";
};
const kinds = [...new Set(atlas.units.map(unit => unit.kind))];
for (const kind of [...kinds, ...(kinds.length > 1 ? ["all"] : [])])
  make("option", at("kind"), { value: kind, textContent: { all: "all units", below: "channels below 0" }[kind] || `${kind}s` });
make("option", at("sort"), { value: "number", textContent: "number" });
for (const each of atlas.columns) make("option", at("sort"), { value: each.key, textContent: each.label });
at("sort").value = "frequency";
for (const [key, label] of VIEWS) make("option", at("view"), { value: key, textContent: label });
at("names").textContent = atlas.columns.map(each => each.key).join(", ") + " with > or <";
for (const each of atlas.columns) {
  make("dt", at("meanings"), { textContent: each.label + (each.label === each.key ? "" : ` (${each.key})`) });
  make("dd", at("meanings"), { textContent: each.help });
}
at("kind").onchange = changed;
at("sort").onchange = () => { descending = at("sort").value !== "number"; changed(); };
at("filter").oninput = changed;
at("view").onchange = () => chooseView(at("view").value);
addEventListener("hashchange", route);
list();
route();
