// What is there beside the canvases? Title, buttons, legend, and the same in words.

const HELP = "Keys: left and right to the next action, up and down to another rank, Enter to light its dependencies, "
  + "Escape to put the light out, + and - to zoom, 0 to see all, Shift with left and right to pan, m for messages, Home and End. "
  + "Pointer: drag to pan, Ctrl and wheel (or Shift and drag) to zoom, double click to see all, click to select.";

/** The elements of a timeline, in `element`: head, legend, canvases, what is said, help, text. */
function buildPage(view, element) {
  const make = (tag, name, parent = view.root, text = "") => {
    const made = document.createElement(tag);
    made.className = `pipelab-${name}`;
    made.textContent = text;
    parent?.append(made);
    return made;
  };
  view.root = make("div", "timeline", null);
  view.root.timeline = view; // for whoever wants to ask it from the browser's console
  view.head = make("div", "head");
  const words = make("div", "words", view.head);
  view.title = make("div", "title", words);
  view.figures = make("div", "figures", words);
  view.loss = make("canvas", "loss", view.head);
  view.loss.setAttribute("role", "img");
  view.loss.hidden = true;
  view.tools = make("div", "tools", view.head);
  view.tools.setAttribute("role", "group");
  view.tools.setAttribute("aria-label", "view");
  const button = (text, label, act) => {
    const made = make("button", "button", view.tools, text);
    made.type = "button";
    made.title = label;
    made.setAttribute("aria-label", label);
    made.onclick = act;
    return made;
  };
  button("−", "zoom out", () => view.zoom(1.5));
  button("+", "zoom in", () => view.zoom(1 / 1.5));
  button("all", "see the whole step", () => view.fit());
  view.messages = button("messages", "draw messages as arrows", () => view.toggleArrows());
  view.messages.setAttribute("aria-pressed", "false");
  view.helping = button("?", "keys and gestures", () => view.toggleHelp());
  view.helping.setAttribute("aria-expanded", "false");
  view.legend = make("div", "legend");
  view.stage = make("div", "stage");
  view.stage.tabIndex = 0;
  view.stage.setAttribute("role", "application");
  view.stage.setAttribute("aria-roledescription", "timeline");
  view.stage.dataset.lmSuppressShortcuts = "true"; // the notebook's own keys rest while this has the focus
  view.ground = make("canvas", "ground", view.stage);
  view.above = make("canvas", "above", view.stage);
  view.tip = make("div", "tip", view.stage);
  view.tip.hidden = true;
  view.readout = make("div", "readout");
  view.said = make("div", "said");
  view.said.setAttribute("aria-live", "polite");
  view.help = make("div", "help", view.root, HELP);
  view.help.hidden = true;
  view.details = make("details", "details");
  make("summary", "summary", view.details, "the same as text");
  view.text = make("pre", "text", view.details);
  view.text.tabIndex = 0;
  view.details.ontoggle = () => view.details.open && view.tell({ type: "text" });
  element.append(view.root);
}

/** An entry for every look that is on the screen; made anew only when they change. */
function fillLegend(view) {
  const { bars, paints } = view;
  if (!paints) return;
  const order = Object.keys(view.style.kinds), used = new Set();
  const { kind, stage, lane } = bars.column;
  let late = false;
  for (let bar = 0; bar < bars.count && used.size < bars.kinds.length; bar++) if (!lane[bar]) used.add(kind[bar]);
  for (let bar = 0; bar < bars.count && !late; bar++) late = bars.late(stage[bar]) === 1;
  const place = (name) => (order.includes(name) ? order.indexOf(name) : order.length);
  const names = [...new Set([...bars.expected("kinds"), ...[...used].map((code) => bars.kinds[code])])].sort((one, other) => place(one) - place(other));
  const shown = `${view.dark} ${late} ${names} ${[...bars.used]}`;
  if (shown === view.legended) return;
  view.legended = shown;
  view.legend.replaceChildren();
  const entry = (text, draw) => {
    const item = document.createElement("span"), swatch = document.createElement("canvas");
    [swatch.width, swatch.height] = [22, 14];
    draw(swatch.getContext("2d"));
    item.append(swatch, text);
    view.legend.append(item);
  };
  const bar = (look) => (g) => {
    g.fillStyle = look.colour; g.fillRect(0, 0, 22, 14);
    if (look.tile) { g.fillStyle = g.createPattern(look.tile, "repeat"); g.fillRect(0, 0, 22, 14); }
  };
  for (const name of names) entry(`${name}${name.length > 1 ? ":" : ""} ${paints.words(name)}`, bar(paints.of(name, 0)));
  for (const name of bars.lanes.slice(1)) if (bars.used.has(bars.lanes.indexOf(name))) entry(`${name}: ${paints.words(name)}`, bar(paints.of(name, 0)));
  if (late) entry("lighter: a later chunk", bar({ colour: lighter(paints.of("F", 0).colour) }));
  entry("idle", (g) => { g.fillStyle = paints.ground.idle; g.fillRect(0, 0, 22, 14); });
  entry("warm-up", (g) => sample(g, paints, [1.5, 3]));
  entry("steady", (g) => sample(g, paints, []));
  entry("cool-down", (g) => sample(g, paints, [6, 3]));
}

/** The loss of each step so far, small, with its first and its last value. */
function paintLoss(view, losses) {
  view.loss.hidden = losses.length < 2;
  if (view.loss.hidden) return;
  const wide = 190, tall = 46, ratio = window.devicePixelRatio || 1, g = view.loss.getContext("2d");
  [view.loss.width, view.loss.height] = [wide * ratio, tall * ratio];
  g.scale(ratio, ratio);
  const first = losses[0], last = losses[losses.length - 1], most = Math.max(...losses), least = Math.min(...losses);
  const x = (turn) => 48 + (turn / (losses.length - 1)) * (wide - 100), y = (loss) => 8 + ((most - loss) / (most - least || 1)) * (tall - 16);
  g.strokeStyle = g.fillStyle = view.paints.ground.ink;
  g.font = FONT;
  g.textBaseline = "middle";
  g.textAlign = "right";
  g.fillText(digits(first), 43, y(first));
  g.textAlign = "left";
  g.fillText(digits(last), wide - 47, y(last));
  g.lineWidth = 1.6;
  g.beginPath();
  losses.forEach((loss, turn) => g.lineTo(x(turn), y(loss)));
  g.stroke();
  view.loss.setAttribute("aria-label", `loss: ${digits(first)} in the first step, ${digits(last)} in the last`);
}

function sample(g, paints, dash) {
  g.strokeStyle = paints.ground.ink;
  g.lineWidth = 1.5;
  g.setLineDash(dash);
  g.beginPath(); g.moveTo(0, 9); g.lineTo(22, 9); g.stroke();
}
