"use strict";
// What lies under the pointer, in words: elements with data-tip, and whoever calls showTip.
const tip = document.getElementById("tip");

function showTip(event, text) {
  tip.textContent = text;
  tip.hidden = !text;
  if (!text) return;
  const margin = 12;
  const box = tip.getBoundingClientRect();
  const left = Math.min(event.clientX + margin, document.documentElement.clientWidth - box.width - 4);
  const below = event.clientY + margin;
  const fits = below + box.height < innerHeight;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${fits ? below : event.clientY - margin - box.height}px`;
}

document.addEventListener("pointermove", (event) => {
  const target = event.target instanceof Element ? event.target : null;
  if (target?.closest(".snapshot")) return;
  showTip(event, target?.closest("[data-tip]")?.dataset.tip ?? "");
});
document.addEventListener("pointerleave", () => (tip.hidden = true));
document.addEventListener("scroll", () => (tip.hidden = true), { passive: true, capture: true });
