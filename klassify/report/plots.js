// Plots as SVG: lines with points, grouped bars, and squares of values as tables. Texts are text nodes.

const PLOT = { height: 340, left: 54, right: 12, top: 12, bottom: 44 };
const MARKERS = [
  (r) => `M${-r},0 a${r},${r} 0 1,0 ${2 * r},0 a${r},${r} 0 1,0 ${-2 * r},0Z`,
  (r) => `M${-r},${-r} h${2 * r} v${2 * r} h${-2 * r}Z`,
  (r) => `M0,${-r * 1.2} L${r * 1.1},${r} L${-r * 1.1},${r}Z`,
  (r) => `M0,${-r * 1.3} L${r * 1.3},0 L0,${r * 1.3} L${-r * 1.3},0Z`,
  (r) => `M0,${r * 1.2} L${r * 1.1},${-r} L${-r * 1.1},${-r}Z`,
];
const HATCHES = ["", "M0,6 L6,0", "M0,0 L6,6", "M3,0 V6", "M0,3 H6", "M0,3 H6 M3,0 V6", "M0,0 L6,6 M0,6 L6,0"];
let hatched = 0; // so that patterns of different plots have different ids

function roundTicks(low, high, about) {
  const rough = (high - low) / about || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((times) => times * power).find((one) => one >= rough);
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k += 1) {
    ticks.push([k * step, String(Number((k * step).toPrecision(6)))]);
  }
  return ticks;
}

function endsOf(axis, values) {
  if (axis.range) {
    return axis.range;
  }
  const known = values.filter((v) => v !== null);
  const low = axis.from_zero ? 0 : Math.min(...known);
  const high = Math.max(...known);
  const room = (high - low || 1) * 0.04;
  return [axis.from_zero ? 0 : low - room, high + room];
}

class Plot {
  constructor(canvas, figure) {
    this.canvas = canvas;
    this.figure = figure;
    this.series = figure.bars || figure.lines;
    this.tip = html("div", "tip", canvas);
    this.legend = html("div", "key", canvas);
    this.series.forEach((one) => this.addKey(one));
  }

  addKey(one) {
    const button = html("button", "toggle", this.legend);
    button.type = "button";
    button.setAttribute("aria-pressed", String(!one.hidden));
    const sample = svg("svg", { width: 28, height: 10, "aria-hidden": "true" }, button);
    if (this.figure.bars) {
      this.hatch(svg("g", {}, sample), one, 0, 0, 28, 10);
    } else {
      svg("line", { x1: 0, x2: 28, y1: 5, y2: 5, "stroke-width": 2, "stroke-dasharray": one.dash, style: `stroke: ${one.colour}` }, sample);
      this.marker(sample, one, 14, 5, 8);
    }
    button.append(one.name);
    button.addEventListener("click", () => {
      one.hidden = !one.hidden;
      button.setAttribute("aria-pressed", String(!one.hidden));
      this.draw();
    });
  }

  draw() {
    const width = this.canvas.clientWidth;
    if (!width) {
      return;
    }
    if (this.svg) {
      this.svg.remove();
    }
    const { x, y } = this.figure;
    const names = x.categories || [];
    const slanted = names.length * 7 * Math.max(...names.map((name) => name.length), 0) > width;
    const longest = Math.min(Math.max(...names.map((name) => name.length), 0), 24);
    this.bottom = PLOT.bottom + (slanted ? 4.2 * longest : 0);
    this.width = width - PLOT.left - PLOT.right;
    this.height = PLOT.height - PLOT.top - PLOT.bottom;
    this.svg = svg("svg", { width, height: PLOT.height + this.bottom - PLOT.bottom, viewBox: `0 0 ${width} ${PLOT.height + this.bottom - PLOT.bottom}`, role: "img", "aria-label": `${y.title} against ${x.title}` });
    this.canvas.prepend(this.svg);
    this.points = [];
    this.yEnds = endsOf(y, this.series.flatMap((one) => one.y));
    this.grid(y.ticks || roundTicks(...this.yEnds, 6), true);
    if (names.length) {
      this.categories(names, slanted);
      this.drawBars(names);
    } else {
      this.xEnds = endsOf(x, this.series.flatMap((one) => one.x));
      this.grid(x.ticks || roundTicks(...this.xEnds, Math.max(2, this.width / 80)), false);
      this.series.filter((one) => !one.hidden).forEach((one) => this.drawLine(one));
    }
    const middle = PLOT.top + this.height / 2;
    svg("text", { x: PLOT.left + this.width / 2, y: PLOT.top + this.height + this.bottom - 8, "text-anchor": "middle", class: "title" }, this.svg, x.title);
    svg("text", { x: 14, y: middle, "text-anchor": "middle", class: "title", transform: `rotate(-90 14 ${middle})` }, this.svg, y.title);
    this.spot = svg("circle", { r: 5, class: "spot", visibility: "hidden" }, this.svg);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.leave());
  }

  px(value) {
    return PLOT.left + ((value - this.xEnds[0]) / (this.xEnds[1] - this.xEnds[0])) * this.width;
  }

  py(value) {
    return PLOT.top + this.height * (1 - (value - this.yEnds[0]) / (this.yEnds[1] - this.yEnds[0]));
  }

  grid(ticks, isY) {
    const [low, high] = isY ? this.yEnds : this.xEnds;
    const bottom = PLOT.top + this.height;
    let free = -Infinity; // labels of x leave each other room
    for (const [value, text] of ticks.filter(([one]) => one >= low && one <= high)) {
      if (isY) {
        svg("line", { x1: PLOT.left, x2: PLOT.left + this.width, y1: this.py(value), y2: this.py(value), class: "grid" }, this.svg);
        svg("text", { x: PLOT.left - 6, y: this.py(value) + 4, "text-anchor": "end" }, this.svg, text);
        continue;
      }
      const at = this.px(value);
      svg("line", { x1: at, x2: at, y1: PLOT.top, y2: bottom, class: "grid" }, this.svg);
      if (at - 4 * text.length > free) {
        svg("text", { x: at, y: bottom + 15, "text-anchor": "middle" }, this.svg, text);
        free = at + 4 * text.length;
      }
    }
  }

  categories(names, slanted) {
    const bottom = PLOT.top + this.height;
    const band = this.width / names.length;
    names.forEach((name, k) => {
      const x = PLOT.left + band * (k + 0.5);
      const short = name.length > 24 ? `${name.slice(0, 23)}\u2026` : name;
      const how = slanted ? { "text-anchor": "end", transform: `rotate(-35 ${x} ${bottom + 12})` } : { "text-anchor": "middle" };
      const label = svg("text", { x, y: bottom + 14, class: "category", ...how }, this.svg, short);
      svg("title", {}, label, name);
    });
    svg("line", { x1: PLOT.left, x2: PLOT.left + this.width, y1: bottom, y2: bottom, class: "axis" }, this.svg);
  }

  drawLine(one) {
    const at = one.x.map((x, k) => (x === null || one.y[k] === null ? null : [this.px(x), this.py(one.y[k])]));
    let path = "";
    at.forEach((point, k) => {
      if (point) {
        const before = at[k - 1];
        const step = before && one.step ? `H${point[0].toFixed(1)} ` : "";
        path += `${step}${before ? "L" : "M"}${point[0].toFixed(1)},${point[1].toFixed(1)} `;
      }
    });
    if (one.fill) {
      const [first, last] = [at[0], at[at.length - 1]];
      svg("path", { d: `${path}V${this.py(0)} H${first[0]} V${first[1]}Z`, style: `fill: ${one.colour}`, "fill-opacity": 0.12, stroke: "none" }, this.svg);
      this.points.push([...last, one, at.length - 1]);
    }
    svg("path", { d: path, fill: "none", "stroke-width": one.guide ? 1 : 2, "stroke-dasharray": one.dash, style: `stroke: ${one.colour}` }, this.svg);
    at.forEach((point, k) => {
      if (point && !one.guide) {
        this.marker(this.svg, one, point[0], point[1], one.sizes ? one.sizes[k] : 8);
        this.points.push([...point, one, k]);
      }
    });
  }

  marker(parent, one, x, y, size) {
    if (one.marker !== undefined) {
      const d = MARKERS[one.marker % MARKERS.length](size / 2);
      svg("path", { d, transform: `translate(${x} ${y})`, style: `fill: ${one.colour}`, "fill-opacity": 0.85 }, parent);
    }
  }

  drawBars(names) {
    const shown = this.series.filter((one) => !one.hidden);
    const band = this.width / names.length;
    const wide = (band * 0.8) / Math.max(shown.length, 1);
    shown.forEach((one, i) => {
      one.y.forEach((value, k) => {
        if (value === null) {
          return;
        }
        const x = PLOT.left + band * (k + 0.1) + wide * i;
        const [top, middle] = [this.py(value), x + wide / 2];
        this.hatch(this.svg, one, x, top, Math.max(wide - 1, 1), Math.max(this.py(0) - top, 0));
        if (one.low[k] !== null && one.high[k] !== null) {
          const [low, high] = [this.py(one.low[k]), this.py(one.high[k])];
          svg("path", { d: `M${middle},${low} V${high} M${middle - 3},${low} h6 M${middle - 3},${high} h6`, class: "whisker" }, this.svg);
        }
        this.points.push([middle, top, one, k]);
      });
    });
  }

  hatch(parent, one, x, y, width, height) {
    svg("rect", { x, y, width, height, style: `fill: ${one.colour}` }, parent);
    const lines = HATCHES[one.pattern % HATCHES.length];
    if (lines) {
      hatched += 1;
      const pattern = svg("pattern", { id: `hatch-${hatched}`, width: 6, height: 6, patternUnits: "userSpaceOnUse" }, parent);
      svg("path", { d: lines, stroke: "#fff", "stroke-width": 1.2 }, pattern);
      svg("rect", { x, y, width, height, fill: `url(#hatch-${hatched})` }, parent);
    }
  }

  point(event) {
    const box = this.svg.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let nearest = null;
    let least = 40 ** 2;
    for (const point of this.points) {
      const away = (point[0] - x) ** 2 + (point[1] - y) ** 2;
      if (away < least) {
        [nearest, least] = [point, away];
      }
    }
    if (!nearest) {
      this.leave();
      return;
    }
    const [px, py, one, k] = nearest;
    this.spot.setAttribute("cx", px);
    this.spot.setAttribute("cy", py);
    this.spot.setAttribute("visibility", "visible");
    this.tip.textContent = `${one.name}: ${this.words(one, k)}`;
  }

  words(one, k) {
    if (one.tips) {
      return one.tips[k];
    }
    const value = one.y[k].toFixed(4);
    if (!this.figure.bars) {
      return `${Number(one.x[k].toPrecision(4))}, ${Number(one.y[k].toPrecision(4))}`;
    }
    const interval = one.low[k] === null ? "" : ` [${one.low[k].toFixed(4)}, ${one.high[k].toFixed(4)}]`;
    return `${this.figure.x.categories[k]}: ${value}${interval}`;
  }

  leave() {
    this.spot.setAttribute("visibility", "hidden");
    this.tip.textContent = "";
  }
}

// a table that goes on to the right fades there, until it is scrolled to its end
function fade(box) {
  const mark = () => box.classList.toggle("more", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
  box.addEventListener("scroll", mark, { passive: true });
  new ResizeObserver(mark).observe(box);
}

function drawSquare(canvas, { names, text, shade }) {
  const box = html("div", "scroll", canvas);
  fade(box);
  const table = html("table", "square", box);
  const head = table.createTHead().insertRow();
  head.insertCell();
  names.forEach((name) => html("span", "", html("th", "", head), name));
  const body = table.createTBody();
  names.forEach((name, i) => {
    const row = body.insertRow();
    html("th", "", row, name);
    text[i].forEach((value, k) => {
      const cell = html("td", "", row, value);
      const strength = 0.75 * Math.abs(shade[i][k] || 0);
      cell.style.background = shade[i][k] < 0 ? `rgba(213, 94, 0, ${strength})` : `rgba(0, 114, 178, ${strength})`;
    });
  });
}

function drawFigure(box, figure) {
  const select = box.querySelector("select");
  const chosen = figure[select ? select.value : Object.keys(figure)[0]];
  const canvas = box.querySelector(".canvas");
  canvas.replaceChildren();
  if (chosen.square) {
    drawSquare(canvas, chosen.square);
    return;
  }
  const plot = new Plot(canvas, chosen);
  plot.draw();
  canvas.plot = plot;
}

function addFigure(box, figure) {
  const canvas = box.querySelector(".canvas");
  const select = box.querySelector("select");
  if (select) {
    select.addEventListener("change", () => drawFigure(box, figure));
  }
  drawFigure(box, figure);
  let width = canvas.clientWidth;
  const redraw = () => {
    if (canvas.plot && canvas.clientWidth !== width) {
      width = canvas.clientWidth;
      canvas.plot.draw();
    }
  };
  new ResizeObserver(redraw).observe(canvas);
  window.addEventListener("beforeprint", redraw);
}
