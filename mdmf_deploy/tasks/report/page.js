"use strict";
// All texts go into the page as text, never as markup: they come from file names and metadata.
(() => {
  const PAGE = 100; // rows shown at once
  const PRINTED = 1000; // rows of a printed page, at most
  const VERDICTS = ["generated", "uncertain", "real", "uncalibrated", "error"];
  const WIDE = new Set(["threshold", "size_group", "width"]); // hidden on small screens
  const NARROW = new Set([...WIDE, "score", "p_value", "q_value", "provenance"]); // hidden on phones
  const NUMBERS = new Set(["score", "p_value", "q_value", "threshold", "width"]);
  const HIGHEST_FIRST = new Set(["score", "threshold", "width"]);
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const place = new Map(data.names.map((name, n) => [name, n]));
  const get = (n, name) => (place.has(name) ? data.rows[n][place.get(name)] : (data.common[name] ?? null));
  const label = (n, at) => data.labelled[n][at];
  const text = (n, at) => (data.words[n][at] < 0 ? "" : data.texts[data.words[n][at]]);
  const count = (number) => number.toLocaleString("en-US");

  function make(tag, properties = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in made) made[name] = value;
      else made.setAttribute(name, value);
    }
    made.append(...children.filter((child) => child !== null && child !== ""));
    return made;
  }

  // ---- The table

  const columns = [
    { name: "", title: "Input", value: (n) => n },
    ...data.columns.map(([name, title]) => ({ name, title, value: (n) => get(n, name) })),
    ...data.labels.map((name, at) => ({ name: `label ${at}`, title: name, value: (n) => label(n, at) })),
  ];
  columns.find((column) => column.name === "verdict").value = (n) =>
    VERDICTS.indexOf(get(n, "verdict")) + (get(n, "reason") ?? get(n, "error_code") ?? "");
  const pixels = columns.find((column) => column.name === "width");
  if (pixels) pixels.value = (n) => (get(n, "width") === null ? null : get(n, "width") * get(n, "height"));

  const state = { column: columns[0], down: false, verdict: "", page: 0, size: PAGE, rows: [] };
  const filters = []; // {select, value(n)}
  const searched = data.rows.map((_, n) =>
    ["uri", "sha256", "provenance_source", "notes", "error"].map((name) => get(n, name) ?? "").concat(data.labelled[n] ?? [])
      .join("\n").toLowerCase());

  function addFilter(title, value) {
    const values = [...new Set(data.rows.map((_, n) => value(n)).filter((one) => one !== null && one !== ""))].sort();
    if (!values.length) return;
    const select = make("select", {}, make("option", { value: "-1" }, "all"));
    values.forEach((one, at) => select.append(make("option", { value: String(at) }, one)));
    filters.push({ select, keeps: (n) => select.value === "-1" || value(n) === values[Number(select.value)] });
    byId("filters").append(make("label", {}, title, " ", select));
    select.addEventListener("change", refresh);
  }
  addFilter("Reason", (n) => get(n, "reason") ?? get(n, "error_code"));
  if (data.columns.some(([name]) => name === "provenance")) addFilter("Metadata", (n) => get(n, "provenance"));
  data.labels.forEach((name, at) => addFilter(name, (n) => label(n, at)));

  function compare(a, b) {
    const [one, other] = [state.column.value(a), state.column.value(b)];
    if (one === null || other === null) return (one === null) - (other === null) || a - b; // missing values come last
    const order = typeof one === "number" ? one - other : one < other ? -1 : one > other ? 1 : 0;
    return (state.down ? -order : order) || a - b;
  }

  function refresh() {
    const wanted = byId("search").value.trim().toLowerCase();
    state.rows = data.rows.map((_, n) => n).filter((n) =>
      (!state.verdict || get(n, "verdict") === state.verdict) &&
      (!wanted || searched[n].includes(wanted)) && filters.every((filter) => filter.keeps(n)));
    state.rows.sort(compare);
    state.page = 0;
    show();
  }

  function sortBy(column, down) {
    [state.column, state.down] = [column, down];
    state.rows.sort(compare);
    state.page = 0;
    show();
  }

  function show() {
    const start = state.page * state.size;
    const shown = state.rows.slice(start, start + state.size);
    const body = byId("table").tBodies[0];
    body.replaceChildren(...shown.map((n, at) => tableRow(n, start + at)));
    byId("table").setAttribute("aria-rowcount", state.rows.length + 1);
    for (const [at, column] of columns.entries()) {
      const current = column === state.column ? (state.down ? "descending" : "ascending") : "none";
      byId("table").tHead.rows[0].cells[at].setAttribute("aria-sort", current);
    }
    byId("sort").value = String(columns.indexOf(state.column));
    const range = shown.length ? `, ${count(start + 1)} to ${count(start + shown.length)} shown` : "";
    byId("count").textContent = `${count(state.rows.length)} of ${count(data.rows.length)} rows${range}`;
    showPages();
  }

  function showPages() {
    const pages = Math.ceil(state.rows.length / state.size);
    const go = (page) => () => {
      state.page = page;
      show();
      byId("rows").scrollIntoView();
      byId("table").querySelector("button.open")?.focus({ preventScroll: true });
    };
    byId("pages").replaceChildren();
    if (pages < 2) return;
    const choose = make("select", {}, ...Array.from({ length: pages }, (_, page) =>
      make("option", { value: String(page) }, `${count(page + 1)}`)));
    choose.value = String(state.page);
    choose.addEventListener("change", () => go(Number(choose.value))());
    byId("pages").append(
      make("button", { type: "button", disabled: state.page === 0, onclick: go(state.page - 1) }, "Previous page"),
      make("label", {}, "Page ", choose, ` of ${count(pages)}`),
      make("button", { type: "button", disabled: state.page === pages - 1, onclick: go(state.page + 1) }, "Next page"));
  }

  function shortNumber(name, value) {
    if (name === "p_value" || name === "q_value") return String(Number(value.toPrecision(3)));
    return name === "width" ? count(value) : value.toFixed(4);
  }

  function kindOf(name) {
    const of = [NUMBERS.has(name) ? "number" : name.replace(/\W.*/, "")];
    if (WIDE.has(name)) of.push("wide");
    if (NARROW.has(name) || name === "" || name.startsWith("label")) of.push("narrow");
    return of.join(" ");
  }

  function tableRow(n, at) {
    const verdict = get(n, "verdict");
    const cells = columns.map(({ name, value }) => {
      if (name === "") return make("td", { className: "thumb" }, thumbnail(n));
      if (name === "uri") {
        const open = make("button", { type: "button", className: "open" }, make("bdi", {}, get(n, "uri")));
        return make("th", { scope: "row", className: "uri" }, open);
      }
      if (name === "verdict") {
        const why = get(n, "reason") ?? get(n, "error_code");
        return make("td", {}, verdictMark(verdict), why ? make("small", {}, why) : "");
      }
      const given = value(n);
      let shown = given === null ? "–" : String(given);
      if (name === "width" && given !== null) shown = `${get(n, "width")} × ${get(n, "height")}`;
      else if (typeof given === "number") shown = shortNumber(name, given);
      return make("td", { className: kindOf(name) }, make("bdi", {}, shown));
    });
    const row = make("tr", { "aria-rowindex": at + 2 }, ...cells);
    row.dataset.at = at;
    return row;
  }

  const verdictMark = (verdict) =>
    make("span", { className: `verdict ${verdict}` }, make("i", { className: "mark", "aria-hidden": "true" }), verdict);

  // ---- Pictures: each has an element of its own at the end of the page, which may not have been read yet.

  const webp = (base64) => `data:image/webp;base64,${base64}`;
  function picturesOf(n) {
    const found = data.pictures[n] ? byId(`p${n}`) : null;
    return found && JSON.parse(found.textContent);
  }
  const unread = new Set();
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      fill(target);
    }
  }, { rootMargin: "300px" });

  function fill(image) {
    const pictures = picturesOf(Number(image.dataset.n));
    if (pictures) image.src = webp(pictures.picture);
    else unread.add(image);
  }

  function thumbnail(n) {
    if (!data.pictures[n]) return make("span", {}, "no picture");
    const image = make("img", { alt: "", decoding: "async", width: 72, height: 54 });
    image.dataset.n = n;
    seen.observe(image);
    return image;
  }

  // ---- One row

  const dialog = byId("row");
  let current = 0; // the place in state.rows

  function open(at) {
    current = Math.max(0, Math.min(state.rows.length - 1, at));
    const n = state.rows[current];
    byId("row-name").replaceChildren(make("bdi", {}, get(n, "uri")));
    byId("row-place").textContent = `${count(current + 1)} of ${count(state.rows.length)}`;
    byId("previous").disabled = current === 0;
    byId("next").disabled = current === state.rows.length - 1;
    showStages(n);
    showEvidence(n);
    showFacts(n);
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  }

  function showStages(n) {
    const pictures = picturesOf(n);
    const shape = get(n, "width") === null ? "" : `, ${get(n, "width")} × ${get(n, "height")} pixels`;
    byId("blending").hidden = !pictures?.layer;
    if (!pictures) {
      const why = data.pictures[n] ? "The picture is still being read." : "There is no picture of this row.";
      byId("stages").replaceChildren(make("p", { className: "nothing" }, why));
      return;
    }
    const video = get(n, "frame_time") ?? get(n, "highest_time");
    let caption = video === null ? `The whole image${shape}` : `The frame at ${video.toFixed(2)} s${shape}`;
    if (get(n, "frames") !== null) caption = `The frame with the highest score, at ${video.toFixed(2)} s${shape}`;
    if (pictures.full) caption += `. Shown at ${pictures.size.join(" × ")}, to keep this file small`;
    if (pictures.layer) caption += ". The frame marks what was scored";
    const name = get(n, "uri");
    const whole = stage(pictures.picture, pictures.size, `Picture of ${name}`, pictures.layer, pictures.box);
    const figures = [make("figure", {}, whole, make("figcaption", {}, `${caption}.`))];
    if (pictures.sheet) {
      const sheet = stage(pictures.sheet, pictures.sheet_size, `Scored part of ${name}`, pictures.zoomed, null);
      figures.push(make("figure", {}, sheet, make("figcaption", {}, "The part that was scored, enlarged.")));
    }
    byId("stages").replaceChildren(...figures);
  }

  function stage(picture, [width, height], alt, layer, box) {
    const shown = make("span", { className: "stage" }, make("img", { className: "base", alt, src: webp(picture), width, height }));
    const zoom = Math.min(4, Math.max(1, 420 / Math.max(width, height))); // small pictures are enlarged
    shown.style.width = `min(100%, ${width * zoom}px, ${(66 * width) / height}vh)`;
    if (layer) {
      const heat = make("img", { className: "heat", alt: "", src: webp(layer) });
      const frame = box && make("i", { "aria-hidden": "true" });
      for (const part of box ? [heat, frame] : []) {
        part.style.left = `${100 * box[0]}%`;
        part.style.top = `${100 * box[1]}%`;
        part.style.width = `${100 * (box[2] - box[0])}%`;
        part.style.height = `${100 * (box[3] - box[1])}%`;
      }
      shown.append(heat, ...(frame ? [frame] : []));
    }
    return shown;
  }

  function showEvidence(n) {
    const verdict = get(n, "verdict");
    const why = get(n, "reason") ?? get(n, "error_code");
    const parts = [
      make("p", { className: `verdict ${verdict}` }, make("i", { className: "mark", "aria-hidden": "true" }), verdict,
        why ? make("small", {}, ` (${why})`) : ""),
      make("p", { className: "lead" }, text(n, 0)),
    ];
    const section = (title, ...children) => parts.push(make("h3", {}, title), ...children);
    if (get(n, "error")) section("Why", make("p", {}, make("bdi", {}, get(n, "error"))));
    section("What this does not say", make("p", {}, text(n, 1)));
    if (text(n, 2)) section("How rare this score is", make("p", { className: "lead" }, text(n, 2)), make("p", {}, text(n, 3)));
    const plot = get(n, "score") === null ? null : histogram(n);
    if (plot) section("The score among calibration scores", plot);
    const claim = get(n, "provenance");
    if (claim) {
      const source = get(n, "provenance_source");
      section("What the file's metadata claim", make("p", {}, data.claims[claim] ?? claim),
        source ? make("p", { className: "quiet" }, make("bdi", {}, source)) : "",
        make("p", { className: "quiet" }, "The verdict does not use it."));
    }
    for (const note of (get(n, "notes") ?? "").split(" ").filter(Boolean)) section("Note", make("p", {}, data.notes[note] ?? note));
    byId("evidence").replaceChildren(...parts.filter((part) => part !== ""));
  }

  function svg(tag, attributes, content) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (content) made.append(content);
    return made;
  }

  // Draw a row's score and threshold among the scores of its size group.
  function histogram(n) {
    const group = data.groups[get(n, "size_group")];
    if (!group) return null;
    const [score, threshold] = [get(n, "score"), get(n, "threshold")];
    const [left, right, top, bottom] = [8, 352, 34, 118];
    const low = Math.min(group.low, score, threshold ?? score);
    const high = Math.max(group.high, score, threshold ?? score);
    const x = (value) => left + ((right - left) * (value - low)) / (high - low || 1);
    const most = Math.max(...group.counts);
    const step = (group.high - group.low) / group.counts.length;
    const relation = threshold === null ? "" : `, threshold ${threshold.toFixed(4)}`;
    const plot = svg("svg", { class: "plot", viewBox: "0 0 360 150", role: "img", "aria-label":
      `Histogram of ${group.n} calibration scores from ${group.low.toFixed(4)} to ${group.high.toFixed(4)}. ` +
      `This score ${score.toFixed(4)}${relation}.` });
    group.counts.forEach((held, bin) => {
      const height = ((bottom - top) * held) / most;
      const [from, to] = [x(group.low + bin * step), x(group.low + (bin + 1) * step)];
      plot.append(svg("rect", { class: "bin", x: from, y: bottom - height, width: Math.max(0.5, to - from - 0.7), height }));
    });
    const anchor = (at) => (at < 110 ? "start" : at > 250 ? "end" : "middle");
    plot.append(svg("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }));
    if (threshold !== null) {
      const at = x(threshold);
      plot.append(svg("line", { class: "limit", x1: at, x2: at, y1: top - 6, y2: bottom + 14 }),
        svg("text", { class: "limit-text", x: at, y: bottom + 26, "text-anchor": anchor(at) }, `threshold ${threshold.toFixed(4)}`));
    }
    const at = x(score);
    plot.append(svg("line", { class: "here", x1: at, x2: at, y1: top - 12, y2: bottom }),
      svg("path", { class: "here-mark", d: `M${at - 5} ${top - 12}h10l-5 7z` }),
      svg("text", { x: at, y: top - 17, "text-anchor": anchor(at) }, `this score ${score.toFixed(4)}`));
    const note = `${count(group.n)} calibration scores of the size group “${get(n, "size_group")}”. Higher is less like real photographs.`;
    return make("figure", {}, plot, make("figcaption", {}, note));
  }

  function showFacts(n) {
    const rows = [];
    const add = (name, value, help) => rows.push(make("tr", {},
      make("th", { scope: "row" }, name, help ? make("small", {}, help) : ""), make("td", {}, make("bdi", {}, String(value)))));
    data.labels.forEach((name, at) => label(n, at) && add(name, label(n, at), ""));
    for (const name of Object.keys(data.help)) {
      const value = get(n, name);
      if (value !== null) add(name, value, data.help[name]);
    }
    byId("facts").replaceChildren(make("table", {}, make("tbody", {}, ...rows)));
  }

  function close() {
    const page = Math.floor(current / state.size);
    if (page !== state.page) {
      state.page = page;
      show();
    }
    byId("table").tBodies[0].rows[current - page * state.size]?.querySelector("button.open").focus();
  }

  // ---- What the reader does

  const head = byId("table").tHead.rows[0];
  columns.forEach((column, at) => {
    const button = make("button", { type: "button" }, column.title);
    const first = HIGHEST_FIRST.has(column.name);
    button.addEventListener("click", () => sortBy(column, column === state.column ? !state.down : first));
    head.append(make("th", { scope: "col", "aria-sort": "none", className: at === 0 ? "thumb" : kindOf(column.name) }, button));
    byId("sort").append(make("option", { value: String(at) }, column.title));
  });
  byId("sort").addEventListener("change", (event) => {
    const column = columns[Number(event.target.value)];
    sortBy(column, HIGHEST_FIRST.has(column.name));
  });
  const buttons = [...document.querySelectorAll("button[data-verdict]")];
  function choose(verdict) {
    state.verdict = verdict;
    for (const one of buttons) one.setAttribute("aria-pressed", String(one.dataset.verdict === verdict));
    refresh();
  }
  for (const one of buttons) one.addEventListener("click", () => choose(one.dataset.verdict));
  byId("search").addEventListener("input", refresh);
  const controls = document.querySelector(".controls");
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("reset", () => setTimeout(() => choose("")));
  byId("table").tBodies[0].addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row && !String(getSelection())) open(Number(row.dataset.at));
  });
  byId("previous").addEventListener("click", () => open(current - 1));
  byId("next").addEventListener("click", () => open(current + 1));
  byId("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", close);
  dialog.addEventListener("keydown", (event) => {
    if (event.target === byId("blend") || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "ArrowLeft") open(current - 1);
    else if (event.key === "ArrowRight") open(current + 1);
    else return;
    event.preventDefault();
  });
  function blend() {
    dialog.style.setProperty("--blend", byId("blend").value / 100);
    byId("blend-value").textContent = `${byId("blend").value}%`;
  }
  byId("blend").addEventListener("input", blend);
  addEventListener("beforeprint", () => {
    state.size = PRINTED;
    show();
    document.querySelectorAll("#table img").forEach(fill);
  });
  addEventListener("afterprint", () => {
    state.size = PAGE;
    show();
  });
  document.addEventListener("DOMContentLoaded", () => {
    unread.forEach(fill);
    unread.clear();
    if (dialog.open) open(current);
  });

  blend();
  refresh();
  performance.mark("interactive");
})();
