"use strict";
/* Curves by step, or over another axis. A chart is drawn when it comes into view; its legend switches curves; dragging
   zooms all charts of the view; in a run, a click on a step, or Enter, goes to the step's rollouts. */

const cursorSync = uPlot.sync("steps");
/** Distances of ticks: powers of two, which are round in KiB, MiB and GiB. */
const BINARY = Array.from({ length: 48 }, (_, power) => 2 ** power);
const STEPS = { name: "step", names: [], scale: "" };

/** Means over `width` values centred on each, of those that are there; null where the value itself is. */
function smooth(values, width) {
  if (width < 2) return values;
  const half = Math.floor(width / 2);
  let sum = 0, count = 0;
  const add = (index, sign) => {
    const value = values[index];
    if (value !== null && value !== undefined) { sum += sign * value; count += sign; }
  };
  for (let index = 0; index < Math.min(half, values.length); index++) add(index, 1);
  return values.map((value, index) => {
    if (index + half < values.length) add(index + half, 1);
    if (index - half - 1 >= 0) add(index - half - 1, -1);
    return value === null || value === undefined ? null : sum / count;
  });
}

/** The smoothing that suits so many points: an odd number of steps. */
function suitableWidth(count) {
  return count < 30 ? 1 : Math.min(101, Math.floor(count / 20) | 1);
}

class Chart {
  /**
   * spec: {title, unit, meaning, log, curves: [{key, label, colour, points, style, dash, meaning}],
   *        x: {name, names, scale}, scale: "" | "%" | "×" | "bytes", limits: [low, high], doubling, marks: {x, y, names}}
   * data: {steps, values, low?, high?, bin?}
   * options: {height, smoothing, raw, events, range, sync, onRange, onStep, band: {key: [low, high]}}
   */
  constructor(spec, data, options) {
    this.spec = spec;
    this.data = data;
    this.options = options;
    this.x = spec.x || STEPS;
    this.hidden = new Set();
    this.plot = null;
    this.readout = h("p", { class: "readout", "aria-live": "polite" });
    this.legend = h("div", { class: "legend" });
    this.box = h("div", {
      class: "plot", tabindex: "0", role: "application",
      "aria-label": `${spec.title} by ${this.x.name}. Arrow keys read values, plus and minus zoom${options.onStep ? ", Enter opens the step's rollouts" : ""}${options.onEvent ? ", A goes to the next alarm" : ""}.`,
      onkeydown: (event) => this.onKey(event),
    });
    this.box.style.minHeight = options.height + "px";
    const unit = spec.unit && spec.unit !== spec.title ? h("span", { class: "unit" }, spec.unit) : null;
    this.element = h("figure", { class: "chart" },
      h("figcaption", null, h("h3", { title: spec.meaning || null }, spec.title, unit), this.legend),
      this.box, this.readout);
    this.seen = new IntersectionObserver((entries) => {
      if (entries.some((entry) => entry.isIntersecting)) this.draw();
    }, { rootMargin: "200px" });
    this.seen.observe(this.box);
    this.resized = new ResizeObserver(() => {
      if (this.plot && this.box.clientWidth) this.plot.setSize({ width: this.box.clientWidth, height: options.height });
    });
    this.resized.observe(this.box);
    this.fillLegend();
  }

  values(curve) {
    return this.data.values[curve.key] || [];
  }

  /** One entry for each name; what is held out stands with the curve that it is held out from. */
  fillLegend() {
    const entries = new Map();
    for (const curve of this.spec.curves) {
      const name = curve.label.replace(/, held-out$/, "");
      entries.set(name, [...(entries.get(name) || []), curve]);
    }
    const isHidden = (curves) => curves.every(({ key }) => this.hidden.has(key));
    const flip = (curves) => {
      const wasHidden = isHidden(curves);
      for (const { key } of curves) wasHidden ? this.hidden.delete(key) : this.hidden.add(key);
      this.fillLegend();
      this.redraw();
    };
    fill(this.legend, this.spec.legend === false ? null : [...entries].map(([name, curves]) => h("button", {
      type: "button", "aria-pressed": String(!isHidden(curves)), title: curves[0].meaning || null, onclick: () => flip(curves),
    }, h("i", { class: curves.every(({ points, style }) => points || style === "dots") ? "dot" : "line", style: { background: colour(curves[0].colour) } }), curves.length > 1 ? name : curves[0].label)));
  }

  update(data, events) {
    this.data = data;
    this.options.events = events;
    if (this.plot) this.redraw();
  }

  redraw() {
    if (this.plot) { this.plot.destroy(); this.plot = null; this.draw(true); }
  }

  draw(isAgain) {
    if (this.plot || (!isAgain && !this.box.isConnected)) return;
    const width = this.box.clientWidth;
    if (!width) return;
    const { steps } = this.data, columns = [steps], series = [{}], bands = [];
    for (const curve of this.spec.curves) {
      if (this.hidden.has(curve.key)) continue;
      const stroke = colour(curve.colour), values = this.values(curve);
      if (curve.points) {
        const isMany = values.filter((value) => value !== null && value !== undefined).length > 2;
        columns.push(values);
        series.push({ label: curve.label, stroke, width: isMany ? 1 : 0, dash: [3, 4], spanGaps: true,
          points: { show: true, size: 11, fill: stroke, stroke: css("--paper"), width: 1.5 } });
        continue;
      }
      const extremes = this.options.band ? this.options.band[curve.key] : this.options.raw && this.data.low ? [this.data.low[curve.key], this.data.high[curve.key]] : null;
      if (extremes) {
        columns.push(extremes[1], extremes[0]);
        const faint = { stroke: "transparent", width: 0, points: { show: false }, spanGaps: true };
        series.push(faint, faint);
        bands.push({ series: [series.length - 2, series.length - 1], fill: stroke + "33" });
      } else if (this.options.raw) {
        columns.push(values);
        series.push({ stroke: "transparent", width: 0, points: { show: true, size: 3.5, fill: stroke + "88", stroke: "transparent", width: 0 } });
      }
      columns.push(smooth(values, this.options.smoothing));
      const { style } = curve, dots = style === "dots" ? 9 : style === "marked" ? 6 : 5;
      series.push({ label: curve.label, stroke, width: style === "dots" ? 0 : 1.75, spanGaps: true,
        dash: curve.dash || (style === "dashed" ? [6, 4] : undefined),
        points: { show: style === "dots" || style === "marked" || values.filter((value) => value !== null).length < 3, size: dots, fill: stroke, stroke } });
    }
    const ink = css("--muted"), line = css("--line");
    const axis = { stroke: ink, font: "12px " + css("--font"), grid: { stroke: line, width: 1 }, ticks: { show: false } };
    const isLog = this.spec.log && columns.slice(1).flat().every((value) => value === null || value === undefined || value >= 0);
    if (isLog) for (let index = 1; index < columns.length; index++) columns[index] = columns[index].map((value) => (value === 0 ? null : value));
    const { limits, doubling: isDoubling } = this.spec;
    if (isDoubling) for (let index = 1; index < columns.length; index++) columns[index] = columns[index].map((value) => (typeof value === "number" ? Math.min(limits[1], Math.max(limits[0], value)) : value));
    const isCloud = this.spec.curves.every(({ style }) => style === "dots") && !this.x.names.length; // whose outermost dots need air
    const range = this.options.range, named = isLog ? (u, splits) => decades(splits) : undefined;
    this.plot = new uPlot({
      width, height: this.options.height,
      padding: [12, 16, 0, 0],
      legend: { show: false },
      cursor: { sync: this.x === STEPS ? { key: cursorSync.key, setSeries: false } : undefined, y: false, drag: { x: true, y: false }, points: { size: 6 } },
      select: { show: true },
      scales: {
        x: { time: false, range: range ? () => range : steps.length === 1 || this.x.names.length ? () => [steps[0] - 0.5, steps[steps.length - 1] + 0.5] : isCloud ? (u, low, high) => [low - 0.04 * (high - low || 1), high + 0.04 * (high - low || 1)] : undefined },
        y: { distr: isLog || isDoubling ? 3 : 1, log: isDoubling ? 2 : 10, range: isLog ? undefined : (u, low, high) => limits || (this.spec.scale === "%" ? paddedShare(low, high) : padded(low, high)) },
      },
      axes: [
        { ...axis, space: 60, grid: { show: false }, gap: 9, size: 30, ...(this.x.name && this.x !== STEPS ? { label: this.x.name, labelSize: 18, labelFont: axis.font } : {}), values: (u, splits) => splits.map((value) => this.place(value, splits)) },
        { ...axis, space: this.options.height < 150 ? 24 : 34, size: this.spec.scale === "bytes" ? 72 : 56, incrs: this.spec.scale === "bytes" ? BINARY : undefined, splits: isDoubling ? () => powers(...limits) : undefined, filter: isDoubling ? (u, splits) => splits : named, grid: named ? { ...axis.grid, filter: named } : axis.grid,
          values: (u, splits) => splits.map((value) => (value === null ? "" : isDoubling ? doubling(value) : scaled(value, splits, this.spec.scale))) },
      ],
      series, bands,
      hooks: {
        setCursor: [() => this.read()],
        drawAxes: [(u) => this.drawMarks(u)],
        draw: [(u) => this.drawEvents(u)],
        setSelect: [(u) => {
          if (u.select.width < 4) return;
          const from = u.posToVal(u.select.left, "x"), to = u.posToVal(u.select.left + u.select.width, "x");
          u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
          this.wasDragged = true;
          this.options.onRange([from, to]);
        }],
      },
    }, columns, this.box);
    this.plot.over.addEventListener("click", () => {
      if (this.wasDragged) { this.wasDragged = false; return; }
      this.openStep();
    });
    this.plot.over.addEventListener("dblclick", () => this.options.onRange(null));
  }

  /** The name of a place on the horizontal axis; steps and named places are whole numbers. */
  place(value, splits) {
    if (this.x.names.length) return splits ? this.short(value) : this.x.names[value] || "";
    if (this.x === STEPS && !Number.isInteger(value)) return "";
    return this.x.scale || splits ? scaled(value, splits || [value, value * 1.01], this.x.scale) : number(value);
  }

  /** The name of a place without the year that all dates share. */
  short(value) {
    const { names } = this.x, name = names[value] || "";
    return /^\d{4}-\d\d-\d\d$/.test(name) && names[0].slice(0, 4) === names[names.length - 1].slice(0, 4) ? name.slice(5) : name;
  }

  /** Dashed lines across the chart. */
  drawMarks(u) {
    const { x = [], y = [], names = [] } = this.spec.marks || {}, { ctx, bbox } = u, ratio = devicePixelRatio || 1;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = css("--muted");
    ctx.font = `${11 * ratio}px ${css("--font")}`;
    if (this.x === STEPS) { // beside the first number, where nothing else stands
      ctx.textAlign = "left";
      ctx.textBaseline = "top";
      ctx.fillText("step", 2 * ratio, bbox.top + bbox.height + 10 * ratio);
    }
    ctx.textAlign = "right";
    ctx.textBaseline = "bottom";
    ctx.lineWidth = ratio;
    ctx.setLineDash([5 * ratio, 4 * ratio]);
    ctx.beginPath();
    for (const place of x) { const at = u.valToPos(place, "x", true); ctx.moveTo(at, bbox.top); ctx.lineTo(at, bbox.top + bbox.height); }
    for (const [index, place] of y.entries()) {
      const at = u.valToPos(place, "y", true);
      if (at < bbox.top || at > bbox.top + bbox.height) continue;
      ctx.moveTo(bbox.left, at);
      ctx.lineTo(bbox.left + bbox.width, at);
      if (names[index]) ctx.fillText(names[index], bbox.left + bbox.width - 3 * ratio, at - 2 * ratio);
    }
    ctx.stroke();
    ctx.restore();
  }

  /** Small triangles at the top where something rang. */
  drawEvents(u) {
    const { events } = this.options;
    for (const button of u.root.querySelectorAll(".event")) button.remove();
    if (!events || !events.length) return;
    const { ctx, bbox } = u, ratio = devicePixelRatio || 1;
    ctx.save();
    for (const event of events) {
      const x = u.valToPos(event.step, "x", true);
      if (x < bbox.left - 1 || x > bbox.left + bbox.width + 1) continue;
      ctx.fillStyle = ctx.strokeStyle = css(event.kind === "alarm" || event.kind === "error" ? "--bad" : "--unsure");
      ctx.globalAlpha = 0.35;
      ctx.fillRect(x - ratio / 2, bbox.top, ratio, bbox.height);
      ctx.globalAlpha = 1;
      ctx.beginPath();
      ctx.moveTo(x - 5 * ratio, bbox.top - 9 * ratio);
      ctx.lineTo(x + 5 * ratio, bbox.top - 9 * ratio);
      ctx.lineTo(x, bbox.top - ratio);
      ctx.fill();
      this.addButton(u, event, x / ratio);
    }
    ctx.restore();
  }

  /** Where a mark is clicked; by keyboard the cursor goes from alarm to alarm instead of through every mark. */
  addButton(u, event, left) {
    const { onEvent } = this.options;
    if (!onEvent) return;
    u.over.parentNode.append(h("button", { type: "button", class: "event", tabindex: "-1", title: `step ${number(event.step)}: ${event.text}`,
      "aria-label": `rollouts of step ${number(event.step)}: ${event.text}`, style: { left: `${left - 7}px` }, onclick: () => onEvent(event) }));
  }

  /** What happened at a point of the curves, which may stand for several steps. */
  eventsAt(index) {
    const { steps } = this.data, from = index ? (steps[index - 1] + steps[index]) / 2 : -Infinity;
    const to = index + 1 < steps.length ? (steps[index] + steps[index + 1]) / 2 : Infinity;
    return (this.options.events || []).filter((event) => event.step > from && event.step <= to);
  }

  nextAlarm() {
    const { steps } = this.data, now = this.plot.cursor.idx ?? -1;
    const places = steps.map((step, index) => index).filter((index) => this.eventsAt(index).some((event) => event.kind === "alarm"));
    return places.find((index) => index > now) ?? places[0];
  }

  /** Says the values under the cursor. */
  read() {
    const index = this.plot && this.plot.cursor.idx;
    if (index === null || index === undefined) { fill(this.readout, ""); return; }
    const step = this.data.steps[index];
    const parts = this.spec.curves.filter((curve) => !this.hidden.has(curve.key))
      .map((curve) => [curve, this.values(curve)[index]]).filter(([, value]) => value !== null && value !== undefined)
      .map(([curve, value]) => h("span", null, h("i", { class: "dot", style: { background: colour(curve.colour) } }), `${curve.label} ${this.say(value)}${this.interval(curve, index)}`));
    const rang = this.eventsAt(index).map((event) => h("span", { class: "bad" }, event.text.slice(0, 90)));
    fill(this.readout, h("b", null, `${this.x.name} ${this.place(step)}`), parts, rang);
  }

  say(value) { return this.spec.scale === "%" ? number(100 * value) + "%" : this.spec.scale === "bytes" ? bytes(value) : number(value); }

  interval(curve, index) {
    const band = this.options.band && this.options.band[curve.key], ends = band ? [band[0][index], band[1][index]] : [null, null];
    return ends.every((end) => end !== null && end !== undefined) ? ` (${this.say(ends[0])} to ${this.say(ends[1])})` : "";
  }

  openStep() {
    const index = this.plot && this.plot.cursor.idx;
    if (index !== null && index !== undefined && this.options.onStep) this.options.onStep(this.data.steps[index]);
  }

  onKey(event) {
    if (!this.plot) return;
    const { steps } = this.data, plot = this.plot;
    const now = plot.cursor.idx ?? steps.length - 1;
    const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -steps.length, End: steps.length }[event.key];
    if (move !== undefined) {
      const index = Math.max(0, Math.min(steps.length - 1, event.key !== "Home" && (plot.cursor.idx === null || plot.cursor.idx === undefined) ? now : now + move));
      plot.setCursor({ left: plot.valToPos(steps[index], "x"), top: 10 });
    } else if (event.key === "Enter") {
      const index = plot.cursor.idx, alarm = this.options.onEvent && index >= 0 && this.eventsAt(index).find(({ kind }) => kind === "alarm");
      if (event.target !== this.box) return; // a mark's button is pressed
      if (alarm) this.options.onEvent(alarm);
      else this.openStep();
    }
    else if (event.key.toLowerCase() === "a" && this.options.onEvent && !event.ctrlKey && !event.metaKey) {
      const index = this.nextAlarm();
      if (index === undefined) return;
      plot.setCursor({ left: plot.valToPos(steps[index], "x"), top: 10 });
    }
    else if (event.key === "+" || event.key === "=" || event.key === "-") {
      const [low, high] = [plot.scales.x.min, plot.scales.x.max], centre = plot.cursor.idx !== null && plot.cursor.idx !== undefined ? steps[plot.cursor.idx] : (low + high) / 2;
      const half = ((high - low) / 2) * (event.key === "-" ? 2 : 0.5), ends = [steps[0], steps[steps.length - 1]];
      this.options.onRange(centre - half <= ends[0] && centre + half >= ends[1] ? null : [Math.max(ends[0], centre - half), Math.min(ends[1], centre + half)]);
    } else if (event.key === "Escape") this.options.onRange(null);
    else return;
    event.preventDefault();
  }

  close() {
    this.seen.disconnect();
    this.resized.disconnect();
    if (this.plot) this.plot.destroy();
    this.plot = null;
  }
}

/** The same of shares, which don't pass 1: there is air for the line, and no tick beyond. */
function paddedShare(low, high) {
  const [bottom, top] = padded(low, high);
  return [bottom, high <= 1 ? Math.min(top, 1 + 0.02 * (1 - bottom)) : top];
}

/** The axis' ends: the values with some air; a flat curve lies in the middle. */
function padded(low, high) {
  if (low === null || high === null || low === undefined || high === undefined) return [0, 1];
  if (high - low <= 1e-9 * Math.max(Math.abs(low), Math.abs(high))) {
    if (low === 0) return [0, 1];
    const margin = Math.abs(low) * 0.1;
    return [low - margin, high + margin];
  }
  const air = 0.06 * (high - low);
  return [low >= 0 && low - air < 0 ? 0 : low - air, high + air];
}

/** On a logarithmic axis: every so many powers of ten, so that a few are named. */
function decades(splits) {
  const powers = splits.filter((value) => value > 0 && Math.abs(Math.log10(value) - Math.round(Math.log10(value))) < 1e-6);
  const every = Math.ceil(powers.length / 5);
  return splits.map((value) => (powers.indexOf(value) >= 0 && (powers.length - 1 - powers.indexOf(value)) % every === 0 ? value : null));
}

/** A tick's label in the axis' unit. */
function scaled(value, splits, unit) {
  if (unit === "bytes") return bytes(value);
  return unit === "%" ? tick(100 * value, splits.map((each) => 100 * each)) + "%" : tick(value, splits) + (unit === "×" ? "×" : "");
}

/** A tick's label with just enough digits to tell it from the next. */
function tick(value, splits) {
  const gap = splits.length > 1 ? Math.abs(splits[1] - splits[0]) : Math.abs(value);
  if (Math.abs(value) >= 1e5) return (value / 1000).toLocaleString("en-US") + "k";
  if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential(0).replace("e-", "e−");
  return value.toLocaleString("en-US", { maximumFractionDigits: Math.max(0, Math.min(6, 1 - Math.floor(Math.log10(gap || 1)))) });
}
