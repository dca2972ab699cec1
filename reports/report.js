// Sort a table by its column heads; numbers by data-sort, dashes last.
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead th").forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const now = head.getAttribute("aria-sort"); // numbers begin with the largest, words with A
      const up = head.classList.contains("num") ? now === "descending" : now !== "ascending";
      table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = (row) => {
        const cell = row.children[column];
        return head.classList.contains("num") ? parseFloat(cell.dataset.sort ?? "NaN") : cell.textContent.trim();
      };
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (typeof x === "string") return up ? x.localeCompare(y) : y.localeCompare(x);
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return up ? x - y : y - x;
      });
      table.tBodies[0].append(...rows);
    });
  });
}

// Gzipped bytes in base64 → a response with what they hold.
const unpack = (packed) => {
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip")));
};

// Unpack a file when it is asked for.
const save = (content, file) => {
  const href = URL.createObjectURL(content);
  Object.assign(document.createElement("a"), { href, download: file }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000);
};
for (const button of document.querySelectorAll("button[data-packed]")) {
  button.addEventListener("click", async () => {
    const { file, kind, packed } = button.dataset;
    save(new Blob([await unpack(packed).arrayBuffer()], { type: kind }), file);
  });
}

// A link to a heading or a row is copied as it is followed; a short digest shows itself whole, and is copied.
const copy = (text) => navigator.clipboard?.writeText(text).catch(() => {}); // a page opened from disk may be refused
document.addEventListener("click", ({ target }) => {
  const anchor = target.closest("a.anchor");
  const short = target.closest("[data-full]");
  if (anchor) copy(anchor.href);
  if (!short) return;
  short.textContent = short.dataset.full;
  getSelection().selectAllChildren(short);
  copy(short.dataset.full);
});
document.addEventListener("keydown", (event) => {
  if ((event.key === "Enter" || event.key === " ") && event.target.matches("[data-full]")) { event.preventDefault(); event.target.click(); }
});

// A number leads to where it comes from: to its row's page, there to the same number of each run, or, in a page that stands
// alone, to the row's runs below.
const originOf = (cell) => {
  const row = cell.parentElement, table = cell.closest("table");
  const page = row.cells[0].querySelector("a[href]:not(.anchor)");
  const { metric } = table.tHead.rows[0].cells[cell.cellIndex].dataset;
  if (page) return page.getAttribute("href") + (metric && !page.hash ? `#metric-${encodeURIComponent(metric)}` : "");
  const label = row.cells[0].textContent.trim();
  const runs = document.getElementById(`${table.closest("section")?.id}-runs`);
  const rows = [...(runs?.querySelectorAll("tbody tr") ?? [])].map((run) => [run, run.cells[0].textContent.trim()]);
  const own = rows.find(([, text]) => text === label) ?? rows.find(([, text]) => text.startsWith(`${label} (`));
  return own && own[0] !== row ? `#${own[0].id}` : "";
};
document.addEventListener("click", (event) => {
  const cell = event.target.closest("table.sortable tbody td.num");
  if (!cell || event.target.closest("a, button, [data-full]") || !getSelection().isCollapsed) return;
  const origin = originOf(cell);
  if (origin && (event.ctrlKey || event.metaKey)) window.open(origin);
  else if (origin) location.assign(origin);
});

// Say what stands where the pointer is, or, with the arrow keys, point by point.
const reach = 28; // pixels
const narrowed = { hides: () => false }; // of a point's text; narrow.js says which
const pointsOf = (lines) => { // each counted from the one before; a line "=words" has what the texts below it begin with
  let [x, y, words] = [0, 0, ""];
  const points = [];
  for (const line of lines.split("\n")) {
    const [, across, down, text] = /^(-?\d+) (-?\d+) (.*)$/.exec(line) ?? [];
    if (line.startsWith("=")) words = line.slice(1);
    else if (across) points.push({ x: (x += Number(across)) / 1e4, y: (y += Number(down)) / 1e4, text: words + text });
  }
  return points;
};
const listen = (pictures) => {
for (const picture of pictures) {
  const every = pointsOf(picture.querySelector(".hints")?.textContent ?? "");
  if (!every.length) continue;
  let points = every;
  const drawn = picture.querySelector("svg, img");
  const tip = picture.appendChild(Object.assign(document.createElement("output"), { className: "tip" }));
  const ring = picture.appendChild(Object.assign(document.createElement("span"), { className: "at" }));
  let at = -1;
  const say = (place) => {
    at = place;
    tip.textContent = points[place]?.text ?? "";
    if (place < 0) return;
    const [inside, outside] = [drawn.getBoundingClientRect(), picture.getBoundingClientRect()];
    const left = inside.left - outside.left + picture.scrollLeft + points[place].x * inside.width;
    const top = inside.top - outside.top + points[place].y * inside.height;
    Object.assign(ring.style, { left: `${left}px`, top: `${top}px` });
    const most = picture.scrollLeft + picture.clientWidth - tip.offsetWidth;
    Object.assign(tip.style, { left: `${Math.max(0, Math.min(left + 12, most))}px`, top: `${top < 48 ? top + 14 : top - tip.offsetHeight - 10}px` });
  };
  const narrow = () => { points = every.filter((point) => !narrowed.hides(point.text, picture)); };
  const near = (event) => {
    narrow();
    if (!points.length) return say(-1);
    const box = drawn.getBoundingClientRect();
    const far = ({ x, y }) => Math.hypot(box.left + x * box.width - event.clientX, box.top + y * box.height - event.clientY);
    const place = points.reduce((best, point, i) => (far(point) < far(points[best]) ? i : best), 0);
    say(far(points[place]) < reach ? place : -1);
  };
  picture.tabIndex = 0;
  picture.addEventListener("pointermove", near);
  picture.addEventListener("pointerdown", near);
  picture.addEventListener("pointerleave", () => say(-1));
  picture.addEventListener("blur", () => say(-1));
  picture.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) narrow();
    if (step && points.length) say((Math.max(at, step > 0 ? -1 : 0) + step + points.length) % points.length);
    else if (event.key === "Escape") say(-1);
    else return;
    event.preventDefault();
  });
}
};
listen(document.querySelectorAll(".picture:not([data-drawing])"));

// Light or dark: as the system has it until the button is pressed, then as the reader chose.
const theme = document.querySelector("button.theme");
const night = matchMedia("(prefers-color-scheme: dark)");
const remembered = { // a page opened from disk may be refused a memory
  get: () => { try { return localStorage.getItem("theme"); } catch { return null; } },
  set: (value) => { try { localStorage.setItem("theme", value); } catch { /* it lasts as long as the page */ } },
};
const isDark = () => (document.documentElement.dataset.theme ?? (night.matches ? "dark" : "light")) === "dark";
const wear = (value) => {
  if (value === "dark" || value === "light") document.documentElement.dataset.theme = value;
  theme.textContent = isDark() ? "Light page" : "Dark page";
};
theme.hidden = false;
theme.addEventListener("click", () => { wear(isDark() ? "light" : "dark"); remembered.set(document.documentElement.dataset.theme); });
night.addEventListener("change", () => wear());
wear(remembered.get());

// Draw a picture when it comes near. All are unpacked, as text, while the page is idle: printing waits for nothing.
const markup = new Map(); // picture → its SVG and hints, or the promise of them
const unpacked = async (picture) => {
  if (!("drawing" in picture.dataset)) return; // drawn by now
  if (!markup.has(picture)) markup.set(picture, unpack(picture.dataset.drawing).text());
  markup.set(picture, await markup.get(picture));
};
const draw = (picture) => {
  if (!("drawing" in picture.dataset) || typeof markup.get(picture) !== "string") return;
  picture.innerHTML = markup.get(picture);
  delete picture.dataset.drawing;
  markup.delete(picture);
  listen([picture]);
  picture.dispatchEvent(new Event("drawn", { bubbles: true }));
};
const undrawn = () => [...document.querySelectorAll("[data-drawing]")];
const coming = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    coming.unobserve(target);
    unpacked(target).then(() => draw(target));
  }
}, { rootMargin: "800px 0px" });
undrawn().forEach((picture) => coming.observe(picture));
const idle = window.requestIdleCallback ?? ((work) => setTimeout(work, 200));
const unpackNext = () => {
  const next = undrawn().find((picture) => !markup.has(picture));
  if (next) unpacked(next).then(() => idle(unpackNext));
};
idle(unpackNext);

// What readers without scripts see, and paper shows, is text until its chapter is opened.
const pour = (fold) => {
  for (const place of fold.querySelectorAll("noscript")) {
    const poured = Object.assign(document.createElement("div"), { className: place.className, innerHTML: place.textContent });
    place.replaceWith(poured);
    poured.dispatchEvent(new Event("drawn", { bubbles: true }));
  }
};
for (const place of document.querySelectorAll("noscript")) place.closest("details")?.addEventListener("toggle", ({ target }) => pour(target));

// Open everything before printing, and close it again; the button waits until all is drawn.
const opened = new Set();
addEventListener("beforeprint", () => {
  undrawn().forEach(draw);
  pour(document);
  document.querySelectorAll("details:not([open])").forEach((fold) => { opened.add(fold); fold.open = true; });
});
addEventListener("afterprint", () => { opened.forEach((fold) => (fold.open = false)); opened.clear(); });
const printer = document.querySelector("button.print");
if (printer) {
  printer.hidden = false;
  printer.addEventListener("click", async () => { await Promise.all(undrawn().map(unpacked)); undrawn().forEach(draw); window.print(); });
}

// Open what a link leads into.
const reveal = (hash, scroll) => {
  const target = document.getElementById(decodeURIComponent(hash.slice(1)));
  for (let fold = target?.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  if (target && scroll) target.scrollIntoView();
};
document.addEventListener("click", (event) => { const link = event.target.closest("a[href^='#']"); if (link) reveal(link.hash, false); });
addEventListener("hashchange", () => reveal(location.hash, true));
if (location.hash) reveal(location.hash, true);

// Show in the contents where the reader is.
const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    links.forEach((a) => a.removeAttribute("aria-current"));
    links.get(entry.target.id)?.setAttribute("aria-current", "location");
  }
}, { rootMargin: "0px 0px -75% 0px" });
links.forEach((_, id) => { const at = document.getElementById(id); if (at) seen.observe(at); });
