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

const percent = (share) => (share === null || share === undefined ? "–" : (100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0) + " %");

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
  return value.toFixed(2) + " GiB";
}

const plural = (count, one, many = one + "s") => number(count) + " " + (count === 1 ? one : many);

/** A table; columns `{name, text}` or `{name, number}` of a row, the first column heading its row. */
function table(columns, rows, properties) {
  const cell = (column, row, index) => {
    const content = column.cell(row);
    return index === 0 ? h("th", { scope: "row" }, content) : h("td", { class: column.number ? "number" : null }, content);
  };
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": (properties && properties.label) || "table" },
    h("table", properties && properties.class ? { class: properties.class } : null,
      h("thead", null, h("tr", null, columns.map((column) => h("th", { scope: "col", class: column.number ? "number" : null }, column.head || column.name)))),
      h("tbody", null, rows.map((row) => h("tr", null, columns.map((column, index) => cell(column, row, index)))))));
}

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const colour = (index) => css("--c" + (index === null || index === undefined ? "grey" : index));
