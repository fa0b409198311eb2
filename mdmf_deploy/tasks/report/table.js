// The table of rows, its order and its filters.
// All texts go into the page as text, never as markup: they come from file names and metadata.

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

// Codes may break after an underscore.
const code = (name) => name.split(/(?<=_)/).flatMap((part, at) => (at ? [make("wbr"), part] : [part]));

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
  [...["uri", "sha256", "provenance_source", "notes", "error"].map((name) => get(n, name)), ...(data.labelled[n] ?? [])]
    .join("\n").toLowerCase());

function addFilter(title, value) {
  const values = [...new Set(data.rows.map((_, n) => value(n)).filter((one) => one !== null && one !== ""))].sort();
  if (!values.length) return;
  const select = make("select", { id: `filter-${filters.length}` }, make("option", { value: "-1" }, "all"));
  values.forEach((one, at) => select.append(make("option", { value: String(at) }, one)));
  filters.push({ select, keeps: (n) => select.value === "-1" || value(n) === values[Number(select.value)] });
  byId("filters").append(make("div", { className: "field" }, make("label", { htmlFor: select.id }, title), select));
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
  const choose = make("select", { id: "page" }, ...Array.from({ length: pages }, (_, page) =>
    make("option", { value: String(page) }, `${count(page + 1)}`)));
  choose.value = String(state.page);
  choose.addEventListener("change", () => go(Number(choose.value))());
  byId("pages").append(
    make("button", { type: "button", disabled: state.page === 0, onclick: go(state.page - 1) }, "Previous page"),
    make("label", { htmlFor: "page" }, "Page"), choose, make("span", {}, `of ${count(pages)}`),
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
      return make("td", {}, verdictMark(verdict), why ? make("small", {}, ...code(why)) : "");
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

// ---- Pictures: each has an element of its own at the end of the page. Until something follows it, the browser may have
// read a part of it. In a file that was cut, nothing ever does.

const webp = (base64) => `data:image/webp;base64,${base64}`;
function picturesOf(n) {
  const found = data.pictures[n] ? byId(`p${n}`) : null;
  return found?.nextSibling ? JSON.parse(found.textContent) : null;
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
