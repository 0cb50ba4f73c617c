// Tables: sorted by a click on a head, of the chosen upstream and shots or of all.
const MOST_ROWS = 300;

function shownNumber(value, whole) {
  if (whole || value === 0) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size < 1e-3 ? value.toExponential(1) : value.toFixed(size < 10 ? 4 : 1);
}

function compared(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);  // what is unknown comes last
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return typeof a === "number" ? a - b : a.localeCompare(b);
}

/** A table in a node. `wanted` gives the choice, {upstream, shots}; null: no choice to make. */
class Table {
  constructor(node, {heads, columns, any = []}, caption, wanted = null) {
    Object.assign(this, {node, heads, columns, any, caption, wanted, sorted: null, every: false,
      most: MOST_ROWS});
    this.names = Object.keys(columns);
    this.isText = this.names.map(name => !Array.isArray(columns[name]));
    this.isWhole = this.names.map((name, i) => !this.isText[i]
      && columns[name].every(value => value === null || Number.isInteger(value)));
    this.draw();
  }

  draw() {
    const chosen = this.wanted && !this.every ? this.wanted() : {};
    const rows = rowsWhere(this.columns, chosen, this.any);
    if (this.sorted) {
      const {name, sign} = this.sorted;
      rows.sort((a, b) => a[name] === null || b[name] === null ? compared(a[name], b[name])
        : sign * compared(a[name], b[name]));
    }
    const table = made("table"), body = made("tbody");
    const lines = `${rows.length} line${rows.length === 1 ? "" : "s"}`;
    const cut = rows.length > this.most ? `, of which the first ${this.most} are shown.` : ".";
    table.append(made("caption", `${this.caption} ${lines}${cut}`),
      this.head(), body);
    for (const row of rows.slice(0, this.most)) body.append(this.line(row));
    const wide = made("div", "", "wide");
    wide.tabIndex = 0;  // so that it can be scrolled by keyboard
    wide.append(table);
    this.node.replaceChildren(wide, this.buttons(rows.length));
  }

  head() {
    const line = made("tr");
    this.names.forEach((name, i) => {
      const cell = made("th", "", this.isText[i] ? "t" : "");
      const button = made("button", this.heads[i]);
      cell.scope = "col";
      button.type = "button";
      const now = this.sorted?.name === name ? this.sorted.sign : 0;
      if (now) {
        cell.setAttribute("aria-sort", now > 0 ? "ascending" : "descending");
        button.append(now > 0 ? " ▲" : " ▼");
      }
      button.addEventListener("click", () => {
        this.sorted = {name, sign: now > 0 ? -1 : 1};
        this.draw();
        this.node.querySelectorAll("th button")[i].focus();
      });
      cell.append(button);
      line.append(cell);
    });
    const head = made("thead");
    head.append(line);
    return head;
  }

  line(row) {
    const line = made("tr");
    this.names.forEach((name, i) => {
      const value = row[name];
      const words = value === null || value === undefined ? ""
        : typeof value !== "number" ? String(value)
        : shownNumber(value, this.isText[i] ? Number.isInteger(value) : this.isWhole[i]);
      const long = name === "reason" || name === "source";
      line.append(made("td", words, long ? "t why" : this.isText[i] ? "t" : ""));
    });
    return line;
  }

  buttons(total) {
    const room = made("p");
    const add = (words, act) => {
      const button = made("button", words);
      button.type = "button";
      button.addEventListener("click", () => { act(); this.draw(); });
      room.append(button, " ");
    };
    if (this.wanted && (this.every || total < lengthOf(this.columns))) {
      add(this.every ? "Only the chosen upstream and shots" : "All upstreams and shots",
        () => { this.every = !this.every; });
    }
    if (total > this.most) add("Show all lines", () => { this.most = Infinity; });
    return room;
  }
}
