/* Sorting of the tables of a study's page. The tables stand in the page without this script; nothing is loaded. */
"use strict";
(() => {
  const keyOf = (row, column, number) => {
    const cell = row.cells[column];
    if (!number) return cell.textContent.trim();
    return cell.dataset.sort === "" ? null : Number(cell.dataset.sort);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const original = [...body.rows];
    table.tHead.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      const column = Number(button.dataset.column);
      const number = button.dataset.number === "1";
      const header = button.parentElement;
      const order = number ? ["descending", "ascending", ""] : ["ascending", "descending", ""];
      const now = header.getAttribute("aria-sort") || "";
      const next = order[(order.indexOf(now) + 1) % 3];
      const sign = next === "descending" ? -1 : 1;
      const rows = [...original];
      if (next) {
        rows.sort((a, b) => {
          const [x, y] = [keyOf(a, column, number), keyOf(b, column, number)];
          if (x === y) return 0;
          if (x === null) return 1; // what there is not stands below, whichever way
          if (y === null) return -1;
          return sign * (number ? x - y : x.localeCompare(y, "en", { numeric: true }));
        });
      }
      body.append(...rows);
      table.classList.toggle("sorted", Boolean(next));
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      if (next) header.setAttribute("aria-sort", next);
    });
  }
  for (const hint of document.querySelectorAll(".needs-script")) hint.hidden = false;

  // On paper nothing can be unfolded.
  const folded = () => document.querySelectorAll("details");
  addEventListener("beforeprint", () => folded().forEach((part) => { part.dataset.before = part.open; part.open = true; }));
  addEventListener("afterprint", () => folded().forEach((part) => { part.open = part.dataset.before === "true"; }));
})();
