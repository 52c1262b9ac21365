"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const OTHER = data.colours[data.colours.length - 1];
const FIXED = data.numExperts <= data.colours.length;
const state = { layer: 0, choice: 0, opacity: 0.55 };

function bytes(text, wide) {
  const raw = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  return wide ? new Uint16Array(raw.buffer) : raw;
}

function element(name, attributes, ...children) {
  const made = Object.assign(document.createElement(name), attributes);
  made.append(...children);
  return made;
}

/** One sample: what its tokens chose, and the elements that show it. */
class Example {
  constructor(source) {
    this.source = source;
    this.count = source.tokens.length;
    this.experts = bytes(source.experts, data.numExperts > 256);
    this.weights = bytes(source.weights, false);
    this.alone = null;
    this.legend = element("div", { className: "legend" });
    this.tokens = element("div", { className: "tokens" });
    this.strip = element("div", { className: "strip" });
    this.told = element("output", {});
    this.pictures = source.pictures.map((address, image) => this.picture(address, image));
    this.node = element("article", { className: "example" },
      element("h3", { textContent: source.id }),
      element("div", { className: "sides" },
        element("div", { className: "seen" }, ...this.pictures.map((picture) => picture.node), this.strip),
        element("div", {}, this.legend, this.tokens, this.told)));
    this.patches = source.places.flatMap(([image, row], token) => (image >= 0 && row >= 0 ? [token] : []));
    this.thumbnails = this.patches.length ? data.layers.map((_, layer) => this.thumbnail(layer)) : [];
    this.writeTokens();
  }

  expert(token, layer, choice) {
    return this.experts[(token * data.layers.length + layer) * data.topK + choice];
  }

  /** Colours of the experts in one layer: fixed where they are few, else those of the most chosen. */
  palette(layer, choice) {
    const counts = new Map();
    for (let token = 0; token < this.count; token++) {
      const expert = this.expert(token, layer, choice);
      counts.set(expert, (counts.get(expert) || 0) + 1);
    }
    const ranked = [...counts].sort((left, right) => right[1] - left[1] || left[0] - right[0]);
    if (FIXED) ranked.sort((left, right) => left[0] - right[0]);
    const coloured = FIXED ? ranked : ranked.slice(0, data.colours.length - 1);
    const colour = new Map(coloured.map(([expert], place) => [expert, data.colours[FIXED ? expert : place]]));
    return { coloured, of: (expert) => colour.get(expert) || OTHER, others: ranked.length - coloured.length };
  }

  describe(token) {
    const start = (token * data.layers.length + state.layer) * data.topK;
    const parts = [];
    for (let choice = 0; choice < data.topK; choice++) {
      parts.push(`expert ${this.experts[start + choice]} (${(this.weights[start + choice] / 255).toFixed(2)})`);
    }
    const [image, row, column] = this.source.places[token];
    const what = image < 0 ? `“${this.source.tokens[token]}”` : `patch in row ${row}, column ${column}`;
    return `${what}, layer ${data.layers[state.layer]}: ${parts.join(", ")}`;
  }

  picture(address, image) {
    const canvas = element("canvas", { width: 768, height: 768 });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", "patches coloured by expert");
    const node = element("div", { className: "picture" }, element("img", { src: address, alt: "the picture as the model sees it" }), canvas);
    canvas.addEventListener("pointermove", (event) => {
      if (!data.grid) return;
      const box = canvas.getBoundingClientRect();
      const row = Math.floor(((event.clientY - box.top) / box.height) * data.grid[0]);
      const column = Math.floor(((event.clientX - box.left) / box.width) * data.grid[1]);
      const token = this.source.places.findIndex((place) => place[0] === image && place[1] === row && place[2] === column);
      if (token >= 0) this.told.textContent = this.describe(token);
    });
    return { node, canvas, image };
  }

  writeTokens() {
    this.spans = [];
    for (let token = 0; token < this.count; token++) {
      const [image] = this.source.places[token];
      if (image >= 0) {
        const before = token ? this.source.places[token - 1][0] : -1;
        if (before !== image) this.tokens.append(element("em", { textContent: `[image ${image + 1}]` }));
        continue;
      }
      const span = element("span", { tabIndex: 0 }, this.source.tokens[token].replaceAll("\n", "⏎"), element("sub", {}));
      if (this.source.parts[token] !== "p") span.className = "said";
      const tell = () => { this.told.textContent = this.describe(token); };
      span.addEventListener("pointerenter", tell);
      span.addEventListener("focus", tell);
      this.tokens.append(span);
      this.spans.push([token, span]);
    }
  }

  thumbnail(layer) {
    const canvas = element("canvas", { width: data.grid[1], height: data.grid[0] });
    const button = element("button", { type: "button" }, canvas, `layer ${data.layers[layer]}`);
    button.addEventListener("click", () => { state.layer = layer; render(); });
    this.strip.append(button);
    return { canvas, button, layer };
  }

  paintThumbnails() {
    for (const { canvas, button, layer } of this.thumbnails) {
      const palette = this.palette(layer, state.choice);
      const pen = canvas.getContext("2d");
      pen.clearRect(0, 0, canvas.width, canvas.height);
      for (const token of this.patches) {
        const [image, row, column] = this.source.places[token];
        if (image > 0) break;
        pen.fillStyle = palette.of(this.expert(token, layer, state.choice));
        pen.fillRect(column, row, 1, 1);
      }
      button.setAttribute("aria-pressed", String(layer === state.layer));
    }
  }

  paintPicture({ canvas, image }, palette) {
    const [rows, columns] = data.grid;
    const [height, width] = [canvas.height / rows, canvas.width / columns];
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.font = `600 ${Math.min(30, width * 0.42)}px system-ui, sans-serif`;
    for (const token of this.patches) {
      const [where, row, column] = this.source.places[token];
      if (where !== image) continue;
      const expert = this.expert(token, state.layer, state.choice);
      if (this.alone !== null && expert !== this.alone) continue;
      pen.globalAlpha = state.opacity;
      pen.fillStyle = palette.of(expert);
      pen.fillRect(column * width + 1, row * height + 1, width - 2, height - 2);
      if (columns > 16 || state.opacity === 0) continue;
      pen.globalAlpha = 1;
      pen.lineWidth = 5;
      pen.strokeStyle = "#fff";
      pen.fillStyle = "#000";
      pen.strokeText(expert, (column + 0.5) * width, (row + 0.5) * height);
      pen.fillText(expert, (column + 0.5) * width, (row + 0.5) * height);
    }
  }

  paint() {
    const palette = this.palette(state.layer, state.choice);
    this.legend.replaceChildren(...palette.coloured.map(([expert, count]) => {
      const swatch = element("i", {});
      swatch.style.background = palette.of(expert);
      const button = element("button", { type: "button", title: "show this expert alone" }, swatch,
        `${expert}: ${Math.round((100 * count) / this.count)} %`);
      button.setAttribute("aria-pressed", String(this.alone === expert));
      button.addEventListener("click", () => { this.alone = this.alone === expert ? null : expert; this.paint(); });
      return button;
    }));
    if (palette.others) {
      const swatch = element("i", {});
      swatch.style.background = OTHER;
      this.legend.append(element("button", { type: "button", disabled: true }, swatch, `${palette.others} others`));
    }
    for (const [token, span] of this.spans) {
      const expert = this.expert(token, state.layer, state.choice);
      span.style.borderColor = palette.of(expert);
      span.style.background = `${palette.of(expert)}30`;
      span.lastChild.textContent = expert;
      span.classList.toggle("dim", this.alone !== null && expert !== this.alone);
    }
    if (data.grid) this.pictures.forEach((picture) => this.paintPicture(picture, palette));
    this.paintThumbnails();
  }
}

const examples = data.examples.map((source) => new Example(source));
document.getElementById("list").append(...examples.map((example) => example.node));

const slider = document.getElementById("layer");

function render() {
  if (slider) slider.value = state.layer;
  if (slider) document.getElementById("layer-name").textContent = data.layers[state.layer];
  examples.forEach((example) => { example.alone = null; example.paint(); });
}

slider?.addEventListener("input", (event) => { state.layer = Number(event.target.value); render(); });
document.getElementById("choice")?.addEventListener("change", (event) => { state.choice = Number(event.target.value); render(); });
document.getElementById("opacity").addEventListener("input", (event) => {
  state.opacity = Number(event.target.value) / 100;
  examples.forEach((example) => example.paint());
});
render();
