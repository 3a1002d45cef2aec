// Tables that sort, rows that open, and the plots. Text only ever enters the page as text nodes.

const figures = JSON.parse(document.getElementById("figures").textContent);

for (const box of document.querySelectorAll("figure.plot")) {
  addFigure(box, figures[box.dataset.figure]);
}

document.querySelectorAll(".scroll:not(.canvas .scroll)").forEach(fade);

function keyOf(row, column) {
  const cell = row.cells[column];
  return cell.dataset.key === undefined ? cell.textContent.trim() : Number(cell.dataset.key);
}

function compareKeys(a, b) {
  if (typeof a === "number" && typeof b === "number") {
    return Number.isNaN(a) ? (Number.isNaN(b) ? 0 : 1) : Number.isNaN(b) ? -1 : a - b;
  }
  return String(a).localeCompare(String(b), undefined, { numeric: true });
}

function sortBy(table, column) {
  const heads = [...table.tHead.rows[0].cells];
  const head = heads[column];
  const first = head.classList.contains("number") ? "descending" : "ascending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = head.getAttribute("aria-sort") === first ? other : first;
  heads.forEach((one) => one.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", order);
  const body = table.tBodies[0];
  const sign = order === "ascending" ? 1 : -1;
  const rows = [...body.rows].filter((row) => !row.classList.contains("timeline"));
  const keyed = rows.map((row) => [keyOf(row, column), row, row.nextElementSibling]);
  keyed.sort((a, b) => {
    const unknown = Number.isNaN(a[0]) || Number.isNaN(b[0]);
    return (unknown ? 1 : sign) * compareKeys(a[0], b[0]);
  });
  for (const [, row, next] of keyed) {
    body.append(row);
    if (next && next.classList.contains("timeline")) {
      body.append(next);
    }
  }
  table.dispatchEvent(new Event("sorted"));
}

// a table of many rows shows PAGE_ROWS of them at a time
const PAGE_ROWS = 50;

function addPages(table) {
  const body = table.tBodies[0];
  const count = body.rows.length;
  if (count <= PAGE_ROWS) {
    return;
  }
  let first = 0;
  const bar = document.createElement("p");
  bar.className = "pages";
  const said = document.createElement("span");
  said.setAttribute("role", "status");
  const [back, next] = [["previous", -PAGE_ROWS], ["next", PAGE_ROWS]].map(([name, step]) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.addEventListener("click", () => show(first + step));
    return button;
  });
  function show(from) {
    first = from;
    const stop = Math.min(first + PAGE_ROWS, count);
    [...body.rows].forEach((row, at) => row.classList.toggle("off", at < first || at >= stop));
    said.textContent = `rows ${first + 1} to ${stop} of ${count}`;
    back.disabled = first === 0;
    next.disabled = stop === count;
  }
  bar.append(back, said, next);
  table.parentElement.after(bar);
  table.addEventListener("sorted", () => show(0));
  show(0);
}

document.querySelectorAll("table.sortable:not(.clips)").forEach(addPages);

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => sortBy(table, column));
  });
}

function toggle(row) {
  const button = row.querySelector(".open");
  const next = row.nextElementSibling;
  if (next && next.classList.contains("timeline")) {
    next.remove();
    button.setAttribute("aria-expanded", "false");
    return;
  }
  const opened = document.createElement("tr");
  opened.className = "timeline";
  const cell = opened.insertCell();
  cell.colSpan = row.cells.length;
  row.after(opened);
  button.setAttribute("aria-expanded", "true");
  showTimeline(cell, JSON.parse(document.getElementById(row.dataset.clip).textContent));
}

// of the rows of a table one is a Tab away, and arrow keys go to the others
for (const table of document.querySelectorAll("table.clips")) {
  const buttons = () => [...table.querySelectorAll(".open")];
  buttons().forEach((button, at) => {
    button.tabIndex = at ? -1 : 0;
    button.addEventListener("click", () => toggle(button.closest("tr")));
  });
  table.addEventListener("keydown", (event) => {
    const all = buttons();
    const at = all.indexOf(event.target);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (at >= 0 && all[to]) {
      event.preventDefault();
      all.forEach((one) => { one.tabIndex = -1; });
      all[to].tabIndex = 0;
      all[to].focus();
    }
  });
}
