"use strict";
/* Rollouts: a list that filters narrow down, one group side by side, each completion token by token. */

const COLOURINGS = [
  ["none", "nothing"], ["logprob", "log-prob"], ["gap", "trainer–generator gap"], ["version", "policy version"], ["advantage", "advantage"], ["mask", "what trains"],
];
const FIRST_TOKENS = 1500;
const ANY_ALARM = "any";

/** The name of an alarm in an address; it stays that of the same alarm while a run grows. */
function alarmKey(event) { return `${event.step} ${event.text}`; }

/** Groups that the page holds: the same questions as the server answers, over what the file has. */
class HeldGroups {
  constructor(held) {
    this.held = held;
    this.heads = held.groups.map((group) => groupHead(group));
  }

  async choices() {
    const tasks = new Set(), outcomes = new Map(), steps = new Set();
    for (const group of this.held.groups) {
      tasks.add(group.task);
      steps.add(group.step);
      for (const sample of group.samples) for (const [judge, outcome] of outcomesOf(sample)) outcomes.set(judge + "\n" + outcome, [judge, outcome]);
    }
    return { tasks: [...tasks].sort(), outcomes: [...outcomes.values()].sort(), steps: [...steps].sort((a, b) => a - b),
      groups: this.held.held_groups, total: this.held.total_groups, share: 1 };
  }

  async find(query, start, count) {
    const fits = this.held.groups.map((group, index) => [group, index]).filter(([group]) => groupFits(group, query)).reverse();
    const rest = fits.filter(([, index]) => start === null || index <= start);
    const heads = rest.slice(0, count).map(([, index]) => ({ ...this.heads[index], id: index }));
    return { heads, next: rest.length > count ? rest[count][1] : null, matches: fits.length, is_complete: true };
  }

  async read(id) {
    return this.held.groups[id] || null;
  }
}

/** Groups that the server finds. */
class AskedGroups {
  constructor(ask) {
    this.ask = ask;
  }

  choices() { return this.ask("rollouts/choices"); }
  find(query, start, count) { return this.ask("rollouts/find", { ...query, start: start ?? "", count }); }
  read(id, isWhole) { return this.ask("rollouts/group", { id, whole: isWhole ? 1 : "" }); }
}

function groupHead(group) {
  const last = group.messages[group.messages.length - 1] || {};
  return {
    step: group.step, task: group.task, prompt_id: group.prompt_id, prompt: String(last.content ?? "").slice(0, 160),
    rewards: group.samples.map((sample) => sample.reward),
    passed: group.samples.map((sample) => isPassed(sample)),
  };
}

function isPassed(sample) {
  const found = Object.values(sample.verdicts || {}).map((verdict) => verdict.passed).filter((passed) => passed !== null && passed !== undefined);
  return found.length ? found.every(Boolean) : null;
}

function outcomesOf(sample) {
  return Object.entries(sample.verdicts || {}).map(([judge, verdict]) => [judge, verdict.passed === true ? "pass" : verdict.passed === false ? "fail" : verdict.status]);
}

function groupFits(group, query) {
  const { samples } = group;
  const rewards = samples.map((sample) => sample.reward).filter((reward) => reward !== null);
  const given = (value) => value !== undefined && value !== "" && value !== null;
  if (given(query.task) && group.task !== query.task) return false;
  if (given(query.prompt) && !String(group.prompt_id).includes(query.prompt)) return false;
  if (given(query.reward_from) && !(Math.max(...rewards) >= +query.reward_from)) return false;
  if (given(query.reward_to) && !(Math.min(...rewards) <= +query.reward_to)) return false;
  if (given(query.step_from) && !(group.step >= +query.step_from)) return false;
  if (given(query.step_to) && !(group.step <= +query.step_to)) return false;
  if (given(query.cut) && !samples.some((sample) => sample.finish_reason === "length")) return false;
  if (given(query.version)) {
    const versions = samples.flatMap((sample) => (sample.versions || []).map(([version]) => version));
    if (!(Math.min(...versions) <= +query.version && Math.max(...versions) >= +query.version)) return false;
  }
  if (given(query.judge) || given(query.outcome)) {
    const fits = ([judge, outcome]) => (!given(query.judge) || judge === query.judge) && (!given(query.outcome) || outcome === query.outcome);
    if (!samples.some((sample) => outcomesOf(sample).some(fits))) return false;
  }
  if (given(query.steps) && !query.steps.split(",").some((part) => {
    const [from, to] = part.split("-").map(Number);
    return group.step >= from && group.step <= (to ?? from);
  })) return false;
  if (given(query.text)) {
    const needle = query.text.toLowerCase(), last = group.messages[group.messages.length - 1] || {};
    if (![String(last.content ?? ""), ...samples.map((sample) => String(sample.text))].some((text) => text.toLowerCase().includes(needle))) return false;
  }
  return true;
}

class RolloutView {
  constructor(source, run, setQuery) {
    this.source = source;
    this.run = run;
    this.setQuery = setQuery;
    this.colouring = "logprob";
    this.list = h("ol", { class: "groups" });
    this.count = h("p", { class: "muted", role: "status" });
    this.detail = h("section", { class: "group", "aria-label": "group" });
    this.more = h("button", { type: "button", class: "quiet", hidden: true, onclick: () => this.search(this.next) }, "more");
    this.form = h("form", { class: "filters", role: "search", "aria-label": "filter rollouts", onsubmit: (event) => { event.preventDefault(); this.submit(); } });
    this.element = h("div", { class: "rollouts" }, this.form, h("div", { class: "split" },
      h("div", { class: "side" }, this.count, this.list, this.more), this.detail));
  }

  async open(query) {
    this.query = query;
    this.choices = await this.source.choices();
    if (query.near !== undefined) {
      const steps = this.choices.steps, near = +query.near;
      const step = steps.reduce((best, each) => (Math.abs(each - near) < Math.abs(best - near) ? each : best), steps[0]);
      if (step !== undefined) this.query = { step_from: String(step), step_to: String(step) };
      this.nearNote = step !== undefined && step !== near ? `No group of step ${near} was logged; step ${step} is the nearest that was.` : "";
    } else this.nearNote = "";
    this.fillForm();
    await this.search(null, query.g);
  }

  fillForm() {
    const { choices, query } = this;
    const field = (label, control) => h("label", null, h("span", null, label), control);
    const choose = (name, options) => h("select", { name, onchange: () => this.submit() }, options.map(([value, label]) => h("option", { value, selected: (query[name] || "") === value }, label)));
    const text = (name, attributes) => h("input", { name, value: query[name] || "", autocomplete: "off", ...attributes });
    const judges = [...new Set(choices.outcomes.map(([judge]) => judge))], outcomes = [...new Set(choices.outcomes.map(([, outcome]) => outcome))];
    const alarms = this.alarms(), name = (event) => `step ${number(event.step)}: ${event.text.length > 60 ? event.text.slice(0, 60).trimEnd() + " …" : event.text}`;
    fill(this.form,
      field("Text", text("text", { type: "search", placeholder: "prompt, completion" })),
      field("Prompt id", text("prompt", { type: "search" })),
      choices.tasks.length > 1 ? field("Task", choose("task", [["", "all"], ...choices.tasks.map((task) => [task, task])])) : null,
      judges.length ? field("Judge", choose("judge", [["", "any"], ...judges.map((judge) => [judge, judge])])) : null,
      outcomes.length ? field("Verdict", choose("outcome", [["", "any"], ...outcomes.map((outcome) => [outcome, outcome])])) : null,
      field("Reward from", text("reward_from", { type: "number", step: "any" })),
      field("to", text("reward_to", { type: "number", step: "any" })),
      field("Step from", text("step_from", { type: "number", min: "0" })),
      field("to", text("step_to", { type: "number", min: "0" })),
      field("Version", text("version", { type: "number", min: "0" })),
      h("label", { class: "check" }, h("input", { type: "checkbox", name: "cut", checked: !!query.cut, onchange: () => this.submit() }), "cut by the token limit"),
      alarms.length ? field("Alarm", choose("alarm", [["", "whether or not"], [ANY_ALARM, "around any"], ...alarms.map((event) => [alarmKey(event), name(event)])])) : null,
      h("button", { type: "submit" }, "Find"),
      h("button", { type: "button", class: "quiet", onclick: () => this.setQuery({}) }, "Clear"));
  }

  alarms() { return (this.run.events || []).filter((event) => event.kind === "alarm"); }

  /** What is asked for: a chosen alarm is its task, and its step with the logged ones next to it. */
  filters() {
    const { g, near, alarm, ...asked } = this.query;
    if (!alarm) return asked;
    const logged = this.choices.steps, chosen = this.alarms().filter((event) => alarm === ANY_ALARM || alarmKey(event) === alarm);
    const ranges = chosen.map(({ step }) => {
      const before = logged.filter((each) => each <= step).pop() ?? step, after = logged.find((each) => each >= step) ?? step;
      return `${before}-${after}`;
    });
    if (chosen.length === 1 && chosen[0].task && !asked.task) asked.task = chosen[0].task;
    return { ...asked, steps: [...new Set(ranges)].slice(0, 200).join(",") || "1-0" }; // no step is both: nothing fits
  }

  submit() {
    const query = {};
    for (const [name, value] of new FormData(this.form)) if (value) query[name] = name === "cut" ? "1" : value;
    this.setQuery(query);
  }

  async search(start, chosen) {
    const filters = this.filters();
    const found = await this.source.find(filters, start, 40);
    if (start === null) fill(this.list);
    this.next = found.next;
    this.more.hidden = found.next === null;
    fill(this.more, found.is_complete ? "more" : "search on");
    this.list.append(...found.heads.map((head) => this.item(head)));
    const shown = this.list.children.length;
    const verb = Object.keys(filters).length ? (found.matches === 1 ? " fits" : " fit") : ", the newest first";
    const of = found.matches !== null && found.matches !== undefined ? `${plural(found.matches, "group")}` : `${plural(shown, "group")}${found.next === null ? "" : " so far"}`;
    const { groups, total, share } = this.choices;
    const holds = total > groups ? ` This file holds ${number(groups)} of ${number(total)} logged groups, spread evenly; llamarl view RUN --serve shows all.` : "";
    const building = share < 1 ? ` The index covers ${percent(share)} of the file so far.` : "";
    fill(this.count, [this.nearNote, total === 0 || (groups === 0 && share === 1) ? "This run logged no groups." : `${of}${verb}.`, holds, building].join(" "));
    const first = chosen !== undefined ? +chosen : start === null && found.heads.length ? found.heads[0].id : null;
    if (first !== null) await this.show(first, chosen !== undefined);
    else if (start === null) fill(this.detail, h("p", { class: "muted" }, "Nothing fits these filters."));
  }

  item(head) {
    const dots = head.passed.slice(0, 16).map((passed) => h("i", { class: passed === true ? "pass" : passed === false ? "fail" : "none" }, passed === true ? "✓" : passed === false ? "✗" : "·"));
    const rewards = head.rewards.filter((reward) => reward !== null);
    const mean = rewards.length ? rewards.reduce((sum, each) => sum + each, 0) / rewards.length : null;
    const several = this.choices.tasks.length > 1;
    return h("li", { "data-id": head.id }, h("button", { type: "button", onclick: () => this.show(head.id) },
      h("span", { class: "where" }, `step ${number(head.step)}${several ? ", " + head.task : ""}`),
      h("span", { class: "mean" }, `mean ${number(mean)}`),
      h("span", { class: "prompt" }, head.prompt || "(empty prompt)"),
      h("span", { class: "dots", "aria-label": `${head.passed.filter((each) => each === true).length} of ${head.passed.length} pass` }, dots)));
  }

  async show(id) {
    const group = await this.source.read(id);
    for (const item of this.list.children) item.firstChild.setAttribute("aria-current", String(item.dataset.id === String(id)));
    if (!group) { fill(this.detail, h("p", null, "This group is no longer in the file.")); return; }
    this.group = group;
    this.groupId = id;
    this.fillDetail();
  }

  fillDetail() {
    const { group } = this;
    const kinds = COLOURINGS.filter(([kind]) => group.samples.some((sample) => kind === "none" || hasValues(sample, kind)));
    if (!kinds.some(([kind]) => kind === this.colouring)) this.colouring = "none";
    const choose = h("label", { class: "inline" }, "Colour tokens by ", h("select", { onchange: (event) => { this.colouring = event.target.value; this.fillDetail(); } },
      kinds.map(([kind, label]) => h("option", { value: kind, selected: kind === this.colouring }, label))));
    const scale = scaleOf(group, this.colouring);
    fill(this.detail,
      h("header", null,
        h("h2", null, `Step ${number(group.step)}`, h("span", { class: "muted" }, ` ${group.task}, prompt ${group.prompt_id}, epoch ${group.epoch}`)),
        h("p", { class: "muted" }, `The trainer was at version ${number(group.version)}.`)),
      h("div", { class: "turns" }, group.messages.map((message) => turn(message)),
        group.answer === null || group.answer === undefined ? null : h("p", { class: "answer" }, h("b", null, "Answer "), typeof group.answer === "string" ? group.answer : JSON.stringify(group.answer))),
      h("div", { class: "tools sticky" }, choose, scale.legend(), this.readout = h("p", { class: "readout" }, "Point at a token to read it, or use the arrow keys.")),
      h("div", { class: "samples" }, group.samples.map((sample, index) => this.sample(sample, index, scale))));
  }

  sample(sample, index, scale) {
    const passed = isPassed(sample), count = (sample.token_ids || []).length, full = sample.full_tokens || count;
    const facts = [plural(full, "token"), `staleness ${number(sample.staleness)}`];
    if (sample.finish_reason === "length") facts.push("cut by the token limit");
    if (sample.advantage !== undefined) facts.push(sample.advantage === null ? "did not train" : Array.isArray(sample.advantage) ? `advantage ${number(Math.min(...sample.advantage))} to ${number(Math.max(...sample.advantage))}` : `advantage ${number(sample.advantage)}`);
    if ((sample.versions || []).length > 1) facts.push(`versions ${sample.versions.map(([version, tokens]) => `${version} (${tokens})`).join(" → ")}`);
    const verdicts = Object.entries(sample.verdicts || {});
    return h("article", { class: "sample", "aria-label": `sample ${index + 1}` },
      h("h3", null, h("i", { class: passed === true ? "pass" : passed === false ? "fail" : "none" }, passed === true ? "✓" : passed === false ? "✗" : "·"),
        sample.reward === null ? "no reward" : `reward ${number(sample.reward)}`),
      completion(sample, this.colouring, scale, this.readout),
      sample.full_length ? h("p", { class: "muted" }, `The first ${number(sample.text.length)} of ${number(sample.full_length)} characters. `,
        this.source instanceof AskedGroups ? h("button", { type: "button", class: "quiet", onclick: async () => { this.group = await this.source.read(this.groupId, true); this.fillDetail(); } }, "Show all") : null) : null,
      h("p", { class: "muted facts" }, facts.join(", ")),
      verdicts.length ? h("ul", { class: "verdicts" }, verdicts.map(([judge, verdict]) => verdictItem(judge, verdict))) : null);
  }
}

function verdictItem(judge, verdict) {
  const state = verdict.passed === true ? "pass" : verdict.passed === false ? "fail" : "none";
  const word = verdict.status !== "scored" ? verdict.status : verdict.passed === true ? "pass" : verdict.passed === false ? "fail" : "";
  const costs = [verdict.cost ? `cost ${number(verdict.cost)}` : "", verdict.seconds ? (verdict.seconds < 1e-3 ? "under 1 ms" : seconds(verdict.seconds)) : ""].filter(Boolean).join(", ");
  return h("li", null, h("b", null, judge), " ", verdict.score === null || verdict.score === undefined ? null : number(verdict.score) + " ",
    word ? h("span", { class: verdict.status === "failed" ? "bad" : state }, word) : null,
    costs ? h("span", { class: "muted" }, ` ${costs}`) : null,
    verdict.reason ? h("div", { class: "reason" }, verdict.reason) : null);
}

/** One turn of the conversation, tool calls and all. */
function turn(message) {
  const content = message.content ?? "", calls = message.tool_calls || [];
  const text = typeof content === "string" ? content : JSON.stringify(content, null, 1);
  return h("div", { class: "turn" }, h("b", null, message.role || "turn", message.name ? ` (${message.name})` : ""),
    h("div", { class: "text" }, text || (calls.length ? "" : "(empty)")),
    calls.map((call) => {
      const made = call.function || call;
      const given = typeof made.arguments === "string" ? made.arguments : JSON.stringify(made.arguments);
      return h("div", { class: "call" }, `calls ${made.name}(${given ?? ""})`);
    }));
}

function hasValues(sample, kind) {
  const values = { logprob: sample.logprobs, gap: sample.trainer_logprobs, version: sample.versions }[kind];
  if (kind === "advantage") return sample.advantage !== undefined && sample.tokens;
  if (kind === "mask") return !!(sample.tokens && (sample.loss_mask || sample.advantage === null));
  return !!(values && values.length && sample.tokens);
}

/** Values per token: log-prob, gap to the trainer's, version, advantage. */
function tokenValues(sample, kind) {
  const { logprobs, trainer_logprobs: trainers } = sample, count = (sample.token_ids || []).length;
  if (kind === "logprob") return logprobs;
  if (kind === "gap") return trainers ? trainers.map((value, index) => (value === null || logprobs[index] === null ? null : value - logprobs[index])) : [];
  if (kind === "version") return (sample.versions || []).flatMap(([version, tokens]) => Array(tokens).fill(version));
  if (kind === "advantage") return Array.isArray(sample.advantage) ? sample.advantage : Array(count).fill(sample.advantage ?? null);
  if (kind === "mask") return sample.advantage === null ? Array(count).fill(0) : sample.loss_mask || Array(count).fill(1);
  return [];
}

/** Percent of colour behind the most striking token: with more, its text would be hard to read on a dark page. */
const STRONGEST = 44;

/** What a colour means: from nothing to full at the largest value of the group. */
function scaleOf(group, kind) {
  const values = group.samples.flatMap((sample) => tokenValues(sample, kind) || []).filter((value) => value !== null && value !== undefined);
  const versions = kind === "version" ? [...new Set(values)].sort((a, b) => a - b) : [];
  let least = Infinity, most = -Infinity, largest = 1e-9;
  for (const value of values) { least = Math.min(least, value); most = Math.max(most, value); largest = Math.max(largest, Math.abs(value)); }
  const paint = (value) => {
    if (value === null || value === undefined || kind === "none") return "";
    if (kind === "version") return `color-mix(in srgb, ${colour(versions.indexOf(value) % 8)} 28%, transparent)`;
    if (kind === "mask") return value ? `color-mix(in srgb, ${css("--plus")} 35%, transparent)` : "";
    const share = kind === "logprob" ? Math.min(1, -value / Math.min(6, largest)) : Math.min(1, Math.abs(value) / largest);
    const hue = kind === "logprob" || value < 0 ? "--minus" : "--plus";
    return share < 0.02 ? "" : `color-mix(in srgb, ${css(hue)} ${Math.round(STRONGEST * share)}%, transparent)`;
  };
  const box = (value, label) => h("span", { class: "key" }, h("i", { style: { background: paint(value) } }), label);
  const legend = () => {
    if (kind === "none" || !values.length) return null;
    if (kind === "version") return h("span", { class: "keys" }, versions.slice(0, 8).map((version) => box(version, `version ${version}`)), versions.length > 8 ? " …" : null);
    if (kind === "logprob") return h("span", { class: "keys" }, box(0, "certain"), box(-Math.min(6, largest), `log-prob ${number(-Math.min(6, largest))} and less`));
    if (kind === "mask") return h("span", { class: "keys" }, box(1, "in the loss"), box(0, "left out"));
    const unit = kind === "gap" ? " nats" : "";
    return h("span", { class: "keys" }, least < 0 ? box(least, number(least) + unit) : null, most > 0 ? box(most, "+" + number(most) + unit) : null, kind === "gap" ? h("span", null, "trainer minus generator") : null);
  };
  return { paint, legend };
}

/** The completion: its tokens, each with what is known of it under the pointer and the arrow keys; or its text. */
function completion(sample, kind, scale, readout) {
  if (!sample.tokens || !sample.tokens.length) return h("div", { class: "text completion" }, sample.text || "(empty)");
  const { tokens } = sample, values = tokenValues(sample, kind) || [], versions = tokenValues(sample, "version");
  const box = h("div", { class: "text completion tokens", tabindex: "0", role: "group", "aria-label": "tokens; arrow keys read them" });
  let current = -1;
  const describe = (index) => {
    if (index < 0 || index >= box.children.length) return;
    if (box.children[current]) box.children[current].removeAttribute("data-current");
    current = index;
    box.children[index].setAttribute("data-current", "");
    const logprob = sample.logprobs[index], trainer = (sample.trainer_logprobs || [])[index];
    const known = (value) => value !== null && value !== undefined;
    fill(readout, h("b", null, `token ${index + 1} of ${sample.full_tokens || tokens.length}`), h("span", { class: "text" }, JSON.stringify(tokens[index])),
      h("span", null, `id ${sample.token_ids[index]}`),
      known(logprob) ? h("span", null, `log-prob ${number(logprob)} (p ${number(Math.exp(logprob))})`) : null,
      known(trainer) ? h("span", null, `trainer ${number(trainer)}`) : null,
      known(trainer) && known(logprob) ? h("span", null, `gap ${number(trainer - logprob)}`) : null,
      Array.isArray(sample.advantage) ? h("span", null, `advantage ${number(sample.advantage[index])}`) : null,
      sample.loss_mask ? h("span", null, sample.loss_mask[index] ? "in the loss" : "left out of the loss") : null,
      known(versions[index]) ? h("span", null, `version ${versions[index]}`) : null);
  };
  const add = (from, to) => {
    for (let index = from; index < Math.min(to, tokens.length); index++) {
      const background = scale.paint(values[index]);
      box.append(h("span", background ? { style: { "background-color": background } } : null, tokens[index].replace(/\n/g, "⏎\n")));
    }
  };
  add(0, FIRST_TOKENS);
  box.addEventListener("pointerover", (event) => { const index = [...box.children].indexOf(event.target); if (index >= 0) describe(index); });
  box.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10, Home: -tokens.length, End: tokens.length }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    describe(Math.max(0, Math.min(box.children.length - 1, current + move)));
  });
  const rest = tokens.length - FIRST_TOKENS;
  const more = rest > 0 ? h("button", { type: "button", class: "quiet", onclick: () => { add(FIRST_TOKENS, tokens.length); more.remove(); } }, `show ${number(rest)} more tokens`) : null;
  return h("div", null, box, more);
}
