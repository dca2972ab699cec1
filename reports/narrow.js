// Show some losses only: ticks that hide rows, marks, panels and answers everywhere at once, and two pinned losses compared.
// The choice stands in the address, as #only=dpo&only=simpo&pin=dpo, or with `not` for the losses that are hidden.
const make = (tag, facts = {}, ...inside) => { // an element; text is always text
  const { data = {}, attributes = {}, ...properties } = facts;
  const element = Object.assign(document.createElement(tag), properties);
  Object.assign(element.dataset, data);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...inside);
  return element;
};
const swatch = (colour) => {
  const dot = make("i", { className: "swatch", attributes: { "aria-hidden": "true" } });
  dot.style.background = colour;
  return dot;
};
const narrowing = { hidden: new Set(), pins: [], heard: [], titles: new Map() }; // heard: functions called after each change
{
  const shorter = (label, longest) => (label.length > longest ? `${label.slice(0, longest - 1)}…` : label);
  const parts = [...document.querySelectorAll("section[data-losses]")].map((part) => {
    const losses = JSON.parse(part.dataset.losses);
    const names = new Map(); // label → loss
    for (const [name, , , labels] of losses) for (const label of labels) names.set(label, name);
    const spoken = [...names].flatMap(([label, name]) => [18, 20, 22, 28].map((longest) => [shorter(label, longest), name]));
    return { part, losses, names, spoken: [...new Map(spoken)].sort(([a], [b]) => b.length - a.length) };
  });
  const colours = new Map();
  for (const { losses } of parts) for (const [name, title, colour] of losses) {
    narrowing.titles.set(name, narrowing.titles.get(name) ?? title);
    colours.set(name, colour);
  }
  const every = [...narrowing.titles.keys()].sort((a, b) => narrowing.titles.get(a).localeCompare(narrowing.titles.get(b)));

  // What belongs to which losses.
  const marked = [];
  for (const { part, names } of parts) {
    for (const row of part.querySelectorAll("table.data tbody tr")) {
      const own = [...row.cells].map((cell) => names.get(cell.textContent.trim())).filter(Boolean);
      if (own.length) marked.push([row, own]);
    }
  }
  const hide = ([element, losses]) => element.classList.toggle("off", losses.some((name) => narrowing.hidden.has(name)));
  const mark = (place) => { // pictures and answers are drawn when they come near
    const before = marked.length;
    const names = parts.find(({ part }) => part.contains(place))?.names;
    for (const article of place.querySelectorAll("article")) marked.push([article, [names?.get(article.querySelector("header b").textContent)]]);
    for (const drawn of place.querySelectorAll("svg [data-loss]")) marked.push([drawn, drawn.dataset.loss.split(" | ")]);
    marked.slice(before).forEach(hide);
  };
  document.querySelectorAll(".picture, .formulas").forEach(mark);
  document.addEventListener("drawn", ({ target }) => mark(target));
  const first = (text, { spoken }) => spoken.find(([label]) => text.startsWith(label) && /^($|[,:;(]| )/.test(text.slice(label.length)));
  narrowed.hides = (text, picture) => {
    const part = parts.find((one) => one.part.contains(picture));
    const one = part && narrowing.hidden.size ? first(text, part) : undefined;
    const other = one && text.startsWith(" − ", one[0].length) ? first(text.slice(one[0].length + 3), part) : undefined;
    return [one, other].some((found) => found && narrowing.hidden.has(found[1]));
  };

  // The address.
  const read = () => {
    const asked = new URLSearchParams(location.hash.slice(1));
    if (!["only", "not", "pin"].some((key) => asked.has(key))) return false;
    const only = new Set(asked.getAll("only")), not = new Set(asked.getAll("not"));
    narrowing.hidden = new Set(every.filter((name) => (asked.has("only") ? !only.has(name) : not.has(name))));
    narrowing.pins = asked.getAll("pin").filter((name) => narrowing.titles.has(name)).slice(0, 2);
    return true;
  };
  const write = () => {
    const left = every.filter((name) => !narrowing.hidden.has(name));
    const chosen = new URLSearchParams();
    const few = narrowing.hidden.size && left.length && left.length < narrowing.hidden.size;
    for (const name of few ? left : narrowing.hidden) chosen.append(few ? "only" : "not", name);
    for (const name of narrowing.pins) chosen.append("pin", name);
    const at = new URLSearchParams(location.hash.slice(1)).get("at") ?? (location.hash.includes("=") ? "" : decodeURIComponent(location.hash.slice(1)));
    if (at) chosen.append("at", at);
    try { history.replaceState(null, "", `#${chosen}`); } catch { /* the choice lasts as long as the page */ }
  };

  // The bar.
  const told = make("output", { className: "told" });
  const boxes = new Map(), pinned = new Map();
  const rows = every.map((name) => {
    const title = narrowing.titles.get(name);
    const box = make("input", { type: "checkbox" });
    box.addEventListener("change", () => { narrowing.hidden[box.checked ? "delete" : "add"](name); change(); });
    const pin = make("button", { type: "button", className: "pin", textContent: "pin", attributes: { "aria-label": `pin ${title} to compare it` } });
    pin.addEventListener("click", () => {
      const at = narrowing.pins.indexOf(name);
      if (at >= 0) narrowing.pins.splice(at, 1);
      else narrowing.pins = [...narrowing.pins, name].slice(-2);
      change();
    });
    boxes.set(name, box);
    pinned.set(name, pin);
    return make("li", {}, make("label", {}, box, swatch(colours.get(name)), title), pin);
  });
  const all = (hidden) => { narrowing.hidden = new Set(hidden); change(); };
  const button = (textContent, act) => {
    const made = make("button", { type: "button", textContent });
    made.addEventListener("click", act);
    return made;
  };
  const onlyPinned = button("Pinned only", () => all(every.filter((name) => !narrowing.pins.includes(name))));
  const tools = make("div", { className: "tools" }, button("All", () => all([])), button("None", () => all(every)), onlyPinned);
  if (every.length > 16) {
    const search = make("input", { type: "search", placeholder: "Find a loss", attributes: { "aria-label": "Find a loss" } });
    search.addEventListener("input", () => {
      const word = search.value.trim().toLowerCase();
      rows.forEach((row, at) => { row.hidden = !`${every[at]} ${narrowing.titles.get(every[at])}`.toLowerCase().includes(word); });
    });
    tools.prepend(search);
  }
  const bar = make("details", { className: "narrow" }, make("summary", {}, make("b", { textContent: "Losses shown" }), " ", told), tools, make("ul", {}, ...rows));
  const versus = make("div", { className: "versus", hidden: true, attributes: { role: "region", "aria-label": "Compare these two" } });
  if (every.length > 1) document.querySelector("header.title").after(bar, versus);

  // Compare two: their difference as “who beats whom” has it, and their rows of the first table of results side by side.
  const number = (text) => (text === "" || text === undefined ? NaN : Number(text));
  const signed = (value) => `${value > 0 ? "+" : value < 0 ? "−" : ""}${Math.abs(value).toFixed(1)}`;
  const csv = (text) => {
    const cells = [...text.matchAll(/(?:"((?:[^"]|"")*)"|([^,\n]*))(,|\n|$)/g)], lines = [[]];
    for (const [, quoted, plain, end] of cells) {
      lines.at(-1).push(quoted === undefined ? plain : quoted.replaceAll('""', '"'));
      if (end !== ",") lines.push([]);
    }
    const [heads, ...body] = lines.filter((line) => line.length > 1);
    return body.map((line) => Object.fromEntries(heads.map((head, at) => [head, line[at]])));
  };
  const differences = async ({ part, names }, [a, b]) => {
    const file = part.querySelector('button[data-file="who-beats-whom.csv"]');
    if (!file) return [];
    const pairs = csv(await unpack(file.dataset.packed).text());
    return pairs.flatMap((pair) => {
      const [row, column] = [names.get(pair.row), names.get(pair.column)];
      const turned = row === b && column === a;
      if (!turned && !(row === a && column === b)) return [];
      const [value, low, high] = ["value", "low", "high"].map((key) => number(pair[key]));
      const [ours, theirs] = turned ? [pair.column, pair.row] : [pair.row, pair.column];
      const [v, l, h] = turned ? [-value, -high, -low] : [value, low, high];
      const sure = number(pair.p_holm) < 0.05 && (l > 0 || h < 0);
      const verdict = pair.comparable === "False" ? "not tuned alike, so no verdict" : sure ? "they differ by more than chance" : Number.isNaN(number(pair.p_holm)) ? "no verdict: it needs three seeds of both" : "not told apart";
      const interval = Number.isNaN(l) ? "" : ` [${signed(l)}, ${signed(h)}]`;
      return [{ words: `${ours} − ${theirs}: ${signed(v)} points${interval}, n = ${pair.n} prompts`, verdict }];
    });
  };
  const rowsOf = ({ part, names }, name) => {
    const table = part.querySelector('figure[id$="-main-table"] table.data');
    return table ? [table, [...table.tBodies[0].rows].find((row) => names.get(row.cells[0].textContent.trim()) === name)] : [];
  };
  const metrics = (part, pins) => {
    const [[table, one], [, other]] = pins.map((name) => rowsOf(part, name));
    if (!one || !other) return [];
    const head = (cell) => cell.querySelector("button").firstChild.textContent;
    const lines = [...table.tHead.rows[0].cells].slice(1).map((cell, at) => {
      const copies = [one, other].map((row) => make("td", { className: "num" }, ...row.cells[at + 1].cloneNode(true).childNodes));
      return make("tr", {}, make("th", { scope: "row", textContent: head(cell) }), ...copies);
    });
    const heads = ["", ...[one, other].map((row) => row.cells[0].textContent.trim())];
    const top = make("tr", {}, ...heads.map((textContent, at) => make(at ? "th" : "td", { textContent, className: at ? "num" : "", ...(at ? { scope: "col" } : {}) })));
    const made = make("table", { className: "data" }, make("caption", { className: "unseen", textContent: "Results of the two" }), make("thead", {}, top), make("tbody", {}, ...lines));
    return [make("div", { className: "scroll", tabIndex: 0, attributes: { role: "region", "aria-label": "Results of the two" } }, made)];
  };
  let asked = 0; // unpacking takes a moment: only the last answer counts
  const compare = async () => {
    const pins = [...narrowing.pins], turn = ++asked;
    versus.hidden = pins.length === 0;
    if (pins.length < 2) return versus.replaceChildren(make("p", { textContent: pins.length ? `${narrowing.titles.get(pins[0])} is pinned. Pin a second loss to compare the two.` : "" }));
    const blocks = [];
    for (const part of parts) {
      if (!pins.every((name) => part.losses.some(([own]) => own === name))) continue;
      const found = await differences(part, pins);
      const heading = parts.length > 1 ? [make("p", { className: "label", textContent: part.part.querySelector("h1, h2").textContent })] : [];
      const lines = found.map(({ words, verdict }) => make("p", {}, make("b", { textContent: words }), `: ${verdict}.`));
      blocks.push(...heading, ...lines, ...metrics(part, pins));
      const reader = part.part.querySelector(".reader");
      if (reader) blocks.push(button("Their answers side by side", () => reader.scrollIntoView()));
    }
    if (turn !== asked) return;
    const [a, b] = pins.map((name) => narrowing.titles.get(name));
    const close = button("Unpin both", () => { narrowing.pins = []; change(); });
    const nothing = blocks.length ? [] : [make("p", { textContent: "No setting on this page has both." })];
    versus.replaceChildren(make("div", { className: "top" }, make("p", { className: "answer", textContent: `${a} and ${b}` }), close), ...blocks, ...nothing);
  };

  const change = (written = true) => {
    marked.forEach(hide);
    for (const name of every) {
      const isPinned = narrowing.pins.includes(name);
      boxes.get(name).checked = !narrowing.hidden.has(name);
      pinned.get(name).setAttribute("aria-pressed", isPinned);
      pinned.get(name).textContent = isPinned ? "pinned" : "pin";
    }
    onlyPinned.disabled = !narrowing.pins.length;
    const left = every.length - narrowing.hidden.size;
    told.textContent = narrowing.hidden.size ? `${left} of ${every.length}` : `all ${every.length}`;
    if (narrowing.pins.length) told.textContent += `, pinned: ${narrowing.pins.map((name) => narrowing.titles.get(name)).join(" and ")}`;
    bar.classList.toggle("some", narrowing.hidden.size > 0);
    if (written) write();
    compare();
    for (const hear of narrowing.heard) hear();
  };
  addEventListener("hashchange", () => { if (read()) change(false); });
  const at = new URLSearchParams(location.hash.slice(1)).get("at");
  read();
  change(false);
  if (at) document.getElementById(at)?.scrollIntoView();
}
