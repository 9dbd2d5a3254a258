"use strict";
const data = JSON.parse(document.getElementById("data").textContent);

// One audio element for the whole page: a song that starts ends the one before.
const audio = new Audio();
let sounding = null;
const buttons = [...document.querySelectorAll("[data-sound]")];
const points = [...document.querySelectorAll(".point")];

function show() {
  const played = audio.duration ? (100 * audio.currentTime) / audio.duration : 0;
  for (const button of buttons) {
    const on = button.dataset.sound === sounding;
    button.classList.toggle("sounding", on);
    button.style.setProperty("--played", on ? played.toFixed(1) : 0);
  }
  points.forEach((point, i) => point.classList.toggle("sounding", sounding !== null && data.plays[i] === sounding));
}

function stop() {
  sounding = null;
  show();
}

function play(sound) {
  audio.pause();
  if (sound === sounding) return stop();
  sounding = sound;
  audio.src = data.sounds[sound];
  audio.play().catch(stop);
  show();
}

audio.addEventListener("timeupdate", show);
audio.addEventListener("ended", stop);
for (const button of buttons) button.addEventListener("click", () => play(button.dataset.sound));

// The map: colour by a label, bring out one group, name a point, play it.
const legend = document.querySelector(".legend");
const choices = [...document.querySelectorAll("[data-label]")];
let chosen = null;

function bringOut(group) {
  const member = data.labels[chosen].member;
  points.forEach((point, i) => point.classList.toggle("away", group !== null && member[i] !== group));
}

function colour(label) {
  chosen = label;
  const { groups, member } = data.labels[label];
  for (const choice of choices) choice.setAttribute("aria-pressed", choice.dataset.label === label);
  points.forEach((point, i) => {
    const group = groups[member[i]];
    point.setAttribute("class", `point ${group.colour}${data.plays[i] ? " plays" : ""}`);
    point.setAttribute("d", data.shapes[group.shape]);
  });
  legend.replaceChildren(...groups.map((group, i) => entry(group, i)));
  show();
}

function entry(group, i) {
  const item = document.createElement("li");
  item.innerHTML = `<button type="button" aria-pressed="false"><svg viewBox="-7 -7 14 14"><path class="${group.colour}"
    d="${data.shapes[group.shape]}"/></svg><b></b><span>${group.count}</span></button>`;
  const button = item.firstChild;
  button.querySelector("b").replaceWith(group.name);
  const pressed = () => legend.querySelector('[aria-pressed="true"]');
  const held = () => (pressed() ? [...legend.children].indexOf(pressed().parentNode) : null);
  button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && bringOut(i));
  button.addEventListener("pointerleave", () => bringOut(held()));
  button.addEventListener("click", () => {
    const was = pressed();
    was?.setAttribute("aria-pressed", "false");
    if (was !== button) button.setAttribute("aria-pressed", "true");
    bringOut(held());
  });
  return item;
}

const tip = document.getElementById("tip");
function name(event) {
  const i = points.indexOf(event.target);
  tip.hidden = i < 0;
  if (i < 0) return;
  const title = document.createElement("b");
  title.textContent = data.titles[i];
  const answers = Object.entries(data.labels).map(([label, { answers }]) => `${label}: ${answers[i]}`);
  tip.replaceChildren(title, answers.join(" · "));
  const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
  const y = event.clientY + 16 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 12 : event.clientY + 16;
  tip.style.left = `${Math.max(8, x)}px`;
  tip.style.top = `${y}px`;
}

const map = document.querySelector("svg.map");
if (map) {
  map.addEventListener("pointermove", name);
  map.addEventListener("pointerdown", name);
  map.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && (tip.hidden = true));
  map.addEventListener("click", (event) => {
    const sound = data.plays[points.indexOf(event.target)];
    if (sound) play(sound);
  });
  points.forEach((point, i) => point.classList.toggle("plays", Boolean(data.plays[i])));
  for (const choice of choices) choice.addEventListener("click", () => colour(choice.dataset.label));
  if (choices.length) colour(choices[0].dataset.label);
}
addEventListener("scroll", () => (tip.hidden = true), { passive: true });
