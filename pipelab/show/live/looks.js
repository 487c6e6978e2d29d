// Where is everything, and what does it look like? Pixels, colours, hatches.

const TILE = 8; // pixels of a hatch
const GUTTER = 66, WIDE_GUTTER = 118, RIGHT = 74, BAND = 22, AXIS = 36, MEMORY = 112, GAP = 16, THIN = 7;
const MOST_ARROWS = 1500;
const FONT = "12px Helvetica, Arial, sans-serif";

/** Pixels of everything, for one width and one window of time. */
class Frame {
  constructor(bars, width, from, to) {
    const ranks = bars.header.ranks;
    const memory = bars.header.memory === false ? 0 : 1; // without it there are only rows
    this.width = width;
    this.left = bars.header.names ? WIDE_GUTTER : GUTTER;
    this.right = Math.max(width - RIGHT, GUTTER + 50);
    this.from = from;
    this.to = to;
    this.lanes = [...bars.used].sort();
    const thin = (this.lanes.length - 1) * THIN;
    this.each = (ranks <= 8 ? 34 : ranks <= 16 ? 24 : ranks <= 32 ? 15 : Math.max(480 / ranks, 1)) + (ranks <= 32 ? thin : 0);
    this.thin = ranks <= 32 ? THIN : 0;
    this.space = this.each > 12 ? 5 : this.each > 4 ? 1 : 0;
    this.bar = Math.max(this.each - this.space - this.thin * (this.lanes.length - 1), 1);
    this.top = BAND;
    this.bottom = this.top + ranks * this.each;
    this.memoryTop = this.bottom + GAP * memory;
    this.memoryBottom = this.memoryTop + MEMORY * memory;
    this.height = this.memoryBottom + AXIS;
    this.scale = (this.right - this.left) / (to - from || 1);
  }

  x(time) {
    return this.left + (time - this.from) * this.scale;
  }

  time(x) {
    return this.from + (x - this.left) / this.scale;
  }

  y(rank, lane = 0) {
    const place = this.lanes.indexOf(lane);
    return this.top + rank * this.each + (place > 0 ? this.bar + 1 + (place - 1) * this.thin : 0);
  }

  tall(lane) {
    return lane === 0 ? this.bar : Math.max(this.thin - 1, 1);
  }

  /** [top, height] of a bar: the halves of a pair share the height. */
  span(bars, bar) {
    const lane = bars.column.lane[bar], part = bars.column.part[bar];
    const top = this.y(bars.column.rank[bar], lane), tall = this.tall(lane);
    return part === 0 ? [top, tall] : [top + (part - 1) * (tall / 2), tall / 2];
  }
}

/** Round numbers for an axis: 1, 2 or 5 times a power of ten, about `wanted` of them. */
function ticks(from, to, wanted) {
  const rough = (to - from) / Math.max(wanted, 1) || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((value) => value >= rough * 0.999);
  const first = Math.ceil(from / step - 1e-9), last = Math.floor(to / step + 1e-9);
  return Array.from({ length: Math.max(last - first + 1, 0) }, (_, i) => (first + i) * step);
}

const digits = (value) => (Math.abs(value) >= 10000 ? value.toFixed(0) : String(Number(value.toPrecision(4))));

/** A small picture of a hatch, to be repeated. */
function hatch(shape, colour) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = TILE;
  const g = tile.getContext("2d");
  g.strokeStyle = g.fillStyle = colour;
  g.globalAlpha = shape === "." ? 0.75 : 0.3;
  g.lineWidth = 1.2;
  g.beginPath();
  for (const shift of [-TILE, 0, TILE]) {
    if (shape === "/" || shape === "x") { g.moveTo(shift, TILE); g.lineTo(shift + TILE, 0); }
    if (shape === "\\" || shape === "x") { g.moveTo(shift, 0); g.lineTo(shift + TILE, TILE); }
  }
  if (shape === "-" || shape === "+") { g.moveTo(0, TILE / 2); g.lineTo(TILE, TILE / 2); }
  if (shape === "|" || shape === "+") { g.moveTo(TILE / 2, 0); g.lineTo(TILE / 2, TILE); }
  g.stroke();
  if (shape === ".") { g.beginPath(); g.arc(2, 2, 1, 0, 7); g.arc(6, 6, 1, 0, 7); g.fill(); }
  return tile;
}

/** Half of the colour, half white: a rank's second chunk. */
function lighter(colour) {
  return "#" + [1, 3, 5].map((i) => Math.round((parseInt(colour.slice(i, i + 2), 16) + 255) / 2).toString(16).padStart(2, "0")).join("");
}

/** The looks of all kinds on one ground (light or dark), ready to paint with. */
class Paints {
  constructor(style, dark) {
    this.ground = dark ? style.dark : style.light;
    this.ink = style.light.ink; // the text on bars, whose colours are the same on both grounds
    this.style = style;
    this.dashes = { solid: [], dash: [7, 4], dot: [2, 3], dashdot: [7, 3, 2, 3], longdash: [12, 4], longdashdot: [12, 3, 2, 3] };
    this.made = new Map();
  }

  /** The look of a bar: work looks like its kind, all else like its lane. */
  bar(bars, bar) {
    const { lane, stage } = bars.column;
    return lane[bar] ? this.of(bars.lanes[lane[bar]], 0) : this.of(bars.kind(bar), bars.late(stage[bar]));
  }

  of(kind, late) {
    const name = `${kind}${late}`;
    if (!this.made.has(name)) {
      const look = this.style.kinds[kind] || this.style.beside[kind] || this.style.other;
      const tile = look.hatch && hatch(look.hatch, look.hatch_colour);
      this.made.set(name, { ...look, colour: late ? lighter(look.colour) : look.colour, tile, pattern: null });
    }
    return this.made.get(name);
  }

  words(kind) {
    const known = this.style.kinds[kind] || this.style.beside[kind];
    return known ? known.words : kind.replace("_F", " activations").replace("_B", " gradients").toLowerCase();
  }

  line(turn) {
    return { colour: this.ground.ranks[turn % this.ground.ranks.length], dash: this.dashes[this.style.dashes[turn % this.style.dashes.length]] };
  }
}
