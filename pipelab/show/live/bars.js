// What happened? The bars of a trace as columns, and what can be asked of them.

/** The bars of a trace as columns, and for each rank and lane the order of its bars. Grows by `append`. */
class Bars {
  constructor(rule, lanes) {
    this.rule = rule;
    this.lanes = lanes;
    this.open = false; // whether more is to be placed
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
    this.used = new Set([0, ...this.expected("lanes").map((lane) => this.lanes.indexOf(lane))]); // lanes with bars
    this.curves = null; // measured memory: [times, amounts] a rank
  }

  /** Of a step that goes on, the kinds and the lanes that the last one had: so nothing moves when they come. */
  expected(what) {
    return this.header.expected ? this.header.expected[what] : [];
  }

  replace(block) {
    const { header, columns } = readBlock(block);
    this.clear(header);
    this.take(header, columns);
  }

  /** Further bars, and points of memory. False when they are not the next of this step. */
  append(block) {
    const { header, columns } = readBlock(block);
    if (header.step !== this.header.step || header.first !== this.count) return false;
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
      if (this.found) this.enter(bar);
    }
    this.count = count;
    this.held = null;
    if (columns.curves) this.lengthen(columns.curves, header.curves);
  }

  /** Further points of each rank's memory; they lie one behind the other as (time, amount) pairs. */
  lengthen(points, lengths) {
    this.curves ||= lengths.map(() => [[], []]);
    let place = 0;
    lengths.forEach((length, rank) => {
      const [times, amounts] = this.curves[rank];
      for (const end = place + 2 * length; place < end; place += 2) {
        if (times[times.length - 1] === points[place] && amounts[amounts.length - 1] <= points[place + 1]) {
          times.pop(); // what is given up and taken at one time leaves no dip
          amounts.pop();
        }
        times.push(points[place]);
        amounts.push(points[place + 1]);
      }
    });
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
    if (this.side(bar) < 0 && this.kind(bar).length > 1) return this.kind(bar); // a term of a makespan
    return `${this.column.stage[bar]}${this.kind(bar)}${this.column.microbatch[bar]}`;
  }

  /** Of which trace a bar is: 0, unless two are laid over one another; -1 for what belongs to none. */
  side(bar) {
    return this.header.sides ? this.header.sides[this.column.rank[bar]] : 0;
  }

  label(rank) {
    return this.header.names ? this.header.names[rank] : `rank ${rank}`;
  }

  key(bar) {
    return `${this.side(bar)} ${this.column.stage[bar]} ${this.kind(bar)} ${this.column.microbatch[bar]}`;
  }

  /** Make a bar known by its name; a collective inside an action has that action's name, and does not hide it. */
  enter(bar) {
    const key = this.key(bar);
    if (this.column.lane[bar] === 0 || !this.found.has(key)) this.found.set(key, bar);
  }

  find(side, stage, kind, microbatch) {
    if (!this.found) {
      this.found = new Map();
      for (let bar = 0; bar < this.count; bar++) this.enter(bar);
    }
    const bar = this.found.get(`${side} ${stage} ${kind} ${microbatch}`);
    if (bar !== undefined) return bar;
    for (const [other, given] of Object.entries(this.rule.gives)) {
      if (given === kind && this.found.has(`${side} ${stage} ${other} ${microbatch}`)) return this.find(side, stage, other, microbatch);
    }
    return -1;
  }

  /** The bars that must end before this one starts. */
  needs(bar) {
    const stage = this.column.stage[bar], m = this.column.microbatch[bar], kind = this.kind(bar);
    const wanted = this.rule.carries[kind] ? [[0, this.rule.carries[kind]]] : this.rule.needs[kind] || [];
    return wanted.map(([step, need]) => this.find(this.side(bar), stage + step, need, m)).filter((other) => other >= 0);
  }

  /** The bars that need this one. */
  serves(bar) {
    const stage = this.column.stage[bar], m = this.column.microbatch[bar], given = this.kind(bar);
    const value = this.rule.gives[given] || given, found = [];
    for (const [kind, wanted] of Object.entries(this.rule.needs)) {
      for (const [step, need] of wanted) {
        const other = need === value ? this.find(this.side(bar), stage - step, kind, m) : -1;
        if (other >= 0 && this.kind(other) === kind) found.push(other);
      }
    }
    return found;
  }

  waitedFor(bar) {
    const { waitStage, waitKind, waitMicrobatch } = this.column;
    if (waitStage[bar] < 0) return null;
    const stage = waitStage[bar], kind = this.kinds[waitKind[bar]], m = waitMicrobatch[bar];
    return { name: `${stage}${kind}${m}`, bar: this.find(this.side(bar), stage, kind, m) };
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

  /** Whether this is all, and forwards alone: then each gives back what it took, and there are no phases. */
  get forwardsOnly() {
    return this.header.forwardsOnly && !this.open;
  }

  /** For each rank where its steady phase begins (the first backward starts) and ends (the last forward ends). */
  phases(rank) {
    const row = this.row(rank), { holds } = this.rule;
    if (!row.length || this.side(row[0]) < 0 || this.forwardsOnly) return null;
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
    const { start, end } = this.column, { holds, releases } = this.rule, only = this.forwardsOnly;
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
        }
        if (only || releases.includes(this.kind(bar))) {
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
