// What the sweep says of the paper's claims, and the areas under its fronts.
"use strict";

const CLAIMS = {
  monotonicity: "Does more scale bring more of the concept in?",
  isolation: "Is only what was asked for touched?",
  robustness: "Does the edit succeed, whatever the seed?",
  uniqueness: "Does a direction hold for other prompts?",
  baselines: "What another method does more or less of, in pairs with SEGA.",
};
const MEASURES = {
  changed_fraction: "share of pixels changed", locality: "share of the change where the edit acted",
  attribute_leakage: "share of other attributes that flipped", attribute_success: "edits that succeeded (attribute classifier)",
  success: "edits that succeeded (zero-shot CLIP)",
};
const FLIPPED = "flipped ";
let claimedSet = -1;

function setUpClaims() {
  const { claims, sets } = sega.sweep;
  byId("claims").hidden = !claims.length;
  const concept = byId("claims-concept");
  concept.append(el("option", { value: -1 }, "all together"), ...sets.map((label, i) => el("option", { value: i }, label)));
  concept.closest("label").hidden = sets.length < 2;
  concept.onchange = () => { claimedSet = Number(concept.value); drawClaims(); };
  drawClaims();
  drawAreas();
}

function drawClaims() {
  const { claims } = sega.sweep;
  const directions = new Set(claims.map(({ direction }) => direction));
  const shown = claims.filter(({ set, measure }) => set === claimedSet && !measure.startsWith(FLIPPED));
  const groups = d3.groups(shown, ({ claim, direction, measure }) => `${claim}/${direction}/${measure.split(", ")[1]}`);
  byId("claims-list").replaceChildren(...groups.map(([, rows]) => {
    const [{ claim, direction, at, measure }] = rows;
    return el("div", { class: "card", dataset: { claim } },
      el("h3", {}, measure.split(", ")[1] ?? claim, directions.size > 1 && el("span", { class: "badge" }, direction)),
      el("p", { class: "small" }, CLAIMS[claim], at && ` At ${at}.`),
      el("table", { class: "claimed bars" }, el("tbody", {}, rows.map(claimedRow))));
  }));
  drawLeakage();
}

function claimedRow({ claim, measure, value, low, high, n }) {
  const [name] = measure.split(", ");
  const told = low === null ? score("", value) : `${score("", value)} [${score("", low)}, ${score("", high)}]`;
  return el("tr", {},
    el("th", { scope: "row" }, MEASURES[name] ?? title(name)),
    el("td", {}, intervalBar(claim, value, low, high)),
    el("td", { class: "number" }, told.replaceAll(" ", "\u00a0")),
    el("td", { class: "number small" }, `n\u00a0${n}`));
}

/** A number with its interval on the scale of what it may be; a line stands where nothing would be claimed. */
function intervalBar(claim, value, low, high) {
  const reach = Math.max(...[value, low, high].map((end) => Math.abs(end ?? 0)), 1e-9);
  const [from, to, nothing] = {
    monotonicity: [-1, 1, 0], uniqueness: [0, Math.max(1.5, reach), 1], baselines: [-reach, reach, 0],
  }[claim] ?? [0, Math.max(1, reach), null];
  const at = (number) => `${(100 * (Math.min(to, Math.max(from, number)) - from)) / (to - from)}%`;
  const place = (kind, number) => el("span", { class: kind, style: `left:${at(number)}` });
  return el("span", { class: "interval", "aria-hidden": "true" },
    nothing === null ? null : place("nothing-claimed", nothing),
    low === null ? null : el("span", { class: "range", style: `left:${at(low)};right:calc(100% - ${at(high)})` }),
    place("value", value));
}

/** The leakage matrix: of each concept set, the share of images in which another attribute flipped. */
function drawLeakage() {
  const { claims, sets } = sega.sweep;
  const flips = claims.filter(({ measure }) => measure.startsWith(FLIPPED));
  byId("leakage").hidden = !flips.length;
  if (!flips.length) return;
  const attributes = [...new Set(flips.map(({ measure }) => measure.slice(FLIPPED.length)))].sort();
  const groups = d3.groups(flips, ({ set, direction }) => `${set}/${direction}`);
  const several = new Set(flips.map(({ direction }) => direction)).size > 1;
  byId("leakage-matrix").replaceChildren(el("table", { class: "matrix" },
    el("thead", {}, el("tr", {}, el("th", {}, "edited"), attributes.map((name) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, groups.map(([, rows]) => el("tr", {},
      el("th", { scope: "row" }, rows[0].set < 0 ? "all together" : sets[rows[0].set], several && ` (${rows[0].direction})`),
      attributes.map((name) => {
        const found = rows.find(({ measure }) => measure === FLIPPED + name);
        const share = found?.value ?? 0;
        const title = found ? `${name}: ${estimate("changed_fraction", [share, found.low, found.high])}, n = ${found.n}` : `${name}: never`;
        return el("td", { class: "number", title, style: `--share:${Math.round(100 * Math.min(1, share))}%` }, found ? score("changed_fraction", share) : "");
      }))))));
}

/** Areas under the fronts: of all settings of each concept set, of each value of a named axis, of the best setting. */
function drawAreas() {
  const { settings, areas, sets, axes, values } = sega.sweep;
  const best = settings.filter((setting) => setting.best);
  byId("areas").hidden = !best.length || isOneSetting();
  const named = Object.entries(areas);
  const placesOf = (rows) => [...new Set(rows.map(([place]) => place))];
  const areaAt = (rows, place, set) => rows.find(([at, of]) => at === place && of === set)?.[2] ?? null;
  byId("areas-table").replaceChildren(el("table", { class: "claimed areas" },
    el("thead", {}, el("tr", {}, el("th", {}, "concept"), el("th", { class: "number" }, "all settings"),
      named.map(([axis, rows]) => placesOf(rows).map((place) =>
        el("th", { class: "number", title: axis }, said(values[axis][place])))),
      el("th", { class: "number" }, "best setting"), el("th", {}, "which is"))),
    el("tbody", {}, best.map((setting) => el("tr", {},
      el("th", { scope: "row" }, setting.set < 0 ? "all together" : sets[setting.set]),
      el("td", { class: "number" }, score("", setting.front_area)),
      named.map(([, rows]) => placesOf(rows).map((place) =>
        el("td", { class: "number" }, score("", areaAt(rows, place, setting.set))))),
      el("td", { class: "number" }, score("", setting.area)),
      el("td", { class: "small" }, axes.map((axis, i) => `${axis} ${said(values[axis][setting.at[i]])}`).join(", ")))))));
}
