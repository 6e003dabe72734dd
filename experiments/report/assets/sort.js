"use strict";
// Tables sort by a heading: numbers as numbers, what is missing last, equal rows as they were.
(() => {
  const said = document.getElementById("said");

  function key(row, index) {
    const value = row.cells[index].dataset.sort;
    if (value === undefined) return null;
    const number = Number(value);
    return value !== "" && Number.isFinite(number) ? number : value;
  }

  function compare(a, b, sign) {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a === "number" && typeof b === "number") return sign * (a - b);
    if (typeof a !== typeof b) return sign * (typeof a === "number" ? -1 : 1);
    return sign * a.localeCompare(b, "en", { numeric: true });
  }

  function sort(table, index, head, name) {
    const descending = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row, place) => ({ row, place, key: key(row, index) }));
    rows.sort((a, b) => compare(a.key, b.key, descending ? -1 : 1) || a.place - b.place);
    body.append(...rows.map((each) => each.row));
    said.textContent = `sorted by ${name}, ${descending ? "descending" : "ascending"}`;
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, index) => {
      const name = head.textContent.trim();
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name || "row";
      head.replaceChildren(button);
      button.addEventListener("click", () => sort(table, index, head, name));
    });
  }
})();
