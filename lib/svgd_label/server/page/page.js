// The page at /svgd/: asks for the state every few seconds and shows what has changed of it.
// What comes from the server is set as text, never as HTML: names of images may be anything.
import { drawCurve } from "./curve.js";
import { duration, fill, make, number, plural, setText, terms, when } from "./text.js";

const PAUSES = { training: 2000, idle: 5000, failed: 10000, hidden: 60000 }; // milliseconds
const MOST_PICTURES = 500;
const STATUSES = {
  unlabelled: "unlabelled",
  leased: "being labelled",
  labelled: "labelled",
  validation: "labelled, for validation",
  flagged: "flagged",
  unscorable: "cannot be used",
};
const view = { sort: "rank", descending: false, status: "", search: "", page: 1 };
const rows = new Map(); // image -> its <tr>
const pictures = new Map(); // address -> ImageBitmap
const waiting = []; // canvases whose picture is still to be fetched
let asked = 0; // number of the last request: answers to older ones are dropped
let timer = 0;
let state = null;
let fetching = false;
let said = 0; // when the last sentence was said
let flagged = ""; // the image that the dialogue is about

const $ = (id) => document.getElementById(id);

function say(text, fine = false) {
  said = Date.now();
  setText($("notice"), text);
  $("notice").classList.toggle("fine", fine);
}

// The server

class Refused extends Error {}

async function ask(path, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  const response = await fetch(path, { ...options, headers, cache: "no-store" });
  if (response.status === 401) {
    showLogin();
    throw new Refused(token ? "The login has ended: log in again." : "");
  }
  if (!response.ok) {
    const answer = await response.json().catch(() => null);
    if (!answer && response.status > 501) throw new TypeError("a proxy's answer: the server is away");
    const detail = typeof answer?.detail === "string" ? answer.detail : "see the server's log";
    throw new Refused(`The server refused (${response.status}): ${detail}.`);
  }
  return response;
}

async function refresh() {
  clearTimeout(timer);
  const mine = ++asked;
  let pause = PAUSES.failed;
  try {
    const query = new URLSearchParams(view);
    if (!view.status) query.delete("status");
    const answer = await (await ask(`state?${query}`)).json();
    if (mine !== asked) return;
    const isOld = $("notice").classList.contains("fine") && Date.now() - said > 15000;
    if ($("notice").dataset.outage || isOld) say("");
    delete $("notice").dataset.outage;
    state = answer;
    show();
    pause = document.hidden ? PAUSES.hidden : state.training.running ? PAUSES.training : PAUSES.idle;
  } catch (error) {
    if (mine !== asked) return;
    if (error instanceof TypeError || error instanceof SyntaxError) {
      const isOther = error instanceof SyntaxError; // a proxy's page, such as its login
      say(isOther ? "Something other than the server answers: load this page anew." : "The server does not answer. It is asked again.");
      $("notice").dataset.outage = "yes";
    } else if (error instanceof Refused) {
      if (error.message) say(error.message);
      if (!$("login").hidden) return; // nothing to ask for without a token
      $("notice").dataset.outage = "yes";
    } else throw error;
  }
  timer = setTimeout(refresh, pause);
}

/** A button's work: says what came of it, then shows the new state. Returns what went wrong, if anything did. */
async function act(work, done) {
  let failed = "";
  try {
    await work();
  } catch (error) {
    failed = error instanceof TypeError ? "No answer came. Once the server is back, this page shows whether it was done." : error.message;
  }
  delete $("notice").dataset.outage;
  say(failed || done, !failed);
  refresh();
  return failed;
}

const postJson = (path, body) =>
  ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

// Login

function showLogin() {
  sessionStorage.removeItem("token");
  $("content").hidden = $("account").hidden = true;
  $("login").hidden = false;
}

async function logIn(event) {
  event.preventDefault();
  const form = event.target;
  try {
    const response = await fetch("../auth/token", { method: "POST", body: new URLSearchParams(new FormData(form)) });
    if (response.status > 501) throw new TypeError("a proxy's answer: the server is away");
    if (!response.ok) throw new Refused("Name and password were not accepted."); // for which MONAI Label has a 500
    sessionStorage.setItem("token", (await response.json()).access_token);
  } catch (error) {
    say(error instanceof Refused ? error.message : "The server does not answer: try again later.");
    return;
  }
  form.reset();
  form.hidden = true;
  say("");
  refresh();
}

// What is shown

function show() {
  $("login").hidden = true;
  $("content").hidden = false;
  $("account").hidden = !state.user;
  setText($("user"), state.user ?? "");
  setText($("task"), state.task.name);
  document.title = `SVGD Label: ${state.task.name}`;
  const counts = state.counts;
  const total = Object.values(counts).reduce((sum, count) => sum + count, 0);
  const labelled = counts.labelled + counts.validation;
  $("far").max = total || 1;
  $("far").value = labelled;
  const others = ["validation", "leased", "flagged", "unscorable"].filter((status) => counts[status]);
  const words = [`${labelled} of ${plural(total, "image")} labelled`];
  words.push(...others.map((status) => `${counts[status]} ${status === "validation" ? "of them for validation" : STATUSES[status]}`));
  setText($("far-words"), words.join(", "));
  showNext(state.next);
  showTraining(state.training);
  showCurve(state.curve);
  showTable(state.table);
  $("history-none").hidden = state.history.length > 0;
  fill($("history"), state.history, (steps) => steps.map(historyRow));
}

function ohifAddress(image) {
  // An image's id is its series; the study alone would open at its first one.
  const query = `SeriesInstanceUIDs=${encodeURIComponent(image.image)}&StudyInstanceUIDs=${encodeURIComponent(image.study)}`;
  return state.ohif && image.study ? `../ohif/monai-label?${query}` : null;
}

function showNext(image) {
  $("next").hidden = !image;
  $("next-none").hidden = Boolean(image);
  if (!image) return;
  setText($("next-name"), image.image);
  setText($("next-why"), image.why);
  fill($("next-words"), image.words, (words) => words.map((sentence) => make("li", sentence)));
  const numbers = image.rank === null ? [] : [
    ["Rank", String(image.rank)], ["Score", number(image.score)],
    ["Entropy", `${number(image.entropy, 4)} nats`], ["Mutual information", `${number(image.mutual_information)} nats`],
  ];
  fill($("next-numbers"), numbers, terms);
  linkTo($("next-ohif"), ohifAddress(image));
  $("next-ohif").hidden = !ohifAddress(image);
  paint($("next").querySelector("canvas"), image);
}

function linkTo(link, address) {
  if (address === null) link.removeAttribute("href");
  else if (link.getAttribute("href") !== address) link.setAttribute("href", address);
}

function showTraining(training) {
  const version = `model version ${training.version}`;
  const sentences = {
    never: "Nothing has been trained here yet.",
    starting: "A training is starting; that takes about half a minute.",
    training: `Training ${version}: step ${training.step ?? 0}${training.steps ? ` of ${training.steps}` : ""}.`,
    scoring: `Trained ${version}; now it scores the images.`,
    done: `The last training made ${version}${training.ended ? `, ${when(training.ended)}` : ""}.`,
    failed: `The last training failed: ${training.error}`,
    stopped: `The training of ${version} was stopped. The committee before it stays in use.`,
    unscored: `The last training made ${version}, but was stopped while that scored the images: it goes on after the next saved label.`,
  };
  let sentence = sentences[training.status] ?? training.status;
  if (training.scoring) sentence += " The images are being scored.";
  setText($("training-status"), sentence);
  const progress = $("training-progress");
  progress.hidden = !training.running;
  if (training.status === "training" && training.steps) progress.value = training.step / training.steps;
  else progress.removeAttribute("value"); // moves without saying how far
  const pairs = [];
  if (training.loss !== undefined) pairs.push(["Loss", number(training.loss)]);
  if (training.best_metric !== undefined) pairs.push(["Validation Dice", number(training.best_metric)]);
  if (training.status === "training" && training.seconds_left !== undefined)
    pairs.push(["Time left", `about ${duration(training.seconds_left)}`]);
  fill($("training-numbers"), pairs, terms);
  const labels = `New labels since the last training: ${training.new_labels}.`;
  setText($("training-labels"), training.every ? `${labels} At ${training.every}, a training starts by itself.` : labels);
  $("start").setAttribute("aria-disabled", training.running);
  $("stop").setAttribute("aria-disabled", !training.running);
}

function historyRow(step) {
  const texts = {
    Step: String(step.step), When: when(step.at), "Model version": String(step.version), Strategy: step.strategy,
    "To be labelled": step.annotated.join(", ") || "–", Repeated: step.repeated.join(", ") || "–",
  };
  const row = make("tr", "", { role: "row" });
  row.append(...Object.entries(texts).map(([label, text]) => make("td", text, { role: "cell", "data-label": label })));
  return row;
}

// The table

function showTable(table) {
  view.page = table.page;
  const total = Object.values(table.counts).reduce((sum, count) => sum + count, 0);
  fill($("status"), [total, table.counts], () => [
    make("option", `all (${total})`, { value: "" }),
    ...Object.entries(STATUSES).map(([status, words]) => make("option", `${words} (${table.counts[status]})`, { value: status })),
  ]);
  $("status").value = view.status;
  for (const header of $("images").tHead.querySelectorAll("[data-column]")) {
    if (header.dataset.column === view.sort) header.setAttribute("aria-sort", view.descending ? "descending" : "ascending");
    else header.removeAttribute("aria-sort");
  }
  showRows(table.rows);
  setText($("page"), `Page ${table.page} of ${table.pages}, ${plural(table.total, "image")}`);
  $("previous").setAttribute("aria-disabled", table.page <= 1);
  $("following").setAttribute("aria-disabled", table.page >= table.pages);
}

/** Rows keep their elements, and are moved only where the order is another: focus and scroll stay. */
function showRows(images) {
  const body = $("images").tBodies[0];
  const focused = document.activeElement;
  const present = new Set(images.map((image) => image.image));
  for (const [name, row] of rows) {
    if (present.has(name)) continue;
    if (row.contains(focused)) (row.nextElementSibling?.querySelector("button") ?? $("search")).focus({ preventScroll: true });
    row.remove();
    rows.delete(name);
  }
  images.forEach((image, index) => {
    let row = rows.get(image.image);
    if (!row) {
      row = $("row").content.firstElementChild.cloneNode(true);
      row.querySelector("button").addEventListener("click", () => flagOrNot(row.image));
      rows.set(image.image, row);
    }
    row.image = image;
    showRow(row, image);
    if (body.children[index] !== row) body.insertBefore(row, body.children[index] ?? null);
  });
  if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
}

function showRow(row, image) {
  const [rank, name, status, score, entropy, information, frequency, action] = row.cells;
  setText(rank, image.rank === null ? "–" : String(image.rank));
  setText(name.querySelector("a"), image.image);
  linkTo(name.querySelector("a"), ohifAddress(image));
  paint(name.querySelector("canvas"), image);
  status.className = `status ${image.status}`;
  let words = STATUSES[image.status];
  if (image.status === "leased") words += ` by ${image.why}`;
  else if (image.why !== null) words += `: ${image.why}`;
  else if (image.queue_position !== null) words += `, picked as number ${image.queue_position}`;
  setText(status, words);
  setText(score, number(image.score));
  setText(entropy, number(image.entropy, 4));
  setText(information, number(image.mutual_information));
  setText(frequency, String(image.frequency));
  const button = action.firstElementChild;
  setText(button, image.status === "flagged" ? "Put back" : "Flag");
  button.setAttribute("aria-label", `${button.textContent} ${image.image}`);
}

function change(what) {
  Object.assign(view, { page: 1 }, what);
  refresh();
}

function flagOrNot(image) {
  if (image.status === "flagged") {
    setFlag(image.image, null);
    return;
  }
  flagged = image.image;
  setText($("flag-name"), flagged);
  setText($("flag-failed"), "");
  $("flag").querySelector("form").reset();
  $("flag").showModal();
}

function setFlag(image, reason) {
  const done = reason === null ? `${image} is back.` : `${image} is flagged as unusable.`;
  return act(() => postJson(`flag?image=${encodeURIComponent(image)}`, { reason }), done);
}

// Small pictures: one at a time, so that annotators' requests come first

function paint(canvas, image) {
  const address = image.coded ? `thumbnail?image=${encodeURIComponent(image.image)}&of=${encodeURIComponent(image.fingerprint)}` : "";
  if (canvas.dataset.of === address) return;
  canvas.dataset.of = address;
  canvas.width = canvas.width; // empties it
  if (!address) return;
  waiting.push(canvas);
  fetchPictures();
}

async function fetchPictures() {
  if (fetching) return;
  fetching = true;
  await null; // first, the rows take their places
  while (waiting.length) {
    const canvas = waiting.shift();
    const address = canvas.dataset.of;
    if (!canvas.isConnected || !address) continue; // its row has gone meanwhile
    try {
      if (!pictures.has(address)) pictures.set(address, await createImageBitmap(await (await ask(address)).blob()));
      if (pictures.size > MOST_PICTURES) pictures.delete(pictures.keys().next().value);
      if (canvas.dataset.of === address) draw(canvas, pictures.get(address));
    } catch {
      canvas.dataset.of = ""; // the next state is another occasion
    }
  }
  fetching = false;
}

function draw(canvas, picture) {
  canvas.width = picture.width;
  canvas.height = picture.height;
  canvas.getContext("2d").drawImage(picture, 0, 0);
}

// The learning curve

function showCurve(versions) {
  fill($("curve-numbers"), versions, () => versions.map((version) => {
    const row = make("tr");
    const proposed = version.proposed;
    const saved = proposed ? `${number(proposed.mean)} (${number(proposed.lowest)} to ${number(proposed.highest)}), ${plural(proposed.labels, "label")}` : "–";
    const trained = version.labelled === null ? "–" : plural(version.labelled, "image");
    row.append(...[String(version.version), trained, saved, number(version.validation)].map((text) => make("td", text)));
    return row;
  }));
  fill($("curve"), versions, drawCurve);
}

// Buttons

function onClick(id, work) {
  $(id).addEventListener("click", (event) => {
    if (event.currentTarget.getAttribute("aria-disabled") !== "true") work();
  });
}

async function copyAddress() {
  const field = $("slicer");
  field.select();
  let copied = true;
  try {
    await navigator.clipboard.writeText(field.value);
  } catch {
    copied = document.execCommand("copy"); // where the page does not come over HTTPS, the newer way is not there
  }
  const paste = "In 3D Slicer's module MONAI Label, paste it as the server.";
  say(copied ? `The address is copied. ${paste}` : `The browser does not copy it: copy what is selected yourself. ${paste}`, copied);
}

$("slicer").value = new URL("..", location.href).href.replace(/\/$/, "");
$("login").addEventListener("submit", logIn);
onClick("logout", () => {
  sessionStorage.removeItem("token");
  location.reload(); // so that nothing of what was shown is left
});
onClick("copy", copyAddress);
onClick("start", () => act(() => postJson("../train/svgd", {}), "The training is starting."));
onClick("stop", () => act(() => ask("../train/", { method: "DELETE" }), "The training is stopped."));
onClick("previous", () => change({ page: view.page - 1 }));
onClick("following", () => change({ page: view.page + 1 }));
for (const header of $("images").tHead.querySelectorAll("[data-column]")) {
  const column = header.dataset.column;
  header.firstElementChild.addEventListener("click", () => {
    const again = view.sort === column;
    change({ sort: column, descending: again ? !view.descending : !["rank", "image", "status"].includes(column) });
  });
}
$("filter").addEventListener("submit", (event) => event.preventDefault());
$("status").addEventListener("change", (event) => change({ status: event.target.value }));
$("search").addEventListener("input", (event) => change({ search: event.target.value }));
$("flag").querySelector("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const image = flagged;
  const failed = await setFlag(image, event.target.elements.reason.value);
  if (image !== flagged) return; // cancelled meanwhile, and opened for another
  setText($("flag-failed"), failed);
  if (!failed) $("flag").close();
});
onClick("flag-cancel", () => $("flag").close());
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && $("login").hidden) refresh();
});
refresh();
