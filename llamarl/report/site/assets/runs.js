"use strict";
/* The runs of a folder side by side: a table to sort, curves over each other, seeds as a band, settings that differ. */

const MAX_CHOSEN = 12;

class FolderPage {
  constructor(root, ask) {
    this.ask = ask;
    this.asBand = false;
    this.chart = null;
    this.top = h("header", { class: "run" });
    this.list = h("section", { "aria-label": "runs" });
    this.overlay = h("section", { "aria-label": "curves of the chosen runs" });
    this.differences = h("section", { "aria-label": "settings that differ" });
    fill(root, this.top, h("main", { id: "main" }, this.list, this.overlay, this.differences),
      h("footer", null, "llamarl; served from the folder of the runs"));
    this.load();
  }

  async load() {
    const found = await this.ask("runs");
    this.runs = found.runs;
    this.metrics = found.metrics;
    this.metric = (this.metrics.find(({ key }) => key === "rollout/reward/mean") || this.metrics[0] || {}).key;
    const newest = [...this.runs].sort((a, b) => (a.age ?? Infinity) - (b.age ?? Infinity));
    this.chosen = new Set(newest.filter((run) => run.state !== "unreadable").slice(0, 6).map((run) => run.name));
    document.title = visible(found.name) + " · runs";
    fill(this.top, h("h1", null, found.name), h("p", { class: "muted" }, this.runs.length ? plural(this.runs.length, "run") : "No runs in this folder yet."));
    if (!this.runs.length) return;
    this.fillList();
    await this.compare();
  }

  fillList() {
    const change = (run) => (run.held_out === null ? number(run.held_out_before) : `${number(run.held_out_before)} → ${number(run.held_out)}`);
    const box = (run) => h("input", { type: "checkbox", "aria-label": `show ${run.name}`, checked: this.chosen.has(run.name), disabled: run.state === "unreadable", onchange: (event) => this.choose(run.name, event.target) });
    fill(this.list, h("h2", null, "Runs"), table([
      { name: "Show", tool: true, cell: box },
      { name: "Run", heads: true, value: (run) => run.name, cell: (run) => [h("a", { href: `run/${encodeURIComponent(run.name)}/` }, run.name), run.problem ? h("div", { class: "bad" }, run.problem) : null] },
      { name: "State", cell: (run) => h("span", { class: "pill " + run.state }, run.state) },
      { name: "Step", number: true, value: (run) => run.step, cell: (run) => (run.total_steps ? `${number(run.step)} of ${number(run.total_steps)}` : number(run.step)) },
      { name: "Reward", number: true, value: (run) => run.reward, cell: (run) => number(run.reward) },
      { name: "Held-out", number: true, value: (run) => run.held_out ?? run.held_out_before, cell: change },
      { name: "Model", cell: (run) => run.model },
      { name: "Algorithm", cell: (run) => run.algorithm },
      { name: "Seed", number: true, value: (run) => run.seed, cell: (run) => number(run.seed) },
      { name: "Age", number: true, value: (run) => run.age, cell: (run) => seconds(run.age) },
    ], this.runs, { label: "runs", sorting: ["Run", 1] }));
  }

  choose(name, box) {
    if (box.checked && this.chosen.size >= MAX_CHOSEN) { box.checked = false; return; }
    box.checked ? this.chosen.add(name) : this.chosen.delete(name);
    this.compare();
  }

  async compare() {
    const names = this.runs.filter((run) => this.chosen.has(run.name)).map((run) => run.name);
    const asked = (this.asked = (this.asked || 0) + 1);
    const curves = await this.ask("curve", { metric: this.metric, runs: JSON.stringify(names) });
    if (asked !== this.asked) return;
    if (this.chart) this.chart.close();
    const chosen = this.runs.filter((run) => this.chosen.has(run.name)), families = new Set(chosen.map((run) => run.family));
    const hasSeeds = families.size < chosen.length;
    const tools = h("div", { class: "tools" },
      h("label", { class: "inline" }, "Metric ", h("select", { onchange: (event) => { this.metric = event.target.value; this.compare(); } }, this.metrics.map((metric) => h("option", { value: metric.key, selected: metric.key === this.metric }, `${metric.title} (${metric.key})`)))),
      hasSeeds ? h("label", { class: "check" }, h("input", { type: "checkbox", checked: this.asBand, onchange: (event) => { this.asBand = event.target.checked; this.compare(); } }), "runs that differ in their seed as a band") : null);
    const drawn = this.asBand && hasSeeds ? bands(chosen, curves) : overlaid(chosen, curves);
    const width = suitableWidth(drawn.data.steps.length);
    const isPoints = this.metric.replace(/^task\/[^/]+\//, "").startsWith("eval/");
    for (const curve of drawn.curves) curve.points = isPoints && !drawn.band;
    this.range = null;
    this.chart = drawn.data.steps.length ? new Chart({ ...this.metrics.find(({ key }) => key === this.metric), curves: drawn.curves }, drawn.data, {
      height: 320, smoothing: width, raw: false, events: [], range: null, band: drawn.band,
      onRange: (range) => { this.chart.options.range = range; this.chart.redraw(); }, onStep: null,
    }) : null;
    fill(this.overlay, h("h2", null, "Curves"), tools,
      this.chart ? [this.chart.element, h("p", { class: "muted note" }, width > 1 ? `Lines are means of ${width} steps.` : "Lines are unsmoothed.", drawn.band ? " A band spans the runs of one recipe, its line is their mean." : "")]
        : h("p", { class: "muted" }, chosen.length ? "None of the chosen runs recorded this." : "Choose runs in the table."));
    this.fillDifferences(chosen);
  }

  /** Settings with two values or more; those that only some recipes have, and alike, are folded away. */
  fillDifferences(chosen) {
    const names = [...new Set(chosen.flatMap((run) => Object.keys(run.settings)))];
    const text = (run, name) => (name in run.settings ? JSON.stringify(run.settings[name]) : "");
    const kinds = (name) => new Set(chosen.map((run) => text(run, name)));
    const differing = names.filter((name) => { const found = kinds(name); found.delete(""); return found.size > 1; });
    const partial = names.filter((name) => kinds(name).size > 1 && !differing.includes(name));
    const side = (rows, label) => table([
      { name: "Setting", cell: (name) => name },
      ...chosen.map((run) => ({ name: run.name, cell: (name) => (name in run.settings ? setting(run.settings[name]) : "") })),
    ], rows, { label });
    fill(this.differences, h("h2", null, "Settings that differ"), chosen.length < 2 ? h("p", { class: "muted" }, "Choose two runs or more.")
      : differing.length ? side(differing, "settings that differ") : h("p", { class: "muted" }, "None: what the recipes of the chosen runs share is equal."),
      partial.length ? h("details", null, h("summary", null, `${plural(partial.length, "setting")} that only some of the recipes have`), side(partial, "settings that some have")) : null);
  }
}

/** One curve for each run, on the steps of all. */
function overlaid(runs, curves) {
  const steps = [...new Set(runs.flatMap((run) => (curves[run.name] || { steps: [] }).steps))].sort((a, b) => a - b);
  const places = new Map(steps.map((step, index) => [step, index])), values = {}, used = new Map();
  for (const run of runs) {
    const row = Array(steps.length).fill(null), curve = curves[run.name] || { steps: [], values: [] };
    curve.steps.forEach((step, index) => { row[places.get(step)] = curve.values[index]; });
    values[run.name] = row;
  }
  const own = runs.map((run) => {
    const times = used.get(run.colour) || 0;
    used.set(run.colour, times + 1);
    return { key: run.name, label: run.name, colour: run.colour, points: false, dash: times ? [6, 2 + 2 * times] : null };
  });
  return { data: { steps, values, bin: 1 }, curves: own, band: null };
}

/** Runs of one recipe as their mean, between the least and the most of them. */
function bands(runs, curves) {
  const { data } = overlaid(runs, curves), families = new Map(), values = {}, band = {}, own = [];
  for (const run of runs) families.set(run.family, [...(families.get(run.family) || []), run]);
  for (const members of families.values()) {
    const label = members.length > 1 ? `${members[0].name} and ${members.length - 1} more` : members[0].name;
    const rows = members.map((run) => data.values[run.name]);
    const at = (index) => rows.map((row) => row[index]).filter((value) => value !== null && value !== undefined);
    values[label] = data.steps.map((step, index) => { const found = at(index); return found.length ? found.reduce((sum, each) => sum + each, 0) / found.length : null; });
    band[label] = [data.steps.map((step, index) => (at(index).length ? Math.min(...at(index)) : null)), data.steps.map((step, index) => (at(index).length ? Math.max(...at(index)) : null))];
    own.push({ key: label, label, colour: members[0].colour, points: false });
  }
  return { data: { steps: data.steps, values, bin: 1 }, curves: own, band };
}
