// What was asked, and how much of it is there.
"use strict";

const MOST_LISTED = 200;

function showAsked() {
  const { asked, counts, values, axes, sets, constants } = sega.sweep;
  document.title = `${asked.name}: sega_bench`;
  byId("brand").textContent = asked.name;
  byId("name").textContent = asked.name;
  byId("description").textContent = asked.description ?? "";
  byId("state").replaceChildren(...stateNotes(counts));
  const fact = (name, ...content) => el("div", {}, el("dt", {}, name), el("dd", {}, ...content));
  const varying = axes.filter((axis) => values[axis].length > 0);
  byId("facts").replaceChildren(
    fact("Cells", el("strong", {}, counts.planned.toLocaleString("en")), counts.done === counts.planned ? ", all done"
      : `, ${counts.done.toLocaleString("en")} done, ${counts.failed.toLocaleString("en")} failed`),
    fact("Model", el("strong", {}, asked.model.name), ` ${asked.model.id.split("@")[1]?.slice(0, 12) ?? ""}`),
    fact("Made on", `${asked.engine.device ?? "?"}, ${asked.engine.dtype ?? "?"}`),
    fact(plural(values.prompt.length, "prompt"), listing(values.prompt)),
    fact(plural(sets.length, "concept set"), listing(sets)),
    fact(plural(values.seed.length, "seed"), listing(values.seed.map(said), ", ")),
    ...varying.map((axis) => fact(axis, listing(inOrder(values[axis]).map(said), ", "))),
    fact("Shared settings", details("show", el("dl", { class: "pairs" },
      Object.entries(constants).filter(([name]) => name !== "model")
        .map(([name, value]) => [el("dt", {}, name), el("dd", {}, said(value))])))),
    fact("How it was scored", details("show", ...Object.entries(asked.scores ?? {}).map(provenance))),
  );
  byId("footer").textContent =
    `sega_bench ${sega.sweep.version}. Made from the folder alone; everything here works without a network.`;
}

/** Where a score comes from: backbone, weights, preprocessing. */
const provenance = ([name, told]) => [el("h4", {}, title(name)), el("dl", { class: "pairs" },
  Object.entries(told ?? {}).map(([what, value]) => [el("dt", {}, what), el("dd", {}, said(value))]))];

function stateNotes({ planned, done, failed, rows }) {
  const notes = [];
  if (rows < planned) {
    notes.push(el("p", { class: "note warn", id: "half-written" },
      `Not finished: ${done.toLocaleString("en")} of ${plural(planned, "cell")} are done, ${failed} failed, `
      + `${(planned - rows).toLocaleString("en")} not run yet. The same command goes on.`));
  }
  if (failed) {
    notes.push(el("p", { class: "note warn" }, `${plural(failed, "cell")} failed: `,
      el("a", { href: "#table", onclick: () => filterTable("status=failed") }, "show them"),
      ". retry_failed=true tries them again."));
  }
  return notes;
}

/** Numbers in their order, other values as they were given. */
const inOrder = (values) => (areNumbers(values) ? d3.sort(values) : values);

/** A few items in full, more behind a click. */
function listing(items, joint = null) {
  const few = joint ? 12 : 3;
  const write = (part) => joint ? el("span", {}, part.join(joint)) : el("ul", {}, part.map((item) => el("li", {}, said(item))));
  if (items.length <= few) return write(items);
  const shown = items.slice(0, MOST_LISTED);
  const more = items.length > shown.length ? el("p", { class: "small" }, `and ${plural(items.length - shown.length, "other")}`) : null;
  return el("div", {}, write(items.slice(0, few)), details(`all ${items.length}`, write(shown), more));
}

const details = (summary, ...content) => el("details", {}, el("summary", {}, summary), ...content);
