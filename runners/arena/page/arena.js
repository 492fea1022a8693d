"use strict";
// One trial after the other; the server alone knows what is shown and what counts.

const $ = (id) => document.getElementById(id);
const KEPT = "arena rater";
const SETTLED = 300; // milliseconds before a vote counts: a key that is still down from the trial before isn't one
const LARGEST = 32;

let study, rater, trial = null, shownAt = 0, busy = false, held = null;
let size = { w: 1, h: 1 }; // of the trial's images, in their pixels
let view = { zoom: 1, x: 0.5, y: 0.5 }; // the point of the image, in shares of its sides, at the middle of every pane

async function ask(path, body) {
  const post = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(path, { cache: "no-store", ...post });
  const value = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(value.error), { status: answer.status });
  return value;
}

function show(page) {
  for (const id of ["welcome", "trial", "done"]) $(id).hidden = id !== page;
}

function tell(message) {
  $("alert").textContent = message;
  $("alert").hidden = !message;
}

// Coming in

async function begin() {
  study = await ask("/study");
  document.title = study.title;
  $("question").textContent = study.question;
  study.welcome.forEach((paragraph, i) => {
    const element = document.createElement(i ? "p" : "h1");
    element.textContent = paragraph;
    $("text").append(element);
  });
  makePanes();
  rater = localStorage.getItem(KEPT);
  if (rater) await next();
  else show("welcome");
}

async function enter(code) {
  rater = code;
  localStorage.setItem(KEPT, code);
  await next();
}

$("agreed").onchange = () => { $("start").disabled = !$("agreed").checked; };
$("start").onclick = guarded(async () => enter((await ask("/join", { agreed: true })).rater));
$("resume").onclick = guarded(async () => enter($("code").value.trim().toLowerCase()));
$("another").onclick = () => { localStorage.removeItem(KEPT); location.reload(); };

function guarded(action) {
  return async (...given) => {
    if (busy) return;
    busy = true;
    try {
      await action(...given);
      tell("");
    } catch (error) {
      if (error.status === 404 && rater) {
        rater = null;
        localStorage.removeItem(KEPT);
        show("welcome");
      }
      tell(error.status ? error.message : "The study can't be reached. Nothing is lost: try again in a moment.");
    } finally {
      busy = false;
    }
  };
}

// Panes

const pairs = () => study.together === 2;
const letter = (place) => pairs() ? ["Left", "Right"][place] : String(place + 1);

function makePanes() {
  const names = [...Array(study.together).keys()].map(letter);
  if (study.lr === "centred") names.splice(Math.ceil(names.length / 2), 0, "Input");
  for (const name of names) {
    const pane = document.createElement("figure"), image = document.createElement("img");
    const label = document.createElement("figcaption");
    pane.className = "pane";
    image.draggable = false;
    image.alt = name === "Input" ? "The input that the images were made from" : `Image ${name}`;
    label.textContent = name;
    pane.append(image, label);
    pane.dataset.name = name;
    $("panes").append(pane);
    watch(pane);
  }
  document.body.classList.add(pairs() ? "pair" : "many", study.lr);
  const columns = names.length <= 4 ? names.length : Math.ceil(names.length / 2);
  $("panes").style.setProperty("--columns", columns);
  for (let place = 0; place < study.together; place++) addChoice(place, place);
  if (study.ties) {
    const tie = addChoice(null, "tie");
    if (pairs()) tie.parentElement.insertBefore(tie, tie.parentElement.lastElementChild.previousElementSibling);
  }
}

function addChoice(choice, name) {
  const button = document.createElement("button"), key = document.createElement("kbd");
  button.id = `choose-${name}`;
  key.textContent = choice === null ? "Space" : pairs() ? "FJ"[choice] : choice + 1;
  button.append(choice === null ? "Can't tell " : `${letter(choice)} `, key);
  button.onclick = () => { button.blur(); vote(choice); };
  $("choices").append(button);
  return button;
}

const panes = () => [...document.querySelectorAll(".pane")];
const candidates = () => panes().filter((pane) => pane.dataset.name !== "Input");

async function fill() {
  const images = held === "swap" ? [...trial.images.slice(1), trial.images[0]] : trial.images;
  const places = candidates();
  const wanted = new Map(places.map((pane, i) => [pane, held === "input" ? trial.lr : images[i]]));
  for (const pane of panes()) {
    const image = pane.querySelector("img"), address = wanted.get(pane) ?? trial.lr;
    if (image.getAttribute("src") !== address) image.src = address;
  }
  $("trial").classList.toggle("held", held !== null);
  await Promise.all(panes().map((pane) => pane.querySelector("img").decode()));
  place();
}

function place() {
  for (const pane of panes()) {
    const image = pane.querySelector("img"), { naturalWidth: w, naturalHeight: h } = image;
    if (!w) continue;
    const dots = window.devicePixelRatio || 1;
    const fit = Math.min(pane.clientWidth / size.w, pane.clientHeight / size.h);
    // Whole device pixels for each pixel where the image fits, so that none is wider than its neighbour.
    const base = fit * dots >= 1 ? Math.floor(fit * dots) / dots : fit;
    const scale = (base * view.zoom * size.w) / w;
    image.style.imageRendering = scale * dots >= 1 ? "pixelated" : "auto";
    image.style.transform = `translate(${pane.clientWidth / 2 - view.x * w * scale}px, ` +
      `${pane.clientHeight / 2 - view.y * h * scale}px) scale(${scale})`;
    pane.dataset.scale = base * view.zoom;
  }
}

async function next() {
  trial = await ask(`/trial?rater=${encodeURIComponent(rater)}`);
  if (trial.done) return show("done");
  show("trial");
  held = null;
  view = { zoom: 1, x: 0.5, y: 0.5 };
  document.body.dataset.ready = "";
  const first = new Image();
  first.src = trial.images[0];
  await first.decode();
  size = { w: first.naturalWidth, h: first.naturalHeight };
  $("panes").style.setProperty("--shape", `${size.w} / ${size.h}`);
  await fill();
  $("progress").max = trial.total;
  $("progress").value = trial.number;
  $("count").textContent = `${trial.number + 1} of ${trial.total}`;
  $("own").textContent = rater;
  shownAt = performance.now();
  document.body.dataset.ready = trial.number;
  for (const address of [trial.lr, ...trial.ahead]) new Image().src = address;
}

const vote = guarded(async (choice) => {
  const waited = performance.now() - shownAt;
  if (!trial || trial.done || held || waited < SETTLED) return;
  try {
    await ask("/vote", { rater, number: trial.number, choice, seconds: waited / 1000 });
  } catch (error) {
    if (error.status !== 409) throw error; // it has been counted already, from another tab or before the answer was lost
  }
  await next();
});

// Looking: all panes together

function zoomBy(factor, dx = 0, dy = 0) {
  const zoom = Math.min(LARGEST, Math.max(1, view.zoom * factor));
  const scale = Number(panes()[0].dataset.scale), after = (scale * zoom) / view.zoom;
  // The point (dx, dy) pixels off the middle stays where it is.
  view.x += dx / size.w * (1 / scale - 1 / after);
  view.y += dy / size.h * (1 / scale - 1 / after);
  view.zoom = zoom;
  keepInside();
}

function moveBy(dx, dy) {
  const scale = Number(panes()[0].dataset.scale);
  view.x -= dx / (size.w * scale);
  view.y -= dy / (size.h * scale);
  keepInside();
}

function keepInside() {
  const edge = 0.5 / view.zoom;
  view.x = Math.min(1 - edge, Math.max(edge, view.x));
  view.y = Math.min(1 - edge, Math.max(edge, view.y));
  place();
}

function watch(pane) {
  const fingers = new Map();
  const apart = () => {
    const [a, b] = [...fingers.values()];
    return Math.hypot(a.x - b.x, a.y - b.y);
  };
  pane.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = pane.getBoundingClientRect();
    zoomBy(Math.exp(-event.deltaY / 300), event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2);
  }, { passive: false });
  pane.addEventListener("pointerdown", (event) => {
    pane.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  });
  pane.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const distance = fingers.size === 2 ? apart() : 0;
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (distance) zoomBy(apart() / distance);
    else moveBy(event.clientX - before.x, event.clientY - before.y);
  });
  for (const end of ["pointerup", "pointercancel"]) pane.addEventListener(end, (event) => fingers.delete(event.pointerId));
}

function hold(what) {
  if (!trial || trial.done || held === what || (held && what)) return;
  held = what;
  fill().catch(() => {}); // the next one has taken its place
}

function reset() {
  view = { zoom: 1, x: 0.5, y: 0.5 };
  place();
}

$("smaller").onclick = () => zoomBy(1 / 1.5);
$("larger").onclick = () => zoomBy(1.5);
$("fit").onclick = reset;
for (const [id, what] of [["swap", "swap"], ["input", "input"]]) {
  $(id).addEventListener("pointerdown", () => hold(what));
  for (const end of ["pointerup", "pointercancel", "pointerleave"]) $(id).addEventListener(end, () => hold(null));
}

const STEPS = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] };

function choiceOf(key) {
  if (key === "0" || key === "t" || key === " ") return study.ties ? null : undefined;
  if (/^[1-9]$/.test(key) && key <= study.together) return Number(key) - 1;
  if (!pairs()) return undefined;
  return { f: 0, arrowleft: 0, j: 1, arrowright: 1 }[key];
}

addEventListener("keydown", (event) => {
  if ($("trial").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase();
  if (key === " " && document.activeElement?.tagName === "BUTTON") return; // it presses that button
  if (event.shiftKey && STEPS[event.key]) moveBy(...STEPS[event.key]);
  else if (key === "+" || key === "=") zoomBy(1.5);
  else if (key === "-") zoomBy(1 / 1.5);
  else if (event.repeat) return;
  else if (key === "r") reset();
  else if (key === "q") hold("swap");
  else if (key === "l") hold("input");
  else if (choiceOf(key) !== undefined) vote(choiceOf(key));
  else return;
  event.preventDefault();
});
addEventListener("keyup", (event) => { if (["q", "l"].includes(event.key.toLowerCase())) hold(null); });
addEventListener("blur", () => hold(null));
addEventListener("resize", () => { if (trial && !trial.done) place(); });

guarded(begin)();
