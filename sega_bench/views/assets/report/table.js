// All cells: sorted, filtered, a page at a time.
"use strict";

const PER_PAGE = 50;
const sorted = { name: null, descending: false };
let found = [];
let page = 0;
let waiting = 0;

const tableColumns = () => {
  const { sweep } = sega;
  const leading = ["concept", "seed", ...sweep.axes];
  const others = Object.keys(sweep.values).filter((name) => ![...leading, "concepts", "prompt", "status", "error"].includes(name));
  const trailing = sweep.counts.failed ? ["status", "error"] : [];
  const prompt = sweep.values.prompt.length > 1 ? ["prompt"] : [];
  return [...prompt, ...leading, ...others, ...sweep.scores, ...trailing];
};

function setUpTable() {
  byId("filter").oninput = () => { clearTimeout(waiting); waiting = setTimeout(searchTable, 120); };
  byId("with-references").onchange = searchTable;
}

function filterTable(text) {
  byId("filter").value = text;
  searchTable();
}

/** What a filter asks of a row: words it must contain, and comparisons such as lpips<0.2. */
function condition(word) {
  const [, name, sign, wanted] = word.match(/^([\w@]+)(>=|<=|!=|=|>|<)(.*)$/) ?? [];
  const known = name && (name in sega.sweep.values || name in sega.columns || name in sega.sweep.constants);
  if (!known) {
    const text = word.toLowerCase();
    const texts = ["prompt", "concept", "error", "status"];
    return (row) => sega.columns.key[row].includes(text)
      || texts.some((column) => said(sega.value(row, column) ?? "").toLowerCase().includes(text));
  }
  const number = Number(wanted);
  return (row) => {
    const value = sega.value(row, name);
    if (sign === "=" || sign === "!=") {
      const equal = value === number && wanted !== "" || said(value).toLowerCase() === wanted.toLowerCase();
      return equal === (sign === "=");
    }
    if (typeof value !== "number" || wanted === "" || Number.isNaN(number)) return false;
    return { ">": value > number, "<": value < number, ">=": value >= number, "<=": value <= number }[sign];
  };
}

function searchTable() {
  const conditions = byId("filter").value.split(/\s+/).filter(Boolean).map(condition);
  const references = byId("with-references").checked;
  found = [];
  for (let row = 0; row < sega.count; row++) {
    if ((references || !sega.isReference(row)) && conditions.every((holds) => holds(row))) found.push(row);
  }
  sortTable();
}

function sortTable() {
  const { name, descending } = sorted;
  if (name) {
    const values = new Map(found.map((row) => [row, sega.value(row, name)]));
    found.sort((a, b) => compare(values.get(a), values.get(b), descending) || a - b);
  }
  page = 0;
  drawTable();
}

/** What has no value comes last, whichever way. */
function compare(a, b, descending) {
  if (a === null || b === null) return (a === null) - (b === null);
  const order = typeof a === "number" && typeof b === "number" ? a - b : said(a).localeCompare(said(b));
  return descending ? -order : order;
}

function drawTable() {
  const names = tableColumns();
  const header = (name) => {
    const state = sorted.name === name ? (sorted.descending ? "descending" : "ascending") : null;
    const sort = () => {
      sorted.descending = sorted.name === name && !sorted.descending;
      sorted.name = name;
      sortTable();
      byId("rows").querySelector(`[data-sort="${name}"]`)?.focus();
    };
    const arrow = state ? (sorted.descending ? " \u2193" : " \u2191") : "";
    return el("th", { scope: "col", "aria-sort": state ?? "none" },
      el("button", { type: "button", dataset: { sort: name }, title: name, onclick: sort }, title(name) + arrow));
  };
  const rows = found.slice(page * PER_PAGE, (page + 1) * PER_PAGE);
  const isNumber = (name) => sega.sweep.scores.includes(name) || areNumbers(sega.sweep.values[name] ?? [null]);
  const write = (row, name) => {
    if (sega.sweep.scores.includes(name)) return score(name, sega.value(row, name));
    return written(row, name);
  };
  byId("rows").replaceChildren(el("table", { class: "rows" },
    el("thead", {}, el("tr", {}, el("th", {}, el("span", {}, "image")), el("th", {}, el("span", {}, "copy")), names.map(header))),
    el("tbody", {}, rows.map((row) => el("tr", { dataset: { key: sega.columns.key[row] } },
      el("td", {}, tile(row, { among: found })),
      el("td", { class: "copies" },
        el("button", { type: "button", class: "quiet", title: "Copy as diffusers call", onclick: () => copy(diffusersCall(row), "the diffusers call") }, "call"),
        el("button", { type: "button", class: "quiet", title: "Copy as command", onclick: () => copy(command(row), "the command") }, "command")),
      names.map((name) => el("td", { class: isNumber(name) ? "number" : "" }, el("span", {}, write(row, name)))))))));
  const all = sega.count < sega.sweep.counts.rows ? `, loading ${sega.count.toLocaleString("en")} of ${sega.sweep.counts.rows.toLocaleString("en")}` : "";
  byId("table-note").textContent = plural(found.length, "cell") + all;
  pager(byId("table-pager"), page, Math.ceil(found.length / PER_PAGE), (to) => { page = to; drawTable(); });
}
