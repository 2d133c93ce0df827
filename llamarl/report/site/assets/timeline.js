"use strict";
/* Who worked when: one row for each executor. Wheel, drag, buttons and keys move and zoom. */

class TimelineView {
  constructor(data) {
    this.data = data;
    const length = Math.max(1e-3, data.end - data.start);
    const first = data.spans.length ? data.spans[0][2] : 0;
    this.whole = [data.shown < data.total ? first : 0, length];
    this.range = this.initial();
    this.canvas = h("canvas", { role: "img", tabindex: "0", onkeydown: (event) => this.onKey(event), "aria-label": "Timeline of executors; arrow keys move, plus and minus zoom. The table below holds the shares." });
    this.readout = h("p", { class: "readout", "aria-live": "polite" }, "Point at a stretch to read it; drag to move, scroll to zoom.");
    const button = (label, act, name) => h("button", { type: "button", class: "quiet", onclick: act, "aria-label": name }, label);
    this.tools = h("div", { class: "tools" },
      button("Last steps", () => this.set(this.initial()), "show the last steps"), button("All", () => this.set(this.whole), "show all"),
      button("+", () => this.zoom(0.5), "zoom in"), button("−", () => this.zoom(2), "zoom out"),
      button("‹", () => this.move(-0.5), "earlier"), button("›", () => this.move(0.5), "later"),
      h("span", { class: "keys" }, data.activities.filter((activity) => activity.colour !== null).concat({ name: "waiting", colour: null })
        .map((activity) => h("span", { class: "key" }, h("i", { style: { background: this.paint(activity) } }), activity.name))));
    this.element = h("div", null,
      data.total ? null : h("p", { class: "muted" }, "This run recorded no timeline."),
      data.shown < data.total ? h("p", { class: "muted" }, `The latest ${number(data.shown)} of ${number(data.total)} stretches are drawn; the shares below are of all.`) : null,
      data.total ? [this.tools, this.canvas, this.readout, this.shares()] : null);
    this.canvas.addEventListener("wheel", (event) => { event.preventDefault(); this.zoom(event.deltaY > 0 ? 1.25 : 0.8, this.at(event)); }, { passive: false });
    this.canvas.addEventListener("pointerdown", (event) => { this.drag = [event.clientX, this.range]; this.canvas.setPointerCapture(event.pointerId); });
    this.canvas.addEventListener("pointerup", () => { this.drag = null; });
    this.canvas.addEventListener("pointermove", (event) => this.onPoint(event));
    this.resized = new ResizeObserver(() => this.draw());
    this.resized.observe(this.canvas);
  }

  close() { this.resized.disconnect(); }

  /** The time of the last twelve steps; all of it where there are fewer. */
  initial() {
    const { steps, end, start } = this.data;
    return steps.length > 13 ? [Math.max(this.whole[0], steps[steps.length - 13][1]), end - start] : this.whole;
  }

  paint(activity) { return activity.colour === null || activity.colour === undefined ? css("--wait") : colour(activity.colour); }

  shares() {
    const { activities, executors, seconds: spent, busy, end, start } = this.data;
    return table([
      { name: "Executor", cell: (row) => row },
      { name: "busy", number: true, cell: (row) => percent(busy[row]) },
      ...activities.map((activity) => ({ name: activity.name, number: true, cell: (row) => (spent[row][activity.name] ? percent(spent[row][activity.name] / (end - start)) : "") })),
    ], executors, { label: "shares of the whole run" });
  }

  set(range) { this.range = range; this.draw(); }

  zoom(factor, centre) {
    const [from, to] = this.range, middle = centre ?? (from + to) / 2;
    const low = Math.max(this.whole[0], middle - (middle - from) * factor), high = Math.min(this.whole[1], middle + (to - middle) * factor);
    if (high - low > 1e-4) this.set([low, high]);
  }

  move(share) {
    const [from, to] = this.range, by = Math.max(this.whole[0] - from, Math.min(this.whole[1] - to, (to - from) * share));
    this.set([from + by, to + by]);
  }

  onKey(event) {
    const act = { ArrowLeft: () => this.move(-0.25), ArrowRight: () => this.move(0.25), "+": () => this.zoom(0.5), "=": () => this.zoom(0.5), "-": () => this.zoom(2), Home: () => this.set(this.whole), Escape: () => this.set(this.initial()) }[event.key];
    if (act) { event.preventDefault(); act(); }
  }

  layout() {
    const width = this.canvas.clientWidth, left = Math.min(130, width / 4);
    return { left, width: width - left, row: 34, height: this.data.executors.length * 34 + 28 };
  }

  at(event) {
    const { left, width } = this.layout();
    return this.range[0] + ((event.offsetX - left) / width) * (this.range[1] - this.range[0]);
  }

  onPoint(event) {
    const { left, width, row } = this.layout(), [from, to] = this.range;
    if (this.drag) {
      const by = ((this.drag[0] - event.clientX) / width) * (this.drag[1][1] - this.drag[1][0]);
      const kept = Math.max(this.whole[0] - this.drag[1][0], Math.min(this.whole[1] - this.drag[1][1], by));
      this.set([this.drag[1][0] + kept, this.drag[1][1] + kept]);
      return;
    }
    const executor = Math.floor(event.offsetY / row), time = this.at(event), near = (2 / width) * (to - from);
    if (event.offsetX < left) return;
    const found = this.data.spans.filter((span) => span[0] === executor && time >= span[2] - near && time <= span[2] + span[3] + near).pop();
    const step = this.data.steps.find(([, at]) => at >= time);
    fill(this.readout, h("b", null, seconds(time) + " after the start"), step ? h("span", null, `on the way to step ${number(step[0])}`) : null,
      found ? h("span", null, `${this.data.executors[found[0]]}: ${this.data.activities[found[1]].name}, ${seconds(found[3])}`) : null);
  }

  draw() {
    const { left, width, row, height } = this.layout(), ratio = devicePixelRatio || 1, { canvas } = this;
    if (width <= 0) return;
    canvas.style.height = height + "px";
    canvas.width = (left + width) * ratio;
    canvas.height = height * ratio;
    const ctx = canvas.getContext("2d"), [from, to] = this.range, scale = width / (to - from);
    ctx.scale(ratio, ratio);
    ctx.font = "13px " + css("--font");
    ctx.textBaseline = "middle";
    this.data.executors.forEach((name, index) => {
      ctx.fillStyle = css("--ink");
      ctx.fillText(visible(name).slice(0, 18), 0, index * row + row / 2, left - 8);
      ctx.fillStyle = css("--tint");
      ctx.fillRect(left, index * row + 5, width, row - 10);
    });
    const paints = this.data.activities.map((activity) => this.paint(activity));
    for (const [executor, activity, start, length] of this.data.spans) {
      if (start > to || start + length < from) continue;
      const x = left + Math.max(0, (start - from) * scale), end = left + Math.min(width, (start + length - from) * scale);
      ctx.fillStyle = paints[activity];
      ctx.fillRect(x, executor * row + 5, Math.max(0.75, end - x), row - 10);
    }
    ctx.fillStyle = ctx.strokeStyle = css("--muted");
    ctx.lineWidth = 0.5;
    let last = -Infinity;
    for (const [step, at] of this.data.steps) {
      const x = left + (at - from) * scale;
      if (at < from || at > to || x - last < 36) continue;
      last = x;
      ctx.beginPath();
      ctx.moveTo(x, 0);
      ctx.lineTo(x, height - 22);
      ctx.stroke();
      ctx.textAlign = x > left + width - 30 ? "right" : "center";
      ctx.fillText(number(step), x, height - 10);
    }
    ctx.textAlign = "left";
    ctx.fillText("step", 0, height - 10);
  }
}
