"use strict";
/* Elements, and text as people read it. Every text passes `visible` and becomes a text node: none is ever markup. */

const UNSHOWN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]|\udb40[\udc00-\udc7f]/g;

/** The text with characters that show nothing, or reorder what stands around them, named. */
function visible(text) {
  return String(text).replace(UNSHOWN, (found) => {
    const code = found.codePointAt(0);
    if (code < 0x20) return String.fromCharCode(0x2400 + code);
    return "‹U+" + code.toString(16).toUpperCase().padStart(4, "0") + "›";
  });
}

/** An element. Properties: `class`, `on...` listeners, `style` as an object, anything else an attribute. */
function h(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, each] of Object.entries(value)) element.style.setProperty(key, each);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : visible(value));
  }
  element.append(...nodes(children));
  return element;
}

function nodes(children) {
  return children.flat(Infinity).filter((each) => each !== null && each !== undefined && each !== false && each !== "")
    .map((each) => (each instanceof Node ? each : document.createTextNode(visible(each))));
}

function fill(element, ...children) {
  element.replaceChildren(...nodes(children));
  return element;
}

/** Three significant digits, thousands apart; a dash for what is not there. */
function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0 || Number.isInteger(value)) return value.toLocaleString("en-US");
  const size = Math.abs(value);
  if (size >= 10 ** (digits - 1)) return Math.round(value).toLocaleString("en-US");
  if (size >= 1e-3) return value.toFixed(Math.max(0, digits - 1 - Math.floor(Math.log10(size))));
  return value.toExponential(digits - 2).replace("e-", "e−");
}

const percent = (share) => (share === null || share === undefined ? "–" : (100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0) + "%");

function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 1) return number(value * 1000) + " ms";
  if (value < 60) return number(value) + " s";
  const whole = Math.round(value), minutes = Math.floor(whole / 60), hours = Math.floor(minutes / 60);
  if (!hours) return minutes + " min " + (whole % 60) + " s";
  if (hours < 24) return hours + " h " + (minutes % 60) + " min";
  return Math.floor(hours / 24) + " d " + (hours % 24) + " h";
}

function bytes(value) {
  if (value === null || value === undefined) return "–";
  for (const unit of ["B", "KiB", "MiB"]) {
    if (value < 1024) return Math.round(value) + " " + unit;
    value /= 1024;
  }
  return number(value) + " GiB";
}

/** A setting's value as people write it. */
function setting(value, name = "") {
  const none = value === null ? "not set" : typeof value === "object" && !Object.keys(value).length ? "none" : null;
  if (none) return h("span", { class: "muted" }, none);
  return h("code", null, name.endsWith("_bytes") ? bytes(value) : typeof value === "string" ? value : JSON.stringify(value));
}

const plural = (count, one, many = one + "s") => number(count) + " " + (count === 1 ? one : many);

/** A table; columns `{name, cell, number?, value?}` of a row, the first column heading its row. A click on a column sorts
    by its values: by `value` where it is given, otherwise by the numbers that its cells begin with, or by their text. */
function table(columns, rows, { label = "table", caption: text = "", class: kind = null, sorting = null } = {}) {
  const cell = (column, row, index) => {
    const content = column.cell(row);
    return index === 0 && !column.tool ? h("th", { scope: "row" }, content) : column.heads ? h("th", { scope: "row" }, content)
      : h("td", { class: column.number ? "number" : null }, content);
  };
  let [by, direction] = sorting ? [columns.findIndex(({ name }) => name === sorting[0]), sorting[1]] : [-1, 1];
  const head = h("tr"), body = h("tbody");
  const draw = () => {
    const column = columns[by], canSort = rows.length > 1;
    fill(head, columns.map((each, index) => h("th", { scope: "col", class: each.number ? "number" : null, "aria-sort": each === column ? (direction > 0 ? "ascending" : "descending") : null },
      canSort && each.name && !each.tool ? h("button", { type: "button", class: "head", "data-sort": each.name, onclick: () => sort(index) },
        each.name, h("span", { class: "arrow", "aria-hidden": "true" }, each === column ? (direction > 0 ? " ↑" : " ↓") : "")) : each.name)));
    const shown = column ? inOrder(rows, column.value || ((row) => leading(column.cell(row))), direction) : rows;
    fill(body, shown.map((row) => h("tr", null, columns.map((each, index) => cell(each, row, index)))));
  };
  const sort = (index) => {
    [by, direction] = [index, by === index ? -direction : 1];
    draw();
    head.children[index].firstChild.focus();
  };
  draw();
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    h("table", kind ? { class: kind } : null, text ? h("caption", null, text) : null, columns.some(({ name }) => name) ? h("thead", null, head) : null, body));
}

/** The rows by a value, those without one last. */
function inOrder(rows, value, direction) {
  const keyed = rows.map((row) => [value(row), row]);
  const isNone = (key) => key === null || key === undefined || key === "" || key === "–";
  keyed.sort(([x], [y]) => {
    if (isNone(x) || isNone(y)) return isNone(x) - isNone(y);
    return direction * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true }));
  });
  return keyed.map(([, row]) => row);
}

const UNITS = { ms: 1e-3, s: 1, min: 60, h: 3600, d: 86400, KiB: 1024, MiB: 1048576, GiB: 1073741824 };

/** The number that a cell's text begins with, in its unit; the text where it begins with none. */
function leading(content) {
  const text = nodes([content]).map((node) => node.textContent).join("").trim();
  const found = /^([+\-−]?)(\d[\d,]*(?:\.\d+)?(?:e[−-]?\d+)?)(?:\s*(ms|s|min|h|d|KiB|MiB|GiB)(?![a-z]))?(?=$|[\s×%*)])/.exec(text);
  if (!found) return text;
  const size = Number(found[2].replaceAll(",", "").replace("−", "-")) * (UNITS[found[3]] || 1);
  return found[1] && found[1] !== "+" ? -size : size;
}

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colour = (index) => css("--c" + (index === null || index === undefined ? "grey" : index));
