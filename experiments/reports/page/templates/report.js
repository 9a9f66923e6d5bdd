"use strict";

// Numbers by themselves, all else as people read it; empty cells last, whatever the order.
function compare(a, b, sign) {
  if (a.text === "" || b.text === "") return (a.text === "") - (b.text === "");
  if (a.key !== undefined && b.key !== undefined) return sign * (a.key - b.key);
  return sign * a.text.localeCompare(b.text, "en", { numeric: true });
}

function sort(header) {
  const table = header.closest("table");
  const index = header.cellIndex;
  const first = header.classList.contains("number") ? "descending" : "ascending";
  const second = first === "ascending" ? "descending" : "ascending";
  const order = header.getAttribute("aria-sort") === first ? second : first;
  const sign = order === "ascending" ? 1 : -1;
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", order);
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, (row) => {
    const cell = row.cells[index];
    const key = cell.dataset.key;
    return { row, text: cell.textContent.trim(), key: key === undefined ? undefined : Number(key) };
  });
  rows.sort((a, b) => compare(a, b, sign));
  body.append(...rows.map((each) => each.row));
}

for (const header of document.querySelectorAll("th[aria-sort]")) {
  header.querySelector("button").addEventListener("click", () => sort(header));
}

// What is folded is printed, too.
const folded = [];
window.addEventListener("beforeprint", () => {
  for (const each of document.querySelectorAll("details:not([open])")) {
    each.open = true;
    folded.push(each);
  }
});
window.addEventListener("afterprint", () => {
  for (const each of folded.splice(0)) each.open = false;
});
