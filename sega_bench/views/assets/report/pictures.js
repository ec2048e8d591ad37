// The pictures of any two axes, everything else held.
"use strict";

const MOST_PLACES = 12;
const SAID = { prompt: "Prompt", concept: "Concept", seed: "Seed" };
const chosen = { x: null, y: null, at: {}, mode: "edit", pageX: 0, pageY: 0 };
let labelled = false;

/** The dimensions with several values. */
const varying = () => sega.dimensions().filter((name) => sega.sweep.values[name].length > 1);

function setUpPictures() {
  const { sweep } = sega;
  const names = varying();
  const longest = sweep.axes.filter((axis) => names.includes(axis))
    .sort((a, b) => sweep.values[b].length - sweep.values[a].length);
  chosen.x = longest[0] ?? names[0] ?? "concept";
  chosen.y = longest.find((axis) => axis !== chosen.x && !follows(axis, [chosen.x]) && !together(axis, chosen.x))
    ?? ["concept", "seed", "prompt"].find((name) => names.includes(name) && name !== chosen.x)
    ?? sega.dimensions().find((name) => name !== chosen.x);
  for (const name of sega.dimensions()) chosen.at[name] = 0;
  if (isSparse()) [chosen.x, chosen.y] = ["seed", "concept", "prompt"].filter((name) => names.includes(name));
  chosen.x ??= "seed";
  chosen.y ??= "concept";
  hold();
  segmented(byId("picture-mode"), "picture-mode", MODES, chosen.mode, (mode) => {
    chosen.mode = mode;
    byId("grid").dataset.mode = mode;
    pictureNote();
  });
  byId("grid").dataset.mode = chosen.mode;
  byId("grid").addEventListener("keydown", moveInGrid);
  drawControls();
}

/** Whether two axes advance together, so that few of their values meet. */
const together = (one, other) => sega.sweep.together.includes(one) && sega.sweep.together.includes(other);

/** Whether three quarters of the grid were not run, as where a study asked for its settings. */
function isSparse() {
  const { axes, settings, values } = sega.sweep;
  const shown = [chosen.x, chosen.y].filter((name) => axes.includes(name));
  const met = d3.rollup(settings.filter(({ set }) => set < 0),
    (level) => new Set(level.map(({ at }) => shown.map((name) => at[axes.indexOf(name)]).join())).size,
    ({ at }) => at.filter((_, i) => !shown.includes(axes[i])).join());
  return 4 * (d3.max(met.values()) ?? 0) < shown.reduce((places, name) => places * values[name].length, 1);
}

/** Hold the other axes where most places of the grid were run, at the verdict if that is there. */
function hold() {
  const { settings, axes } = sega.sweep;
  const shown = (axis) => axis === chosen.x || axis === chosen.y;
  const run = d3.rollup(settings.filter(({ set }) => set < 0), (level) => level.length,
    ({ at }) => at.filter((_, i) => !shown(axes[i])).join());
  const most = d3.max(run.values());
  const found = d3.sort(settings.filter(({ set }) => set < 0), ({ best }) => (best ? 0 : 1))
    .find(({ at }) => run.get(at.filter((_, i) => !shown(axes[i])).join()) === most);
  axes.forEach((axis, i) => { if (!shown(axis)) chosen.at[axis] = found?.at[i] ?? 0; });
}

/** Whether the values of ``given`` settle that of an axis, as where axes advance together. */
function follows(axis, given) {
  const { axes, settings } = sega.sweep;
  const places = given.map((name) => axes.indexOf(name));
  if (!axes.includes(axis) || places.includes(-1)) return false;
  const seen = new Map();
  return settings.every(({ at }) => {
    const key = places.map((i) => at[i]).join();
    if (!seen.has(key)) seen.set(key, at[axes.indexOf(axis)]);
    return seen.get(key) === at[axes.indexOf(axis)];
  });
}

function chooser(text, options, value, change) {
  const select = el("select", { dataset: { of: text }, onchange: () => change(select.value) },
    options.map(([key, label]) => el("option", { value: key, selected: String(key) === String(value) }, label)));
  return el("label", {}, el("span", {}, text), select);
}

function drawControls() {
  const { values } = sega.sweep;
  const names = varying().length > 1 ? varying() : sega.dimensions();
  const axis = (which, other) => chooser(which === "x" ? "Columns" : "Rows", names.map((name) => [name, name]), chosen[which], (name) => {
    if (name === chosen[other]) chosen[other] = chosen[which];
    chosen[which] = name;
    chosen.pageX = chosen.pageY = 0;
    if (sega.sweep.together.includes(name)) hold();
    drawControls();
    drawGrid();
  });
  const held = varying().filter((name) => name !== chosen.x && name !== chosen.y && !follows(name, [chosen.x, chosen.y]));
  byId("picture-controls").replaceChildren(
    axis("x", "y"), axis("y", "x"),
    ...held.map((name) => chooser(SAID[name] ?? name, values[name].map((value, i) => [i, said(value)]), chosen.at[name], (place) => {
      chosen.at[name] = Number(place);
      settle(name);
      drawGrid();
    })));
}

/** The row at a column and a line; an axis that follows another takes whatever value there is. */
function rowFor(x, y) {
  const place = { ...chosen.at, [chosen.x]: x, [chosen.y]: y };
  const found = sega.rowAt(place);
  if (found !== undefined) return found;
  const free = sega.sweep.axes.filter((axis) => axis !== chosen.x && axis !== chosen.y && follows(axis, [chosen.x, chosen.y]));
  const settings = free.length ? sega.sweep.settings.filter(({ set, at }) => set < 0
    && sega.sweep.axes.every((axis, i) => free.includes(axis) || at[i] === place[axis])) : [];
  for (const { at } of settings) {
    const row = sega.rowAt({ ...place, ...Object.fromEntries(free.map((axis) => [axis, at[sega.sweep.axes.indexOf(axis)]])) });
    if (row !== undefined) return row;
  }
  return undefined;
}

/** Where nothing was run at what is held, as for prompts with seeds of their own, move to where it was. */
function settle(name) {
  const { values } = sega.sweep;
  if (values[chosen.x].some((_, x) => values[chosen.y].some((_, y) => rowFor(x, y) !== undefined))) return;
  const row = sega.columns[name].findIndex((place, i) => place === chosen.at[name] && !sega.isReference(i));
  if (row < 0) return;
  for (const held of sega.dimensions()) if (held !== name) chosen.at[held] = sega.columns[held][row];
  drawControls();
}

const places = (name) => sega.sweep.values[name].map((_, i) => i);

function drawGrid() {
  const { values, settings, axes } = sega.sweep;
  const [allX, allY] = [places(chosen.x), places(chosen.y)];
  const pagesX = Math.ceil(allX.length / MOST_PLACES);
  const pagesY = Math.ceil(allY.length / MOST_PLACES);
  const xs = allX.slice(chosen.pageX * MOST_PLACES, (chosen.pageX + 1) * MOST_PLACES);
  const ys = allY.slice(chosen.pageY * MOST_PLACES, (chosen.pageY + 1) * MOST_PLACES);
  const lines = ys.map((y) => xs.map((x) => rowFor(x, y)));
  const among = lines.flat().filter((row) => row !== undefined);
  const best = settings.find((setting) => setting.set < 0 && setting.best);
  const isBest = (row) => row !== undefined && best && axes.some((axis) => axis === chosen.x || axis === chosen.y)
    && axes.every((axis, i) => sega.columns[axis][row] === best.at[i]);
  const references = lines.map((line) => new Set(line.filter((row) => row !== undefined).map(sega.reference)));
  const beside = references.every((line) => line.size <= 1);
  const head = el("tr", {}, el("th", { class: "corner" }, el("span", {}, `${breakable(chosen.y)}\u00a0\u2193\n${breakable(chosen.x)}\u00a0\u2192`)),
    beside && el("th", { scope: "col" }, "unedited"), xs.map((x) => el("th", { scope: "col" }, said(values[chosen.x][x]))));
  const body = lines.map((line, i) => el("tr", {},
    el("th", { scope: "row" }, el("span", {}, said(values[chosen.y][ys[i]]))),
    beside && el("td", { class: "before" }, references[i].size && [...references[i]][0] >= 0 ? tile([...references[i]][0]) : null),
    line.map((row) => el("td", {}, tile(row, { marked: isBest(row), among })))));
  const above = beside ? null : el("tr", { class: "before" }, el("th", { scope: "row" }, "unedited"),
    xs.map((_, j) => {
      const own = new Set(lines.map((line) => line[j]).filter((row) => row !== undefined).map(sega.reference));
      return el("td", {}, own.size === 1 && [...own][0] >= 0 ? tile([...own][0]) : null);
    }));
  const room = (byId("pictures").clientWidth - 230) / (xs.length + 1);
  byId("grid").style.setProperty("--tile", `${Math.round(Math.max(innerWidth > 820 ? 96 : 84, Math.min(184, room)))}px`);
  byId("grid").replaceChildren(el("table", { class: "grid" }, el("thead", {}, head), el("tbody", {}, above, body)));
  labelled = among.some(isBest);
  byId("grid-pager").replaceChildren();
  const pagers = [[chosen.x, "pageX", pagesX], [chosen.y, "pageY", pagesY]].map(([name, page, pages]) => {
    const element = el("div", { class: "pager" });
    pager(element, chosen[page], pages, (to) => { chosen[page] = to; drawGrid(); });
    if (pages > 1) element.prepend(el("span", {}, name));
    return element;
  });
  byId("grid-pager").append(...pagers);
  pictureNote();
}

function pictureNote() {
  const notes = {
    edit: "Click a picture to compare it with its unedited image.", reference: "The unedited image of each cell.",
    flicker: "Edit and unedited image in turn.",
    difference: "Absolute difference to the unedited image: black is none, white a third of the range or more.",
  };
  byId("picture-note").textContent = (labelled ? "Outlined: the verdict over all. " : "") + notes[chosen.mode];
}

/** The arrow keys go from tile to tile. */
function moveInGrid(event) {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  const place = event.target.closest("td");
  if (!step || !place) return;
  const line = event.currentTarget.querySelectorAll("tr")[place.parentElement.rowIndex + step[0]];
  const next = line?.children[place.cellIndex + step[1]]?.querySelector("button");
  if (next) {
    event.preventDefault();
    next.focus();
  }
}
