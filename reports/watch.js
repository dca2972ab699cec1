"use strict";
// Asks the server of this page every two seconds for what has changed, and draws it. Text from files becomes text, never markup.
const EVERY = 2000, jobs = new Map(), rows = new Map();
let version = "", facts = null, chosen = null, ahead = 0, sawWork = false, drawn = "", curvesTag = "";
const at = id => document.getElementById(id);
const make = (name, text, className) => {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
};
const now = () => Date.now() / 1000 + ahead;
const clock = seconds => {
  if (seconds === null || !isFinite(seconds)) return "–";
  const s = Math.max(0, Math.round(seconds)), pad = n => String(n).padStart(2, "0");
  return s >= 3600 ? `${Math.floor(s / 3600)}:${pad(Math.floor(s / 60) % 60)}:${pad(s % 60)}` : `${Math.floor(s / 60)}:${pad(s % 60)}`;
};
const short = value => Math.abs(value) >= 1000 || (value && Math.abs(value) < 0.001) ? value.toExponential(1) : String(+value.toPrecision(3));
const all = () => [...jobs.values()].sort((a, b) => a.number - b.number);

async function ask() {
  try {
    const reply = await fetch(`/state.json?since=${encodeURIComponent(version)}`, { cache: "no-store" });
    if (!reply.ok) throw new Error(reply.statusText);
    ahead = Date.parse(reply.headers.get("Date")) / 1000 - Date.now() / 1000;
    take(await reply.json());
    await askCurves();
  } catch (error) {
    at("left").textContent = "The server of this page does not answer; the command that it showed is not touched by that.";
  }
  setTimeout(ask, EVERY);
}

function take(state) {
  if (state.whole) { jobs.clear(); rows.clear(); at("jobs").replaceChildren(); }
  version = state.version;
  facts = state;
  for (const job of state.jobs) { jobs.set(job.number, job); showRow(job); }
  if (!state.ended) sawWork = true;
  if (state.ended && state.report && sawWork) { location.assign("/report/report.html"); return; }
  showHead(); showAlarms(); showJob();
}

// ---------------------------------------------------------------- the head
function showHead() {
  if (!facts) return;
  const list = all(), running = list.filter(job => job.state === "running");
  const over = list.filter(job => ["finished", "failed"].includes(job.state)).length;
  const named = running.map(job => `job ${job.number} of ${facts.count} · ${job.title}`);
  at("setting").textContent = facts.settings.length ? `· ${facts.settings.join(", ")}` : "";
  const end = facts.report ? "The report is there." : facts.at_work ? "All jobs have ended; the report is being written." : "Nothing is under way.";
  at("now").textContent = named.length > 1 ? `${named.length} jobs at work, of ${facts.count}` : named[0] || (facts.ended ? end : "Between two jobs …");
  document.title = running.length ? `job ${running[0].number} of ${facts.count} · pobench` : "pobench watch";
  const basis = facts.measured ? `corrected by ${facts.measured} finished ${facts.measured === 1 ? "job" : "jobs"}` : "estimated before any job has finished";
  const left = facts.done_at === null ? "time left not known yet" : `${clock(facts.done_at - now())} left of all jobs (${basis})`;
  const more = facts.more ? "; further jobs are planned once these have ended" : "";
  at("left").textContent = facts.ended ? "" : left + more;
  if (facts.ended && facts.report) {
    const link = make("a", "Open the report");
    link.href = "/report/report.html";
    at("left").replaceChildren(link);
  }
  at("count").textContent = `${over} of ${facts.count} ended`;
  at("before").textContent = facts.before.length ? `Done before: ${facts.before.length} runs (${facts.before.slice(0, 12).join("; ")}${facts.before.length > 12 ? "; …" : ""})` : "";
  at("whole").replaceChildren(...list.map(job => {
    const part = make("i", undefined, job.state), full = make("b");
    part.style.flexGrow = job.expected || 1;
    const spent = job.began === null || !job.expected ? 0 : Math.min((now() - job.began) / job.expected, 0.95);
    if (job.state === "running") full.style.width = `${100 * spent}%`;
    part.append(full);
    return part;
  }));
}

function showAlarms() {
  const found = all().flatMap(job => job.alarms.map(sentence => `${job.title}. ${sentence}`));
  at("alarms").hidden = !found.length;
  if (at("alarm-list").dataset.shown !== found.join("\n")) at("alarm-list").replaceChildren(...found.map(text => make("li", text)));
  at("alarm-list").dataset.shown = found.join("\n");
}

// ---------------------------------------------------------------- the table
function showRow(job) {
  let row = rows.get(job.number);
  if (!row) {
    row = make("tr");
    const after = [...rows.keys()].filter(number => number > job.number).sort((a, b) => a - b)[0];
    at("jobs").insertBefore(row, after ? rows.get(after) : null);
    rows.set(job.number, row);
  }
  row.className = job.state;
  row.hidden = at("troubled").checked && job.state !== "failed" && !job.alarms.length;
  const name = make("td", undefined, "wide"), choose = make("button", job.title);
  choose.addEventListener("click", () => { chosen = job.number; showJob(); askCurves(); });
  name.append(choose);
  const stages = job.stages.map(([stage, state]) => (state === "done" ? "✓ " : state === "running" ? "▸ " : "") + stage).join("  ");
  const word = job.state + (job.alarms.length ? ` · ${job.alarms.length} ${job.alarms.length === 1 ? "alarm" : "alarms"}` : "");
  const took = job.ended !== null && job.began !== null ? clock(job.ended - job.began) : job.state === "running" ? clock(now() - job.began) : "";
  row.replaceChildren(make("td", job.number), name, make("td", stages, "wide"), make("td", word, "word"), make("td", took, "number"), make("td", job.ended === null ? clock(job.expected) : "", "number"));
}
at("troubled").addEventListener("change", () => all().forEach(showRow));

// ---------------------------------------------------------------- one job
const current = () => {
  const list = all(), busy = list.filter(job => job.state === "running");
  return jobs.get(chosen) || busy[0] || [...list].reverse().find(job => job.curves && job.state === "finished") || list[0];
};

function showJob() {
  const job = current();
  at("job").hidden = !job;
  if (!job) return;
  at("job-title").textContent = `job ${job.number} · ${job.title}`;
  at("stages").replaceChildren(...job.stages.map(([stage, state]) => make("li", stage, state)));
  const parts = [job.doing && job.doing !== job.title ? job.doing : "", job.progress, job.left !== null && job.state === "running" ? `${clock(job.left)} left of this` : "", job.reason];
  at("doing").textContent = parts.filter(part => part).join(" · ");
}

async function askCurves() {
  const job = current();
  const of = job && (job.curves ? job : all().find(other => other.run === job.run && other.curves));
  if (!of) { at("curves").replaceChildren(); drawn = ""; return; }
  const headers = drawn === String(of.number) && curvesTag ? { "If-None-Match": curvesTag } : {};
  const reply = await fetch(`/curves.json?job=${of.number}`, { headers, cache: "no-store" });
  if (reply.status === 304 || !reply.ok) return;
  curvesTag = reply.headers.get("ETag") || "";
  drawn = String(of.number);
  draw((await reply.json()).curves);
}

// ---------------------------------------------------------------- curves
const FIGURES = [
  ["loss", [["loss", ""]]],
  ["rewards", [["rewards/chosen", "chosen"], ["rewards/rejected", "rejected"]]],
  ["KL to the start model", [["heldout/kl", ""]]],
  ["KL estimate of the loss", [["kl", ""]]],
  ["gradient norm", [["grad_norm", ""]]],
  ["held-out pairs ranked right", [["heldout/accuracy", ""]]],
];
const W = 300, H = 120, LEFT = 42, RIGHT = 56, TOP = 10, BOTTOM = 18;

function draw(curves) {
  at("curves").replaceChildren(...FIGURES.filter(([, lines]) => lines.some(([name]) => curves[name])).map(([title, lines]) => {
    const shown = lines.filter(([name]) => curves[name]).map(([name, label]) => [curves[name], label]);
    const figure = make("figure"), caption = make("figcaption", title);
    caption.append(make("span", shown.map(([points]) => short(points[points.length - 1][1])).join(" / ")));
    figure.append(caption, plot(shown, title));
    return figure;
  }));
}

function plot(lines, title) {
  const svg = (name, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const points = lines.flatMap(([own]) => own), steps = points.map(p => p[0]), values = points.map(p => p[1]);
  const [x0, x1, low, high] = [Math.min(...steps), Math.max(...steps), Math.min(...values), Math.max(...values)];
  const pad = (high - low || Math.abs(high) || 1) * 0.06;
  const x = step => LEFT + (x1 > x0 ? (step - x0) / (x1 - x0) : 0.5) * (W - LEFT - RIGHT);
  const y = value => TOP + (1 - (value - low + pad) / (high - low + 2 * pad)) * (H - TOP - BOTTOM);
  const picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${title}, steps ${x0} to ${x1}` });
  picture.append(svg("path", { class: "axis", d: `M${LEFT} ${TOP}V${H - BOTTOM}H${W - RIGHT}` }));
  for (const value of new Set([low, high])) picture.append(svg("text", { x: LEFT - 5, y: y(value) + 4, "text-anchor": "end" }, short(value)));
  picture.append(svg("text", { x: LEFT, y: H - 4 }, `step ${x0}`), svg("text", { x: W - RIGHT, y: H - 4, "text-anchor": "end" }, String(x1)));
  const ends = [];
  lines.forEach(([own, label], place) => {
    const kind = place ? "second" : "first";
    picture.append(svg("path", { class: kind, d: own.map(([step, value], i) => `${i ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("") }));
    let end = y(own[own.length - 1][1]) + 4;
    for (const other of ends) if (Math.abs(other - end) < 12) end = other + (end < other ? -12 : 12);
    ends.push(end);
    if (label) picture.append(svg("text", { x: W - RIGHT + 5, y: end, class: `${kind}-label` }, label));
  });
  return picture;
}

setInterval(showHead, 1000);
ask();
