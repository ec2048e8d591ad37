// Elements, and how values are written. Texts reach the page through text nodes only.
"use strict";

/** An element with properties, attributes (where a name has a dash) and children; null children are left out. */
function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (name in element && !name.includes("-")) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const byId = (id) => document.getElementById(id);

/** A setting's value as one would say it. */
function said(value) {
  if (value === null || value === undefined) return "none";
  if (Array.isArray(value)) return value.map(said).join(", ");
  if (typeof value === "number") return String(Number(value.toPrecision(6)));
  return String(value) || "(empty)";
}

const areNumbers = (values) => values.every((value) => typeof value === "number");

/** A setting or a score that is a text, of a row. */
function written(row, name) {
  const value = sega.value(row, name);
  if (value === null) return "";
  return name === "attribute_leaked" ? JSON.parse(value).join(", ") || "none" : said(value);
}

/** A name that may be broken after its underscores. */
const breakable = (name) => name.replaceAll("_", "_\u200b");

/** A score as one would say it. */
function score(name, value) {
  if (value === null || value === undefined) return "\u2013";
  if (name === "changed_fraction") return `${(100 * value).toFixed(1)}\u00a0%`;
  if (name === "nsfw" || Number.isInteger(value)) return String(value);
  if (Math.abs(value) >= 100) return value.toFixed(0);
  return Math.abs(value) >= 10 ? value.toFixed(1) : Math.abs(value) >= 0.001 ? value.toFixed(3) : value.toPrecision(2);
}

/** A mean with its interval, as far as they are known. */
function estimate(name, [mean, low, high]) {
  const bounds = low === null || high === null ? "" : ` [${score(name, low)}, ${score(name, high)}]`;
  return score(name, mean) + bounds.replaceAll(", ", ",\u00a0");
}

const title = (name) => sega.sweep.titles[name] ?? name;
const plural = (count, thing) => `${count.toLocaleString("en")} ${thing}${count === 1 ? "" : "s"}`;

/** A setting of the summary: its axes with their values. */
const settingLabel = (setting) =>
  sega.sweep.axes.map((axis, i) => `${axis} ${said(sega.sweep.values[axis][setting.at[i]])}`).join(", ")
  || "the only setting";

/** What a cell is of. */
const cellLabel = (row) => {
  const concept = sega.isReference(row) ? "unedited" : said(sega.value(row, "concept"));
  return `${concept}, seed ${said(sega.value(row, "seed"))}`;
};

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = el("textarea", { value: text, class: "offscreen" });
    (document.querySelector("dialog[open]:last-of-type") ?? document.body).append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  tell(`Copied ${what}`);
}

const toast = byId("said"); // it goes into dialogs, which lose what they hold
let toastTimer = 0;
function tell(text) {
  toast.textContent = text;
  toast.hidden = false;
  (document.querySelector("#cell[open]") ?? document.querySelector("#gallery[open]") ?? document.body).append(toast);
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { toast.hidden = true; }, 1800);
}

const EDITS = [
  "reverse_editing_direction", "edit_guidance_scale", "edit_threshold", "edit_warmup_steps",
  "edit_cooldown_steps", "edit_weights",
];

/** A setting's value for each concept of a cell. */
function perConcept(row, name) {
  const value = sega.value(row, name);
  return sega.value(row, "concepts").map((_, i) => (Array.isArray(value) ? value[i] : value));
}

/** The momentum's settings, where a cell's method has one. */
const momentum = (row) => ["edit_momentum_scale", "edit_mom_beta"].filter((name) => sega.value(row, name) !== null);

/** A value as Python writes it. */
function python(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  return JSON.stringify(value);
}

/** The call of diffusers' pipeline that makes a cell. */
function diffusersCall(row) {
  const own = (name) => [name, python(sega.value(row, name))];
  const lines = [
    ...["prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "eta", "height", "width"].map(own),
    ["generator", `torch.Generator("cpu").manual_seed(${said(sega.value(row, "seed"))})`],
  ];
  if (!sega.isReference(row)) {
    lines.push(["editing_prompt", python(sega.value(row, "concepts"))]);
    for (const name of EDITS) {
      const values = perConcept(row, name);
      if (values.some((value) => value !== null)) lines.push([name, python(values)]);
    }
    lines.push(...momentum(row).map(own));
  }
  const [replayed, method] = [sega.value(row, "replay"), sega.value(row, "method") ?? "sega"];
  const notes = [
    `${said(sega.value(row, "model"))}, ${said(sega.value(row, "scheduler"))}`,
    replayed !== null && `with the guidance of the same edit of ${python(replayed)} (sem_guidance)`,
    method !== "sega" && `made with method=${method}, which is not this pipeline's`,
  ].filter(Boolean).map((note) => `# ${note}\n`).join("");
  return `${notes}pipe(\n${lines.map(([name, text]) => `    ${name}=${text},\n`).join("")})`;
}

/** A value as Hydra's grammar reads it; the text of an interpolation is escaped. */
function hydra(value) {
  if (value === null) return "null";
  if (Array.isArray(value)) return `[${value.map(hydra).join(",")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value).map(([name, item]) => `${name}:${hydra(item)}`).join(",")}}`;
  }
  if (typeof value !== "string") return String(value);
  const literal = value.replace(/(\\*)\$\{/g, "$1$1\\${");
  return `"${literal.replace(/(\\*)("|$)/g, (_, slashes, quote) => slashes + slashes + (quote && '\\"'))}"`;
}

const shell = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`);

/** The command that makes a cell again, in a folder of its own. */
function command(row) {
  const { asked } = sega.sweep;
  const { model, sampling } = asked.settings;
  const words = [`name=${asked.name}-${sega.columns.key[row]}`];
  const own = (key, name = key) => words.push(`${key}=${hydra(sega.value(row, name))}`);
  words.push(`model=${model.name}`);
  if (model.name === "local") words.push(`model.path=${hydra(model.path)}`);
  for (const name of ["revision", "variant", "config", "lora"]) {
    if (model[name]?.length) words.push(`model.${name}=${hydra(model[name])}`);
  }
  if (model.safety_checker) words.push("model.safety_checker=true");
  words.push(`prompts=${hydra([sega.value(row, "prompt")])}`);
  if (!sega.isReference(row)) {
    const concepts = sega.value(row, "concepts").map((text, i) => ({
      text, ...Object.fromEntries(EDITS.map((name) => [name, perConcept(row, name)[i]]).filter(([, value]) => value !== null)),
    }));
    words.push(`concepts=${hydra([concepts])}`);
    momentum(row).forEach((name) => own(`edit.${name}`, name));
    if ((sega.value(row, "method") ?? "sega") !== "sega") own("method");
    if (sega.value(row, "replay") !== null) words.push(`replay=${hydra([sega.value(row, "replay")])}`);
  }
  words.push(`seeds=[${said(sega.value(row, "seed"))}]`);
  own("negative_prompt");
  if (sampling.scheduler || sega.sweep.axes.includes("scheduler")) own("sampling.scheduler", "scheduler");
  for (const name of ["num_inference_steps", "guidance_scale", "eta", "height", "width"]) own(`sampling.${name}`, name);
  words.push(`engine.dtype=${asked.engine.dtype}`);
  return ["python -m sega_bench", ...words.map(shell)].join(" ");
}
