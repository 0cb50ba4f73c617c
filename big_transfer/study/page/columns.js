// The page's data: columns of numbers and texts, unpacked when they are first wanted.
const data = JSON.parse(document.getElementById("data").textContent);
const ARRAYS = {Uint8: Uint8Array, Uint16: Uint16Array, Uint32: Uint32Array,
  Float32: Float32Array};

/** The typed array of a packed column; kept, so that it is unpacked once. */
function unpacked(column) {
  if (!column.values) {
    const text = atob(column.data), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    column.values = new ARRAYS[column.kind](bytes.buffer);
    column.data = null;
  }
  return column.values;
}

/** The value of a column (a list, or words by code) in a row. */
function valueAt(column, i) {
  return Array.isArray(column) ? column[i] : column.words[unpacked(column.codes)[i]];
}

function lengthOf(columns) {
  const first = Object.values(columns)[0];
  return Array.isArray(first) ? first.length : unpacked(first.codes).length;
}

/** Rows, as objects, of the lines in which every given column has its given value; in the columns
    of `any`, nothing at all will do as well. */
function rowsWhere(columns, wanted, any = []) {
  const names = Object.keys(columns), rows = [];
  const tests = Object.entries(wanted).filter(([name]) => name in columns);
  for (let i = 0, n = lengthOf(columns); i < n; i++) {
    if (tests.every(([name, value]) => {
      const here = valueAt(columns[name], i);
      return here === value || (here === null && any.includes(name));
    })) {
      rows.push(Object.fromEntries(names.map(name => [name, valueAt(columns[name], i)])));
    }
  }
  return rows;
}

/** A node with text and class. */
function made(tag, words = "", kind = "") {
  const node = document.createElement(tag);
  node.textContent = words;
  if (kind) node.className = kind;
  return node;
}

/** NaN, which marks what is unknown in typed arrays, as null. */
const known = value => Number.isNaN(value) ? null : value;
const percent = value => (100 * value).toFixed(1) + " %";
const SETTINGS = {linear: "linear probe, all examples", finetune: "fine-tuned"};
/** A number of shots, or the name of a setting that has none, in words. */
const shotsName = count => count === null ? "shots not given"
  : typeof count === "string" ? SETTINGS[count] ?? count
  : `${count} shot${count === 1 ? "" : "s"}`;
