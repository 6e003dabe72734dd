"use strict";
// A percentile chosen by slider or pointer is read off all curves of its chart.
for (const figure of document.querySelectorAll("figure.curves")) {
  const values = JSON.parse(figure.querySelector("script").textContent);
  const slider = figure.querySelector("input");
  const plot = figure.querySelector(".plot");
  const cursor = figure.querySelector(".cursor");
  const output = figure.querySelector("output");
  const head = figure.querySelector("th.live");
  const cells = [...figure.querySelectorAll("td.live")];

  const show = () => {
    const at = Number(slider.value);
    cursor.style.left = `${at}%`;
    output.textContent = String(at);
    head.textContent = `at p${at}`;
    slider.setAttribute("aria-valuetext", `percentile ${at}`);
    cells.forEach((cell, index) => (cell.textContent = values[index][at]));
  };
  slider.addEventListener("input", show);
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    slider.value = String(Math.round(100 * Math.min(1, Math.max(0, share))));
    show();
  });
  show();
}
