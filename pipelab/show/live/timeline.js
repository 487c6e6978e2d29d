// What can one do with it? Zoom, pan, point, select, by pointer and by keys.
//
// One ES module in six parts, which `script.py` joins: bars, looks, ground, above, page and this one. In a notebook
// anywidget calls `render`; a page of its own calls `new Timeline`.

/** A timeline in a page element. `tell(event)` hears of what the reader does: select, rank, place, missing, text. */
export class Timeline {
  constructor(element, { style, rule, tell = () => {} }) {
    this.tell = tell;
    this.style = style;
    this.bars = new Bars(rule, style.lanes);
    Object.assign(this, { from: 0, to: 1, fitted: true, cursor: null, at: -1, selected: -1, rank: 0 });
    Object.assign(this, { arrows: false, now: null, ghosts: [], focused: false, due: 0, painted: 0, retries: 0, placing: false, heading: [], losses: [] });
    buildPage(this, element);
    this.recolour();
    this.watch();
  }

  // --- the page

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
    fillLegend(this);
    paintLoss(this, this.losses);
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

  /** The loss of each step of a run. */
  follow(losses) {
    this.losses = losses;
    paintLoss(this, losses);
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
    fillLegend(this);
    this.window();
    if (this.cursor > this.length) this.cursor = null;
    this.readout.textContent = this.cursor === null ? "" : this.reading();
    if (this.details.open) this.tell({ type: "text" });
    this.request("ground");
  }

  /** The whole step, unless the reader looks at a part of it. */
  window() {
    this.length = Math.max(this.bars.header.length, this.bars.end) || 1;
    if (this.placing) this.length = Math.max(this.length * 1.25, this.length + 6); // room for what may come next
    if (this.fitted) [this.from, this.to] = [0, this.length];
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
    if (bar >= 0 && bars.side(bar) < 0) return this.compared(bar);
    if (bar >= 0) {
      const kind = bars.kind(bar), label = lane === 0 ? "" : `, ${bars.lanes[lanes[bar]]}`;
      const lines = [`${bars.name(bar)} ${this.paints.words(kind)}${label}`];
      lines.push(`${bars.label(rank)}, stage ${stage[bar]}, micro-batch ${microbatch[bar]}`);
      lines.push(`${this.unit(start[bar])} to ${this.unit(end[bar])}: ${this.unit(end[bar] - start[bar])}`);
      const cause = lane === 0 ? this.cause(bar) : "";
      return cause ? [...lines, cause] : lines;
    }
    if (lane || (bars.header.sides && bars.header.sides[rank] < 0)) return null;
    const from = before >= 0 ? end[before] : 0;
    if (after < 0) return [`${bars.label(rank)} idle: ${before < 0 ? "nothing yet" : "its work is done"}`, `from ${this.unit(from)}`];
    return [`${bars.label(rank)} idle ${this.unit(start[after] - from)}`, this.cause(after) || `then ${bars.name(after)}`];
  }

  /** In words: how an action differs in two traces, or what a piece of the gap is. */
  compared(bar) {
    const { bars } = this, { start, end, waitStage, waitKind, waitMicrobatch } = bars.column, kind = bars.kind(bar);
    const long = this.unit(end[bar] - start[bar]);
    if (waitStage[bar] < 0) return [`${kind}: ${long}`, this.paints.words(kind)];
    const about = [waitStage[bar], bars.kinds[waitKind[bar]], waitMicrobatch[bar]];
    const lengths = [0, 1].map((side) => bars.find(side, ...about)).map((other) => (other < 0 ? "?" : this.unit(end[other] - start[other])));
    const [there, here] = bars.header.sayings, lines = [`${about.join("")} ${this.paints.words(kind)}`];
    return kind === "w" ? [...lines, `the rank was idle ${long} longer before it`] : [...lines, `${there} ${lengths[0]}, ${here} ${lengths[1]}`];
  }

  /** Why a bar did not start earlier. */
  cause(bar) {
    const { bars } = this, { start, end, rank } = bars.column, waited = bars.waitedFor(bar);
    if (!waited) return "";
    const row = bars.row(rank[bar]);
    let place = bars.before(row, start[bar]);
    while (place >= 0 && start[row[place]] >= start[bar]) place--;
    const long = start[bar] - (place >= 0 ? end[row[place]] : 0);
    const where = waited.bar < 0 ? "" : rank[waited.bar] === rank[bar] ? " on its own rank" : ` on ${bars.label(rank[waited.bar])}`;
    const way = waited.bar >= 0 && start[bar] - end[waited.bar] > 1e-9 * this.length ? `, ${this.unit(start[bar] - end[waited.bar])} of it or less on its way` : "";
    return `${bars.name(bar)} waited ${this.unit(long)} for ${waited.name}${where}${way}`;
  }

  /** The time under the cursor, and what each rank holds then. */
  reading() {
    if (this.bars.header.memory === false) return `time ${this.unit(this.cursor)}`;
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
    if (bar >= 0 && this.bars.side(bar) < 0) return;
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
    if (!row.length) return this.say(`${this.bars.label(this.rank)} has done nothing yet`);
    this.point(row[Math.min(Math.max(place, 0), row.length - 1)]);
  }

  turn(by) {
    const { column, header } = this.bars;
    this.setRank(Math.min(Math.max(this.rank + by, 0), header.ranks - 1));
    const row = this.bars.row(this.rank), time = this.at >= 0 ? column.start[this.at] : this.from;
    if (row.length) this.point(row[Math.max(this.bars.before(row, time), 0)]);
    else { this.at = -1; this.say(`${this.bars.label(this.rank)}, nothing yet`); this.request("above"); }
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

/** What anywidget calls for each widget. A run goes on while nobody looks: what grew is kept for views to come. */
export default () => {
  let grown = [];
  return {
    initialize({ model }) {
      model.on("change:frame", () => { grown = []; });
      model.on("msg:custom", (message, [block]) => message.type === "append" && grown.push(block));
    },
    render: ({ model, el }) => render(model, el, grown),
  };
};

/** What anywidget calls for each view of a widget. */
function render(model, el, grown) {
  const view = new Timeline(el, { style: model.get("looks"), rule: model.get("rule"), tell: (event) => model.send(event) });
  const follow = {
    frame: () => model.get("frame").byteLength && view.show(model.get("frame")),
    now: () => { view.now = model.get("now"); view.request("above"); },
    ghosts: () => { view.ghosts = model.get("ghosts"); view.placing = view.bars.open = model.get("placing"); view.fit(); },
    text: () => { view.text.textContent = model.get("text"); },
    note: () => view.say(model.get("note")),
    heading: () => view.entitle(model.get("heading")),
    losses: () => view.follow(model.get("losses")),
  };
  for (const [name, act] of Object.entries(follow)) {
    act();
    model.on(`change:${name}`, act);
  }
  const grow = (message, [block]) => message.type === "append" && view.append(block);
  model.on("msg:custom", grow);
  for (const block of grown) view.append(block);
  return () => {
    for (const [name, act] of Object.entries(follow)) model.off(`change:${name}`, act);
    model.off("msg:custom", grow);
    view.close();
  };
}
