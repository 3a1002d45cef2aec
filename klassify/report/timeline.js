// The timeline of one clip as SVG lanes over one axis of seconds, with a cursor that follows the video or the pointer.

const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "var(--ink)", "#8A7A00"];
const DASHES = ["", "7 3", "2 2", "8 3 2 3"];
const LANES = { thumbs: 72, wave: 60, mouth: 80, scores: 150, proposals: 54, bar: 12 };
const BEST = 3; // proposals of a system in full colour
const LABEL = 18;

function svg(name, attributes, parent, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) {
    element.setAttribute(key, value);
  }
  if (text !== undefined) {
    element.textContent = text;
  }
  if (parent) {
    parent.append(element);
  }
  return element;
}

function html(name, className, parent, text) {
  const element = document.createElement(name);
  element.className = className;
  if (text !== undefined) {
    element.textContent = text;
  }
  parent.append(element);
  return element;
}

function lineStyle(at, fused) {
  return {
    stroke: fused ? "var(--ink)" : COLOURS[at % (COLOURS.length - 2)],
    "stroke-width": fused ? 2.5 : 1.5,
    "stroke-dasharray": DASHES[Math.floor(at / (COLOURS.length - 2)) % DASHES.length] || (fused && at % 2 ? DASHES[1] : ""),
    fill: "none",
  };
}

function overlaps(segments, time) {
  return (segments || []).some(([start, end]) => start <= time && time < end);
}

class Lanes {
  constructor(clip, width, everyone) {
    this.clip = clip;
    this.proposals = clip.proposals.filter((one) => everyone || one.answer);
    this.left = 34;
    this.width = Math.max(width - this.left - 8, 50);
    this.y = 0;
    this.svg = svg("svg", { role: "img", "aria-label": `Timeline of ${clip.file}` });
    this.shade = svg("g", {}, this.svg);
    this.main = svg("g", {}, this.svg);
  }

  x(time) {
    return this.left + (time / this.clip.seconds) * this.width;
  }

  lane(title, height) {
    svg("text", { x: this.left + 3, y: this.y + 12 }, this.main, title);
    const top = this.y + LABEL;
    this.y = top + height + 6;
    return top;
  }

  thumbs() {
    const thumbs = this.clip.thumbs;
    if (!thumbs.length) {
      return;
    }
    const top = this.lane("picture", LANES.thumbs);
    const slot = this.width / thumbs.length;
    const step = Math.max(1, Math.ceil(46 / slot)); // on a narrow screen every second or third
    thumbs.forEach(([time, source], at) => {
      if (at % step === 0) {
        const wide = slot * step - 2;
        svg("image", { x: this.x(time) - slot / 2, y: top, width: wide, height: LANES.thumbs, href: source, preserveAspectRatio: "xMidYMid slice" }, this.main);
      }
    });
  }

  wave() {
    const values = this.clip.wave;
    if (!values.length) {
      return;
    }
    const top = this.lane("waveform (scaled to its peak)", LANES.wave);
    const n = values.length / 2;
    const at = (i) => this.x(((i + 0.5) / n) * this.clip.wave_s);
    const y = (v) => top + LANES.wave / 2 - (v / 127) * (LANES.wave / 2);
    const over = [];
    const under = [];
    for (let i = 0; i < n; i += 1) {
      over.push(`${at(i).toFixed(1)},${y(values[2 * i + 1]).toFixed(1)}`);
      under.unshift(`${at(i).toFixed(1)},${y(values[2 * i]).toFixed(1)}`);
    }
    svg("polygon", { points: over.concat(under).join(" "), class: "wave" }, this.main);
  }

  mouth() {
    const mouth = this.clip.mouth;
    if (!mouth) {
      return;
    }
    if (!mouth.rows.length) {
      this.lane(`mouth features: ${mouth.reason}`, 0);
      return;
    }
    const top = this.lane("mouth features (white low, blue high)", LANES.mouth);
    const canvas = document.createElement("canvas");
    canvas.width = mouth.rows[0].length;
    canvas.height = mouth.rows.length;
    const context = canvas.getContext("2d");
    const image = context.createImageData(canvas.width, canvas.height);
    mouth.rows.flat().forEach((value, i) => {
      const share = value / 99;
      image.data.set([255 - 255 * share, 255 - 141 * share, 255 - 77 * share, 255], 4 * i);
    });
    context.putImageData(image, 0, 0);
    svg("image", { x: this.x(0), y: top, width: this.x(mouth.seconds) - this.x(0), height: LANES.mouth, href: canvas.toDataURL(), preserveAspectRatio: "none", style: "image-rendering: pixelated" }, this.main);
    mouth.names.forEach((name, i) => {
      const y = top + ((i + 0.5) * LANES.mouth) / mouth.names.length;
      svg("text", { x: this.x(0) + 3, y: y + 3.5, style: "font-size: 9px; paint-order: stroke; stroke: #fff; stroke-width: 3px; fill: #1c1c1e" }, this.main, name);
    });
  }

  scores() {
    if (!this.clip.frames.length) {
      return;
    }
    const top = this.lane("frame scores: probability of fake", LANES.scores);
    const y = (v) => top + LANES.scores * (1 - v / 100);
    for (const v of [0, 50, 100]) {
      svg("line", { x1: this.left, x2: this.left + this.width, y1: y(v), y2: y(v), class: "grid" }, this.main);
      svg("text", { x: this.left - 4, y: y(v) + 4, "text-anchor": "end" }, this.main, (v / 100).toString());
    }
    this.clip.frames.forEach((one, at) => {
      const steps = one.values.map((v, k) => {
        if (v === null) {
          return ""; // no evidence: a gap
        }
        const start = one.values[k - 1] == null ? "M" : "L";
        const [begin, end] = [k, k + 1].map((edge) => this.x(Math.min(one.offset + one.hop * edge, this.clip.seconds)));
        return `${start}${begin.toFixed(1)},${y(v).toFixed(1)} L${end.toFixed(1)},${y(v).toFixed(1)}`;
      });
      svg("path", { d: steps.join(" "), ...lineStyle(at, one.fused) }, this.main);
    });
  }

  bars() {
    const truth = this.clip.truth || {};
    for (const [name, colour] of [["audio", "#E69F00"], ["visual", "#0072B2"]]) {
      if (truth[name] && truth[name].length) {
        const top = this.lane(`true fake ${name}`, LANES.bar);
        this.spans(truth[name], top, colour);
      }
    }
    for (const one of this.proposals) {
      const height = LANES.proposals;
      const top = this.lane(`proposals of ${one.name}, by score`, height);
      for (const v of [0, 1]) {
        svg("line", { x1: this.left, x2: this.left + this.width, y1: top + height * v, y2: top + height * v, class: "grid" }, this.main);
        svg("text", { x: this.left - 4, y: top + height * v + 4, "text-anchor": "end" }, this.main, 1 - v);
      }
      const ordered = [...one.rows].sort((a, b) => b[2] - a[2]).map((row, at) => [row, at]).reverse();
      for (const [row, at] of ordered) {
        this.bar(row, top + (height - 5) * (1 - row[2]), 5, at < BEST ? "#D55E00" : "#F0B48A", `, score ${row[2].toFixed(3)}`);
      }
    }
  }

  spans(rows, top, colour) {
    svg("rect", { x: this.left, y: top, width: this.width, height: LANES.bar, class: "lane" }, this.main);
    rows.forEach((row) => this.bar(row, top, LANES.bar, colour, ""));
  }

  bar([start, end], y, height, fill, more) {
    const width = Math.max(this.x(end) - this.x(start), 1.5);
    const bar = svg("rect", { x: this.x(start), y, width, height, fill }, this.main);
    svg("title", {}, bar, `${start.toFixed(2)} to ${end.toFixed(2)} s${more}`);
  }

  axis() {
    const seconds = this.clip.seconds;
    const fits = Math.max(2, Math.floor(this.width / 60));
    const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600].find((one) => seconds / one <= fits) || 1200;
    svg("line", { x1: this.left, x2: this.left + this.width, y1: this.y, y2: this.y, stroke: "#888" }, this.main);
    for (let i = 0; i * step <= seconds + 1e-9; i += 1) {
      const x = this.x(i * step);
      svg("line", { x1: x, x2: x, y1: this.y, y2: this.y + 4, stroke: "#888" }, this.main);
      svg("text", { x, y: this.y + 16, "text-anchor": "middle" }, this.main, `${+(i * step).toFixed(1)}`);
    }
    svg("text", { x: this.left + this.width, y: this.y + 30, "text-anchor": "end" }, this.main, "seconds");
    for (const [start, end] of (this.clip.truth || {}).fake || []) {
      svg("rect", { x: this.x(start), y: 0, width: Math.max(this.x(end) - this.x(start), 1), height: this.y, class: "shade" }, this.shade);
    }
    this.y += 34;
  }

  drawn() {
    this.thumbs();
    this.wave();
    this.mouth();
    this.scores();
    this.bars();
    this.axis();
    // shading lies over pictures, where it would be hidden beneath, and lets the pointer through
    this.shade.setAttribute("pointer-events", "none");
    this.svg.append(this.shade);
    this.svg.setAttribute("height", this.y);
    return this;
  }
}

function timelineKey(cell, clip) {
  const key = html("div", "key", cell);
  clip.frames.forEach((one, at) => {
    const item = html("span", "", key);
    const sample = svg("svg", { width: 28, height: 8 }, item);
    svg("line", { x1: 0, x2: 28, y1: 4, y2: 4, ...lineStyle(at, one.fused) }, sample);
    item.append(one.fused ? `${one.name} (fused)` : one.name);
  });
  if (clip.truth && clip.truth.fake.length) {
    const item = html("span", "", key);
    svg("rect", { width: 28, height: 8, class: "shade" }, svg("svg", { width: 28, height: 8 }, item));
    item.append("true fake segments");
  }
}

function readoutAt(clip, time) {
  const parts = [`${time.toFixed(2)} s`];
  for (const one of clip.frames) {
    const value = one.values[Math.floor((time - one.offset) / one.hop + 1e-6)];
    parts.push(`${one.name} ${value == null ? "-" : (value / 100).toFixed(2)}`);
  }
  if (clip.truth) {
    parts.push(overlaps(clip.truth.fake, time) ? "in truth fake" : "in truth real");
  }
  return parts.join(" \u00b7 ");
}

function addVideo(cell, clip) {
  if (!clip.video) {
    if (clip.problem) {
      html("p", "problem", cell, `The media file cannot be read: ${clip.problem}`);
    }
    return null;
  }
  const video = html("video", "", cell);
  video.controls = true;
  video.preload = "metadata";
  video.playsInline = true;
  video.setAttribute("aria-label", `Video ${clip.file}`);
  video.addEventListener("error", () => {
    const note = document.createElement("p");
    note.className = "problem";
    note.textContent = `The video does not play here: it is not at ${decodeURIComponent(clip.video)} beside this page, or in a format that this browser lacks.`;
    video.replaceWith(note);
  });
  video.src = clip.video;
  return video;
}

function showTimeline(cell, clip) {
  const outer = html("div", "", cell);
  outer.style.width = `${Math.min(cell.clientWidth - 20, cell.closest(".scroll").clientWidth - 20)}px`;
  const video = addVideo(outer, clip);
  const lanesBox = html("div", "lanes", outer);
  const cursor = html("div", "cursor", lanesBox);
  const readout = html("div", "readout", outer);
  let lanes = null;
  let everyone = false;
  function draw() {
    if (lanes) {
      lanes.svg.remove();
    }
    lanes = new Lanes(clip, lanesBox.clientWidth, everyone).drawn();
    lanesBox.prepend(lanes.svg);
    point(video ? video.currentTime : 0);
  }
  timelineKey(outer, clip);
  const others = clip.proposals.filter((one) => !one.answer).length;
  if (others) {
    const button = html("button", "others", outer, `Proposals of ${others} more system${others > 1 ? "s" : ""}`);
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      everyone = !everyone;
      button.setAttribute("aria-pressed", String(everyone));
      draw();
    });
  }
  for (const one of clip.why || []) {
    html("p", "why", outer, `Why, by ${one.name}: ${one.text}`);
    if (one.image) {
      const picture = html("img", "why", outer);
      picture.src = one.image;
      picture.alt = `Contributions to the answer of ${one.name}`;
    }
  }
  if (clip.words.length) {
    html("div", "", outer, "What the multi-modal model wrote about frames:");
    const list = html("ul", "words", outer);
    clip.words.forEach(([time, text]) => html("li", "", list, `${time.toFixed(1)} s: ${text}`));
  }

  function point(time) {
    const at = Math.min(Math.max(time, 0), clip.seconds);
    cursor.style.left = `${lanes.x(at)}px`;
    readout.textContent = readoutAt(clip, Math.min(at, clip.seconds - 1e-6));
  }
  function timeOf(event) {
    return ((event.clientX - lanesBox.getBoundingClientRect().left - lanes.left) / lanes.width) * clip.seconds;
  }
  lanesBox.addEventListener("pointermove", (event) => {
    if (!video || video.paused) {
      point(timeOf(event));
    }
  });
  lanesBox.addEventListener("click", (event) => {
    const time = Math.min(Math.max(timeOf(event), 0), clip.seconds);
    point(time);
    if (video && video.isConnected) {
      video.currentTime = time;
    }
  });
  if (video) {
    const follow = () => {
      point(video.currentTime);
      if (!video.paused && video.isConnected) {
        requestAnimationFrame(follow);
      }
    };
    video.addEventListener("play", follow);
    video.addEventListener("seeked", () => point(video.currentTime));
  }
  new ResizeObserver(() => {
    const scroll = cell.closest(".scroll");
    if (!scroll) {
      return;
    }
    outer.style.width = `${scroll.clientWidth - 22}px`;
    if (Math.abs(lanesBox.clientWidth - lanes.left - lanes.width - 8) > 2) {
      draw();
    }
  }).observe(cell.closest(".scroll"));
  draw();
}
