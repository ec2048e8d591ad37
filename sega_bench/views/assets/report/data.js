// The sweep as its scripts hand it over, and everything that is asked of its rows.
"use strict";

const sega = (() => {
  const columns = { key: [], reference: [], image: [] };
  const bySetting = new Map();
  const byPlace = new Map();
  const listeners = [];
  let sweep = null;
  let count = 0;

  /** What a cell is a place of: one row for each combination. */
  const dimensions = () => ["prompt", "concept", "seed", ...sweep.axes];

  function open(handed) {
    sweep = handed;
    for (const name of [...Object.keys(sweep.values), ...sweep.scores]) columns[name] = [];
  }

  function add(part) {
    for (const name of Object.keys(columns)) {
      const column = columns[name];
      for (const value of part[name]) column.push(value);
    }
    for (let row = count; row < columns.key.length; row++) {
      if (isReference(row)) continue;
      const place = placeKey((name) => columns[name][row]);
      if (!byPlace.has(place)) byPlace.set(place, row);
      const setting = settingKey(columns.concepts[row], sweep.axes.map((axis) => columns[axis][row]));
      bySetting.get(setting)?.push(row) ?? bySetting.set(setting, [row]);
    }
    count = columns.key.length;
    for (const listener of listeners) listener();
  }

  const placeKey = (at) => dimensions().map(at).join();
  const settingKey = (set, at) => `${set}:${at.join()}`;

  /** A row's setting or score as a value: null where it has none. */
  function value(row, name) {
    if (name in sweep.values) return sweep.values[name][columns[name][row]] ?? null;
    if (name in columns) return columns[name][row];
    return sweep.constants[name] ?? null;
  }

  const isReference = (row) => columns.concepts[row] < 0;

  /** The rows of a setting: of one concept set, or of all where ``set`` is -1. */
  function rowsOf(set, at) {
    if (set >= 0) return bySetting.get(settingKey(set, at)) ?? [];
    return sweep.sets.flatMap((_, each) => bySetting.get(settingKey(each, at)) ?? []);
  }

  /** The row at a place, given by the number of each dimension's value; undefined where none was run. */
  const rowAt = (place) => byPlace.get(placeKey((name) => place[name]));

  const full = (row) => `../images/${columns.image[row].slice(0, 2)}/${columns.image[row]}.png`;

  function thumbnail(row) {
    const isSmall = Math.max(value(row, "height"), value(row, "width")) <= sweep.thumbnail_side;
    return isSmall ? full(row) : `thumbs/${columns.image[row].slice(0, 2)}/${columns.image[row]}.webp`;
  }

  /** Why there is no image to show; null where there is one. */
  function absence(row) {
    if (row === undefined || row < 0) return "not run";
    if (value(row, "status") === "failed") return "failed";
    return columns.image[row] === null ? "missing" : null;
  }

  const isFlagged = (row) => row >= 0 && columns.nsfw?.[row] > 0;

  /** Load the scripts with the rows, one after the other. */
  async function load() {
    for (let number = 0; count < sweep.counts.rows; number++) {
      const loaded = await new Promise((resolve) => {
        const script = document.createElement("script");
        script.src = `data/cells-${String(number).padStart(4, "0")}.js`;
        script.onload = () => resolve(true);
        script.onerror = () => resolve(false);
        document.head.append(script);
      });
      if (!loaded) return;
    }
  }

  return {
    open, add, load, value, isReference, rowsOf, rowAt, full, thumbnail, absence, isFlagged, dimensions, columns,
    get sweep() { return sweep; },
    get count() { return count; },
    reference: (row) => columns.reference[row],
    onRows: (listener) => listeners.push(listener),
  };
})();
