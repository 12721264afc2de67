"use strict";
// Without this script the page is the same, less sorting and filtering.

const filters = document.getElementById("filters");
const shown = document.getElementById("shown");

function filter() {
  const chosen = Object.fromEntries(new FormData(filters));
  for (const element of document.querySelectorAll(".row")) {
    element.hidden = ["model", "fingerprints", "trust"].some(
      (name) => chosen[name] && element.dataset[name] && element.dataset[name] !== chosen[name]
    );
  }
  for (const element of document.querySelectorAll("[data-condition]")) {
    element.hidden = chosen.condition !== "" && element.dataset.condition !== chosen.condition;
  }
  for (const section of document.querySelectorAll(".method")) {
    section.hidden = !section.querySelector("article:not([hidden])");
  }
  const rows = [...document.querySelectorAll("table.sortable")].at(0)?.tBodies[0].rows ?? [];
  shown.textContent = `${[...rows].filter((row) => !row.hidden).length} of ${rows.length} rows`;
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
  const rows = [...table.tBodies[0].rows].map((row) => [valueOf(row, column), row]);
  const some = rows.filter(([value]) => value !== undefined);
  some.sort(([one], [other]) => (ascending ? compare(one, other) : compare(other, one)));
  table.tBodies[0].append(...[...some, ...rows.filter(([value]) => value === undefined)].map(([, row]) => row));
  for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
}

const original = new Map();
for (const table of document.querySelectorAll("table.sortable")) {
  original.set(table, [...table.tBodies[0].rows]);
  for (const header of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const direction = header.getAttribute("aria-sort");
      // Figures start with the largest, words with the first.
      const figures = [...table.tBodies[0].rows].some((row) => typeof valueOf(row, header.cellIndex) === "number");
      sort(table, header, direction === null ? !figures : direction === "descending");
    });
  }
}

filters.addEventListener("change", filter);
filters.addEventListener("reset", () => {
  for (const [table, rows] of original) {
    table.tBodies[0].append(...rows);
    for (const header of table.tHead.rows[0].cells) header.removeAttribute("aria-sort");
  }
  setTimeout(filter);
});
filters.hidden = false;
filter();
