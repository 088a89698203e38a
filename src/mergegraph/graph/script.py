"""The script of the HTML page: vanilla JavaScript, no network. Text is only ever set as text."""

from __future__ import annotations

SCRIPT = r"""
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const detail = document.getElementById("detail"), search = document.getElementById("search");
const map = document.getElementById("map");
const MOST = 300, SVG = "http://www.w3.org/2000/svg";

function add(parent, tag, attributes = {}, text) {
  const make = parent.namespaceURI === SVG || tag === "svg";
  const child = make ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) child.setAttribute(key, value);
  if (text !== undefined) child.textContent = text;
  parent.appendChild(child);
  return child;
}

function size(n) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (n < 1000) return (unit === "B" ? n : n.toFixed(2)) + " " + unit;
    n /= 1000;
  }
  return n.toFixed(2) + " TB";
}

const all = [];
data.groups.forEach((group, g) => group.layers.forEach((layer, l) =>
  layer.tensors.forEach(t => all.push({ name: t[0], lower: t[0].toLowerCase(), g, l, t }))));

function lines(tensor) {
  const [name, , , , number, binding] = tensor;
  const match = /^(?:(.*?)\.)?(\d+)\.([^]+)$/.exec(name);
  const suffix = match ? "." + match[3] : "";
  const bound = data.bindings[binding].map(([source, stored]) => {
    const name_ = stored.replace("\x01", () => name).replace("\x02", () => suffix);
    return { source: data.sources[source] ?? [source, "gray"], name: name_ };
  });
  const [pieces, stored] = data.expressions[number];
  const filled = stored.map(([call, spec, note, inputs, op, slot]) => {
    const from = slot === null ? null : bound[slot];
    const text = from ? call.replace("\0", () => `${from.source[0]}:${from.name}`) : call;
    return { call: text, spec, note, inputs, op, source: from?.source ?? null };
  });
  return { pieces, lines: filled };
}

function light(root, number, on) {
  for (const e of root.querySelectorAll(`[data-ref="${number}"]`)) e.classList.toggle("lit", on);
}

function refer(root, element, number) {
  element.classList.add("ref");
  element.dataset.ref = number;
  element.addEventListener("mouseenter", () => light(root, number, true));
  element.addEventListener("mouseleave", () => light(root, number, false));
}

function code(root, name, found) {
  const block = add(add(root, "div", { class: "scroll" }), "div", { class: "mono code" });
  const heads = found.lines.map((line, i) => `%${i} = ${line.call}`);
  const wide = Math.max(0, ...heads.map(h => h.length).filter(n => n <= 96));
  const spec = Math.max(0, ...found.lines.map(line => line.spec.length));
  function put(text) {
    for (const part of text.split(/(%\d+)/)) {
      if (/^%\d+$/.test(part)) refer(root, add(block, "span", {}, part), part.slice(1));
      else block.append(part);
    }
  }
  found.lines.forEach((line, i) => {
    if (line.source === null) put(heads[i]);
    else { put(`%${i}`); block.append(heads[i].slice(`%${i}`.length)); }
    const pad = " ".repeat(Math.max(0, wide - heads[i].length) + 4);
    const note = line.note ? " ".repeat(spec - line.spec.length + 3) + "# " + line.note : "";
    add(block, "span", { class: "dim" }, pad + line.spec + note);
    block.append("\n");
  });
  const refs = found.pieces.map(i => `%${i}`).join(", ");
  put(found.pieces.length === 1 ? `return ${refs}` : `return pieces(${refs})`);
}

function place(found) {
  const columns = [], depth = [];
  found.lines.forEach((line, i) => {
    depth[i] = line.inputs.length ? 1 + Math.max(...line.inputs.map(x => depth[x])) : 0;
    (columns[depth[i]] ??= []).push(i);
  });
  const tall = Math.max(...columns.map(c => c.length));
  const spots = [];
  columns.forEach((column, c) => column.forEach((i, r) => {
    spots[i] = { x: 4 + c * 158, y: 4 + (r + (tall - column.length) / 2) * 50 };
  }));
  return { spots, width: columns.length * 158 - 16, height: tall * 50 + 4 };
}

function dag(root, found) {
  if (found.lines.length < 2 || found.lines.length > 80) return;
  const { spots, width, height } = place(found);
  const svg = add(add(root, "div", { class: "scroll" }), "svg", { class: "dag", width, height });
  found.lines.forEach((line, i) => line.inputs.forEach(x => {
    const a = { x: spots[x].x + 134, y: spots[x].y + 19 }, b = { x: spots[i].x, y: spots[i].y + 19 };
    const mid = (a.x + b.x) / 2, lane = spots[x].y + 44;
    // An edge past other columns takes the lane below its row, where it can be seen.
    const d = b.x - a.x < 158
      ? `M${a.x} ${a.y}C${mid} ${a.y} ${mid} ${b.y} ${b.x} ${b.y}`
      : `M${a.x} ${a.y}C${a.x + 14} ${a.y} ${a.x + 4} ${lane} ${a.x + 18} ${lane}`
        + `L${b.x - 18} ${lane}C${b.x - 4} ${lane} ${b.x - 14} ${b.y} ${b.x} ${b.y}`;
    add(svg, "path", { d });
  }));
  found.lines.forEach((line, i) => {
    const { x, y } = spots[i], box = add(svg, "g");
    add(box, "title", {}, `%${i} = ${line.call}  ${line.spec}`);
    add(box, "rect", { x, y, width: 134, height: 38, rx: 5 });
    const source = line.source;
    if (source) add(box, "rect", { x, y, width: 6, height: 38, style: `fill:${source[1]};stroke:none` });
    const label = source ? source[0] : line.op, tail = /; ([^]*)\)$/.exec(line.call);
    const below = tail ? tail[1] : line.spec;
    add(box, "text", { x: x + 12, y: y + 16, "font-weight": 600 }, clip(`%${i} ${label}`, 17));
    add(box, "text", { x: x + 12, y: y + 31, class: "dim" }, clip(below, 20));
    refer(root, box, i);
  });
}

function clip(text, n) { return text.length <= n ? text : text.slice(0, n - 1) + "…"; }

function row(list, tensor, label) {
  const [name, spec, kind, bytes] = tensor;
  const button = add(list, "button", { class: "row", type: "button", "aria-expanded": false });
  add(button, "span", { class: "mono" }, label);
  add(button, "span", { class: "mono dim" }, spec);
  add(button, "span", { class: "dim" }, kind);
  add(button, "span", { class: "dim" }, size(bytes));
  let body = null;
  button.addEventListener("click", () => {
    if (body) { body.remove(); body = null; }
    else {
      body = document.createElement("div");
      body.className = "open";
      button.after(body);
      const found = lines(tensor);
      if (label !== name) add(body, "div", { class: "mono dim" }, name);
      dag(body, found);
      code(body, name, found);
    }
    button.setAttribute("aria-expanded", body !== null);
  });
  return button;
}

function mark(g) {
  for (const e of map.querySelectorAll(".group")) e.classList.toggle("on", e.dataset.group === String(g));
  for (const e of map.querySelectorAll(".ribbon"))
    e.classList.toggle("faded", g !== null && e.dataset.to !== String(g));
}

function table(rows) {
  const list = add(detail, "div", { class: "tensors" }), buttons = [];
  for (const [tensor, label] of rows.slice(0, MOST)) buttons.push(row(list, tensor, label));
  if (rows.length > MOST) {
    const more = add(detail, "button", { type: "button" }, `Show the other ${rows.length - MOST}`);
    more.addEventListener("click", () => {
      more.remove();
      for (const [tensor, label] of rows.slice(MOST)) row(list, tensor, label);
    });
  }
  return buttons;
}

function show(g, l, name) {
  const group = data.groups[g], layer = group.layers[l], stacked = layer.index !== null;
  mark(g);
  detail.replaceChildren();
  add(detail, "h2", {}, group.label);
  const ops = Object.entries(group.ops).map(([op, n]) => `${op} ${n.toLocaleString("en")}`).join(" · ");
  add(detail, "div", { class: "dim" }, [size(group.bytes), ops, group.moved].filter(Boolean).join(" · "));
  if (group.layers.length > 1) {
    const choice = add(detail, "div", { class: "layers" });
    group.layers.forEach((other, i) => {
      const button = add(choice, "button", { type: "button", "aria-pressed": i === l }, other.index);
      button.addEventListener("click", () => show(g, i));
    });
  }
  const match = stacked ? /^(?:.*?\.)?\d+\./.exec(layer.tensors[0][0]) : null;
  const say = `Layer ${layer.index}: click a tensor for its expression`;
  if (stacked) add(detail, "div", { class: "dim" }, say);
  const rows = layer.tensors.map(t => [t, match ? t[0].slice(match[0].length) : t[0]]);
  const buttons = table(rows);
  const wanted = name === undefined ? (rows.length === 1 ? 0 : -1) : rows.findIndex(([t]) => t[0] === name);
  buttons[wanted]?.click();
}

function find() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return start();
  const hits = all.filter(e => words.every(word => e.lower.includes(word)));
  mark(null);
  detail.replaceChildren();
  add(detail, "h2", {}, `${hits.length.toLocaleString("en")} of ${all.length.toLocaleString("en")} tensors`);
  const buttons = table(hits.map(e => [e.t, e.name]));
  if (hits.length === 1) buttons[0].click();
}

function start() {
  const exact = all.find(e => "#" + encodeURIComponent(e.name) === location.hash);
  if (exact) return show(exact.g, exact.l, exact.name);
  if (!data.groups.length) return add(detail, "p", { class: "dim" }, "This graph has no outputs.");
  let most = 0;
  data.groups.forEach((group, g) => { if (group.layers.length > data.groups[most].layers.length) most = g; });
  show(most, 0, data.groups[most].layers[0].tensors[0][0]);
}

for (const e of map.querySelectorAll(".group")) {
  const open = () => { search.value = ""; show(Number(e.dataset.group), 0); };
  e.addEventListener("click", open);
  e.addEventListener("keydown", event => { if (event.key === "Enter" || event.key === " ") open(); });
}
let waiting;
search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(find, 120); });
const root = document.documentElement;
if (matchMedia("(prefers-color-scheme: dark)").matches) root.dataset.theme = "dark";
document.getElementById("theme").addEventListener("click", () => {
  root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
});
addEventListener("hashchange", start);
start();
"""
