// One row in the dialog: its pictures, its evidence, and all of its facts.

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
  // A button that is disabled loses the focus, and the keyboard would be lost with it.
  if (!dialog.contains(document.activeElement) || document.activeElement.disabled) byId("close").focus();
  dialog.scrollTop = 0;
}

function showStages(n) {
  const pictures = picturesOf(n);
  const shape = get(n, "width") === null ? "" : `, ${get(n, "width")} × ${get(n, "height")} pixels`;
  byId("blending").hidden = byId("reading").hidden = !pictures?.layer;
  if (!pictures) {
    const missing = `There is no picture of this row${data.missing[n] ? `: ${data.missing[n]}` : ""}.`;
    const late = document.readyState === "loading" ? "is still being read" : "is missing: this file was cut";
    const why = data.pictures[n] ? `The picture ${late}.` : missing;
    byId("stages").replaceChildren(make("p", { className: "nothing" }, why));
    return;
  }
  const video = get(n, "frame_time") ?? get(n, "highest_time");
  let caption = video === null ? `The whole image${shape}` : `The frame at ${video.toFixed(2)} s${shape}`;
  if (get(n, "frames") !== null) caption = `The frame with the highest score, at ${video.toFixed(2)} s${shape}`;
  if (pictures.full) caption += `. Shown at ${pictures.size.join(" × ")}, to keep this file small`;
  const frames = (pictures.crops ?? []).length;
  if (frames) caption += frames > 1 ? ". The frames mark what was scored" : ". The frame marks what was scored";
  const name = get(n, "uri");
  const { picture, size, layer, box, crops = [] } = pictures;
  const whole = stage(picture, size, `Picture of ${name}`, layer, box, crops, 560);
  const figures = [make("figure", {}, whole, make("figcaption", {}, `${caption}.`))];
  if (pictures.sheet) {
    const all = [0, 0, 1, 1];
    const sheet = stage(pictures.sheet, pictures.sheet_size, `Scored part of ${name}`, pictures.zoomed, all, [], 420);
    figures.push(make("figure", {}, sheet, make("figcaption", {}, "The part that was scored, enlarged.")));
  }
  byId("stages").replaceChildren(...figures);
}

function stage(picture, [width, height], alt, layer, box, crops, least) {
  const base = make("img", { className: "base", alt, src: webp(picture), width, height });
  const shown = make("span", { className: "stage" }, base);
  const zoom = Math.min(4, Math.max(1, least / Math.max(width, height))); // small pictures are enlarged
  shown.style.width = `min(100%, ${width * zoom}px, ${(66 * width) / height}vh)`;
  const laid = (part, [left, top, right, bottom]) => {
    part.style.left = `${100 * left}%`;
    part.style.top = `${100 * top}%`;
    part.style.width = `${100 * (right - left)}%`;
    part.style.height = `${100 * (bottom - top)}%`;
    shown.append(part);
  };
  if (layer) laid(make("img", { className: "heat", alt: "", src: webp(layer) }), box);
  for (const crop of crops) laid(make("i", { "aria-hidden": "true" }), crop);
  return shown;
}

function showEvidence(n) {
  const verdict = get(n, "verdict");
  const why = get(n, "reason") ?? get(n, "error_code");
  const parts = [
    make("p", { className: `verdict ${verdict}` }, make("i", { className: "mark", "aria-hidden": "true" }), verdict,
      why ? make("small", {}, " (", ...code(why), ")") : ""),
    make("p", { className: "lead" }, text(n, 0)),
  ];
  const section = (title, ...children) => parts.push(make("h3", {}, title), ...children);
  if (get(n, "error")) section("Why", make("p", {}, make("bdi", {}, get(n, "error"))));
  section("What this does not say", make("p", {}, text(n, 1)));
  if (text(n, 2)) {
    section("How rare this score is", make("p", { className: "lead" }, text(n, 2)), make("p", {}, text(n, 3)));
  }
  const plot = get(n, "score") === null ? null : histogram(n);
  if (plot) section("The score among calibration scores", plot);
  const claim = get(n, "provenance");
  if (claim) {
    const source = get(n, "provenance_source");
    section("What the file's metadata claim", make("p", {}, data.claims[claim] ?? claim),
      source ? make("p", { className: "quiet" }, make("bdi", {}, source)) : "",
      make("p", { className: "quiet" }, "The verdict does not use it."));
  }
  for (const note of (get(n, "notes") ?? "").split(" ").filter(Boolean)) {
    section("Note", make("p", {}, data.notes[note] ?? note));
  }
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
    const width = Math.max(0.5, to - from - 0.7);
    plot.append(svg("rect", { class: "bin", x: from, y: bottom - height, width, height }));
  });
  const anchor = (at) => (at < 110 ? "start" : at > 250 ? "end" : "middle");
  plot.append(svg("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }));
  if (threshold !== null) {
    const at = x(threshold);
    const named = { class: "limit-text", x: at, y: bottom + 26, "text-anchor": anchor(at) };
    plot.append(svg("line", { class: "limit", x1: at, x2: at, y1: top - 6, y2: bottom + 14 }),
      svg("text", named, `threshold ${threshold.toFixed(4)}`));
  }
  const at = x(score);
  plot.append(svg("line", { class: "here", x1: at, x2: at, y1: top - 12, y2: bottom }),
    svg("path", { class: "here-mark", d: `M${at - 5} ${top - 12}h10l-5 7z` }),
    svg("text", { x: at, y: top - 17, "text-anchor": anchor(at) }, `this score ${score.toFixed(4)}`));
  const note = `${count(group.n)} calibration scores of the size group “${get(n, "size_group")}”.`;
  return make("figure", {}, plot, make("figcaption", {}, `${note} Higher is less like real photographs.`));
}

function showFacts(n) {
  const rows = [];
  const add = (name, value, help) => rows.push(make("tr", {},
    make("th", { scope: "row" }, name, help ? make("small", {}, help) : ""),
    make("td", {}, make("bdi", {}, String(value)))));
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
