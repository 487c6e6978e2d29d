// One timeline for a finished trace, a growing one and a playground: ranks as rows, time to the right, memory below.
//
// A plain ES module without imports. In a notebook anywidget calls `render`; a page of its own calls `new Timeline`.
// Read in this order: Bars (the data), Frame (where things are), paint... (how they look), Timeline (what one can do).

const TILE = 8; // pixels of a hatch
const GUTTER = 66, RIGHT = 74, BAND = 20, AXIS = 36, MEMORY = 112, GAP = 16, THIN = 7;
const MOST_ARROWS = 1500;
const FONT = "12px Helvetica, Arial, sans-serif";

// ---------------------------------------------------------------------------------------------------- the data

/** The bars of a trace as columns, and for each rank and lane the order of its bars. Grows by `append`. */
class Bars {
  constructor(rule, lanes) {
    this.rule = rule;
    this.lanes = lanes;
    this.clear({ ranks: 0, chunks: [], kinds: [], length: 0 });
  }

  clear(header) {
    this.header = header;
    this.count = 0;
    this.kinds = []; // names of kinds, by code
    this.column = {};
    this.rows = Array.from({ length: header.ranks * this.lanes.length }, () => []);
    this.found = null; // (stage, kind, micro-batch) -> bar, made when it is first asked for
    this.end = 0;
    this.used = new Set([0]); // lanes with bars
    this.curves = null;
  }

  replace(block) {
    const { header, columns } = readBlock(block);
    this.clear(header);
    this.take(header, columns);
    if (columns.curves) this.curves = cut(columns.curves, header.curves);
  }

  /** Further bars. False when some are missing before them. */
  append(block) {
    const { header, columns } = readBlock(block);
    if (header.first > this.count) return false;
    const known = this.count - header.first;
    for (const name in columns) columns[name] = columns[name].subarray(known);
    this.take(header, columns);
    return true;
  }

  take(header, columns) {
    const more = columns.start.length, count = this.count + more;
    const code = Uint8Array.from(header.kinds, (kind) => this.code(kind));
    columns.kind = columns.kind.map((kind) => code[kind]);
    columns.waitKind = columns.waitKind.map((kind) => code[kind]);
    for (const name in columns) {
      if (name === "curves") continue;
      let own = this.column[name];
      if (!own || own.length < count) {
        const wider = new columns[name].constructor(this.count ? 2 * count : count);
        if (own) wider.set(own.subarray(0, this.count));
        own = this.column[name] = wider;
      }
      own.set(columns[name], this.count);
    }
    const { rank, lane, end } = this.column, width = this.lanes.length;
    for (let bar = this.count; bar < count; bar++) {
      this.rows[rank[bar] * width + lane[bar]].push(bar);
      this.used.add(lane[bar]);
      if (end[bar] > this.end) this.end = end[bar];
      if (this.found) this.found.set(this.key(bar), bar);
    }
    this.count = count;
    this.held = null;
  }

  /** 1 for a rank's second, fourth, ... chunk, which is lighter. */
  late(stage) {
    const { chunk, ranks } = this.header;
    return (chunk ? chunk[stage] : Math.floor(stage / ranks)) % 2;
  }

  code(kind) {
    if (!this.kinds.includes(kind)) this.kinds.push(kind);
    return this.kinds.indexOf(kind);
  }

  row(rank, lane = 0) {
    return this.rows[rank * this.lanes.length + lane];
  }

  kind(bar) {
    return this.kinds[this.column.kind[bar]];
  }

  name(bar) {
    return `${this.column.stage[bar]}${this.kind(bar)}${this.column.microbatch[bar]}`;
  }

  key(bar) {
    return `${this.column.stage[bar]} ${this.kind(bar)} ${this.column.microbatch[bar]}`;
  }

  find(stage, kind, microbatch) {
    if (!this.found) {
      this.found = new Map();
      for (let bar = 0; bar < this.count; bar++) this.found.set(this.key(bar), bar);
    }
    const bar = this.found.get(`${stage} ${kind} ${microbatch}`);
    if (bar !== undefined) return bar;
    for (const [other, given] of Object.entries(this.rule.gives)) {
      if (given === kind && this.found.has(`${stage} ${other} ${microbatch}`)) return this.find(stage, other, microbatch);
    }
    return -1;
  }

  /** The bars that must end before this one starts. */
  needs(bar) {
    const stage = this.column.stage[bar], m = this.column.microbatch[bar], kind = this.kind(bar);
    const wanted = this.rule.carries[kind] ? [[0, this.rule.carries[kind]]] : this.rule.needs[kind] || [];
    return wanted.map(([step, need]) => this.find(stage + step, need, m)).filter((other) => other >= 0);
  }

  /** The bars that need this one. */
  serves(bar) {
    const stage = this.column.stage[bar], m = this.column.microbatch[bar], given = this.kind(bar);
    const value = this.rule.gives[given] || given, found = [];
    for (const [kind, wanted] of Object.entries(this.rule.needs)) {
      for (const [step, need] of wanted) {
        const other = need === value ? this.find(stage - step, kind, m) : -1;
        if (other >= 0 && this.kind(other) === kind) found.push(other);
      }
    }
    return found;
  }

  waitedFor(bar) {
    const { waitStage, waitKind, waitMicrobatch } = this.column;
    if (waitStage[bar] < 0) return null;
    const stage = waitStage[bar], kind = this.kinds[waitKind[bar]], m = waitMicrobatch[bar];
    return { name: `${stage}${kind}${m}`, bar: this.find(stage, kind, m) };
  }

  /** The place in a row of the last bar that starts at `time` or before; -1 before the first. */
  before(row, time) {
    let low = 0, high = row.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.column.start[row[middle]] <= time) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }

  /** For each rank where its steady phase begins (the first backward starts) and ends (the last forward ends). */
  phases(rank) {
    const row = this.row(rank), { holds } = this.rule;
    if (!row.length) return null;
    const forward = (bar) => holds.includes(this.kind(bar));
    const first = row.findIndex((bar) => !forward(bar));
    let last = row.length - 1;
    while (last >= 0 && !forward(row[last])) last--;
    const { start, end } = this.column, begin = start[row[0]], stop = end[row[row.length - 1]];
    const steady = first < 0 ? stop : start[row[first]];
    return [begin, steady, Math.max(steady, last < 0 ? steady : end[row[last]]), stop];
  }

  /** What each rank holds over time: [times, amounts], measured bytes if they were given, else micro-batches. */
  memory() {
    if (this.curves) return this.curves;
    if (this.held) return this.held;
    const { start, end } = this.column, { holds, releases } = this.rule;
    this.held = Array.from({ length: this.header.ranks }, (_, rank) => {
      const times = [], amounts = [], chunks = Math.max(this.header.chunks[rank], 1);
      let held = 0;
      for (const bar of this.row(rank)) {
        if (holds.includes(this.kind(bar))) {
          if (times[times.length - 1] === start[bar] && amounts[amounts.length - 1] <= held / chunks) {
            times.pop(); // what is given up and taken at one time leaves no dip
            amounts.pop();
          }
          times.push(start[bar]);
          amounts.push(++held / chunks);
        } else if (releases.includes(this.kind(bar))) {
          times.push(end[bar]);
          amounts.push(--held / chunks);
        }
      }
      return [times, amounts];
    });
    return this.held;
  }
}

const ARRAYS = { "<f8": Float64Array, "<i4": Int32Array, "<u2": Uint16Array, "|u1": Uint8Array };

/** The header and the columns of a block that `columns.py` wrote. */
export function readBlock(block) {
  const view = block instanceof DataView ? block : new DataView(block.buffer || block);
  const whole = view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength);
  const length = new DataView(whole).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(whole, 4, length)));
  const columns = {};
  let place = 4 + length;
  for (const [name, type, count] of header.columns) {
    place = Math.ceil(place / 8) * 8;
    columns[name] = new ARRAYS[type](whole, place, count);
    place += columns[name].byteLength;
  }
  return { header, columns };
}

/** Curves that lie one behind the other as (time, amount) pairs. */
function cut(pairs, lengths) {
  let place = 0;
  return lengths.map((length) => {
    const own = pairs.subarray(2 * place, 2 * (place += length));
    return [own.filter((_, i) => i % 2 === 0), own.filter((_, i) => i % 2 === 1)];
  });
}

// ------------------------------------------------------------------------------------------------ where things are

/** Pixels of everything, for one width and one window of time. */
class Frame {
  constructor(bars, width, from, to) {
    const ranks = bars.header.ranks;
    this.width = width;
    this.left = GUTTER;
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
    this.memoryTop = this.bottom + GAP;
    this.memoryBottom = this.memoryTop + MEMORY;
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

// ---------------------------------------------------------------------------------------------------- how it looks

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
  if (shape === "-") { g.moveTo(0, TILE / 2); g.lineTo(TILE, TILE / 2); }
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

  of(kind, late) {
    const name = `${kind}${late}`;
    if (!this.made.has(name)) {
      const look = this.style.kinds[kind] || (kind.startsWith("SEND") ? { ...this.style.other, hatch: "" } : this.style.other);
      const tile = look.hatch && hatch(look.hatch, look.hatch_colour);
      this.made.set(name, { ...look, colour: late ? lighter(look.colour) : look.colour, tile, pattern: null });
    }
    return this.made.get(name);
  }

  words(kind) {
    return (this.style.kinds[kind] || { words: kind.replace("_F", " activations").replace("_B", " gradients").toLowerCase() }).words;
  }

  line(turn) {
    return { colour: this.ground.ranks[turn % this.ground.ranks.length], dash: this.dashes[this.style.dashes[turn % this.style.dashes.length]] };
  }
}

/** All that does not follow the pointer: tracks, bars, phases, memory, axes. */
function paintGround(g, bars, frame, paints) {
  const { ground } = paints;
  g.clearRect(0, 0, frame.width, frame.height);
  g.font = FONT;
  g.textBaseline = "middle";
  paintAxis(g, bars, frame, paints);
  g.save();
  g.beginPath();
  g.rect(frame.left, frame.top, frame.right - frame.left, frame.bottom - frame.top);
  g.clip();
  g.fillStyle = ground.idle;
  for (let rank = 0; rank < bars.header.ranks; rank++) g.fillRect(frame.left, frame.y(rank), frame.right - frame.left, frame.bar);
  paintBars(g, bars, frame, paints);
  if (frame.bar >= 8) paintPhases(g, bars, frame, paints);
  g.restore();
  paintMemory(g, bars, frame, paints);
}

/** Bars by look, so that the colour is changed a few times only; rows with more bars than room show shares. */
function paintBars(g, bars, frame, paints) {
  const { start, end, stage, kind, lane, part } = bars.column, { ranks } = bars.header;
  const groups = new Map(), names = bars.kinds;
  const room = (frame.right - frame.left) / 2.5;
  for (let rank = 0; rank < ranks; rank++) {
    for (const which of frame.lanes) {
      const row = bars.row(rank, which);
      const low = Math.max(bars.before(row, frame.from), 0), high = bars.before(row, frame.to) + 1;
      if (high - low > room && which === 0) { paintShares(g, bars, frame, paints, rank, low, high); continue; }
      const shortest = which === 0 ? 0 : -1;
      for (let place = low; place < high; place++) {
        const bar = row[place];
        if (end[bar] <= frame.from || end[bar] - start[bar] <= shortest) continue;
        const late = bars.late(stage[bar]), name = kind[bar] * 2 + late;
        let group = groups.get(name);
        if (!group) groups.set(name, (group = { look: paints.of(names[kind[bar]], late), kind: which ? "" : names[kind[bar]], list: [] }));
        const top = frame.y(rank, lane[bar]), tall = frame.tall(lane[bar]), half = part[bar] ? tall / 2 : tall;
        group.list.push(frame.x(start[bar]), (end[bar] - start[bar]) * frame.scale, top + (part[bar] === 2 ? half : 0), half, bar);
      }
    }
  }
  for (const { look, list } of groups.values()) paintGroup(g, list, look, frame, paints);
  if (frame.bar >= 11) for (const { list, kind } of groups.values()) paintLabels(g, list, kind, bars, frame, paints);
}

function paintGroup(g, list, look, frame, paints) {
  g.fillStyle = look.colour;
  for (let i = 0; i < list.length; i += 5) g.fillRect(list[i], list[i + 2], Math.max(list[i + 1], 0.7), list[i + 3]);
  if (look.tile && frame.bar >= 5) {
    g.fillStyle = g.createPattern(look.tile, "repeat");
    for (let i = 0; i < list.length; i += 5) if (list[i + 1] >= 4) g.fillRect(list[i], list[i + 2], list[i + 1], list[i + 3]);
  }
  if (frame.bar < 5) return;
  g.fillStyle = paints.ground.edge; // one line between neighbours
  for (let i = 0; i < list.length; i += 5) if (list[i + 1] >= 3) g.fillRect(list[i] + list[i + 1] - 0.8, list[i + 2], 0.8, list[i + 3]);
}

function paintLabels(g, list, kind, bars, frame, paints) {
  const { microbatch } = bars.column;
  g.fillStyle = paints.ink;
  g.textAlign = "center";
  for (let i = 0; i < list.length; i += 5) {
    if (list[i + 3] < 11 || list[i + 1] < 9) continue;
    const left = Math.max(list[i], frame.left), right = Math.min(list[i] + list[i + 1], frame.right);
    const number = String(microbatch[list[i + 4]]), room = right - left;
    const text = room >= 12 + 7 * number.length ? kind + number : room >= 4 + 6.7 * number.length ? number : "";
    if (text) g.fillText(text, (left + right) / 2, list[i + 2] + list[i + 3] / 2 + 0.5);
  }
}

/** More bars than room: each column of pixels is divided as its time is, what is left of it was idle. */
function paintShares(g, bars, frame, paints, rank, low, high) {
  const { start, end, stage, kind } = bars.column, row = bars.row(rank);
  const wide = Math.min(Math.ceil(bars.header.ranks / 8), 8), looks = 2 * bars.kinds.length;
  const columns = Math.ceil((frame.right - frame.left) / wide), scale = frame.scale / wide;
  const filled = new Float32Array(columns * looks);
  for (let place = low; place < high; place++) {
    const bar = row[place], name = kind[bar] * 2 + bars.late(stage[bar]), share = bars.column.part[bar] ? 0.5 : 1;
    const from = Math.max((start[bar] - frame.from) * scale, 0), to = Math.min((end[bar] - frame.from) * scale, columns);
    for (let column = Math.floor(from); column < to; column++) {
      filled[column * looks + name] += share * (Math.min(to, column + 1) - Math.max(from, column));
    }
  }
  const below = new Float32Array(columns).fill(frame.y(rank) + frame.bar);
  for (let name = 0; name < looks; name++) {
    g.fillStyle = paints.of(bars.kinds[name >> 1], name & 1).colour;
    for (let column = 0; column < columns; column++) {
      const tall = filled[column * looks + name] * frame.bar;
      if (tall > 0.05) g.fillRect(frame.left + column * wide, (below[column] -= tall), wide, tall);
    }
  }
  frame.crowded = true;
}

/** Under each row a line: dotted in the warm-up, solid in the steady phase, dashed in the cool-down. */
function paintPhases(g, bars, frame, paints) {
  g.strokeStyle = paints.ground.ink;
  g.lineWidth = 1.5;
  for (let rank = 0; rank < bars.header.ranks; rank++) {
    const times = bars.phases(rank);
    if (!times) continue;
    const y = frame.y(rank) + frame.bar + (frame.lanes.length > 1 ? 0.5 : 2);
    [[1.5, 3], [], [6, 3]].forEach((dash, turn) => {
      g.setLineDash(dash);
      g.beginPath();
      g.moveTo(frame.x(times[turn]), y);
      g.lineTo(frame.x(times[turn + 1]), y);
      if (times[turn + 1] > times[turn]) g.stroke();
    });
  }
  g.setLineDash([]);
}

function paintAxis(g, bars, frame, paints) {
  const { ground } = paints, { header } = bars;
  g.fillStyle = ground.ink;
  g.textAlign = "right";
  const every = Math.ceil(16 / frame.each);
  for (let rank = 0; rank < header.ranks; rank += every) g.fillText(`rank ${rank}`, frame.left - 8, frame.y(rank) + Math.max(frame.bar, 8) / 2);
  if (frame.thin && frame.lanes.length > 1 && frame.each > 40) {
    g.font = "8px Helvetica, Arial, sans-serif";
    for (const lane of frame.lanes.slice(1)) {
      for (let rank = 0; rank < header.ranks; rank++) g.fillText(bars.lanes[lane], frame.left - 8, frame.y(rank, lane) + frame.thin / 2);
    }
    g.font = FONT;
  }
  g.textAlign = "center";
  g.strokeStyle = ground.grid;
  g.lineWidth = 1;
  for (const tick of ticks(frame.from, frame.to, (frame.right - frame.left) / 90)) {
    const x = Math.round(frame.x(tick)) + 0.5;
    g.beginPath();
    g.moveTo(x, frame.top);
    g.lineTo(x, frame.memoryBottom + 4);
    g.stroke();
    g.fillText(digits(tick), x, frame.memoryBottom + 12);
  }
  g.fillText(`${header.clock || "time"} (${header.unit || "in the unit of the costs"})`, (frame.left + frame.right) / 2, frame.memoryBottom + 28);
}

/** One step line a rank, the later the thinner, so that none hides another; and the limit. */
function paintMemory(g, bars, frame, paints) {
  const { ground } = paints, { ranks, limits } = bars.header, curves = bars.memory();
  const shown = ranks <= 8 ? [...Array(ranks).keys()] : Array.from({ length: 8 }, (_, i) => Math.round((i * (ranks - 1)) / 7));
  let most = limits ? Math.max(...limits) : 0;
  for (const rank of shown) for (const amount of curves[rank][1]) if (amount > most) most = amount;
  const [size, unit] = bars.curves ? [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"], [1, "bytes"]].find(([bytes]) => most >= bytes || bytes === 1) : [1, "micro-batches"];
  most = (most / size || 1) * 1.12;
  const y = (amount) => frame.memoryBottom - (amount / size / most) * MEMORY;
  g.textAlign = "right";
  for (const tick of ticks(0, most, 4)) {
    if (!bars.curves && tick % 1) continue;
    const line = Math.round(y(tick * size)) + 0.5;
    g.strokeStyle = ground.grid;
    g.beginPath(); g.moveTo(frame.left, line); g.lineTo(frame.right, line); g.stroke();
    g.fillStyle = ground.ink;
    g.fillText(digits(tick), frame.left - 8, line);
  }
  g.save();
  g.translate(12, (frame.memoryTop + frame.memoryBottom) / 2);
  g.rotate(-Math.PI / 2);
  g.textAlign = "center";
  g.fillText(bars.curves ? `memory, ${unit}` : "in flight", 0, bars.curves ? 0 : -4);
  if (!bars.curves) { g.font = "10px Helvetica, Arial, sans-serif"; g.fillText(unit, 0, 9); }
  g.restore();
  g.save();
  g.beginPath();
  g.rect(frame.left, frame.memoryTop - 4, frame.right - frame.left, MEMORY + 8);
  g.clip();
  shown.forEach((rank, turn) => {
    const line = paints.line(turn);
    paintCurve(g, curves[rank], frame, y, line, 4 - (2.4 * turn) / Math.max(shown.length - 1, 3));
    if (limits) paintCurve(g, curves[rank], frame, y, { colour: ground.alarm, dash: [] }, 5, limits[rank]);
  });
  g.restore();
  if (limits) paintLimits(g, frame, y, limits, paints);
  g.textAlign = "left";
  shown.forEach((rank, turn) => {
    const line = paints.line(turn), at = frame.memoryTop + 7 + turn * 14;
    g.strokeStyle = line.colour;
    g.setLineDash(line.dash);
    g.lineWidth = 2;
    g.beginPath(); g.moveTo(frame.right + 6, at); g.lineTo(frame.right + 26, at); g.stroke();
    g.setLineDash([]);
    g.fillStyle = ground.ink;
    g.fillText(`rank ${rank}`, frame.right + 30, at);
  });
}

/** The steps of a curve; with `above`, only where it is higher than that. */
function paintCurve(g, [times, amounts], frame, y, line, width, above = null) {
  g.strokeStyle = line.colour;
  g.lineWidth = width;
  g.setLineDash(line.dash);
  g.beginPath();
  let pen = above === null;
  if (pen) g.moveTo(frame.left, y(0));
  let last = -1, most = 0;
  for (let i = 0; i < times.length; i++) {
    const x = frame.x(times[i]), before = i ? amounts[i - 1] : 0;
    if (above === null) {
      if (x < frame.left - 2 && i + 1 < times.length && frame.x(times[i + 1]) < frame.left) continue;
      if (x > frame.right + 2) { g.lineTo(x, y(before)); break; }
      if (Math.round(x) === last && i + 1 < times.length && Math.round(frame.x(times[i + 1])) === last) {
        most = Math.max(most, amounts[i]); // several steps in one pixel: the highest counts
        continue;
      }
      if (most > amounts[i]) g.lineTo(x, y(most));
      most = 0;
      last = Math.round(x);
      g.lineTo(x, y(before));
      g.lineTo(x, y(amounts[i]));
      if (i + 1 === times.length) g.lineTo(Math.max(frame.x(frame.to), x), y(amounts[i]));
    } else if (amounts[i] > above && i + 1 < times.length) {
      g.moveTo(x, y(amounts[i]));
      g.lineTo(frame.x(times[i + 1]), y(amounts[i]));
    }
  }
  g.stroke();
  g.setLineDash([]);
}

function paintLimits(g, frame, y, limits, paints) {
  g.strokeStyle = g.fillStyle = paints.ground.alarm;
  g.lineWidth = 1.5;
  g.setLineDash([9, 4]);
  for (const limit of new Set(limits)) {
    const at = y(limit);
    g.beginPath(); g.moveTo(frame.left, at); g.lineTo(frame.right, at); g.stroke();
    g.textAlign = "right";
    g.fillText(`limit ${digits(limit)}`, frame.right - 4, at - 8);
  }
  g.setLineDash([]);
}

// ------------------------------------------------------------------------------------------- what follows the pointer

/** What is lit, asked for or pointed at, on a canvas above the ground. */
function paintAbove(g, bars, frame, paints, view) {
  const { ground } = paints;
  g.clearRect(0, 0, frame.width, frame.height);
  g.font = FONT;
  g.textBaseline = "middle";
  paintBand(g, bars, frame, paints, view.rank);
  g.save();
  g.beginPath();
  g.rect(frame.left, 0, frame.right - frame.left, frame.memoryBottom);
  g.clip();
  if (view.now !== null) paintNow(g, frame, ground, view.now);
  if (view.arrows) paintArrows(g, bars, frame, ground);
  if (view.selected >= 0) paintLit(g, bars, frame, paints, view.selected);
  for (const ghost of view.ghosts) paintGhost(g, frame, paints, ghost);
  if (view.at >= 0) {
    const [top, tall] = frame.span(bars, view.at);
    g.strokeStyle = ground.ink;
    g.lineWidth = 2;
    g.strokeRect(frame.x(bars.column.start[view.at]) + 1, top + 1, Math.max((bars.column.end[view.at] - bars.column.start[view.at]) * frame.scale - 2, 1), tall - 2);
  }
  if (view.cursor !== null) {
    g.strokeStyle = ground.ink;
    g.lineWidth = 1;
    g.beginPath(); g.moveTo(frame.x(view.cursor), frame.top); g.lineTo(frame.x(view.cursor), frame.memoryBottom); g.stroke();
  }
  g.restore();
  if (view.focused && view.at < 0) {
    g.strokeStyle = ground.ink;
    g.lineWidth = 2;
    g.strokeRect(1, frame.y(view.rank) - 1, frame.left - 4, frame.bar + 2);
  }
}

/** Above the rows: where the phases of one rank begin. */
function paintBand(g, bars, frame, paints, rank) {
  const times = rank < bars.header.ranks ? bars.phases(rank) : null;
  if (!times) return;
  g.fillStyle = g.strokeStyle = paints.ground.ink;
  g.lineWidth = 1;
  g.font = "11px Helvetica, Arial, sans-serif";
  g.textAlign = "right";
  g.fillText(`rank ${rank}:`, frame.left - 8, 8);
  g.textAlign = "center";
  if (frame.crowded) {
    g.textAlign = "left";
    g.fillText("zoom in", frame.right + 6, 8);
    g.textAlign = "center";
  }
  ["warm-up", "steady", "cool-down"].forEach((name, turn) => {
    const from = Math.max(frame.x(times[turn]), frame.left), to = Math.min(frame.x(times[turn + 1]), frame.right);
    if (to - from < 3) return;
    g.beginPath(); g.moveTo(from + 0.5, 15); g.lineTo(from + 0.5, 11); g.moveTo(to - 0.5, 11); g.lineTo(to - 0.5, 15);
    g.moveTo(from + 0.5, 15); g.lineTo(to - 0.5, 15); g.stroke();
    if (to - from > 6 * name.length + 6) g.fillText(name, (from + to) / 2, 7);
  });
}

function paintNow(g, frame, ground, now) {
  const x = frame.x(now);
  g.globalAlpha = 0.78;
  g.fillStyle = ground.paper;
  g.fillRect(Math.max(x, frame.left), frame.top, frame.right, frame.memoryBottom - frame.top);
  g.globalAlpha = 1;
  g.strokeStyle = ground.alarm;
  g.lineWidth = 2;
  g.beginPath(); g.moveTo(x, frame.top); g.lineTo(x, frame.memoryBottom); g.stroke();
}

/** From each departure of a message to its arrival; without messages, from each result to who needs it elsewhere. */
function arrows(bars, from, to) {
  const { start, end, rank, stage, microbatch, lane } = bars.column, found = [];
  const sends = bars.lanes.indexOf("send"), width = bars.lanes.length;
  const which = bars.used.has(sends) ? sends : 0;
  for (let own = 0; own < bars.header.ranks; own++) {
    const row = bars.rows[own * width + which];
    for (let place = Math.max(bars.before(row, from) - 1, 0); place < row.length && start[row[place]] < to; place++) {
      const bar = row[place];
      if (which === sends) {
        const [step, receive] = bars.rule.feeds[bars.kind(bar)] || [];
        const other = receive ? receiver(bars, stage[bar] + step, receive, microbatch[bar]) : -1;
        if (other >= 0) found.push([start[bar], own, end[bar], rank[other], bars.kind(bar) === "SEND_F"]);
      } else {
        for (const need of bars.needs(bar)) {
          if (rank[need] !== own && lane[need] === 0) found.push([end[need], rank[need], start[bar], own, bars.rule.holds.includes(bars.kind(need))]);
        }
      }
      if (found.length > MOST_ARROWS) return null;
    }
  }
  return found;
}

/** Any bar on the rank that receives. */
function receiver(bars, stage, kind, microbatch) {
  for (const name of [kind, ...bars.rule.holds]) {
    const bar = bars.find(stage, name, microbatch);
    if (bar >= 0) return bar;
  }
  return -1;
}

function paintArrows(g, bars, frame, ground) {
  const found = arrows(bars, frame.from, frame.to);
  if (!found) return;
  g.strokeStyle = g.fillStyle = ground.ink;
  g.lineWidth = 1.2;
  for (const [from, sender, to, taker, forward] of found) {
    g.setLineDash(forward ? [] : [4, 3]);
    drawArrow(g, frame.x(from), frame.y(sender) + frame.bar / 2, frame.x(to), frame.y(taker) + frame.bar / 2, ground.paper);
  }
  g.setLineDash([]);
}

/** A line with a halo in the colour of the paper, so that it is seen on every bar. */
function drawArrow(g, x0, y0, x1, y1, halo) {
  const angle = Math.atan2(y1 - y0, x1 - x0), colour = g.strokeStyle, width = g.lineWidth;
  const line = () => { g.beginPath(); g.moveTo(x0, y0); g.lineTo(x1, y1); g.stroke(); };
  g.strokeStyle = halo;
  g.lineWidth = width + 2.5;
  line();
  g.strokeStyle = colour;
  g.lineWidth = width;
  line();
  g.beginPath();
  g.moveTo(x1, y1);
  g.lineTo(x1 - 7 * Math.cos(angle - 0.45), y1 - 7 * Math.sin(angle - 0.45));
  g.lineTo(x1 - 7 * Math.cos(angle + 0.45), y1 - 7 * Math.sin(angle + 0.45));
  g.fill();
}

/** The selected bar, what it needs and what needs it; all else is dimmed. */
function paintLit(g, bars, frame, paints, selected) {
  const { ground } = paints, needs = bars.needs(selected), serves = bars.serves(selected);
  g.globalAlpha = 0.72;
  g.fillStyle = ground.paper;
  g.fillRect(frame.left, frame.top, frame.right - frame.left, frame.bottom - frame.top);
  g.globalAlpha = 1;
  const { start, end, rank } = bars.column;
  const middle = (bar) => { const [top, tall] = frame.span(bars, bar); return top + tall / 2; };
  for (const bar of [...needs, ...serves, selected]) {
    const [top, tall] = frame.span(bars, bar), long = Math.max((end[bar] - start[bar]) * frame.scale, 2);
    const look = paints.of(bars.kind(bar), bars.late(bars.column.stage[bar]));
    paintGroup(g, [frame.x(start[bar]), long, top, tall, bar], look, frame, paints);
    if (tall >= 11) paintLabels(g, [frame.x(start[bar]), long, top, tall, bar], bars.kind(bar), bars, frame, paints);
    g.strokeStyle = ground.ink;
    g.lineWidth = bar === selected ? 3 : 1.5;
    g.setLineDash(serves.includes(bar) ? [4, 3] : []);
    g.strokeRect(frame.x(start[bar]), top, long, tall);
  }
  g.strokeStyle = g.fillStyle = ground.ink;
  g.lineWidth = 1.6;
  for (const [from, to] of [...needs.map((need) => [need, selected]), ...serves.map((served) => [selected, served])]) {
    if (rank[from] === rank[to] && start[to] - end[from] < 2 / frame.scale) continue;
    g.setLineDash(from === selected ? [4, 3] : []);
    drawArrow(g, frame.x(end[from]), middle(from), frame.x(start[to]), middle(to), ground.paper);
  }
  g.setLineDash([]);
}

/** What could be placed next: a dashed outline. */
function paintGhost(g, frame, paints, ghost) {
  const [x, top, wide, tall] = ghostBox(frame, ghost);
  g.fillStyle = paints.of(ghost.kind, 0).colour;
  g.globalAlpha = ghost.ready ? 0.45 : 0.12;
  g.fillRect(x, top, wide, tall);
  g.globalAlpha = 1;
  g.strokeStyle = ghost.ready ? paints.ground.ink : paints.ground.grid;
  g.lineWidth = 1.3;
  g.setLineDash([4, 3]);
  g.strokeRect(x + 1, top + 1, wide - 2, tall - 2);
  g.setLineDash([]);
  g.fillStyle = paints.ground.ink;
  g.textAlign = "center";
  if (tall >= 10 && wide >= 22) g.fillText(`${ghost.kind}${ghost.microbatch}`, x + wide / 2, top + tall / 2 + 0.5);
}

function ghostBox(frame, ghost) {
  return [frame.x(ghost.start) + 3 + ghost.turn * 33, frame.y(ghost.rank), 30, frame.bar];
}

// ---------------------------------------------------------------------------------------------------- what one can do

const HELP = "Keys: left and right to the next action, up and down to another rank, Enter to light its dependencies, "
  + "Escape to put the light out, + and - to zoom, 0 to see all, Shift with left and right to pan, m for messages, Home and End. "
  + "Pointer: drag to pan, Ctrl and wheel (or Shift and drag) to zoom, double click to see all, click to select.";

/** A timeline in a page element. `tell(event)` hears of what the reader does: select, rank, place, missing, text. */
export class Timeline {
  constructor(element, { style, rule, tell = () => {} }) {
    this.tell = tell;
    this.style = style;
    this.bars = new Bars(rule, style.lanes);
    Object.assign(this, { from: 0, to: 1, fitted: true, cursor: null, at: -1, selected: -1, rank: 0 });
    Object.assign(this, { arrows: false, now: null, ghosts: [], focused: false, due: 0, painted: 0, retries: 0, placing: false, heading: [] });
    this.build(element);
    this.recolour();
    this.watch();
  }

  // --- the page

  build(element) {
    const make = (tag, name, parent = this.root, text = "") => {
      const made = document.createElement(tag);
      made.className = `pipelab-${name}`;
      made.textContent = text;
      parent?.append(made);
      return made;
    };
    this.root = make("div", "timeline", null);
    this.root.timeline = this; // for whoever wants to ask it from the browser's console
    this.head = make("div", "head");
    const words = make("div", "words", this.head);
    this.title = make("div", "title", words);
    this.figures = make("div", "figures", words);
    this.tools = make("div", "tools", this.head);
    this.tools.setAttribute("role", "group");
    this.tools.setAttribute("aria-label", "view");
    const button = (text, label, act) => {
      const made = make("button", "button", this.tools, text);
      made.type = "button";
      made.title = label;
      made.setAttribute("aria-label", label);
      made.onclick = act;
      return made;
    };
    button("−", "zoom out", () => this.zoom(1.5));
    button("+", "zoom in", () => this.zoom(1 / 1.5));
    button("all", "see the whole step", () => this.fit());
    this.messages = button("messages", "draw messages as arrows", () => this.toggleArrows());
    this.messages.setAttribute("aria-pressed", "false");
    this.helping = button("?", "keys and gestures", () => this.toggleHelp());
    this.helping.setAttribute("aria-expanded", "false");
    this.legend = make("div", "legend");
    this.stage = make("div", "stage");
    this.stage.tabIndex = 0;
    this.stage.setAttribute("role", "application");
    this.stage.setAttribute("aria-roledescription", "timeline");
    this.stage.dataset.lmSuppressShortcuts = "true"; // the notebook's own keys rest while this has the focus
    this.ground = make("canvas", "ground", this.stage);
    this.above = make("canvas", "above", this.stage);
    this.tip = make("div", "tip", this.stage);
    this.tip.hidden = true;
    this.readout = make("div", "readout");
    this.said = make("div", "said");
    this.said.setAttribute("aria-live", "polite");
    this.help = make("div", "help", this.root, HELP);
    this.help.hidden = true;
    this.details = make("details", "details");
    make("summary", "summary", this.details, "the same as text");
    this.text = make("pre", "text", this.details);
    this.text.tabIndex = 0;
    this.details.ontoggle = () => this.details.open && this.tell({ type: "text" });
    element.append(this.root);
  }

  watch() {
    const on = (name, act, options) => this.stage.addEventListener(name, act, options);
    on("pointermove", (event) => this.move(event));
    on("pointerleave", () => { this.cursor = null; this.at = this.focused ? this.at : -1; this.tip.hidden = true; this.request("above"); });
    on("pointerdown", (event) => this.press(event));
    on("pointerup", (event) => this.release(event));
    on("dblclick", () => this.fit());
    on("wheel", (event) => this.wheel(event), { passive: false });
    on("keydown", (event) => this.key(event));
    on("focus", () => { this.focused = this.stage.matches(":focus-visible"); this.request("above"); });
    on("blur", () => { this.focused = false; this.request("above"); });
    this.sizes = new ResizeObserver(() => this.request("ground"));
    this.sizes.observe(this.stage);
    this.theme = new MutationObserver(() => this.recolour());
    for (const node of [document.documentElement, document.body]) this.theme.observe(node, { attributes: true });
    this.night = matchMedia("(prefers-color-scheme: dark)");
    this.onNight = () => this.recolour();
    this.night.addEventListener("change", this.onNight);
  }

  close() {
    this.sizes.disconnect();
    this.theme.disconnect();
    this.night.removeEventListener("change", this.onNight);
    cancelAnimationFrame(this.due);
    this.root.remove();
  }

  /** Light or dark: as the notebook is, else as the reader's system is. */
  recolour() {
    const jupyter = document.body.dataset.jpThemeLight, { classList } = document.body;
    const dark = jupyter ? jupyter === "false" : classList.contains("vscode-dark") || (!classList.contains("vscode-light") && this.prefersDark());
    if (this.paints && dark === this.dark) return;
    this.dark = dark;
    this.paints = new Paints(this.style, dark);
    this.root.dataset.theme = dark ? "dark" : "light";
    for (const name of ["ink", "grid", "idle", "paper", "alarm"]) this.root.style.setProperty(`--${name}`, this.paints.ground[name]);
    this.showLegend();
    this.request("ground");
  }

  prefersDark() {
    return matchMedia("(prefers-color-scheme: dark)").matches;
  }

  // --- data

  /** Show this trace in place of what was there. */
  show(block) {
    const name = this.selected >= 0 ? this.bars.key(this.selected) : null;
    this.bars.replace(block);
    this.at = -1;
    this.selected = name ? this.bars.find(...name.split(" ")) : -1;
    if (this.rank >= this.bars.header.ranks) this.rank = 0;
    this.fitted = true;
    this.tip.hidden = true;
    this.fresh();
  }

  /** Add further bars to a trace that grows. */
  append(block) {
    if (!this.bars.append(block)) this.tell({ type: "missing", from: this.bars.count });
    else this.fresh();
  }

  /** Another title and other figures than the data's own. */
  entitle(heading) {
    this.heading = heading;
    const { header, count } = this.bars, [title, figures] = heading.length ? heading : [header.title, header.figures];
    this.title.textContent = title;
    this.figures.textContent = figures;
    this.stage.setAttribute("aria-label", `${title}. ${figures}. ${header.ranks} ranks, ${count} bars. ${HELP}`);
  }

  fresh() {
    this.entitle(this.heading);
    this.showLegend();
    this.window();
    if (this.details.open) this.tell({ type: "text" });
    this.request("ground");
  }

  /** The whole step, unless the reader looks at a part of it. */
  window() {
    this.length = Math.max(this.bars.header.length, this.bars.end) || 1;
    if (this.placing) this.length = Math.max(this.length * 1.25, this.length + 6); // room for what may come next
    if (this.fitted) [this.from, this.to] = [0, this.length];
  }

  showLegend() {
    const { bars, paints } = this;
    if (!paints) return;
    const order = Object.keys(this.style.kinds), used = new Set();
    const { kind, stage } = bars.column;
    let late = false;
    for (let bar = 0; bar < bars.count && used.size < bars.kinds.length; bar++) used.add(kind[bar]);
    for (let bar = 0; bar < bars.count && !late; bar++) late = bars.late(stage[bar]) === 1;
    const place = (name) => (order.includes(name) ? order.indexOf(name) : order.length);
    const names = [...used].map((code) => bars.kinds[code]).sort((one, other) => place(one) - place(other));
    const shown = `${this.dark} ${late} ${names} ${[...bars.used]}`;
    if (shown === this.legended) return;
    this.legended = shown;
    this.legend.replaceChildren();
    const entry = (text, draw) => {
      const item = document.createElement("span"), swatch = document.createElement("canvas");
      [swatch.width, swatch.height] = [22, 14];
      draw(swatch.getContext("2d"));
      item.append(swatch, text);
      this.legend.append(item);
    };
    const bar = (look) => (g) => {
      g.fillStyle = look.colour; g.fillRect(0, 0, 22, 14);
      if (look.tile) { g.fillStyle = g.createPattern(look.tile, "repeat"); g.fillRect(0, 0, 22, 14); }
    };
    const message = (name) => name.startsWith("SEND") || name.startsWith("RECV");
    for (const name of names) if (!message(name)) entry(`${name.length === 1 ? `${name} ` : ""}${paints.words(name)}`, bar(paints.of(name, 0)));
    if (bars.used.has(bars.lanes.indexOf("send"))) entry("send: a message on its way", bar(paints.of("SEND", 0)));
    if (bars.used.has(bars.lanes.indexOf("recv"))) entry("recv: waiting for one", bar(paints.of("RECV", 0)));
    if (late) entry("lighter: a later chunk", bar({ colour: lighter(paints.of("F", 0).colour) }));
    entry("idle", (g) => { g.fillStyle = paints.ground.idle; g.fillRect(0, 0, 22, 14); });
    entry("warm-up", (g) => this.sample(g, [1.5, 3]));
    entry("steady", (g) => this.sample(g, []));
    entry("cool-down", (g) => this.sample(g, [6, 3]));
  }

  sample(g, dash) {
    g.strokeStyle = this.paints.ground.ink;
    g.lineWidth = 1.5;
    g.setLineDash(dash);
    g.beginPath(); g.moveTo(0, 9); g.lineTo(22, 9); g.stroke();
  }

  // --- painting, once a frame of the screen at most

  request(what) {
    if (what === "ground") this.stale = true;
    if (this.due) return;
    this.due = requestAnimationFrame(() => { this.due = 0; this.paint(); });
  }

  paint() {
    const width = this.stage.clientWidth;
    if (!this.bars.header.ranks) return;
    if (!width) { // hidden for a moment, as while a notebook changes its theme: later sizes are observed
      if (this.retries++ < 10) setTimeout(() => this.request("ground"), 200);
      return;
    }
    this.retries = 0;
    const begun = performance.now();
    const { crowded } = this.frame || {};
    this.frame = new Frame(this.bars, width, this.from, this.to);
    this.frame.crowded = !this.stale && crowded;
    if (this.stale) paintGround(this.fresh2d(this.ground), this.bars, this.frame, this.paints);
    paintAbove(this.fresh2d(this.above), this.bars, this.frame, this.paints, this);
    this.stale = false;
    this.painted++;
    this.took = performance.now() - begun;
    this.root.dataset.bars = this.bars.count;
  }

  /** The canvas in the pixels of this screen. */
  fresh2d(canvas) {
    const ratio = window.devicePixelRatio || 1, { width, height } = this.frame;
    const [wide, tall] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (canvas.width !== wide || canvas.height !== tall) {
      [canvas.width, canvas.height] = [wide, tall];
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height}px`;
      this.stage.style.height = `${height}px`;
    }
    const g = canvas.getContext("2d");
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    return g;
  }

  // --- zoom and pan

  fit() {
    this.fitted = true;
    this.window();
    this.request("ground");
  }

  zoom(factor, around = null) {
    const middle = around ?? (this.at >= 0 ? this.bars.column.start[this.at] : (this.from + this.to) / 2);
    const length = Math.max((this.to - this.from) * factor, this.length / 1e5);
    if (length >= this.length) return this.fit();
    const share = (middle - this.from) / (this.to - this.from);
    this.look(middle - share * length, length);
  }

  /** A window of this length, kept within the step. */
  look(from, length) {
    this.fitted = false;
    this.from = Math.min(Math.max(from, 0), Math.max(this.length - length, 0));
    this.to = this.from + length;
    this.request("ground");
  }

  wheel(event) {
    const across = Math.abs(event.deltaX) > Math.abs(event.deltaY);
    if (!(event.ctrlKey || event.metaKey) && !(across && !this.fitted)) return; // the page scrolls
    event.preventDefault();
    if (across) this.look(this.from + event.deltaX / this.frame.scale, this.to - this.from);
    else this.zoom(Math.exp(event.deltaY / 300), this.frame.time(event.offsetX));
  }

  press(event) {
    if (event.button) return;
    const { offsetX: x, offsetY: y } = event;
    this.drag = { x, y, from: this.from, box: event.shiftKey, moved: false };
    this.stage.setPointerCapture(event.pointerId);
  }

  release(event) {
    const { drag } = this;
    this.drag = null;
    if (!drag) return;
    const { left, top } = this.stage.getBoundingClientRect();
    const x = event.clientX - left, y = event.clientY - top;
    if (drag.moved && drag.box) {
      const [from, to] = [this.frame.time(Math.min(x, drag.x)), this.frame.time(Math.max(x, drag.x))];
      this.look(from, Math.max(to - from, this.length / 1e5));
    }
    if (!drag.moved) this.click(x, y);
  }

  // --- pointing and selecting

  move(event) {
    if (!this.frame) return;
    const { left, top } = this.stage.getBoundingClientRect();
    const x = event.clientX - left, y = event.clientY - top;
    if (this.drag && Math.abs(x - this.drag.x) > 3) this.drag.moved = true;
    if (this.drag?.moved && !this.drag.box && !this.fitted) this.look(this.drag.from - (x - this.drag.x) / this.frame.scale, this.to - this.from);
    const inside = x >= this.frame.left && x <= this.frame.right;
    this.cursor = inside ? this.frame.time(x) : null;
    const hit = inside ? this.hit(x, y) : null;
    this.at = hit?.bar ?? -1;
    if (hit) this.rank = hit.rank;
    const ghost = this.ghostAt(x, y);
    this.showTip(ghost ? [ghost.action, ghost.why || "click to place it"] : hit ? this.describe(hit) : null, x, y);
    this.readout.textContent = inside ? this.reading() : "";
    this.request("above");
  }

  /** The bar, or the idle time between two bars, at these pixels. */
  hit(x, y) {
    const { frame, bars } = this;
    const rank = Math.floor((y - frame.top) / frame.each);
    if (rank < 0 || rank >= bars.header.ranks) return null;
    const lane = [...frame.lanes].reverse().find((one) => y >= frame.y(rank, one)) ?? 0;
    const row = bars.row(rank, lane), time = frame.time(x);
    let place = bars.before(row, time);
    const part = place >= 0 ? bars.column.part[row[place]] : 0;
    if (part && y < frame.y(rank) + frame.bar / 2 && part === 2) place--;
    if (place >= 0 && bars.column.end[row[place]] > time) return { rank, lane, bar: row[place] };
    return { rank, lane, bar: -1, time, before: place >= 0 ? row[place] : -1, after: row[place + 1] ?? -1 };
  }

  unit(value) {
    return `${digits(value)}${this.bars.header.unit ? ` ${this.bars.header.unit}` : ""}`;
  }

  /** In words: a bar with what it waited for, or idle time with its cause. */
  describe({ rank, lane, bar, before = -1, after = -1 }) {
    const { bars } = this, { start, end, stage, microbatch, lane: lanes } = bars.column;
    if (bar >= 0) {
      const kind = bars.kind(bar), label = lane === 0 ? "" : `, ${bars.lanes[lanes[bar]]}`;
      const lines = [`${bars.name(bar)} ${this.paints.words(kind)}${label}`];
      lines.push(`rank ${rank}, stage ${stage[bar]}, micro-batch ${microbatch[bar]}`);
      lines.push(`${this.unit(start[bar])} to ${this.unit(end[bar])}: ${this.unit(end[bar] - start[bar])}`);
      const cause = lane === 0 ? this.cause(bar) : "";
      return cause ? [...lines, cause] : lines;
    }
    if (lane) return null;
    const from = before >= 0 ? end[before] : 0;
    if (after < 0) return [`rank ${rank} idle: ${before < 0 ? "nothing yet" : "its work is done"}`, `from ${this.unit(from)}`];
    return [`rank ${rank} idle ${this.unit(start[after] - from)}`, this.cause(after) || `then ${bars.name(after)}`];
  }

  /** Why a bar did not start earlier. */
  cause(bar) {
    const { bars } = this, { start, end, rank } = bars.column, waited = bars.waitedFor(bar);
    if (!waited) return "";
    const row = bars.row(rank[bar]);
    let place = bars.before(row, start[bar]);
    while (place >= 0 && start[row[place]] >= start[bar]) place--;
    const long = start[bar] - (place >= 0 ? end[row[place]] : 0);
    const where = waited.bar < 0 ? "" : rank[waited.bar] === rank[bar] ? " on its own rank" : ` on rank ${rank[waited.bar]}`;
    const way = waited.bar >= 0 && start[bar] - end[waited.bar] > 1e-9 * this.length ? `, ${this.unit(start[bar] - end[waited.bar])} of it or less on its way` : "";
    return `${bars.name(bar)} waited ${this.unit(long)} for ${waited.name}${where}${way}`;
  }

  /** The time under the cursor, and what each rank holds then. */
  reading() {
    const curves = this.bars.memory(), held = [];
    for (let rank = 0; rank < Math.min(curves.length, 16); rank++) {
      const [times, amounts] = curves[rank];
      let low = 0, high = times.length;
      while (low < high) { const middle = (low + high) >> 1; if (times[middle] <= this.cursor) low = middle + 1; else high = middle; }
      held.push(low ? digits(amounts[low - 1]) : "0");
    }
    const more = curves.length > held.length ? " ..." : "";
    return `time ${this.unit(this.cursor)}   ${this.bars.curves ? "bytes held" : "in flight"}, by rank: ${held.join("  ")}${more}`;
  }

  showTip(lines, x, y) {
    this.tip.hidden = !lines;
    if (!lines) return;
    this.tip.replaceChildren(...lines.map((text, turn) => {
      const line = document.createElement(turn ? "div" : "strong");
      line.textContent = text;
      return line;
    }));
    const wide = this.tip.offsetWidth, tall = this.tip.offsetHeight, { width, height } = this.frame;
    this.tip.style.left = `${x + 16 + wide > width ? Math.max(x - wide - 12, 0) : x + 16}px`;
    this.tip.style.top = `${Math.min(y + 18, Math.max(height - tall, 0))}px`;
  }

  click(x, y) {
    const ghost = this.ghostAt(x, y);
    const hit = this.hit(x, y);
    if (hit) this.setRank(hit.rank);
    if (ghost) return this.tell({ type: "place", rank: ghost.rank, action: ghost.action });
    this.select(hit && x >= this.frame.left && hit.bar !== this.selected ? hit.bar : -1);
  }

  ghostAt(x, y) {
    return this.ghosts.find((one) => {
      const [left, top, wide, tall] = ghostBox(this.frame, one);
      return x >= left && x <= left + wide && y >= top && y <= top + tall;
    });
  }

  setRank(rank) {
    this.rank = rank;
    this.tell({ type: "rank", rank });
  }

  select(bar) {
    this.selected = bar;
    const { bars } = this;
    this.tell({ type: "select", action: bar >= 0 ? bars.name(bar) : "" });
    if (bar >= 0) {
      const list = (found) => found.map((other) => bars.name(other)).join(", ") || "nothing";
      this.say(`${bars.name(bar)} selected: it needs ${list(bars.needs(bar))}; it is needed by ${list(bars.serves(bar))}`);
    } else this.say("");
    this.request("above");
  }

  /** For those who listen, and below the picture for those who look. */
  say(text) {
    this.said.textContent = text;
  }

  toggleArrows() {
    this.arrows = !this.arrows;
    this.messages.setAttribute("aria-pressed", String(this.arrows));
    if (this.arrows && !arrows(this.bars, this.from, this.to)) this.say("too many messages to draw: zoom in");
    this.request("above");
  }

  toggleHelp() {
    this.help.hidden = !this.help.hidden;
    this.helping.setAttribute("aria-expanded", String(!this.help.hidden));
  }

  // --- keys

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key], turn = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    const act = {
      Enter: () => this.select(this.at === this.selected ? -1 : this.at),
      " ": () => this.select(this.at === this.selected ? -1 : this.at),
      Escape: () => { this.select(-1); this.tip.hidden = true; },
      "+": () => this.zoom(1 / 1.5), "=": () => this.zoom(1 / 1.5), "-": () => this.zoom(1.5), 0: () => this.fit(),
      m: () => this.toggleArrows(), "?": () => this.toggleHelp(),
      Home: () => this.go(0), End: () => this.go(Infinity),
    }[event.key];
    if (step && event.shiftKey) this.fitted || this.look(this.from + (step * (this.to - this.from)) / 5, this.to - this.from);
    else if (step) this.go(this.place() + step);
    else if (turn) this.turn(turn);
    else if (this.placing && /^[fbiw]$/i.test(event.key)) this.tell({ type: "place", rank: this.rank, action: event.key.toUpperCase() });
    else if (this.placing && event.key === "Backspace") this.tell({ type: "undo" });
    else if (act) act();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** The place of the bar that is pointed at in its row; before the first of all if there is none. */
  place() {
    const row = this.bars.row(this.rank);
    if (this.at >= 0 && this.bars.column.rank[this.at] === this.rank) return row.indexOf(this.at);
    return this.bars.before(row, this.from) - (this.from === 0 ? 1 : 0);
  }

  go(place) {
    const row = this.bars.row(this.rank);
    if (!row.length) return this.say(`rank ${this.rank} has done nothing yet`);
    this.point(row[Math.min(Math.max(place, 0), row.length - 1)]);
  }

  turn(by) {
    const { column, header } = this.bars;
    this.setRank(Math.min(Math.max(this.rank + by, 0), header.ranks - 1));
    const row = this.bars.row(this.rank), time = this.at >= 0 ? column.start[this.at] : this.from;
    if (row.length) this.point(row[Math.max(this.bars.before(row, time), 0)]);
    else { this.at = -1; this.say(`rank ${this.rank}, nothing yet`); this.request("above"); }
  }

  /** Point at a bar by key: bring it into view, show and say what it is. */
  point(bar) {
    const { start, end, rank, lane } = this.bars.column;
    this.at = bar;
    this.focused = true;
    this.cursor = start[bar];
    if (start[bar] < this.from || end[bar] > this.to) this.look(start[bar] - (this.to - this.from) / 2, this.to - this.from);
    this.paint();
    const lines = this.describe({ rank: rank[bar], lane: lane[bar], bar });
    this.showTip(lines, this.frame.x(start[bar]), this.frame.bottom - 12); // below the rows, so that it hides none
    this.readout.textContent = this.reading();
    this.say(lines.join(". "));
    this.request("ground");
  }
}

/** What anywidget calls for each view of a widget. */
function render({ model, el }) {
  const view = new Timeline(el, { style: model.get("looks"), rule: model.get("rule"), tell: (event) => model.send(event) });
  const follow = {
    frame: () => model.get("frame").byteLength && view.show(model.get("frame")),
    now: () => { view.now = model.get("now"); view.request("above"); },
    ghosts: () => { view.ghosts = model.get("ghosts"); view.placing = model.get("placing"); view.fit(); },
    text: () => { view.text.textContent = model.get("text"); },
    note: () => view.say(model.get("note")),
    heading: () => view.entitle(model.get("heading")),
  };
  for (const [name, act] of Object.entries(follow)) {
    act();
    model.on(`change:${name}`, act);
  }
  const grow = (message, [block]) => message.type === "append" && view.append(block);
  model.on("msg:custom", grow);
  view.tell({ type: "missing", from: view.bars.count });
  return () => {
    for (const [name, act] of Object.entries(follow)) model.off(`change:${name}`, act);
    model.off("msg:custom", grow);
    view.close();
  };
}

export default { render };
