"use strict";

// A click on a header sorts its column: ascending, descending, then as the rows were. What a cell is worth is written
// in its data-value, or it is text; cells of the class "missing" come last in both directions.
const NEXT = { none: "ascending", ascending: "descending", descending: "none" };

for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => {
      const order = NEXT[header.getAttribute("aria-sort") ?? "none"];
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      if (order !== "none") header.setAttribute("aria-sort", order);
      body.append(...sorted(original, column, order));
    });
  });
}

// On paper nothing opens: all is open.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => (part.open = true)));

function sorted(rows, column, order) {
  if (order === "none") return rows;
  const sign = order === "ascending" ? 1 : -1;
  const keyed = rows.map((row) => ({ row, key: key(row.cells[column]) }));
  const present = keyed.filter(({ key }) => key !== null).sort((a, b) => sign * compare(a.key, b.key));
  return [...present, ...keyed.filter(({ key }) => key === null)].map(({ row }) => row);
}

// A list of text and numbers in turn: "resnet50-v2" is ["resnet", 50, "-v", 2, ""].
function key(cell) {
  if (cell.classList.contains("missing")) return null;
  if ("value" in cell.dataset) return [Number(cell.dataset.value)];
  return cell.textContent.toLowerCase().split(/(\d+)/).map((part, i) => (i % 2 ? Number(part) : part));
}

function compare(a, b) {
  for (let i = 0; i < Math.min(a.length, b.length); i++) {
    if (a[i] < b[i]) return -1;
    if (a[i] > b[i]) return 1;
  }
  return a.length - b.length;
}
