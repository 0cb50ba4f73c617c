// Plots: what a panel draws, and when. A plot is drawn when it comes into view, and let go of when
// it has left, so that a page of a hundred panels holds but a few.
const FORWARD = {
  linear: a => a,
  log: a => -Math.log10(Math.max(1 - a, data.clip)),
  logit: a => { const p = Math.min(Math.max(a, data.clip), 1 - data.clip);
    return Math.log(p / (1 - p)); }};
const RUN = "run";
const EMBED = {mode: "vega-lite", renderer: "canvas",
  actions: {export: true, source: false, compiled: false, editor: false}};

const IDENTITY = ["model", "parameters", "run", "run_id", "learning_rate", "fraction", "epochs",
  "overrides"];
const identity = run => Object.fromEntries(
  IDENTITY.map(name => [name, valueAt(data.runs[name], run)]));

/** The points of a cell as rows. `look` gives a run's role and shade:
    (run, us) => [role, shade]. */
function pointRows(cell, axes, {families = null, look = null, lastOnly = false} = {}) {
  const {runs, evaluations} = data, at = FORWARD[axes], rows = [], out = [];
  const evaluation = unpacked(cell.evaluation), ds = unpacked(cell.ds);
  const dsError = cell.ds_error && unpacked(cell.ds_error);
  const [run, step, us, usError, last] = ["run", "step", "us", "us_error", "last"].map(
    name => unpacked(evaluations[name]));
  const family = unpacked(runs.family);
  let lowest = Infinity, smallest = data.sizes[0];
  for (let i = 0; i < ds.length; i++) {
    const e = evaluation[i], u = run[e], name = runs.families[family[u]];
    if ((families && !families.has(name)) || (lastOnly && !last[e])) continue;
    const [role, shade] = look ? look(u, us[e]) : [RUN, null];
    if (shade !== null && shade < lowest) lowest = shade;
    (role === RUN ? rows : out).push({x: at(us[e]), y: at(ds[i]), us: us[e], ds: ds[i],
      us_error: known(usError[e]), ds_error: dsError ? known(dsError[i]) : null, family: name,
      size: runs.parameters[u] || smallest, ...identity(u), step: known(step[e]),
      evaluation: last[e] ? "last" : "earlier", role, shade});
  }
  // What stands out is painted last, so on top; the rest of many families comes first.
  rows.sort((a, b) => (b.family === data.rare) - (a.family === data.rare));
  const all = rows.concat(out);
  for (const row of all) row.shade ??= Number.isFinite(lowest) ? lowest : 1;
  return all;
}

/** Values to mark in the legend of a colour scale: all of a few, else four from end to end. */
function shadeValues(values) {
  const known = [...new Set(values.filter(value => value > 0))].sort((a, b) => a - b);
  if (known.length <= 5) return known;
  const [low, high] = [known[0], known.at(-1)];
  return [0, 1, 2, 3].map(i => Number((low * (high / low) ** (i / 3)).toPrecision(2)));
}

/** Lines, {kind: {us, ds}}, as rows with places on the axes. */
function lineRows(lines, axes, shown, end) {
  const at = FORWARD[axes], rows = [];
  for (const [kind, {us, ds}] of Object.entries(lines)) {
    if (!shown.has(kind)) continue;
    for (let i = 0; i < us.length; i++) {
      if (us[i] <= end) rows.push({line: kind, us: us[i], ds: ds[i], x: at(us[i]), y: at(ds[i])});
    }
  }
  return rows;
}

/** The layers of a cell's best runs as rows, with their places on the axis of accuracy. */
function layerRows(cell, axes, families) {
  return cell.layers ? rowsWhere(cell.layers, {}).filter(
    row => !families || families.has(row.family)).map(
    row => ({...row, y: FORWARD[axes](row.ds)})) : [];
}

function bandRows(bands, axes, shown, end) {
  const at = FORWARD[axes];
  return bands.filter(band => shown.has(band.line)).map(band => ({...band, x: at(band.us),
    x_end: at(end), y: at(band.value), y_low: at(band.low_drawn), y_high: at(band.high_drawn)}));
}

/** The whole specification of a panel.
    options: style, axes, lines (a Set), families (a Set), look, lastOnly, shadeTitle, shadeValues,
    legends, ofLines and bands (in place of the cell's), width, height. */
function panelSpec(cell, options) {
  const {style = "family", axes, shown, legends = false} = options;
  const spec = structuredClone(data.templates[style][axes]);
  for (const layer of spec.layer) {
    for (const [channel, encoding] of Object.entries(layer.encoding)) {
      if (encoding.title?.includes("UPSTREAM")) {
        encoding.title = encoding.title.replace("UPSTREAM", cell.upstream);
      }
      for (const part of [encoding, encoding.condition ?? {}]) {
        if (!("legend" in part)) continue;
        // Beside a bar of shades, a small panel has no room for sizes.
        if (legends && channel === "size" && (style !== "factor" || options.width > 600)) continue;
        if (legends && part.field === "shade") {
          part.legend = {...part.legend, title: options.shadeTitle, values: options.shadeValues};
        } else {
          part.legend = null;
        }
      }
    }
  }
  const points = pointRows(cell, axes, options);
  let top = 0;
  for (const point of points) top = Math.max(top, point.us);
  const end = axes === "linear" ? 1 : 1 - (1 - top) / 2;
  const at = FORWARD[axes];
  spec.datasets = {points, layers: layerRows(cell, axes, options.families),
    lines: lineRows(options.ofLines ?? cell.lines, axes, shown, Math.max(end, top)),
    saturation: bandRows(options.bands ?? cell.saturation, axes, shown, end),
    frame: cell.frame.map(({us, ds}) => ({us, ds, x: at(us), y: at(ds)}))};
  spec.layer = spec.layer.filter(layer => spec.datasets[layer.data.name].length);
  return {...spec, width: options.width, height: options.height,
    autosize: {type: "fit", contains: "padding"},
    description: `Downstream accuracy on ${cell.task}, ${shotsName(cell.shots)}, against upstream `
      + `accuracy, ${cell.upstream}: ${points.length} points.`};
}

/** The specification of a figure of a table, its rows those of the choice, to fit a width. */
function figureSpec(name, wanted, width) {
  const {spec, rows, by} = data.figures[name];
  const fitted = structuredClone(spec);
  const chosen = rowsWhere(rows, Object.fromEntries(by.map(key => [key, wanted[key]])));
  const narrow = width < 720, inner = fitted.spec;
  fitted.config.legend.orient = narrow ? "bottom" : "right";
  if (inner.width < 400) inner.width = Math.max(150, Math.min(inner.width, width - 110));
  if (fitted.columns) {
    const names = chosen.map(row => String(row.row ?? row.task ?? "").length);
    const beside = 70 + 6 * Math.min(30, names.reduce((a, b) => Math.max(a, b), 0));
    const room = width - (narrow ? 0 : 150);
    fitted.columns = Math.max(1, Math.min(6, Math.floor(room / (inner.width + beside))));
  }
  if (Array.isArray(fitted.facet.sort)) {
    const present = new Set(chosen.map(row => row.panel));
    fitted.facet.sort = fitted.facet.sort.filter(panel => present.has(panel));
  }
  return {...fitted, datasets: {rows: chosen}};
}

let queue = Promise.resolve();

/** A place that draws `make()` whenever it is in view; `make` gives a specification or null. */
class Plot {
  constructor(node, make, after = null) {
    Object.assign(this, {node, make, after, view: null, seen: false, turn: 0});
    node.plot = this;
    Plot.observer.observe(node);
  }

  static observer = new IntersectionObserver(entries => {
    for (const {target, isIntersecting} of entries) {
      target.plot.seen = isIntersecting;
      if (isIntersecting) target.plot.draw(); else target.plot.release();
    }
  }, {rootMargin: "500px 0px"});

  /** What it shows is no longer what is chosen. */
  change() {
    this.turn += 1;
    if (this.seen) this.draw(); else this.release();
  }

  draw() {
    const turn = ++this.turn;
    queue = queue.then(async () => {
      if (turn !== this.turn) return;  // another choice was made meanwhile, or it left the view
      const spec = this.make();
      const room = made("div"), result = spec && await vegaEmbed(room, spec, EMBED);
      this.view?.finalize();
      this.view = result ? result.view : null;
      this.node.style.minHeight = "";
      this.node.replaceChildren(
        spec ? room : made("p", "Nothing to show for this choice.", "soft"));
      this.node.dataset.drawn = String(turn);
      this.after?.(this.view);
      // Between two plots the page may answer its reader.
      await new Promise(resolve => setTimeout(resolve));
    }).catch(error => { console.error(error); });
    return queue;
  }

  release() {
    this.turn += 1;
    if (!this.view) return;
    this.node.style.minHeight = `${this.node.offsetHeight}px`;
    this.view.finalize();
    this.view = null;
    this.node.replaceChildren();
    delete this.node.dataset.drawn;
  }

  remove() {
    Plot.observer.unobserve(this.node);
    this.release();
  }
}
