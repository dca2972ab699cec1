// Read answers side by side: pick two or three models, filter the prompts, mark the words that differ, vote blind.
{
  const AT_ONCE = 5; // prompts shown at a time
  const MOST_CELLS = 4_000_000; // of a word diff's table
  const HIDDEN = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]/gu;
  const visible = (text) => text.replaceAll("\r\n", "\n").replace(HIDDEN, (c) => `⟨U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
  const known = (value) => value !== null && value !== undefined;
  const button = (textContent, act, facts = {}) => {
    const made = make("button", { type: "button", textContent, ...facts });
    made.addEventListener("click", act);
    return made;
  };

  // ---- models and their answers, from the page or from files beside it
  const promptKey = ([id, , instruction]) => `${id}\n${instruction}`;
  const columnsOf = (columns, prompts) => { // key of a prompt → the answer
    const answers = new Map();
    prompts.forEach((prompt, at) => {
      const text = columns.text?.[at];
      if (!known(text)) return;
      const [score, flipped, reason, tokens, finished] = ["score", "flipped", "reason", "tokens", "finished"].map((name) => columns[name]?.[at] ?? null);
      answers.set(promptKey(prompt), { text, score, flipped, reason, tokens, finished, cut: columns.cut?.[at] ?? 0 });
    });
    return answers;
  };
  const packed = async (place) => {
    const data = await unpack(place.dataset.packed).json();
    const section = place.closest("section");
    const models = data.arms.map((arm, at) => ({ ...arm, at, place, title: arm.label, answers: columnsOf(arm, data.prompts) }));
    const passes = !data.compares && data.arms.every(({ score }) => (score ?? []).every((value) => !known(value) || value === 0 || value === 1));
    return { against: "start", ...data, passes, place, section, setting: section.querySelector("h1, h2").textContent, models };
  };
  const besides = async (held) => { // models whose answers lie in files: `load` reads them
    const address = held.place.dataset.beside;
    if (!address || location.protocol === "file:") return []; // a page opened from disk may not read files beside it
    const index = await (await fetch(address)).json();
    return index.arms.map((arm) => {
      const model = { ...arm, place: held.place, title: arm.label, answers: null };
      model.entries = async () => {
        const file = await (await fetch(address.replace(/[^/]*$/, encodeURIComponent(arm.file)))).json();
        return file.answers.map((entry) => {
          const which = [entry.seed >= 0 ? `seed ${entry.seed}` : "", known(entry.sample) ? `sample ${entry.sample + 1}` : ""];
          return { ...arm, place: held.place, title: [arm.label, ...which].filter(Boolean).join(", "), answers: columnsOf(entry, index.prompts) };
        });
      };
      return { model, prompts: index.prompts };
    });
  };

  // ---- what the judge says of two answers: 1 the first is better, −1 the second, 0 neither, null nothing
  const sign = (difference) => (Math.abs(difference) < 1e-9 ? 0 : Math.sign(difference));
  const judged = (held, one, other, key) => {
    const [a, b] = [one.answers.get(key), other.answers.get(key)];
    if (!a || !b) return null;
    if (!held.compares) return known(a.score) && known(b.score) ? sign(a.score - b.score) : null;
    if (other.loss === held.against && one.loss !== held.against) return known(a.score) ? sign(a.score - 0.5) : null;
    if (one.loss === held.against && other.loss !== held.against) return known(b.score) ? sign(0.5 - b.score) : null;
    if (held.against === "baseline") return known(a.score) && known(b.score) ? sign(a.score - b.score) : null;
    const met = battle(held, one, other);
    const score = met?.scores.get(key);
    return known(score) ? sign(met.turned ? 0.5 - score : score - 0.5) : null;
  };
  const battle = (held, one, other) => {
    for (const met of held.battles ?? []) {
      const turned = met.first === other.at && met.second === one.at;
      if (!turned && !(met.first === one.at && met.second === other.at)) continue;
      const column = (values) => new Map(held.prompts.map((prompt, at) => [promptKey(prompt), values[at]]));
      return { turned, scores: (met.scores ??= column(met.score)), flips: (met.flips ??= column(met.flipped)), reasons: (met.reasons ??= column(met.reason ?? [])) };
    }
    return undefined;
  };
  const flipped = (held, models, key) =>
    models.some((one, at) => one.answers.get(key)?.flipped === 1 || models.slice(at + 1).some((other) => battle(held, one, other)?.flips.get(key) === 1));

  // ---- words that differ: the longest common subsequence
  const words = (text) => text.match(/\s+|\S+\s*/g) ?? []; // each with the space behind it
  const diff = (one, other) => { // of each text: [word, whether the other lacks it]; null where the texts are too long
    const [before, after] = [words(one), words(other)];
    const [a, b] = [before, after].map((texts) => texts.map((word) => word.trim()));
    let from = 0, [endA, endB] = [a.length, b.length]; // what both begin and end with needs no table
    while (from < endA && from < endB && a[from] === b[from]) from++;
    while (endA > from && endB > from && a[endA - 1] === b[endB - 1]) { endA--; endB--; }
    const [n, m] = [endA - from, endB - from];
    if ((n + 1) * (m + 1) > MOST_CELLS) return null;
    const length = new Uint16Array((n + 1) * (m + 1));
    for (let i = n - 1; i >= 0; i--) for (let j = m - 1; j >= 0; j--) {
      const here = i * (m + 1) + j;
      length[here] = a[from + i] === b[from + j] ? length[here + m + 2] + 1 : Math.max(length[here + m + 1], length[here + 1]);
    }
    const lacks = [a.map(() => false), b.map(() => false)];
    let [i, j] = [0, 0];
    while (i < n || j < m) {
      const here = i * (m + 1) + j;
      if (i < n && j < m && a[from + i] === b[from + j]) { i++; j++; }
      else if (j >= m || (i < n && length[here + m + 1] >= length[here + 1])) lacks[0][from + i++] = true;
      else lacks[1][from + j++] = true;
    }
    return [before.map((word, at) => [word, lacks[0][at]]), after.map((word, at) => [word, lacks[1][at]])];
  };
  const differing = (marks, tag) => { // words in a row of one kind as one text or element
    const parts = [];
    for (const [word, lacks] of marks) {
      if (parts.at(-1)?.lacks === lacks) parts.at(-1).text += word;
      else parts.push({ text: word, lacks });
    }
    return parts.map(({ text, lacks }) => (lacks ? make(tag, { textContent: visible(text) }) : visible(text)));
  };

  // ---- one answer
  const verdict = (held, answer) => {
    if (!known(answer.score)) return [];
    if (held.passes && answer.score === 1) return [make("span", { className: "mark up", textContent: "✓ passes" })];
    if (held.passes && answer.score === 0) return [make("span", { className: "mark down", textContent: "✗ fails" })];
    const text = `${held.compares ? `P(beats the ${held.against === "start" ? "start model" : "baseline"})` : "score"} ${answer.score.toFixed(2)}${answer.flipped === 1 ? ", the order decided" : ""}`;
    return [make("span", { className: "mark", textContent: text })];
  };
  const article = (head, content, foot, ...more) => {
    const text = make("div", { className: "text", dir: "auto", tabIndex: 0 }, ...content);
    return make("article", {}, make("header", {}, ...head), text, make("footer", { textContent: foot }), ...more);
  };
  const why = (reason, title = "The judge’s reason") =>
    known(reason) ? [make("details", { className: "reason" }, make("summary", { textContent: title }), make("div", { className: "text", dir: "auto", textContent: visible(reason) }))] : [];
  const whyOfTwo = (held, models, key) => models.flatMap((one, at) => models.slice(at + 1).flatMap((other) => {
    const met = battle(held, one, other);
    const [first, second] = met?.turned ? [other, one] : [one, other]; // whose answer the judge calls this one, and the other
    return why(met?.reasons.get(key) ?? null, `The judge’s reason: this is ${visible(first.title)}, the other ${visible(second.title)}`);
  }));
  const size = ({ tokens, finished, cut }) =>
    [cut ? `${cut} more characters not here` : "", known(tokens) ? `${tokens} tokens` : "", finished === 0 ? "cut off at the limit" : ""].filter(Boolean).join(" · ");
  const showAnswers = (held, models, key, marking) => {
    const answers = models.map((model) => model.answers.get(key));
    return models.map((model, at) => {
      const head = [swatch(model.colour), make("b", { textContent: model.title })];
      const answer = answers[at];
      if (!answer) return article(head, ["–"], "no answer");
      const other = at ? answers[0] : answers[1];
      const marks = marking && other ? (at ? diff(other.text, answer.text)?.[1] : diff(answer.text, other.text)?.[0]) : null;
      return article([...head, ...verdict(held, answer)], marks ? differing(marks, at ? "ins" : "del") : [visible(answer.text)], size(answer), ...why(answer.reason));
    });
  };
  const question = ([id, kind, instruction]) =>
    make("p", { className: "prompt" }, make("bdi", { textContent: visible(instruction || id) }), ...(kind ? [" ", make("span", { className: "kind", textContent: visible(kind) })] : []));

  // ---- a share with its interval (Wilson)
  const wilson = (k, n) => {
    const z = 1.959964, p = k / n, middle = p + (z * z) / (2 * n), half = z * Math.sqrt((p * (1 - p)) / n + (z * z) / (4 * n * n));
    return [(middle - half) / (1 + (z * z) / n), (middle + half) / (1 + (z * z) / n)];
  };
  const share = (k, n) => {
    const [low, high] = wilson(k, n);
    return `${(100 * k / n).toFixed(0)} % [${(100 * low).toFixed(0)}, ${(100 * high).toFixed(0)}], n = ${n}`;
  };
  const hash = (text) => [...text].reduce((sum, c) => Math.imul(sum ^ c.codePointAt(0), 16777619) >>> 0, 2166136261);
  const mixed = (text) => { // as good as random, the same every time
    let x = hash(text);
    x = Math.imul(x ^ (x >>> 16), 2246822507);
    x = Math.imul(x ^ (x >>> 13), 3266489909);
    return (x ^ (x >>> 16)) >>> 0;
  };

  // ---- the reader of one setting
  const reader = (held, others) => {
    const prompts = new Map(held.prompts.map((prompt) => [promptKey(prompt), prompt]));
    const models = [...held.models];
    for (const other of others) { // another setting's models that answered the same prompts
      const common = other.models.filter((model) => [...model.answers.keys()].some((key) => prompts.has(key)));
      models.push(...common.map((model) => ({ ...model, at: -1, title: `${model.label}, ${other.setting}` })));
    }
    const votes = []; // { key, vote: 1 | -1 | 0 by the first model's side }
    let from = 0, matching = [], voting = null;

    const labelled = (text, control) => make("label", {}, make("span", { textContent: text }), control);
    const select = (options) => make("select", {}, ...options.map(([value, textContent]) => make("option", { value, textContent })));
    const picks = ["First", "Second", "Third"].map((text) => ({ text, control: make("select") }));
    const offer = () => {
      for (const [nth, { control }] of picks.entries()) {
        const before = control.value;
        const options = models.map((model, at) => make("option", { value: at, textContent: visible(model.title) }));
        control.replaceChildren(...(nth ? [make("option", { value: "", textContent: "–" })] : []), ...options);
        control.value = before;
      }
      narrow();
    };
    const narrow = () => { // options of hidden losses
      for (const { control } of picks) for (const option of control.options) {
        option.hidden = option.value !== "" && narrowing.hidden.has(models[option.value].loss) && !option.selected;
      }
    };
    const kinds = [...new Set(held.prompts.map(([, kind]) => kind))].filter(Boolean).sort();
    const scored = held.models.some((model) => model.score);
    const passes = select([["", "any"], ["1", "first better than second"], ["-1", "second better than first"], ["0", "equal"], ...(held.compares && held.against === "start" ? [["flip", "the order decided"]] : []), ...(held.passes ? [["all", "all pass"], ["none", "none passes"]] : [])]);
    const kind = select([["", "any"], ...kinds.map((name) => [name, visible(name)])]);
    const length = select([["", "any"], ["1", "first longer than second"], ["-1", "second longer than first"], ["far", "one over 1.5 times another"], ["cut", "one cut off at the limit"]]);
    const order = select([["", "as picked by rule"], ["long", "longest first"], ["short", "shortest first"], ["apart", "lengths most apart"]]);
    const search = make("input", { type: "search", placeholder: "in prompts and answers" });
    const marking = make("input", { type: "checkbox" });
    const legend = make("p", { className: "told legend", textContent: "Struck through: not in the second answer. Underlined: not in the first." });
    const count = make("output", { className: "told" });
    const list = make("div", { className: "list", tabIndex: -1 });
    const chosen = () => picks.map(({ control }) => models[control.value]).filter((model, at, every) => model?.answers && every.indexOf(model) === at);
    const lengths = (key) => chosen().map((model) => model.answers.get(key)?.tokens ?? model.answers.get(key)?.text.length ?? 0);
    const orders = { long: (key) => -Math.max(...lengths(key)), short: (key) => Math.max(...lengths(key)), apart: (key) => Math.min(...lengths(key)) - Math.max(...lengths(key)) };
    const lengthFits = (key, answers) => {
      if (length.value === "cut") return answers.some(({ finished }) => finished === 0);
      const tokens = length.value ? lengths(key) : [];
      if (length.value === "far") return Math.max(...tokens) > 1.5 * Math.min(...tokens);
      return !length.value || (tokens.length > 1 && Math.sign(tokens[0] - tokens[1]) === Number(length.value));
    };
    const fits = (key) => {
      const shown = chosen(), answers = shown.map((model) => model.answers.get(key)).filter(Boolean);
      const [, own, instruction] = prompts.get(key), word = search.value.trim().toLowerCase();
      if (!answers.length || (kind.value && own !== kind.value)) return false;
      if (word && ![instruction, ...answers.map(({ text }) => text)].some((text) => text.toLowerCase().includes(word))) return false;
      if (!lengthFits(key, answers)) return false;
      if (passes.value === "all" || passes.value === "none") return answers.every(({ score }) => known(score) && (score === 1) === (passes.value === "all"));
      if (passes.value === "flip") return flipped(held, shown, key);
      return !passes.value || (shown.length > 1 && judged(held, shown[0], shown[1], key) === Number(passes.value));
    };
    const show = () => {
      const end = Math.min(from + AT_ONCE, matching.length), shown = chosen();
      list.replaceChildren(...matching.slice(from, end).map((key) => {
        return make("div", { className: "one" }, question(prompts.get(key)), make("div", { className: "shown" }, ...showAnswers(held, shown, key, marking.checked)), ...whyOfTwo(held, shown, key));
      }));
      count.textContent = matching.length ? `${from + 1} to ${end} of ${matching.length} prompts` : "No prompt fits.";
      legend.hidden = !marking.checked || shown.length < 2;
      before.disabled = from === 0;
      after.disabled = end >= matching.length;
    };
    const filter = () => {
      if (voting) return;
      from = 0;
      matching = [...prompts.keys()].filter(fits);
      const by = orders[order.value];
      if (by) {
        const rank = new Map(matching.map((key) => [key, by(key)]));
        matching.sort((a, b) => rank.get(a) - rank.get(b));
      }
      show();
    };
    const turn = (by) => { from = Math.max(0, from + by); show(); list.scrollIntoView({ block: "nearest" }); };
    const before = button("← Before", () => turn(-AT_ONCE)), after = button("Next →", () => turn(AT_ONCE));

    // Blind voting: the sides are shuffled, the names hidden; keys 1, 2 and 0.
    const result = make("div", { className: "result", attributes: { role: "status" } });
    const begin = () => {
      const [one, other] = chosen();
      if (!one || !other) { result.textContent = "Pick two models first."; return; }
      const whole = (key) => [one, other].every((model) => model.answers.get(key) && !model.answers.get(key).cut);
      const seed = `${one.title}\n${other.title}`;
      const done = new Set(votes.filter((vote) => vote.one === one && vote.other === other).map((vote) => vote.key));
      const keys = matching.filter((key) => whole(key) && !done.has(key) && one.answers.get(key).text !== other.answers.get(key).text);
      keys.sort((a, b) => mixed(seed + a) - mixed(seed + b));
      voting = { one, other, keys, at: 0, turned: (key) => mixed(`${key}${seed}`) % 2 === 1 };
      document.addEventListener("keydown", press);
      ballot();
      list.focus({ preventScroll: true });
    };
    const cast = (side) => { // 1 left, 2 right, 0 neither
      const key = voting.keys[voting.at];
      const vote = side === 0 ? 0 : (side === 1) === voting.turned(key) ? -1 : 1;
      votes.push({ key, vote, one: voting.one, other: voting.other });
      voting.at++;
      ballot();
    };
    const press = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|SELECT|TEXTAREA/.test(event.target.tagName)) return;
      if (["0", "1", "2"].includes(event.key)) { cast(Number(event.key)); event.preventDefault(); }
      else if (event.key === "Escape") stop();
    };
    const ballot = () => {
      if (voting.at >= voting.keys.length) return stop();
      const key = voting.keys[voting.at];
      const sides = voting.turned(key) ? [voting.other, voting.one] : [voting.one, voting.other];
      const texts = sides.map((model, at) => article([make("b", { textContent: `Answer ${at + 1}` })], [visible(model.answers.get(key).text)], ""));
      const choices = make("div", { className: "tools" },
        button("1 is better", () => cast(1)), button("2 is better", () => cast(2)), button("0: neither", () => cast(0)), button("Stop and compare with the judge", stop));
      list.replaceChildren(make("div", { className: "one ballot" }, question(prompts.get(key)), make("div", { className: "shown" }, ...texts), choices));
      count.textContent = `Vote ${voting.at + 1} of ${voting.keys.length}: keys 1, 2, 0`;
      controls.hidden = pager.hidden = start.hidden = legend.hidden = true;
      result.replaceChildren();
    };
    const stop = () => {
      document.removeEventListener("keydown", press);
      voting = null;
      controls.hidden = pager.hidden = start.hidden = false;
      tell();
      filter();
    };
    const tell = () => {
      if (!votes.length) return result.replaceChildren();
      const decided = votes.filter(({ vote }) => vote);
      const both = decided.map((vote) => [vote.vote, judged(held, vote.one, vote.other, vote.key)]).filter(([, judge]) => judge);
      const agreed = both.filter(([mine, judge]) => mine === judge).length;
      const lines = [`${votes.length} ${votes.length === 1 ? "vote" : "votes"}, ${votes.length - decided.length} without a preference.`];
      for (const [one, other] of new Map(votes.map((vote) => [`${vote.one.title}\n${vote.other.title}`, [vote.one, vote.other]])).values()) {
        const own = decided.filter((vote) => vote.one === one && vote.other === other);
        if (own.length) lines.push(`You preferred ${one.title} to ${other.title} in ${share(own.filter(({ vote }) => vote === 1).length, own.length)}.`);
      }
      const where = "where both you and it prefer one";
      lines.push(both.length ? `You agree with the judge (${held.judge}) in ${share(agreed, both.length)}, ${where}.` : `The judge has a preference in none of these.`);
      const exported = button("Save the votes as preferences (JSONL)", () => save(new Blob([preferences()], { type: "application/jsonl;charset=utf-8" }), "votes.jsonl"));
      result.replaceChildren(...lines.map((textContent) => make("p", { textContent })), ...(decided.length ? [exported] : []));
    };
    const preferences = () => votes.filter(({ vote }) => vote).map(({ key, vote, one, other }) => {
      const [better, worse] = vote === 1 ? [one, other] : [other, one];
      const [, , prompt] = prompts.get(key);
      return `${JSON.stringify({ prompt, chosen: better.answers.get(key).text, rejected: worse.answers.get(key).text })}\n`;
    }).join("");

    // Answers in files: an entry a model, whose runs and samples are offered once one asks for them.
    const files = async () => {
      const found = await besides(held);
      const wanted = make("select", {}, ...found.map(({ model }, at) => make("option", { value: at, textContent: visible(model.title) })));
      const load = button("Load all its answers", async () => {
        const { model, prompts: asked } = found[wanted.value];
        load.disabled = true;
        models.push(...(await model.entries()));
        for (const prompt of asked) prompts.set(promptKey(prompt), prompt);
        found.splice(Number(wanted.value), 1);
        wanted.replaceChildren(...found.map((one, at) => make("option", { value: at, textContent: visible(one.model.title) })));
        load.disabled = !found.length;
        offer();
        filter();
      });
      if (found.length) controls.append(labelled("More seeds and samples", wanted), load);
    };

    const start = button("Vote blind", begin);
    const controls = make("div", { className: "controls" },
      ...picks.map(({ text, control }) => labelled(text, control)),
      ...(scored ? [labelled(held.judge ? `Judge: ${visible(held.judge)}` : "Judge", passes)] : []), ...(kinds.length > 1 ? [labelled("Kind", kind)] : []),
      labelled("Length", length), labelled("Order", order), labelled("Search", search), make("label", { className: "tick" }, marking, make("span", { textContent: "mark words that differ" })));
    const pager = make("div", { className: "tools" }, before, after);
    for (const control of [...picks.map((pick) => pick.control), passes, kind, length, order, marking]) control.addEventListener("change", filter);
    search.addEventListener("input", filter);
    const follow = () => { // what is pinned is read
      narrow();
      const place = (name) => models.findIndex((model) => model.loss === name);
      const pins = narrowing.pins.map(place).filter((at) => at >= 0);
      if (pins.length === 2) {
        pins.forEach((at, nth) => { picks[nth].control.value = at; });
        filter();
      }
    };
    offer();
    const startAt = models.findIndex((model) => model.loss === held.against);
    const trained = models.map((_, at) => at).filter((at) => at !== startAt);
    picks[0].control.value = startAt >= 0 ? startAt : 0;
    picks[1].control.value = trained[0] ?? "";
    picks[2].control.value = trained[1] ?? "";
    narrowing.heard.push(follow);
    held.place.append(controls, make("div", { className: "status" }, count, start), legend, result, list, pager);
    held.place.hidden = false;
    for (const plain of held.section.querySelectorAll(".picked, .rule")) plain.classList.add("replaced");
    filter();
    follow();
    files().catch(() => { result.textContent = "The answers beside the page could not be read."; });
  };

  // A reader is built when it comes near the screen.
  const places = [...document.querySelectorAll(".reader[data-packed]")];
  const unpacked = new Map();
  const held = (place) => unpacked.get(place) ?? unpacked.set(place, packed(place)).get(place);
  const open = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      open.unobserve(target);
      const place = target.nextElementSibling;
      Promise.all([held(place), ...places.filter((other) => other !== place).map(held)]).then(([own, ...others]) => reader(own, others));
    }
  }, { rootMargin: "800px" });
  for (const place of places) open.observe(place.previousElementSibling);
}
