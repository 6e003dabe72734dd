"use strict";
// One slider for all panels of a group: the pool at its time, and the ledger's classes in numbers.
(() => {
  const legend = JSON.parse(document.getElementById("legend").textContent);
  const colours = new Map(
    legend.palette.map(([r, g, b], index) => [
      (r << 16) | (g << 8) | b,
      legend.order[index % legend.order.length],
    ]),
  );
  const percent = (part, whole) => ((100 * part) / whole).toFixed(1);
  const seconds = (value) => `${Number(value.toPrecision(4))} s`;

  function pixelsOf(image) {
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, canvas.width, canvas.height);
  }

  function makePanel(figure, data) {
    const image = figure.querySelector("img");
    const cursor = figure.querySelector(".cursor");
    const bar = figure.querySelector(".bar.live");
    const readout = figure.querySelector(".readout");
    const snapshot = figure.querySelector("canvas.snapshot");
    const names = legend.order.filter((name) => name in data.counts);
    const length = names.length ? data.counts[names[0]].length : 0;
    const segments = new Map();
    for (const name of names) {
      const segment = document.createElement("span");
      segment.className = `k-${name}`;
      bar.append(segment);
      segments.set(name, segment);
    }
    let pixels = null;
    let now = 0;
    const columns = Math.ceil(Math.sqrt(2.5 * data.height));
    const rows = Math.ceil(data.height / columns);

    const draw = () => {
      if (!snapshot || !pixels) return;
      snapshot.width = columns;
      snapshot.height = rows;
      const context = snapshot.getContext("2d");
      const picture = context.createImageData(columns, rows);
      for (let place = 0; place < data.height; place += 1) {
        const from = 4 * ((data.height - 1 - place) * data.width + now);
        picture.data.set(pixels.data.subarray(from, from + 4), 4 * place);
      }
      context.putImageData(picture, 0, 0);
    };

    const words = () =>
      names
        .filter((name) => data.counts[name][now] / data.slots >= 0.0005)
        .map((name) => `${legend.labels[name]} ${percent(data.counts[name][now], data.slots)} %`)
        .join(", ");

    const show = (moment) => {
      now = moment;
      cursor.style.left = `${(100 * (moment + 0.5)) / data.width}%`;
      const ended = moment >= length;
      for (const [name, segment] of segments) {
        segment.style.width = ended ? "0" : `${percent(data.counts[name][moment], data.slots)}%`;
      }
      const text = ended ? "all requests are served" : words();
      readout.textContent = text;
      if (snapshot) snapshot.setAttribute("aria-label", `the pool at the slider's time: ${text}`);
      draw();
    };

    const at = (event) => {
      const box = snapshot.getBoundingClientRect();
      const column = Math.floor((columns * (event.clientX - box.left)) / box.width);
      const row = Math.floor((rows * (event.clientY - box.top)) / box.height);
      const place = row * columns + column;
      if (!pixels || column >= columns || place < 0 || place >= data.height) return "";
      const from = 4 * ((data.height - 1 - place) * data.width + now);
      const [r, g, b, alpha] = pixels.data.subarray(from, from + 4);
      const name = alpha ? colours.get((r << 16) | (g << 8) | b) : "free";
      const first = place * data.per_row;
      const last = Math.min(first + data.per_row, data.slots) - 1;
      const slots = first === last ? `slot ${first}` : `slots ${first} to ${last}`;
      return `${slots}: ${legend.labels[name] ?? name}`;
    };
    if (snapshot) {
      snapshot.addEventListener("pointermove", (event) => showTip(event, at(event)));
      const load = () => {
        pixels = pixelsOf(image);
        draw();
      };
      if (image.complete) load();
      else image.addEventListener("load", load);
    }
    return { show, picture: image.parentElement };
  }

  for (const group of document.querySelectorAll("details.timeline")) {
    const data = JSON.parse(group.querySelector(":scope > script").textContent);
    const slider = group.querySelector(".slider input");
    const output = group.querySelector(".slider output");
    const panels = [...group.querySelectorAll("figure.panel")].map((figure, index) =>
      makePanel(figure, data.panels[index]),
    );
    const show = () => {
      const moment = Number(slider.value);
      const time = seconds(((moment + 0.5) * data.until) / data.moments);
      output.textContent = time;
      slider.setAttribute("aria-valuetext", time);
      for (const panel of panels) panel.show(moment);
    };
    slider.addEventListener("input", show);
    for (const { picture } of panels) {
      const choose = (event) => {
        if (event.type === "pointermove" && !event.buttons) return;
        const box = picture.getBoundingClientRect();
        const moment = Math.floor((data.moments * (event.clientX - box.left)) / box.width);
        slider.value = String(moment);
        show();
      };
      picture.addEventListener("pointerdown", choose);
      picture.addEventListener("pointermove", choose);
    }
    show();
  }
})();
