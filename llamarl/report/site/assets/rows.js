"use strict";
/* Values side by side: each has a line of its own with its interval drawn and its number beside it. Plain boxes, placed
   by shares of their track's width, so that they follow the window and the colour scheme by themselves. */

/** spec: {title, scale, marks, limits, log, signed, series: [{label, colour}], rows: [{name, total, dots: [{value, low,
    high, text, label, colour, tone, open, limit}]}]} */
function rowChart(spec) {
  const axis = rowAxis(spec);
  const track = (...inside) => h("div", { class: "track", "aria-hidden": "true" }, spec.marks.map((mark, index) => line(axis, mark, index ? "mark dashed" : "mark")), inside);
  const row = ({ name, total, dots }) => h("tr", { class: total ? "total" : null },
    h("th", { scope: "row" }, name),
    h("td", { class: "tracks" }, dots.map((dot) => track(drawn(axis, dot)))),
    h("td", { class: "said" }, dots.map((dot) => h("div", { title: dot.label || null },
      dot.label && spec.series.length > 1 ? h("span", { class: "series" }, dot.label + " ") : null, dot.text || (dot.value === null ? "not known" : rowTick(axis, dot.value))))));
  return h("table", { class: "rows" },
    h("caption", null, h("span", { class: "title" }, spec.title),
      spec.series.length > 1 ? h("span", { class: "legend" }, spec.series.map((each) => h("span", { class: "key" }, h("i", { class: "dot", style: { background: `var(--c${each.colour})` } }), each.label))) : null),
    h("thead", { class: "hidden" }, h("tr", null, ["name", "drawn", "value"].map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", null, spec.rows.map(row)),
    h("tfoot", { "aria-hidden": "true" }, h("tr", null, h("td", null), h("td", { class: "tracks" },
      h("div", { class: "track ticks" }, axis.ticks.map((value) => h("span", { style: { left: share(axis, value) } }, rowTick(axis, value))))), h("td", null))));
}

function drawn(axis, { value, low, high, colour: index, tone, open, limit }) {
  const paint = tone ? `var(--${tone})` : `var(--c${index})`, parts = [];
  if (value === null) return parts;
  const hasInterval = low !== null || high !== null;
  if (hasInterval) {
    const from = low === null ? 0 : axis.at(low), to = high === null ? 100 : axis.at(high);
    parts.push(h("div", { class: "interval", style: { left: from + "%", width: Math.max(0, to - from) + "%", background: paint } }));
  }
  if (limit !== null) parts.push(line(axis, limit, "mark dotted"));
  parts.push(h("i", { class: "disc" + (open ? " open" : ""), style: { left: share(axis, value), "--paint": paint } }));
  return parts;
}

const share = (axis, value) => axis.at(value) + "%";
const line = (axis, value, kind) => h("div", { class: kind, style: { left: share(axis, value) } });

/** From a value to its place in percent of the track, and about five round ticks. */
function rowAxis({ rows, marks, limits, log, scale, signed }) {
  const values = rows.flatMap((row) => row.dots).flatMap((dot) => (dot.value === null ? [] : [dot.value, dot.low, dot.high, dot.limit])).concat(marks)
    .filter((value) => value !== null && (!log || value > 0));
  let [low, high] = limits || (values.length ? [Math.min(...values), Math.max(...values)] : [0, 1]);
  const bend = log ? (value) => Math.log2(Math.max(value, 1e-12)) : (value) => value;
  if (!limits) {
    const air = 0.04 * (bend(high) - bend(low)) || Math.abs(bend(high)) * 0.1 || 1;
    const below = bend(low) - air;
    [low, high] = log ? [2 ** below, 2 ** (bend(high) + air)] : [low >= 0 && below < 0 ? 0 : below, high + air];
  }
  const at = (value) => Math.max(0, Math.min(100, (100 * (bend(value) - bend(low))) / (bend(high) - bend(low))));
  const ticks = log ? powers(low, high) : rounds(low, high);
  return { at, ticks, scale, signed, log };
}

function powers(low, high) {
  const first = Math.ceil(Math.log2(low) - 1e-9), last = Math.floor(Math.log2(high) + 1e-9), every = Math.max(1, Math.ceil((last - first) / 6));
  return Array.from({ length: last - first + 1 }, (_, index) => first + index).filter((power) => power % every === 0).map((power) => 2 ** power);
}

function rounds(low, high) {
  const rough = (high - low) / 5.5, size = 10 ** Math.floor(Math.log10(rough)), step = [1, 2, 2.5, 5, 10].find((each) => each * size >= rough) * size;
  const ticks = [];
  for (let place = Math.ceil(low / step - 1e-9); place * step <= high + 1e-9 * step; place++) ticks.push(place * step || 0); // no -0
  return ticks;
}

/** A tick on an axis of doublings: a half is said as one. */
const doubling = (value) => (value < 1 ? `1/${Math.round(1 / value)}` : String(value)) + "×";

function rowTick({ ticks, scale, signed, log }, value) {
  if (log && scale === "×" && ticks.includes(value)) return doubling(value);
  return (signed && value > 0 ? "+" : "") + scaled(value, ticks.length > 1 ? ticks : [0, value], scale);
}
