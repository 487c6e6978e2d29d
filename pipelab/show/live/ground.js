// What is painted once for new data? Tracks, bars, phases, memory and axes.

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
  if (bars.header.memory !== false) paintMemory(g, bars, frame, paints);
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
        const name = which ? -which : kind[bar] * 2 + bars.late(stage[bar]);
        let group = groups.get(name);
        if (!group) groups.set(name, (group = { look: paints.bar(bars, bar), kind: which ? "" : names[kind[bar]], list: [] }));
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
  const { microbatch, waitStage, waitKind } = bars.column;
  g.fillStyle = paints.ink;
  g.textAlign = "center";
  for (let i = 0; i < list.length; i += 5) {
    if (list[i + 3] < 11 || list[i + 1] < 9) continue;
    const left = Math.max(list[i], frame.left), right = Math.min(list[i] + list[i + 1], frame.right);
    const bar = list[i + 4], change = bars.side(bar) < 0 && waitStage[bar] >= 0; // of two traces: it is named after its action
    const long = kind.length > 1 ? kind : (change ? bars.kinds[waitKind[bar]] : kind) + microbatch[bar], short = kind.length > 1 ? kind[0] : long.slice(1);
    const room = right - left;
    const text = room >= 5 + 7 * long.length ? long : room >= 4 + 6.7 * short.length ? short : "";
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
  for (let rank = 0; rank < header.ranks; rank += every) g.fillText(bars.label(rank), frame.left - 8, frame.y(rank) + Math.max(frame.bar, 8) / 2);
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
  g.globalAlpha = 0.35; // below the lines, so that one sees whose it is
  for (const rank of limits ? shown : []) paintCurve(g, curves[rank], frame, y, { colour: ground.alarm, dash: [] }, 10, limits[rank]);
  g.globalAlpha = 1;
  shown.forEach((rank, turn) => paintCurve(g, curves[rank], frame, y, paints.line(turn), 4 - (2.4 * turn) / Math.max(shown.length - 1, 3), null, bars.end));
  g.restore();
  if (limits) paintLimits(g, frame, y, limits, paints, (limit) => (bars.curves ? `${digits(limit / size)} ${unit}` : digits(limit)));
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

/** The steps of a curve, as far as they are known; with `above`, only where it is higher than that. */
function paintCurve(g, [times, amounts], frame, y, line, width, above = null, end = 0) {
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
      if (i + 1 === times.length) g.lineTo(Math.max(frame.x(end), x), y(amounts[i]));
    } else if (amounts[i] > above && i + 1 < times.length) {
      g.moveTo(x, y(amounts[i]));
      g.lineTo(frame.x(times[i + 1]), y(amounts[i]));
    }
  }
  g.stroke();
  g.setLineDash([]);
}

function paintLimits(g, frame, y, limits, paints, words) {
  g.strokeStyle = g.fillStyle = paints.ground.alarm;
  g.lineWidth = 1.5;
  g.setLineDash([9, 4]);
  for (const limit of new Set(limits)) {
    const at = y(limit);
    g.beginPath(); g.moveTo(frame.left, at); g.lineTo(frame.right, at); g.stroke();
    g.textAlign = "right";
    g.fillText(`limit ${words(limit)}`, frame.right - 4, at - 8);
  }
  g.setLineDash([]);
}
