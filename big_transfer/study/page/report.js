// The page: its choices, and what they change.
const $ = id => document.getElementById(id);
const SYMBOLS = {circle: "M6 1a5 5 0 1 0 .01 0z", square: "M1.5 1.5h9v9h-9z",
  "triangle-up": "M6 1l5 9.5H1z", "triangle-down": "M6 11L1 1.5h10z", diamond: "M6 0l5 6-5 6-5-6z",
  cross: "M4.2 1h3.6v3.2H11v3.6H7.8V11H4.2V7.8H1V4.2h3.2z", "triangle-right": "M1 1l10 5-10 5z"};
const SHADES = {parameters: "parameters", learning_rate: "learning rate",
  fraction: "share of upstream data", epochs: "epochs"};
const EVERY_LINE = new Set(Object.keys(data.lines));
const PLAIN = new Set(data.plain);  // of panels whose points are the matter
const UPSTREAMS = [...new Set(data.cells.map(cell => cell.upstream))];
const panels = [];  // lists of small plots: {fill}
const plots = [];  // single plots
const tables = [];

function drawing(inner, width = 12) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("width", width);
  svg.setAttribute("height", 12);
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  for (const [name, value] of Object.entries(inner)) path.setAttribute(name, value);
  svg.append(path);
  return svg;
}

function addBox(room, name, glyph) {
  const label = made("label"), box = made("input");
  box.type = "checkbox";
  box.checked = true;
  box.value = name;
  box.addEventListener("change", redraw);
  label.append(box, glyph, name);
  room.append(label);
}

const ticked = room => new Set([...room.querySelectorAll("input:checked")].map(box => box.value));

function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, words]) => {
    const option = made("option", words);
    option.value = value;
    option.selected = value === chosen;
    return option;
  }));
}

/** What is chosen: {upstream, shots, axes, families, shown}. */
function choice() {
  return {upstream: $("upstream").value, shots: JSON.parse($("shots").value),
    axes: $("axes").value, families: ticked($("families")), shown: ticked($("lines"))};
}

function chosenCells() {
  const {upstream, shots} = choice();
  return data.cells.filter(cell => cell.upstream === upstream && cell.shots === shots);
}

function fillShots(chosen) {
  const counts = [...new Set(data.cells.filter(cell => cell.upstream === $("upstream").value)
    .map(cell => cell.shots))].sort(compared);
  const kept = counts.includes(chosen) ? chosen
    : counts.filter(count => typeof count === "number").at(-1) ?? counts.at(-1);
  fill($("shots"), counts.map(count => [JSON.stringify(count), shotsName(count)]),
    JSON.stringify(kept));
  $("shots").parentElement.hidden = counts.length < 2;
}

function fillTasks() {
  const names = chosenCells().map(cell => cell.task), old = $("task").value;
  fill($("task"), names.map(name => [name, name]), names.includes(old) ? old : names[0]);
}

/** Gives runs a shade: (run) => [role, shade], from a column of runs. */
function byColumn(name) {
  const values = data.runs[name];
  return run => values[run] > 0 ? ["shaded", values[run]] : [RUN, null];
}

function mainSpec() {
  const {axes, families, shown} = choice(), colour = $("colour").value;
  const cell = chosenCells().find(other => other.task === $("task").value);
  $("finding").textContent = cell ? cell.finding : "";
  const width = $("main").clientWidth;
  return cell && panelSpec(cell, {axes, families, shown, legends: true, width,
    height: Math.max(300, Math.min(520, 0.62 * width)),
    ...(colour ? {style: "factor", look: byColumn(colour), shadeTitle: SHADES[colour],
      shadeValues: shadeValues(data.runs[colour])} : {})});
}

const PANELS = {
  all: cell => ({verdict: `${cell.verdict}`, options: {}}),
  held_out: cell => cell.held_out && {verdict: cell.held_out.verdict, options: {
    style: "role", ofLines: cell.held_out.lines, bands: [], lastOnly: true, shown: EVERY_LINE,
    look: (run, us) => [us >= Math.fround(cell.held_out.us_from) ? "held out" : RUN, null]}},
  overlay: cell => {
    if (!cell.overlay) return null;
    const marked = new Set(cell.overlay.runs);
    return {verdict: `orange: on the hull of ${cell.overlay.base}`, options: {
      style: "role", bands: [], lastOnly: true, shown: PLAIN,
      look: run => [marked.has(run) ? "on the hull" : RUN, null]}};
  },
  layers: cell => cell.layers && {options: {style: "layers", lastOnly: true, shown: PLAIN},
    verdict: "earliest: " + [...new Map(rowsWhere(cell.layers, {}).map(
      row => [row.family, row.earliest]))].map(pair => pair.join(" ")).join(", ")},
  controlled: (cell, node) => {
    const factor = data.factors[node.querySelector("select").value];
    const values = new Map(factor.runs.map((run, i) => [run, factor.values[i]]));
    return {verdict: "", options: {style: "factor", bands: [], lastOnly: true, legends: true,
      shown: PLAIN,
      shadeTitle: factor.title, shadeValues: shadeValues(factor.values),
      look: run => values.has(run) ? ["scaled", values.get(run)] : [RUN, null]}};
  }};

/** Small plots of all tasks, of one sort of `PANELS`, in a node. */
function addPanels(node) {
  const kind = node.dataset.panels;
  let mine = [];
  const grid = node;
  let control = null;
  if (kind === "controlled") {
    control = made("p", "", "bar");
    const label = made("label", "Factor "), select = made("select");
    fill(select, Object.entries(data.factors).map(([name, {title}]) => [name, title]), null);
    select.addEventListener("change", refill);
    label.append(select);
    control.append(label);
    node.before(control);
  }
  function refill() {
    mine.forEach(plot => plot.remove());
    mine = [];
    grid.replaceChildren();
    for (const cell of chosenCells()) {
      const shown = PANELS[kind](cell, control);
      if (!shown) continue;
      const panel = made("div", "", "panel"), room = made("div");
      panel.append(made("h4", cell.task), made("p", shown.verdict, "soft"), room);
      grid.append(panel);
      mine.push(new Plot(room, () => {
        const {axes, families, shown: lines} = choice(), width = room.clientWidth;
        return panelSpec(cell, {axes, families, shown: lines, width,
          height: Math.round(0.74 * Math.min(width, 460)), ...PANELS[kind](cell, control).options});
      }));
      room.style.minHeight = "270px";
    }
    if (!mine.length) grid.append(made("p", "Nothing to show for this choice.", "soft"));
  }
  panels.push({refill, redraw: () => mine.forEach(plot => plot.change())});
}

function tell() {
  const {upstream, shots} = choice();
  const said = data.findings[`${upstream}|${shots ?? ""}`] ?? {};
  for (const node of document.querySelectorAll("[data-finding]")) {
    node.textContent = said[node.dataset.finding] ?? "";
  }
}

/** Draws anew what the axes, families and lines change. */
function redraw() {
  window.study.main.change();
  panels.forEach(list => list.redraw());
}

/** Draws anew all that upstream and shots change. */
function refill() {
  fillTasks();
  tell();
  window.study.main.change();
  panels.forEach(list => list.refill());
  plots.forEach(plot => plot.change());
  tables.forEach(table => table.draw());
}

function start() {
  fill($("upstream"), UPSTREAMS.map(name => [name, name]), UPSTREAMS[0]);
  $("upstream").parentElement.hidden = UPSTREAMS.length < 2;
  fillShots(data.first_shots);
  fillTasks();
  for (const [name, [colour, shape]] of Object.entries(data.looks)) {
    addBox($("families"), name, drawing({d: SYMBOLS[shape], fill: colour}));
  }
  for (const [kind, [colour, dash]] of Object.entries(data.lines)) {
    if (data.cells.some(cell => kind in cell.lines)) {
      addBox($("lines"), kind, drawing({d: "M0 6h26", stroke: colour, "stroke-width": 2.4,
        fill: "none", "stroke-dasharray": dash[1] ? dash.join(" ") : "none"}, 26));
    }
  }
  const shaded = Object.keys(SHADES).filter(
    name => new Set(data.runs[name].filter(value => value > 0)).size > 1);
  fill($("colour"), [["", "architecture"], ...shaded.map(name => [name, SHADES[name]])], "");
  window.study = {main: new Plot($("main"), mainSpec), choice, data};
  document.querySelectorAll("[data-panels]").forEach(addPanels);
  panels.forEach(list => list.refill());
  for (const node of document.querySelectorAll("[data-figure]")) {
    const description = node.parentElement.querySelector(".what").textContent;
    plots.push(new Plot(node, () => (
      {...figureSpec(node.dataset.figure, choice(), node.clientWidth), description})));
  }
  for (const node of document.querySelectorAll("[data-table]")) addTable(node);
  tell();
  $("upstream").addEventListener("change", () => { fillShots(choice().shots); refill(); });
  $("shots").addEventListener("change", refill);
  $("axes").addEventListener("change", redraw);
  for (const id of ["task", "colour"]) {
    $(id).addEventListener("change", () => window.study.main.change());
  }
  let width = window.innerWidth, waiting = 0;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;  // a phone's bars come and go with its height
    width = window.innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(() => { redraw(); plots.forEach(plot => plot.change()); }, 200);
  });
}

function addTable(node) {
  const name = node.dataset.table;
  if (name === "runs") {
    const {run_id, run, model, parameters, learning_rate, fraction, epochs} = data.runs;
    $("runs").addEventListener("toggle", () => new Table(node, {
      heads: ["id", "name", "model", "parameters", "learning rate", "share of data", "epochs"],
      columns: {run_id, run, model, parameters, learning_rate, fraction, epochs}}, "Runs:"),
      {once: true});
    return;
  }
  const settings = () => ({upstream: choice().upstream, shots: choice().shots});
  const title = node.closest("section").querySelector("h2").textContent;
  tables.push(new Table(node, data.tables[name], `${title}:`, settings));
}

start();
