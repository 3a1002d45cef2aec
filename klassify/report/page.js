"use strict";
// Plots when they come into view, tables that sort, rows that open. Text only ever enters the page as text nodes.

const figures = JSON.parse(document.getElementById("figures").textContent);
const coarse = window.matchMedia("(pointer: coarse)").matches;

function draw(box) {
  const figure = figures[box.dataset.figure];
  const select = box.querySelector("select");
  const names = Object.keys(figure);
  const chosen = figure[select ? names[select.selectedIndex] : names[0]];
  const canvas = box.querySelector(".canvas");
  const rows = Math.ceil(chosen.data.length / Math.max(1, Math.floor(box.clientWidth / 190)));
  canvas.style.height = `${404 + 20 * rows}px`;
  const layout = Object.assign({
    margin: { l: 56, r: 12, t: 32, b: 40 }, // the tool bar lies above the plot, not on it
    font: { family: "system-ui, DejaVu Sans, sans-serif", size: 12, color: "#1c1c1e" },
    legend: { orientation: "h", x: 0, y: 0, yref: "container", yanchor: "bottom", font: { size: 11 } },
    showlegend: true,
    hovermode: "closest",
    dragmode: coarse ? false : "zoom",
    paper_bgcolor: "#fff",
    plot_bgcolor: "#fff",
  }, chosen.layout);
  for (const axis of ["xaxis", "yaxis"]) {
    layout[axis] = Object.assign({ gridcolor: "#e6e6ea", linecolor: "#888", showline: true, ticks: "outside" }, layout[axis]);
  }
  Plotly.react(canvas, chosen.data, layout, {
    responsive: true, displaylogo: false, displayModeBar: coarse ? false : "hover",
    modeBarButtonsToRemove: ["lasso2d", "select2d"], plotlyServerURL: "",
  });
}

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) {
      seen.unobserve(entry.target);
      draw(entry.target);
    }
  }
}, { rootMargin: "300px" });

for (const box of document.querySelectorAll("figure.plot")) {
  const select = box.querySelector("select");
  if (select) {
    select.addEventListener("change", () => draw(box));
  }
  seen.observe(box);
}

// ---------------------------------------------------------------- tables

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
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => sortBy(table, column));
  });
}

// ---------------------------------------------------------------- rows that open

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

for (const row of document.querySelectorAll("tr.clip")) {
  row.querySelector(".open").addEventListener("click", () => toggle(row));
}
