"use strict";
/* A report: headings, sentences, tables that sort, marked texts and figures, in the order in which they were written. */

const MIN_TINT = 12, MAX_TINT = 36;

class ReportPage {
  constructor(root, values) {
    this.values = values;
    this.charts = [];
    this.timelines = [];
    this.main = h("main", { id: "main", class: "report" });
    fill(root, h("header", { class: "run" }, h("h1", null, values.title), values.subtitle ? h("p", { class: "muted", title: values.subtitle_note || null }, values.subtitle) : null),
      this.main, h("footer", { title: values.footer_note || null }, [values.footer, "This file makes no request to anywhere."].filter(Boolean).join(" ")));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.show());
    this.show();
  }

  show() {
    for (const each of [...this.charts, ...this.timelines]) each.close();
    this.charts = [];
    this.timelines = [];
    fill(this.main, this.parts(this.values.parts));
    for (const each of this.timelines) each.draw();
  }

  /** The parts; charts in a row stand side by side where there is room. */
  parts(parts) {
    const shown = [];
    let grid = null;
    for (const part of parts) {
      if (part.kind === "lines") {
        if (!grid) shown.push((grid = h("div", { class: "grid" })));
        grid.append(this.lines(part));
        continue;
      }
      grid = null;
      shown.push(this.part(part));
    }
    return shown;
  }

  part(part) {
    return {
      section: () => h("section", null, h("h2", null, part.title), this.parts(part.parts)),
      verdict: () => h("div", { class: "verdict " + part.tone }, h("strong", null, part.title), part.text ? h("p", null, part.text) : null),
      table: () => this.table(part),
      marked: () => h("div", { class: "marked text" }, part.pieces.map(mark)),
      notes: () => h("ul", { class: "notes" }, part.items.map((item) => h("li", null, item))),
      rows: () => h("figure", { class: "scroll", tabindex: "0", role: "group", "aria-label": part.title }, rowChart(part), caption(part)),
      timeline: () => this.timeline(part.values),
      text: () => h("p", { class: "prose" }, part.text),
    }[part.kind]();
  }

  timeline(values) {
    const view = new TimelineView(values);
    this.timelines.push(view);
    return view.element;
  }

  table({ columns, rows, caption: text, is_prose: isProse }) {
    const isNumeric = (index) => {
      const known = rows.map((row) => row[index]).filter((cell) => cell && cell !== "–");
      return 2 * known.filter((cell) => typeof leading(cell) === "number").length >= known.length;
    };
    const shown = columns.map((name, index) => ({ name, number: index > 0 && !isProse && isNumeric(index), cell: (row) => row[index] }));
    return table(shown, rows, { label: text || columns.join(", "), caption: text, class: isProse ? "prose" : null });
  }

  lines(spec) {
    const isJoined = Object.keys(spec.table.band).length > 0;
    const chart = new Chart(spec, spec.table, {
      height: 240, smoothing: 1, raw: false, events: [], range: null, band: isJoined ? spec.table.band : null, onStep: null,
      onRange: (range) => { chart.options.range = range; chart.redraw(); },
    });
    this.charts.push(chart);
    chart.readout.before(...nodes([caption(spec)]));
    return chart.element;
  }
}

const caption = (spec) => (spec.caption ? h("p", { class: "muted note" }, spec.caption) : null);

function mark({ text, tone, strength, note, title }) {
  const small = note ? h("sup", null, note) : null;
  if (tone === null) return [text, small];
  return [h("mark", { class: tone, title: title || null, style: { "--strength": Math.round(MIN_TINT + (MAX_TINT - MIN_TINT) * strength) + "%" } }, text), small];
}
