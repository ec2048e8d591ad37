// What a study found: the settings to use and what they score elsewhere, what moves each score, what it cost.
"use strict";

let movedScore = null;

function setUpStudy() {
  const { study } = sega.sweep;
  byId("study").hidden = !study;
  if (!study) return;
  byId("recommended").replaceChildren(...study.best.map(recommendation));
  byId("recommended-note").textContent = "In brackets the 95 % interval over prompts and seeds."
    + (study.best.some((best) => best.held_out) ? " What won was searched for, so its scores there are too good: those held out are what to expect." : "");
  const objectives = [...new Set(study.importance.map(({ objective }) => objective))];
  const choose = byId("moved-score");
  choose.append(...objectives.map((name) => el("option", { value: name }, title(name))));
  choose.closest(".head").hidden = !objectives.length;
  [movedScore] = objectives;
  choose.onchange = () => { movedScore = choose.value; drawImportance(); };
}

function drawStudy() {
  if (!sega.sweep.study) return;
  drawImportance();
  drawCost();
}

/** A setting to use, what it scores where it was searched for and where it was not, and whether that beats the baseline. */
function recommendation({ concepts, settings, verdict, searched, held_out: heldOut }) {
  const judged = heldOut ?? searched;
  return el("div", { class: "card" },
    el("h3", {}, concepts === null ? "For all concepts" : `For ${concepts.join(" + ")} alone`),
    el("dl", { class: "pairs big" }, Object.entries(settings).map(([name, value]) => [el("dt", {}, name), el("dd", {}, said(value))])),
    el("div", { class: "scroll" }, el("table", { class: "claimed" },
      el("thead", {}, el("tr", {}, ["score", "searched", heldOut && "held out", "over baseline"].filter(Boolean)
        .map((name, i) => el("th", { class: i ? "number" : "" }, name)))),
      el("tbody", {}, Object.keys(searched).map((name) => el("tr", {},
        el("th", { scope: "row" }, title(name)),
        [searched[name].score, heldOut?.[name].score, judged[name].over_baseline].filter(Boolean)
          .map(({ mean, low, high }) => el("td", { class: "number" }, estimate(name, [mean, low, high])))))))),
    el("p", { class: "verdict" }, `${verdict[0].toUpperCase()}${verdict.slice(1)}.`));
}

/** The curve of each setting on one score, the most important first; all on one scale, so that heights compare. */
function drawImportance() {
  const holder = byId("importance");
  const curves = sega.sweep.study.importance.filter(({ objective }) => objective === movedScore)
    .sort((a, b) => b.importance - a.importance);
  if (!curves.length) {
    holder.replaceChildren(el("p", { class: "nothing" }, "Too few trials tell nothing of it."));
    return;
  }
  const domain = d3.extent(curves.flatMap(({ means }) => means));
  const width = besideEachOther(holder, curves.length);
  holder.replaceChildren(...curves.map(({ parameter, importance, values, means }) => {
    const numeric = values.every((value) => typeof value === "number");
    const points = values.map((value, i) => ({ value: numeric ? value : said(value), mean: means[i] }));
    return el("figure", { class: "card chart" },
      el("h3", {}, parameter, el("span", { class: "badge" }, `${Math.round(100 * importance)}\u00a0%`)),
      Plot.plot({
        width, height: 220, marginLeft: 52, grid: true, ariaLabel: `${title(movedScore)} along ${parameter}`,
        x: numeric ? { label: null, ticks: ticksOf(values, width - 72), tickFormat: tick }
          : { label: null, type: "point", domain: points.map(({ value }) => value), padding: 0.5 },
        y: { label: title(movedScore), domain, nice: true },
        marks: [
          Plot.line(points, { x: "value", y: "mean", stroke: COLOURS[0], strokeWidth: 2 }),
          Plot.dot(points, { x: "value", y: "mean", fill: COLOURS[0], tip: true,
            title: ({ value, mean }) => `${said(value)}: ${score(movedScore, mean)}` }),
        ],
      }));
  }));
}

/** How far the front had come after so many evaluations. */
function drawCost() {
  const holder = byId("cost");
  const { unet_evals: evaluations, hypervolume } = sega.sweep.study.cost;
  const points = evaluations.map((evals, i) => ({ evals, volume: hypervolume[i], trials: i + 1 }));
  const width = Math.max(260, holder.clientWidth || 640);
  holder.replaceChildren(Plot.plot({
    width, height: 240, marginLeft: 56, marginBottom: 44, grid: true, ariaLabel: "Hypervolume of the front over UNet evaluations",
    x: { label: "UNet evaluations \u2192", labelAnchor: "center", labelOffset: 38, ticks: width < 480 ? 4 : undefined },
    y: { label: "\u2191 hypervolume of the front", nice: true },
    marks: [
      Plot.line(points, { x: "evals", y: "volume", curve: "step-after", stroke: COLOURS[0], strokeWidth: 2 }),
      Plot.dot(points, { x: "evals", y: "volume", r: 2.5, fill: COLOURS[0], tip: true,
        title: ({ evals, volume, trials }) =>
          `${plural(trials, "trial")}, ${plural(evals, "evaluation")}: ${volume.toPrecision(4)}` }),
    ],
  }));
}
