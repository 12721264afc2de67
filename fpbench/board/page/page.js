"use strict";
// Without this script the page is the same, less sorting, filtering and comparing.

const filters = document.getElementById("filters");
const shown = document.getElementById("shown");
const pair = document.getElementById("pair");
const rowsOf = (table) => [...table.tBodies[0].rows];

function filter() {
  const chosen = Object.fromEntries(new FormData(filters));
  const words = (chosen.q ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  const reported = chosen.reported === "yes" || !filters.elements.reported;
  for (const element of document.querySelectorAll(".row")) {
    const { method = "", model, trust } = element.dataset;
    const text = `${method} ${model}`.toLowerCase();
    element.hidden =
      ["model", "fingerprints", "trust"].some((name) => chosen[name] && element.dataset[name] && element.dataset[name] !== chosen[name]) ||
      (trust === "reported" && !reported) ||
      (method !== "" && !words.every((word) => text.includes(word)));
  }
  for (const element of document.querySelectorAll(".of-reported")) element.hidden = !reported;
  for (const element of document.querySelectorAll("[data-condition]")) {
    element.hidden = chosen.condition !== "" && element.dataset.condition !== chosen.condition;
  }
  for (const section of document.querySelectorAll(".method")) {
    section.hidden = !section.querySelector("article:not([hidden])");
  }
  const rows = rowsOf(document.querySelector("table.sortable"));
  shown.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
}

// What is chosen stands in the address, so that it can be sent to somebody.
function remember() {
  const chosen = [...new FormData(filters), ...(pairChosen ? new FormData(pair) : [])].filter(([, value]) => value !== "");
  const text = new URLSearchParams(chosen).toString();
  history.replaceState(null, "", text ? `#?${text}` : location.pathname.split("/").at(-1) || "#");
}

function recall() {
  if (!location.hash.startsWith("#?")) return;
  for (const [name, value] of new URLSearchParams(location.hash.slice(2))) {
    const field = filters.elements[name] ?? pair.elements[name];
    if (!field) continue;
    if (field.type === "checkbox") field.checked = value === field.value;
    else field.value = value;
    if (field.form === pair) pairChosen = true;
  }
}

function valueOf(row, column) {
  const value = row.cells[column].dataset.value;
  if (value === undefined) return undefined;
  return value !== "" && Number.isFinite(Number(value)) ? Number(value) : value;
}

function compare(one, other) {
  if (typeof one === typeof other) return one < other ? -1 : one > other ? 1 : 0;
  return typeof one === "number" ? -1 : 1;
}

// Rows without a figure stay last, whatever the direction.
function sort(table, header, ascending) {
  const column = header.cellIndex;
  const rows = rowsOf(table).map((row) => [valueOf(row, column), row]);
  const some = rows.filter(([value]) => value !== undefined);
  some.sort(([one], [other]) => (ascending ? compare(one, other) : compare(other, one)));
  table.tBodies[0].append(...[...some, ...rows.filter(([value]) => value === undefined)].map(([, row]) => row));
  for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
}

const original = new Map();
for (const table of document.querySelectorAll("table.sortable")) {
  original.set(table, rowsOf(table));
  for (const header of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const direction = header.getAttribute("aria-sort");
      // Figures start with the largest, words with the first.
      const figures = rowsOf(table).some((row) => typeof valueOf(row, header.cellIndex) === "number");
      sort(table, header, direction === null ? !figures : direction === "descending");
    });
  }
}

// Two rows side by side: every figure of every table that either has.
const words = (cell) => [...cell.childNodes].filter((each) => !each.matches?.(".answers")).map((each) => each.textContent).join("").trim();
let pairChosen = false;

function beside() {
  const { one, other } = Object.fromEntries(new FormData(pair));
  const body = document.getElementById("pairs").tBodies[0];
  const heads = document.getElementById("pairs").tHead.rows[0].cells;
  heads[1].textContent = one.split(" · ").at(-1);
  heads[2].textContent = other.split(" · ").at(-1);
  const lines = new Map();
  for (const table of original.keys()) {
    const names = [...table.tHead.rows[0].cells].map((each) => each.textContent.replace(/ [↑↓]$/, ""));
    for (const [place, key] of [one, other].entries()) {
      const row = rowsOf(table).find((each) => each.dataset.row === key && each.dataset.trust !== "reported");
      for (const cell of row ? [...row.cells].slice(1) : []) {
        const name = names[cell.cellIndex];
        lines.set(name, Object.assign(lines.get(name) ?? ["–", "–"], { [place]: words(cell) }));
      }
    }
  }
  body.replaceChildren(
    ...[...lines].filter(([, texts]) => texts.some((each) => each !== "–")).map(([name, texts]) => {
      const line = document.createElement("tr");
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = name;
      line.append(head, ...texts.map((text) => Object.assign(document.createElement("td"), { textContent: text })));
      if (texts[0] !== texts[1]) line.className = "differs";
      return line;
    })
  );
}

// The rows of the first table that are shown, numbers as they are sorted.
function download() {
  const table = document.querySelector("table.sortable");
  const quoted = (text) => `"${String(text).replace(/^(?=[=@\t]|[+-]\D)/, "'").replaceAll('"', '""')}"`;
  const lines = [
    ["model", "set", ...[...table.tHead.rows[0].cells].map((each) => each.textContent.replace(/ [↑↓]$/, ""))],
    ...rowsOf(table).filter((row) => !row.hidden).map((row) => [
      row.dataset.model, row.dataset.fingerprints, ...[...row.cells].map((cell) => cell.dataset.value ?? ""),
    ]),
  ];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.map((line) => line.map(quoted).join(",")).join("\n") + "\n"], { type: "text/csv" }));
  link.download = "fpbench.csv";
  link.click();
  URL.revokeObjectURL(link.href);
}

// A method's section is folded; whoever is led to it finds it open.
function unfold() {
  const found = location.hash.startsWith("#?") ? null : document.getElementById(decodeURIComponent(location.hash.slice(1)));
  found?.closest("section")?.querySelector(":scope > details")?.setAttribute("open", "");
  for (const each of found?.closest(".method")?.querySelectorAll("article:not([hidden]) > details") ?? []) each.open = true;
}

filters.addEventListener("input", () => { filter(); remember(); });
filters.addEventListener("submit", (event) => event.preventDefault());
filters.addEventListener("reset", () => {
  for (const [table, rows] of original) {
    table.tBodies[0].append(...rows);
    for (const header of table.tHead.rows[0].cells) header.removeAttribute("aria-sort");
  }
  setTimeout(() => { filter(); remember(); });
});
pair.addEventListener("input", () => { pairChosen = true; beside(); remember(); });
document.getElementById("csv").addEventListener("click", download);
window.addEventListener("hashchange", unfold);
filters.hidden = false;
if (pair.elements.one.options.length > 1) {
  document.getElementById("comparison").hidden = false;
  const methods = [...pair.elements.one.options].filter((each) => !each.value.endsWith(" · base"));
  if (methods.length > 1) {
    pair.elements.one.value = methods[0].value;
    pair.elements.other.value = methods[1].value;
  }
}
recall();
filter();
if (!document.getElementById("comparison").hidden) beside();
if (pairChosen) pair.closest("details").open = true;
unfold();
