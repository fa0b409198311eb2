// What the reader does, and the first view.

const head = byId("table").tHead.rows[0];
columns.forEach((column, at) => {
  const button = make("button", { type: "button" }, column.title);
  const first = HIGHEST_FIRST.has(column.name);
  button.addEventListener("click", () => sortBy(column, column === state.column ? !state.down : first));
  const className = at === 0 ? "thumb" : kindOf(column.name);
  head.append(make("th", { scope: "col", "aria-sort": "none", className }, button));
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
const closed = []; // what paper cannot open, and is closed again after printing
addEventListener("beforeprint", () => {
  state.size = PRINTED;
  show();
  document.querySelectorAll("#table img").forEach(fill);
  closed.push(...document.querySelectorAll("details:not([open])"));
  for (const one of closed) one.open = true;
});
addEventListener("afterprint", () => {
  state.size = PAGE;
  show();
  for (const one of closed.splice(0)) one.open = false;
});
document.addEventListener("DOMContentLoaded", () => {
  unread.forEach(fill);
  unread.clear();
  if (dialog.open) open(current);
});

blend();
refresh();
performance.mark("interactive");
