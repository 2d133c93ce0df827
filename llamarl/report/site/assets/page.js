"use strict";
/* The page: finds out what it shows (a report, a file's run, a served run, a folder of runs), draws it, keeps it fresh. */

const VIEWS = [["overview", "Overview"], ["curves", "Curves"], ["rollouts", "Rollouts"], ["timeline", "Timeline"], ["setup", "Setup"]];
const SMALL = ["Budget/Trained share", "Budget/Slack", "Constraints/Violations", "Policy/KL to reference", "Policy/Entropy", "Completions/Completion length", "Off-policy/Staleness", "Off-policy/Mismatch", "Speed/Throughput", "Speed/Memory of processes"];
const REFRESH_SECONDS = 3;
const IDLE_SECONDS = 10;
const FIRST_SECONDS = 0.2; // an outline is painted before the rest is asked for
const HINT = " Drag to zoom, double-click to go back, click a step or an alarm's mark for its rollouts.";
const SMOOTHINGS = [["auto", "suitable"], ["1", "none"], ["5", "5 steps"], ["11", "11 steps"], ["25", "25 steps"], ["51", "51 steps"], ["101", "101 steps"]];

/** The rollouts of an alarm, or of the step of something else that happened. */
function addressOf(event) {
  return "#rollouts?" + new URLSearchParams(event.kind === "alarm" ? { alarm: alarmKey(event) } : { near: event.step });
}

class RunPage {
  constructor(root, values, ask) {
    this.root = root;
    this.ask = ask;
    this.home = values.home;
    this.run = values.run;
    this.timeline = values.timeline;
    this.source = values.rollouts ? new HeldGroups(values.rollouts) : new AskedGroups(ask);
    this.charts = [];
    this.smoothing = "auto";
    this.raw = false;
    this.range = null;
    this.detail = null; // curves of the steps in sight, where those of the whole run are means of several
    this.main = h("main", { id: "main", tabindex: "-1" });
    this.nav = h("nav", { "aria-label": "views" });
    this.head = h("header", { class: "run" });
    this.foot = h("footer", null, this.footer());
    fill(root, h("a", { class: "skip", href: "#main", onclick: (event) => { event.preventDefault(); this.main.focus(); } }, "Skip to the content"),
      this.head, this.nav, this.main, this.foot);
    addEventListener("hashchange", () => this.show());
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.show());
    this.show();
    if (ask) this.refreshLater(this.run.every > 1 ? FIRST_SECONDS : undefined);
  }

  footer() {
    const when = new Date(this.run.made * 1000).toLocaleString("sv-SE").slice(0, 16); // Sweden writes 2026-11-30 14:05
    return this.ask ? `llamarl ${this.run.llamarl}; served from the run's folder` : `llamarl ${this.run.llamarl}; written ${when}; this file makes no request to anywhere`;
  }

  /** The view and what it is asked: `#rollouts?step_from=10`. */
  place() {
    const [view, query] = location.hash.slice(1).split("?");
    return [VIEWS.some(([name]) => name === view) ? view : "overview", Object.fromEntries(new URLSearchParams(query || ""))];
  }

  fillHead() {
    const { run } = this;
    const steps = run.total_steps ? `step ${number(run.step)} of ${number(run.total_steps)}` : `step ${number(run.step)}`;
    const when = run.seconds !== null ? seconds(run.seconds) : run.age !== null ? `last record ${seconds(run.age)} ago` : "no record yet";
    fill(this.head,
      this.home ? h("p", { class: "home" }, h("a", { href: this.home }, "‹ all runs")) : null,
      h("h1", null, run.name), h("p", { class: "muted" }, run.title.join(", ")),
      h("p", { class: "state" }, h("span", { class: "pill " + run.state }, run.state), h("span", null, steps), h("span", null, when)));
  }

  fillNav(view) {
    fill(this.nav, VIEWS.map(([name, label]) => h("a", { href: "#" + name, "aria-current": name === view ? "page" : null }, label)));
  }

  async show() {
    const [view, query] = this.place();
    this.clear();
    this.fillHead();
    this.fillNav(view);
    this.view = view;
    document.title = `${visible(this.run.name)} · ${view}`;
    const draw = { overview: () => this.overview(), curves: () => this.curves(), rollouts: () => this.rollouts(query), timeline: () => this.showTimeline(), setup: () => this.setup() }[view];
    await draw();
  }

  clear() {
    this.note = this.rangeNote = null;
    for (const chart of this.charts) chart.close();
    this.charts = [];
    if (this.timelineView) { this.timelineView.close(); this.timelineView = null; }
  }

  width() {
    return this.smoothing === "auto" ? suitableWidth(this.curveTable().steps.length) : +this.smoothing;
  }

  curveTable() { return this.detail || this.run.table; }

  /** Shows the steps of a range, or all; where a point is the mean of several steps, the server is asked for finer ones. */
  async zoom(range) {
    this.range = range;
    this.detail = null;
    this.redrawAll();
    if (!range || !this.ask || this.run.table.bin === 1) return;
    try {
      const found = await this.ask("curves", { first: Math.max(0, Math.floor(range[0])), last: Math.ceil(range[1]) });
      if (this.range !== range || !found.steps.length || found.bin >= this.run.table.bin) return;
      this.detail = found;
      this.redrawAll();
    } catch (error) {
      this.foot.textContent = "The server does not answer; what you see is as it was.";
    }
  }

  /** The extremes behind each point of the whole run, which a server is asked for when somebody wants them. */
  async readExtremes() {
    if (!this.ask || !this.raw || this.run.table.bin === 1 || this.run.table.low) return;
    const { run } = this, found = await this.ask("curves", { first: 0, last: run.step });
    if (this.run === run && found.steps.length === run.table.steps.length) run.table = found;
    this.redrawAll();
  }

  redrawAll() {
    for (const chart of this.charts) {
      chart.data = this.curveTable();
      Object.assign(chart.options, { range: this.range, smoothing: this.width() });
      chart.redraw();
    }
    if (this.note) fill(this.note, this.smoothingNote(), this.view === "overview" ? HINT : "");
    if (this.rangeNote) this.noteRange();
  }

  chart(spec, height) {
    const chart = new Chart(spec, this.curveTable(), {
      height, smoothing: this.width(), raw: this.raw, events: this.run.events, range: this.range,
      onRange: (range) => this.zoom(range),
      onStep: (step) => { location.hash = `#rollouts?near=${step}`; },
      onEvent: (event) => { location.hash = addressOf(event); },
    });
    this.charts.push(chart);
    return chart.element;
  }

  /** What a point and a line stand for. */
  smoothingNote() {
    const bin = this.curveTable().bin, width = this.width();
    if (this.run.every > 1) return `About one step in ${number(this.run.every)} so far; the others are being read …`;
    const finer = this.ask ? "; zoom in to see each" : "; llamarl view --serve shows each where you zoom in";
    const point = bin > 1 ? `Each point is the mean of ${bin} steps${finer}. ` : "";
    const line = width > 1 ? `Lines are means of ${number(width * bin)} steps` : "Lines are unsmoothed";
    return `${point}${line}; held-out evaluations are points.`;
  }

  // Overview: is it learning, and is anything wrong?

  overview() {
    const { run } = this, byId = new Map(run.charts.map((chart) => [chart.id, chart]));
    const reward = byId.get("Learning/Reward") || run.charts[0];
    this.note = h("p", { class: "muted note" }, this.smoothingNote(), HINT);
    fill(this.main,
      h("div", { class: "answers" }, this.learning(), this.wrong()),
      reward ? [this.chart(reward, 260), this.note] : h("p", { class: "muted" }, "No step yet."),
      this.tasks(), this.judges(),
      h("div", { class: "grid" }, SMALL.filter((id) => byId.has(id)).map((id) => this.chart(byId.get(id), 130))));
  }

  learning() {
    const { learning } = this.run;
    const [title, pair, text] = learning.held_out && learning.held_out_steps[0] !== learning.held_out_steps[1]
      ? ["Held-out reward", learning.held_out, `from step ${number(learning.held_out_steps[0])} to step ${number(learning.held_out_steps[1])}${learning.held_out_count ? `, over ${plural(learning.held_out_count, "sample")}` : ""}`]
      : ["Training reward", learning.reward, "means of the first and of the last steps"];
    // Two independent means of rewards between 0 and 1 differ by so much in one case of twenty, at worst.
    const isSmall = pair === learning.held_out && learning.held_out_count && pair && Math.min(...pair) >= 0 && Math.max(...pair) <= 1 && Math.abs(pair[1] - pair[0]) < 1.4 / Math.sqrt(learning.held_out_count);
    return h("section", { class: "answer" }, h("h2", null, "Is it learning?"),
      pair ? [h("p", { class: "figure" }, h("span", { class: "from" }, number(pair[0])), " → ", number(pair[1]), h("span", { class: "change " + (isSmall ? "" : pair[1] > pair[0] ? "good" : pair[1] < pair[0] ? "bad" : "") }, (pair[1] >= pair[0] ? "+" : "−") + number(Math.abs(pair[1] - pair[0])))),
        h("p", { class: "muted" }, `${title}, ${text}.`, isSmall ? " So small a change can be chance." : null)] : h("p", { class: "muted" }, "No reward yet."));
  }

  wrong() {
    const { warnings, events, every } = this.run;
    if (every > 1) return h("section", { class: "answer" }, h("h2", null, "Is anything wrong?"), h("p", { class: "muted" }, "All steps are being read …"));
    const rang = events.filter((event) => event.kind !== "update");
    return h("section", { class: "answer" }, h("h2", null, "Is anything wrong?"),
      warnings.length ? h("ul", { class: "warnings" }, warnings.map((warning) => h("li", null, warning)))
        : h("p", { class: "fine" }, "Nothing stands out."),
      rang.length ? h("ul", { class: "events" }, rang.slice(-5).map((event) => h("li", null, h("a", { href: addressOf(event) }, `step ${number(event.step)}`), " ", event.text.length > 160 ? event.text.slice(0, 160).replace(/\s\S*$/, "") + " …" : event.text))) : null,
      warnings.length || rang.length ? null : h("p", { class: "muted" }, "Checked: finite numbers, skipped updates, drops, judges that fail, truncation, signal, mismatch, entropy, gradient, alarms."));
  }

  tasks() {
    const { tasks } = this.run;
    if (tasks.length < 2) return null;
    const change = (pair, write = number) => (pair ? [write(pair[0]), " → ", write(pair[1])] : "–");
    const has = (key) => tasks.some((task) => task[key]);
    return h("section", null, h("h2", null, "Tasks"), table([
      { name: "Task", cell: (task) => task.name },
      { name: "Algorithm", cell: (task) => task.algorithm },
      { name: "Weight", number: true, cell: (task) => (task.weight === null || task.weight === undefined ? "its share" : number(task.weight)) },
      { name: "Reward", number: true, cell: (task) => change(task.reward) },
      has("held_out") ? { name: "Held-out", number: true, cell: (task) => change(task.held_out) } : null,
      has("violations") || has("satisfied") ? { name: "Violations", number: true, cell: (task) => (task.violations ? change(task.violations, percent) : task.satisfied ? change(task.satisfied.map((share) => 1 - share), percent) : "–") } : null,
      has("kept") ? { name: "Kept", number: true, cell: (task) => change(task.kept, percent) } : null,
      has("grad_norm") ? { name: "Gradient norm", number: true, cell: (task) => change(task.grad_norm) } : null,
    ].filter(Boolean), tasks, { label: "tasks" }));
  }

  judges() {
    const rows = this.run.tasks.flatMap((task) => task.judges.map((judge) => ({ ...judge, task: task.name })));
    if (!rows.length || (rows.length === 1 && !rows[0].error_rate)) return null;
    const several = this.run.tasks.length > 1;
    return h("section", null, h("h2", null, "Judges"), table([
      { name: "Judge", cell: (row) => row.name },
      several ? { name: "Task", cell: (row) => row.task } : null,
      { name: "Role", cell: (row) => row.role },
      { name: "Mean", number: true, cell: (row) => number(row.mean) },
      { name: "Passes", number: true, cell: (row) => percent(row.pass_rate) },
      { name: "Violations", number: true, cell: (row) => (row.role === "constraint" ? percent(row.violation_rate) : "") },
      { name: "Abstained", number: true, cell: (row) => percent(row.abstain_rate) },
      { name: "Failed", number: true, cell: (row) => h("span", { class: row.error_rate > 0.02 ? "bad" : null }, percent(row.error_rate)) },
    ].filter(Boolean), rows, { label: "judges, in the last step that says so" }));
  }

  // Curves: all of them, by group

  curves() {
    const { charts } = this.run, groups = [...new Set(charts.map((chart) => chart.group))];
    this.rangeNote = h("span", { class: "muted" });
    this.noteRange();
    const rawLabel = this.run.table.bin > 1 ? "extremes behind each point" : "raw points";
    const note = (this.note = h("p", { class: "muted note" }, this.smoothingNote()));
    const again = () => { for (const chart of this.charts) chart.options.raw = this.raw; this.redrawAll(); this.readExtremes(); };
    fill(this.main,
      h("div", { class: "tools sticky" },
        h("label", { class: "inline" }, "Smoothing ", h("select", { onchange: (event) => { this.smoothing = event.target.value; again(); } }, SMOOTHINGS.map(([value, label]) => h("option", { value, selected: value === this.smoothing }, label)))),
        h("label", { class: "check" }, h("input", { type: "checkbox", checked: this.raw, onchange: (event) => { this.raw = event.target.checked; again(); } }), rawLabel),
        h("label", { class: "inline" }, "Find ", h("input", { type: "search", placeholder: "a metric", oninput: (event) => this.filterCharts(event.target.value) })),
        this.rangeNote),
      note,
      groups.map((group) => h("section", { class: "family" }, h("h2", null, group),
        h("div", { class: "grid" }, charts.filter((chart) => chart.group === group).map((chart) => this.chart(chart, 170))))));
    if (!charts.length) fill(this.main, h("p", { class: "muted" }, "No step yet."));
  }

  noteRange() {
    fill(this.rangeNote, this.range ? [`steps ${number(Math.round(this.range[0]))} to ${number(Math.round(this.range[1]))} `,
      h("button", { type: "button", class: "quiet", onclick: () => this.charts[0].options.onRange(null) }, "show all")] : "");
  }

  filterCharts(text) {
    const needle = text.toLowerCase();
    for (const chart of this.charts) {
      const words = [chart.spec.title, ...chart.spec.curves.flatMap((curve) => [curve.label, curve.key])].join(" ").toLowerCase();
      chart.element.hidden = !words.includes(needle);
    }
    for (const family of this.main.querySelectorAll(".family")) family.hidden = ![...family.querySelectorAll(".chart")].some((chart) => !chart.hidden);
  }

  async rollouts(query) {
    const view = new RolloutView(this.source, this.run, (wanted) => { location.hash = "#rollouts?" + new URLSearchParams(wanted); });
    view.colouring = this.colouring || "logprob";
    fill(this.main, view.element);
    await view.open(query);
  }

  async showTimeline() {
    if (!this.timeline) { fill(this.main, h("p", { class: "muted" }, "Reading the timeline …")); this.timeline = await this.ask("timeline"); }
    this.timelineView = new TimelineView(this.timeline);
    fill(this.main, h("h2", null, "Who worked when"), this.timelineView.element, this.syncs());
    this.timelineView.draw();
  }

  syncs() {
    const { syncs } = this.run;
    if (!syncs.length) return null;
    return h("section", null, h("h2", null, "Weight syncs"),
      h("p", { class: "muted" }, `A generator serves new weights only after its checksums match the trainer's; the gap is the largest log-prob difference on a probe that both computed. The latest ${syncs.length}.`),
      table([
        { name: "Step", cell: (row) => number(row.step) },
        { name: "Seconds", number: true, cell: (row) => seconds(row.seconds) },
        { name: "Probe gap (nats)", number: true, cell: (row) => number(row.gap) },
      ], [...syncs].reverse(), { label: "weight syncs", class: "short" }));
  }

  // Setup: recipe, environment, account, messages

  setup() {
    const { run } = this, { has_changes: hasChanges, settings } = run.recipe;
    const differing = settings.filter((each) => each.is_changed);
    const all = h("details", null, h("summary", null, `All ${settings.length} settings`), table([
      { name: "Setting", cell: (row) => row.name }, { name: "Value", cell: (row) => setting(row.value) },
    ], settings, { label: "all settings" }));
    const { ledger } = run;
    fill(this.main,
      h("section", null, h("h2", null, "Recipe"),
        hasChanges ? [h("p", { class: "muted" }, "Settings that differ from their defaults."), table([
          { name: "Setting", cell: (row) => row.name }, { name: "Value", cell: (row) => setting(row.value) },
          { name: "Default", cell: (row) => ("default" in row ? setting(row.default) : h("span", { class: "muted" }, "–")) },
        ], differing, { label: "settings that differ from their defaults" })] : h("p", { class: "muted" }, "This run did not record which settings differ from their defaults."), all),
      ledger ? h("section", null, h("h2", null, "Account of the prompts"), table([
        { name: "State", cell: ([name]) => name }, { name: "Prompts", number: true, cell: ([, count]) => number(count) },
      ], [...Object.entries(ledger.counts), ...Object.entries(ledger.reasons || {}).map(([reason, count]) => [`dropped: ${reason}`, count])], { label: "account of the prompts" })) : null,
      h("div", { class: "columns" }, run.facts.length ? h("section", null, h("h2", null, "In numbers"), table([
        { name: "What", cell: ([name]) => name }, { name: "Value", number: true, cell: ([, text]) => text },
      ], run.facts, { label: "the run in numbers" })) : null,
      run.memory.length ? h("section", null, h("h2", null, "Memory"), table([
        { name: "Part", cell: (row) => row.part }, { name: "Planned", number: true, cell: (row) => bytes(row.planned) }, { name: "Measured", number: true, cell: (row) => bytes(row.measured) },
      ], run.memory, { label: "memory" })) : null),
      h("section", null, h("h2", null, "Messages"), run.messages.length ? h("ol", { class: "messages" }, run.messages.map((line) => h("li", null, line))) : h("p", { class: "muted" }, "None: no loss, no restart, no alarm.")),
      run.checkpoints.length ? h("section", null, h("h2", null, "Checkpoints"), h("p", null, run.checkpoints.join(", "))) : null,
      h("section", null, h("h2", null, "Environment"), run.environment.length ? table([
        { name: "What", cell: (row) => row.name }, { name: "Value", cell: (row) => setting(row.value, row.name) },
      ], run.environment, { label: "environment" }) : h("p", { class: "muted" }, "Not recorded.")));
  }

  // Served: keeps what is shown fresh, without moving what is being read

  refreshLater(wait = this.run.state === "running" ? REFRESH_SECONDS : IDLE_SECONDS) {
    setTimeout(async () => {
      try {
        const run = await this.ask("run", { known: this.run.stamp });
        this.foot.textContent = this.footer();
        if (run) this.renew(run);
      } catch (error) {
        this.foot.textContent = "The server does not answer; what you see is as it was.";
      }
      this.refreshLater();
    }, wait * 1000);
  }

  renew(run) {
    const known = this.run.charts.map((chart) => chart.id + chart.curves.length).join();
    this.run = run;
    this.timeline = null;
    this.fillHead();
    if (this.view === "overview" || run.charts.map((chart) => chart.id + chart.curves.length).join() !== known) {
      if (this.view === "overview" || this.view === "curves") this.show();
      return;
    }
    if (this.view === "curves") for (const chart of this.charts) chart.update(this.curveTable(), run.events);
    this.readExtremes();
  }
}

/** Asks the server that the page came from. */
function asker(prefix) {
  return async (what, query = {}) => {
    const answer = await fetch(`${prefix}${what}?${new URLSearchParams(query)}`, { cache: "no-store" });
    if (!answer.ok) throw new Error(`${answer.status} ${await answer.text()}`);
    return answer.status === 204 ? null : answer.json();
  };
}

async function start() {
  const root = document.getElementById("page"), values = JSON.parse(document.getElementById("values").textContent);
  if (values.mode === "report") new ReportPage(root, values);
  else if (values.mode === "file") new RunPage(root, values, null);
  else if (values.mode === "run") {
    const ask = asker(values.api);
    new RunPage(root, { run: values.run || (await ask("run")), timeline: null, rollouts: null, home: values.home }, ask);
  } else new FolderPage(root, asker(values.api));
}

start().catch((error) => {
  document.getElementById("page").replaceChildren(h("main", null, h("h1", null, "This page cannot be shown"), h("p", null, String(error.message || error))));
});
