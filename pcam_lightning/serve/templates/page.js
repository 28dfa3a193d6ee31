"use strict";

const MB = 1e6, AT_ONCE = 4, MOST = 2000;
const IMAGE = /\.(png|tiff?|jpe?g|bmp)$/i;
const find = (id) => document.getElementById(id);
const maxMb = Number(document.body.dataset.maxMb);

let patches = [];          // one object per file, in the order of upload
let queue = [];            // functions that return promises
let active = 0, skipped = 0, dropped = 0, aborter = new AbortController();

function pump() {
  while (active < AT_ONCE && queue.length) {
    active += 1;
    queue.shift()().finally(() => { active -= 1; pump(); });
  }
}

async function post(path, file) {
  if (file.size > maxMb * MB) return { error: `The file is too large: at most ${maxMb} MB are accepted.` };
  try {
    const body = await file.arrayBuffer();
    const response = await fetch(path, { method: "POST", body, signal: aborter.signal });
    return await response.json();
  } catch (error) {
    if (error.name === "NotReadableError" || error.name === "NotFoundError") return { error: "The browser cannot read the file." };
    return { error: "The server does not respond. Is it still running?" };
  }
}

async function predict(patch) {
  const signal = aborter.signal, answer = await post("predict", patch.file);
  if (signal.aborted) return;
  Object.assign(patch, { done: true }, answer);
  showResult(patch);
  showStatus();
}

async function toggleHeat(patch, shown) {
  patch.heatShown = shown;
  patch.card.querySelector(".toggle").setAttribute("aria-pressed", String(shown));
  if (shown && !patch.heatAsked) {
    patch.heatAsked = true;
    queue.push(async () => {
      const signal = aborter.signal, answer = await post("grad_cam", patch.file);
      if (signal.aborted) return;
      if (answer.error) {
        patch.heatAsked = false;
        addNote(patch, answer.error);
      } else {
        patch.card.querySelector(".heat").src = answer.heat;
        const text = answer.center === null ? "Grad-CAM: this patch shows no evidence for tumor."
          : `Grad-CAM: ${Math.round(100 * answer.center)} % of the heat lies within the frame.`;
        addNote(patch, text, "plain");
        patch.heatLoaded = true;
      }
      patch.card.querySelector(".heat").hidden = !(patch.heatShown && patch.heatLoaded);
    });
    pump();
  }
  patch.card.querySelector(".heat").hidden = !(shown && patch.heatLoaded);
}

// The overlay is computed only for patches in view.
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const patch = patches.find((one) => one.card === entry.target);
    if (entry.isIntersecting && patch && heatWanted() && patch.prob !== undefined && !patch.heatShown) toggleHeat(patch, true);
  }
}, { rootMargin: "200px" });

const heatWanted = () => Boolean(find("show-heat") && find("show-heat").checked);

function add(file, name) {
  const card = find("card").content.firstElementChild.cloneNode(true);
  const number = patches.length ? patches[patches.length - 1].number + 1 : 1;
  const patch = { file, name, number, card };
  card.id = `patch-${number}`;
  card.classList.add("waiting");
  card.querySelector("h3").textContent = card.querySelector("h3").title = name;
  card.querySelector(".toggle").ariaLabel = `Grad-CAM of ${name}`;
  card.querySelector(".toggle").addEventListener("click", () => toggleHeat(patch, !patch.heatShown));
  const row = document.createElement("tr");
  const link = document.createElement("a");
  link.href = `#${card.id}`;
  link.textContent = name;
  patch.cells = [0, 1, 2].map(() => row.appendChild(document.createElement("td")));
  patch.cells[0].append(link);
  patch.cells[1].className = "number";
  patch.row = row;
  patches.push(patch);
  find("cards").append(card);
  find("rows").append(row);
  queue.push(() => predict(patch));
}

const asText = (prob) => (prob > 0.999 ? "> 0.999" : prob < 0.001 ? "< 0.001" : prob.toFixed(3));
const note = (patch) => (patch.error ? `Refused: ${patch.error}` : patch.warning || "");

function addNote(patch, text, kind = "") {
  const line = document.createElement("p");
  line.textContent = text;
  line.className = kind;
  patch.card.querySelector(".notes").append(line);
}

function showResult(patch) {
  const card = patch.card, value = card.querySelector(".value");
  card.classList.remove("waiting");
  if (patch.image) card.querySelector(".patch").src = patch.image;
  card.querySelector(".patch").alt = patch.image ? `Patch ${patch.name}` : "";
  if (patch.error) {
    card.classList.add("refused");
    card.classList.toggle("empty", !patch.image);
    value.textContent = "Refused";
    addNote(patch, patch.error);
  } else {
    value.textContent = asText(patch.prob);
    const unit = document.createElement("small");
    unit.textContent = " probability of tumor";
    card.querySelector(".prob").append(unit);
    card.querySelector(".meter span").style.width = `${100 * patch.prob}%`;
    if (patch.warning) addNote(patch, patch.warning);
    card.querySelector(".toggle").hidden = !find("show-heat");
    patch.cells[1].textContent = asText(patch.prob);
    watcher.observe(card);
  }
  patch.cells[2].textContent = note(patch);
}

function showStatus() {
  const done = patches.filter((patch) => patch.done).length;
  const refused = patches.filter((patch) => patch.error).length;
  const warned = patches.filter((patch) => patch.warning).length;
  const count = (number, one, many) => (number ? [`${number.toLocaleString("en")} ${number === 1 ? one : many}`] : []);
  const parts = [
    ...(done < patches.length ? [`${done.toLocaleString("en")} of ${patches.length.toLocaleString("en")} patches`]
      : count(done, "patch", "patches")),
    ...count(refused, "refused", "refused"), ...count(warned, "with a warning", "with warnings"),
    ...count(skipped, "other file skipped", "other files skipped"),
    ...(dropped ? [`only the first ${MOST.toLocaleString("en")} files are shown`] : []),
  ];
  find("status").textContent = parts.join(", ");
  find("progress").hidden = done === patches.length;
  find("progress").max = Math.max(1, patches.length);
  find("progress").value = done;
  find("results").hidden = !patches.length && !skipped;
  if (done === patches.length) order();
}

function order() {
  const byProb = find("order").value === "prob";
  const prob = (patch) => (patch.prob === undefined ? -1 : patch.prob);
  const sorted = [...patches].sort((a, b) => (byProb ? prob(b) - prob(a) : 0) || a.number - b.number);
  if (sorted.every((patch, place) => find("cards").children[place] === patch.card)) return;
  find("cards").append(...sorted.map((patch) => patch.card));
  find("rows").append(...sorted.map((patch) => patch.row));
}

function addFiles(found, fromFolder) {
  const wanted = fromFolder ? found.filter(({ name }) => IMAGE.test(name) && !name.split("/").pop().startsWith(".")) : found;
  skipped += found.length - wanted.length;
  const room = Math.max(0, MOST - patches.length);
  dropped += Math.max(0, wanted.length - room);
  for (const { file, name } of wanted.slice(0, room)) add(file, name);
  showStatus();
  pump();
}

for (const id of ["files", "folder"]) {
  find(id).addEventListener("change", (event) => {
    const found = [...event.target.files].map((file) => ({ file, name: file.webkitRelativePath || file.name }));
    event.target.value = "";  // allow the same files to be chosen again
    addFiles(found, id === "folder");
  });
}

async function walk(entry) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{ file, name: entry.fullPath.replace(/^\//, "") }];
  }
  const reader = entry.createReader(), found = [];
  for (;;) {  // a call returns at most 100 entries
    const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!entries.length) return found;
    for (const one of entries) found.push(...await walk(one));
  }
}

document.addEventListener("dragover", (event) => { event.preventDefault(); find("drop").classList.add("over"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) find("drop").classList.remove("over"); });
document.addEventListener("drop", async (event) => {
  event.preventDefault();
  find("drop").classList.remove("over");
  // Entries are invalid after the first await.
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry && item.webkitGetAsEntry());
  const files = [...event.dataTransfer.files].map((file) => ({ file, name: file.name }));
  if (!entries.some((entry) => entry && entry.isDirectory)) { addFiles(files, false); return; }
  for (const entry of entries) if (entry) addFiles(await walk(entry).catch(() => []), entry.isDirectory);
});

if (find("examples")) {
  find("examples").addEventListener("click", async () => {
    const numbers = [...Array(Number(document.body.dataset.examples)).keys()];
    const blobs = await Promise.all(numbers.map(async (number) => (await fetch(`examples/${number}.png`)).blob()));
    addFiles(blobs.map((file, number) => ({ file, name: `synthetic_${number + 1}.png` })), false);
  });
}

if (find("show-heat")) {
  find("show-heat").addEventListener("change", () => {
    for (const patch of patches.filter((one) => one.prob !== undefined)) {
      if (!heatWanted()) toggleHeat(patch, false);
      watcher.unobserve(patch.card);
      watcher.observe(patch.card);  // reports immediately whether the card is in view
    }
  });
}
find("show-frame").addEventListener("change", (event) => find("cards").classList.toggle("no-frame", !event.target.checked));
find("order").addEventListener("change", order);
find("clear").addEventListener("click", () => {
  aborter.abort();
  aborter = new AbortController();
  watcher.disconnect();
  patches = [];
  queue = [];
  skipped = dropped = 0;
  find("cards").replaceChildren();
  find("rows").replaceChildren();
  showStatus();
  find("files").focus();
});

// Spreadsheets interpret cells that start with one of these characters as formulas.
const asCell = (text) => `"${(/^[=+\-@\t\r]/.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`;

find("download").addEventListener("click", () => {
  const lines = patches.map((patch) => [asCell(patch.name), patch.prob === undefined ? "" : patch.prob.toPrecision(7), asCell(note(patch))].join(","));
  const blob = new Blob([["file,probability,note", ...lines, ""].join("\r\n")], { type: "text/csv" });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = "predictions.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
});
