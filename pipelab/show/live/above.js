// What is painted as the reader moves? What is lit, asked for or pointed at, on a canvas above the ground.

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
  g.fillText(`${bars.label(rank)}:`, frame.left - 8, 10);
  g.textAlign = "center";
  if (frame.crowded) {
    g.textAlign = "left";
    g.fillText("zoom in", frame.right + 6, 10);
    g.textAlign = "center";
  }
  ["warm-up", "steady", "cool-down"].forEach((name, turn) => {
    const from = Math.max(frame.x(times[turn]), frame.left), to = Math.min(frame.x(times[turn + 1]), frame.right);
    if (to - from < 3) return;
    g.beginPath(); g.moveTo(from + 0.5, 17); g.lineTo(from + 0.5, 13); g.moveTo(to - 0.5, 13); g.lineTo(to - 0.5, 17);
    g.moveTo(from + 0.5, 17); g.lineTo(to - 0.5, 17); g.stroke();
    if (to - from > 6 * name.length + 6) g.fillText(name, (from + to) / 2, 9);
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
        const other = receive ? receiver(bars, bar, stage[bar] + step, receive) : -1;
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
function receiver(bars, sent, stage, kind) {
  for (const name of [kind, ...bars.rule.holds]) {
    const bar = bars.find(bars.side(sent), stage, name, bars.column.microbatch[sent]);
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
    const look = paints.bar(bars, bar);
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
