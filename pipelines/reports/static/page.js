/* What is interactive in a report. Every text comes into the page as text (textContent), never as markup; nothing is loaded.
   The table stands in the page without this script; the script sorts and filters it, changes its metric and shows one cell. */
"use strict";
(() => {
  const run = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const heat = byId("heat");
  const tip = byId("tip");
  const buttons = [...heat.querySelectorAll("button.cell")];
  let metric = run.metrics[0].key;
  let chosen = run.first;

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children.map(String));
    return element;
  };
  const makeSvg = (tag, attributes = {}, text = "") => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text) element.textContent = text;
    return element;
  };
  const known = (value) => value !== null && value !== undefined;
  const main = run.metrics[0]; // the score that decides
  const percent = (value, digits = 1) => (known(value) ? (100 * value).toFixed(digits) : "–");
  const scored = (value, kind = main) => (known(value) ? minus((kind.factor * value).toFixed(kind.digits)) : "–");
  const minus = (text) => text.replaceAll("-", "−");
  const formatted = (kind, value) => {
    if (!known(value)) return "–";
    return (kind.signed && value > 0 ? "+" : "") + scored(value, kind);
  };
  const interval = (bounds, kind = main) => (bounds && known(bounds[0]) ? `[${scored(bounds[0], kind)}, ${scored(bounds[1], kind)}]` : "");
  const pretty = (name) => name.replaceAll("_", " ");

  // ---------------------------------------------------------------------------------------------- the table

  const kindOf = (key) => run.metrics.find((kind) => kind.key === key);
  const shownIndex = (button) => Number(button.dataset.cell);

  const paint = () => {
    const kind = kindOf(metric);
    const values = run.cells.map((cell) => cell.values[metric]).filter(known);
    const low = Math.min(...values);
    const high = Math.max(...values);
    for (const button of buttons) {
      const cell = run.cells[shownIndex(button)];
      const value = cell.values[metric];
      const share = known(value) && high > low ? (value - low) / (high - low) : 0;
      const step = known(value) ? Math.min(run.steps - 1, Math.floor(share * run.steps)) : "none";
      button.className = `cell h${step}`;
      button.querySelector(".value").textContent = formatted(kind, value) + (metric === main.key ? cell.marks : cell.stars[metric] || "");
      button.querySelector(".interval").textContent = interval(cell.intervals[metric], kind);
      button.setAttribute("aria-label", `${cell.title}: ${kind.text} ${formatted(kind, value)} ${interval(cell.intervals[metric], kind)}`);
      button.setAttribute("aria-pressed", String(shownIndex(button) === chosen));
    }
    byId("key-low").textContent = formatted(kind, values.length ? low : null);
    byId("key-high").textContent = formatted(kind, values.length ? high : null);
    byId("heat-caption").textContent = `${kind.text}${kind.factor === 100 ? ", per cent" : ""}${kind.interval ? " [95 % interval]" : ""}; the stronger the colour, the higher.`;
  };

  const valueOf = (row, column) => {
    const button = row.children[column + 1].querySelector("button.cell");
    const value = button ? run.cells[shownIndex(button)].values[metric] : null;
    return known(value) ? value : -Infinity;
  };
  const original = [...heat.tBodies[0].rows];
  const sortBy = (column, direction) => {
    const rows = [...original];
    const sign = direction === "ascending" ? 1 : -1;
    if (direction !== "none") {
      rows.sort((a, b) => {
        if (column < 0) return sign * a.cells[0].textContent.localeCompare(b.cells[0].textContent);
        const [x, y] = [valueOf(a, column), valueOf(b, column)];
        if (x === y) return 0;
        if (x === -Infinity) return 1; // what was not computed stands below, whichever way
        if (y === -Infinity) return -1;
        return sign * (x - y);
      });
    }
    heat.tBodies[0].append(...rows);
    for (const header of heat.tHead.rows[0].cells) {
      const mine = Number(header.firstElementChild.dataset.column) === column;
      if (mine && direction !== "none") header.setAttribute("aria-sort", direction);
      else header.removeAttribute("aria-sort");
    }
    rove();
  };
  heat.tHead.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const column = Number(button.dataset.column);
    const now = button.parentElement.getAttribute("aria-sort");
    const first = column < 0 ? "ascending" : "descending";
    const second = column < 0 ? "descending" : "ascending";
    sortBy(column, now === first ? second : now === second ? "none" : first);
  });

  // Arrow keys: one cell of the table is in the tab order, the arrows move from there.
  const visibleRows = () => [...heat.tBodies[0].rows].filter((row) => !row.hidden);
  const rove = (target) => {
    const all = visibleRows().flatMap((row) => [...row.querySelectorAll("button.cell")]);
    const one = target && all.includes(target) ? target : all.find((button) => shownIndex(button) === chosen) || all[0];
    for (const button of buttons) button.tabIndex = button === one ? 0 : -1;
    return one;
  };
  heat.tBodies[0].addEventListener("keydown", (event) => {
    const button = event.target.closest("button.cell");
    if (!button) return;
    if (event.key === "Escape") hideTip();
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const rows = visibleRows();
    let row = rows.indexOf(button.closest("tr"));
    let column = [...rows[row].cells].indexOf(button.parentElement);
    let target = null;
    if (event.key in moves) {
      const [down, right] = moves[event.key];
      do {
        row += down;
        column += right;
        if (!rows[row] || !rows[row].cells[column] || column < 1) return;
        target = rows[row].cells[column].querySelector("button.cell");
      } while (!target);
    } else if (event.key === "Home" || event.key === "End") {
      const inRow = [...rows[row].querySelectorAll("button.cell")];
      target = event.key === "Home" ? inRow[0] : inRow[inRow.length - 1];
    } else return;
    event.preventDefault();
    rove(target);
    target.focus();
  });

  const showTip = (button) => {
    const cell = run.cells[shownIndex(button)];
    const percentage = main.factor === 100 ? " %" : "";
    const lines = [cell.title, `${run.name} ${scored(cell.values[main.key])} ${interval(cell.intervals[main.key])}${percentage}${cell.marks ? ` ${cell.marks}` : ""}`];
    if (run.dimensions.length) lines.push(run.dimensions.map((name) => `${name} ${scored(cell.values[`ccc_${name}`])}`).join(", "));
    else lines.push(`accuracy ${percent(cell.values.accuracy)}, macro-F1 ${percent(cell.values.macro_f1)}`);
    lines.push(`n: ${cell.n}`);
    if (known(cell.values.right_drop)) {
      const cost = (key) => scored(cell.values[key]) + cell.stars[key];
      lines.push(`shuffled, left costs ${cost("left_drop")}, right ${cost("right_drop")} ${run.unit}${cell.stars.left_drop || cell.stars.right_drop ? " (* significant)" : ""}`);
    }
    tip.textContent = lines.join("\n");
    tip.hidden = false;
    const box = button.getBoundingClientRect();
    const width = document.documentElement.clientWidth;
    const left = Math.max(8, Math.min(box.left, width - tip.offsetWidth - 8));
    const above = box.top > tip.offsetHeight + 12;
    tip.style.left = `${left + window.scrollX}px`;
    tip.style.top = `${window.scrollY + (above ? box.top - tip.offsetHeight - 6 : box.bottom + 6)}px`;
    button.setAttribute("aria-describedby", "tip");
  };
  const hideTip = () => {
    tip.hidden = true;
    for (const button of buttons) button.removeAttribute("aria-describedby");
  };
  for (const button of buttons) {
    button.addEventListener("mouseenter", () => showTip(button));
    button.addEventListener("mouseleave", hideTip);
    button.addEventListener("focus", () => {
      if (button.matches(":focus-visible")) showTip(button);
    });
    button.addEventListener("blur", hideTip);
    button.addEventListener("click", () => {
      rove(button);
      choose(shownIndex(button));
    });
  }
  // The hint moves with the page by itself, but not with the table within its frame.
  heat.parentElement.addEventListener("scroll", () => {
    const shown = heat.querySelector("[aria-describedby]");
    if (shown) showTip(shown);
  }, { passive: true });

  byId("metric").addEventListener("change", (event) => {
    metric = event.target.value;
    paint();
    const sorted = heat.tHead.querySelector("[aria-sort]");
    if (sorted) sortBy(Number(sorted.firstElementChild.dataset.column), sorted.getAttribute("aria-sort"));
  });
  byId("filter").addEventListener("input", (event) => {
    const wanted = event.target.value.trim().toLowerCase();
    for (const row of original) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
    rove();
  });

  // ---------------------------------------------------------------------------------------------- one cell

  // A row's header; names that are too long are cut by the style, and whole when rested on.
  const named = (name) => {
    const header = make("th", { scope: "row" });
    header.append(make("span", { title: name }, name));
    return header;
  };

  const bars = (lines, most = 1) => {
    const table = make("table", { class: "bars" });
    const body = table.createTBody();
    for (const line of lines) {
      const row = body.insertRow();
      row.append(named(line.name));
      const bar = make("div", { class: "bar" });
      const fill = make("i");
      const share = known(line.value) ? Math.max(0, Math.min(1, line.value / most)) : 0;
      fill.style.width = `${100 * share}%`;
      bar.append(fill);
      if (line.bounds && known(line.bounds[0])) {
        const whisker = make("s");
        const [from, to] = line.bounds.map((end) => Math.max(0, Math.min(most, end)));
        whisker.style.left = `${(100 * from) / most}%`;
        whisker.style.width = `${(100 * (to - from)) / most}%`;
        bar.append(whisker);
      }
      row.insertCell().append(bar);
      const number = row.insertCell();
      number.className = "number";
      number.textContent = line.text;
    }
    return table;
  };

  const confusion = (cell) => {
    const table = make("table", { class: "matrix" });
    const head = table.createTHead().insertRow();
    head.append(make("th", { scope: "col" }, "true \\ predicted"));
    for (const name of run.classes) {
      const header = make("th", { scope: "col" });
      header.append(make("span", { title: name }, name));
      head.append(header);
    }
    const body = table.createTBody();
    cell.confusion.forEach((counts, index) => {
      const total = counts.reduce((sum, count) => sum + count, 0);
      const row = body.insertRow();
      row.append(named(run.classes[index]));
      counts.forEach((count, predicted) => {
        const share = total > 0 ? count / total : 0;
        const entry = row.insertCell();
        entry.textContent = total > 0 ? (100 * share).toFixed(0) : "–";
        entry.className = `h${Math.min(run.steps - 1, Math.floor(share * run.steps))}`;
        entry.title = `${run.classes[index]} taken for ${run.classes[predicted]}: ${count.toFixed(1)} of ${total.toFixed(0)}`;
      });
    });
    return table;
  };

  const chart = (curve, name) => {
    const [width, height, left, bottom, top, right] = [420, 220, 52, 34, 8, 10];
    const values = [...curve.low, ...curve.high].filter(known);
    let low = Math.min(...values);
    let high = Math.max(...values);
    if (high === low) [low, high] = [low - 0.5, high + 0.5];
    const count = curve.mean.length;
    const x = (epoch) => left + ((width - left - right) * (count > 1 ? epoch / (count - 1) : 0.5));
    const y = (value) => top + (height - top - bottom) * (1 - (value - low) / (high - low));
    const last = curve.mean[count - 1];
    const svg = makeSvg("svg", {
      viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img",
      "aria-label": `${pretty(name)} over ${count} epochs, from ${format(curve.mean[0])} to ${format(last)}`,
    });
    // Round numbers, at most six of them.
    const rough = (high - low) / 5;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((one) => one >= rough);
    for (let tick = Math.ceil(low / step - 1e-9); tick * step <= high + 1e-9 * step; tick += 1) {
      const value = tick * step;
      svg.append(makeSvg("line", { x1: left, x2: width - right, y1: y(value), y2: y(value) }));
      svg.append(makeSvg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, format(value)));
    }
    const ticks = [...new Set([0, Math.floor((count - 1) / 2), count - 1])];
    for (const epoch of ticks) {
      svg.append(makeSvg("text", { x: x(epoch), y: height - bottom + 16, "text-anchor": "middle" }, String(epoch + 1)));
    }
    svg.append(makeSvg("text", { x: (left + width - right) / 2, y: height - 2, "text-anchor": "middle" }, "epoch"));
    const at = curve.mean.map((value, epoch) => epoch).filter((epoch) => known(curve.mean[epoch]));
    const upper = at.map((epoch) => `${x(epoch)},${y(curve.high[epoch])}`);
    const lower = at.map((epoch) => `${x(epoch)},${y(curve.low[epoch])}`).reverse();
    svg.append(makeSvg("polygon", { points: [...upper, ...lower].join(" "), fill: "var(--bar-soft)", opacity: 0.7 }));
    const line = at.map((epoch) => `${x(epoch)},${y(curve.mean[epoch])}`).join(" ");
    svg.append(makeSvg("polyline", { points: line, fill: "none", stroke: "var(--curve-1)", "stroke-width": 2 }));
    return svg;
  };
  // True against predicted values of one dimension, on axes of the same scale.
  const agreement = (truth, predicted, name) => {
    const [size, left, bottom] = [320, 46, 38];
    const values = [...truth, ...predicted].filter(known);
    let low = Math.min(...values);
    let high = Math.max(...values);
    if (high === low) [low, high] = [low - 0.5, high + 0.5];
    const rough = (high - low) / 4;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((one) => one >= rough);
    const pad = 0.04 * (high - low);
    [low, high] = [low - pad, high + pad];
    const x = (value) => left + ((size - left - 8) * (value - low)) / (high - low);
    const y = (value) => 8 + (size - bottom - 8) * (1 - (value - low) / (high - low));
    const svg = makeSvg("svg", {
      viewBox: `0 0 ${size} ${size}`, class: "chart agreement", role: "img",
      "aria-label": `${truth.length} utterances, predicted ${name} over true ${name}`,
    });
    for (let tick = Math.ceil(low / step); tick * step <= high; tick += 1) {
      const value = tick * step;
      svg.append(makeSvg("line", { x1: left, x2: size - 8, y1: y(value), y2: y(value) }));
      svg.append(makeSvg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, format(value)));
      svg.append(makeSvg("text", { x: x(value), y: size - bottom + 16, "text-anchor": "middle" }, format(value)));
    }
    svg.append(makeSvg("line", { x1: x(low), x2: x(high), y1: y(low), y2: y(high), class: "equal" }));
    svg.append(makeSvg("text", { x: (left + size) / 2, y: size - 4, "text-anchor": "middle" }, `true ${name}`));
    svg.append(makeSvg("text", { x: 0, y: 0, "text-anchor": "middle", transform: `translate(11 ${(size - bottom) / 2}) rotate(-90)` }, "predicted"));
    truth.forEach((value, place) => {
      if (!known(value) || !known(predicted[place])) return;
      const point = makeSvg("circle", { cx: x(value).toFixed(1), cy: y(predicted[place]).toFixed(1), r: 3 });
      point.append(makeSvg("title", {}, `${run.sample[place]}: true ${format(value)}, predicted ${format(predicted[place])}`));
      svg.append(point);
    });
    return svg;
  };
  const format = (value) => (!known(value) ? "–" : minus(Math.abs(value) >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(3)))));

  const showCurve = () => {
    const cell = run.cells[chosen];
    const name = byId("curve-choice").value;
    byId("cell-curve").replaceChildren(...(cell.curves[name] ? [chart(cell.curves[name], name)] : []));
  };
  byId("curve-choice").addEventListener("change", showCurve);

  const dimensionChoice = byId("dimension-choice");
  const showAgreement = () => {
    const place = Number(dimensionChoice.value);
    byId("cell-agreement").replaceChildren(agreement(run.truth[place], run.cells[chosen].predicted[place], run.dimensions[place]));
  };
  if (dimensionChoice) dimensionChoice.addEventListener("change", showAgreement);

  const facts = (pairs) => pairs.flatMap(([name, value]) => {
    const box = make("div");
    box.append(make("dt", {}, name), make("dd", {}, value));
    return [box];
  });

  const choose = (index) => {
    chosen = index;
    const cell = run.cells[index];
    for (const button of buttons) button.setAttribute("aria-pressed", String(shownIndex(button) === chosen));
    byId("cell-choice").value = String(index);
    byId("cell-remarks").textContent = [cell.title, ...cell.remarks].join(". ").replaceAll("..", ".");
    const told = run.metrics.filter((kind) => run.dimensions.length ? /^(ccc|pearson|mae)$/.test(kind.key) : !/gain|drop/.test(kind.key));
    byId("cell-facts").replaceChildren(...facts([
      ...told.map((kind, place) => [
        kind.text + (kind.factor === 100 ? " %" : ""),
        `${scored(cell.values[kind.key], kind)} ${interval(cell.intervals[kind.key], kind)} ${place ? "" : cell.marks}`,
      ]),
      ["n", cell.n],
      ...cell.facts,
    ]));
    if (run.dimensions.length) {
      byId("cell-dimensions").replaceChildren(bars(run.dimensions.map((name) => ({
        name, value: cell.values[`ccc_${name}`], bounds: cell.intervals[`ccc_${name}`],
        text: `${scored(cell.values[`ccc_${name}`])} ${interval(cell.intervals[`ccc_${name}`])}`
          + (cell.drops[name] ? `\nshuffled left ${scored(-cell.drops[name][0])}, right ${scored(-cell.drops[name][1])}` : ""),
      }))));
      showAgreement();
    } else {
      byId("cell-recalls").replaceChildren(bars(run.classes.map((name, place) => ({
        name, value: cell.recalls[place], bounds: cell.recall_intervals[place],
        text: `${percent(cell.recalls[place], 0)} % of ${cell.supports[place].toFixed(0)}`,
      }))));
      byId("cell-confusion").replaceChildren(confusion(cell));
    }
    const whole = cell.values[main.key];
    const shuffled = known(cell.values.right_drop) ? [
      { name: "as it is", value: whole, text: scored(whole) + (main.factor === 100 ? " %" : "") },
      { name: `${cell.left} shuffled`, value: whole - cell.values.left_drop, text: `${scored(-cell.values.left_drop)}${cell.stars.left_drop} ${run.unit}\n${cell.left_note}` },
      { name: `${cell.right} shuffled`, value: whole - cell.values.right_drop, text: `${scored(-cell.values.right_drop)}${cell.stars.right_drop} ${run.unit}\n${cell.right_note}` },
    ] : [];
    byId("cell-shuffle-block").hidden = !shuffled.length;
    byId("cell-shuffle").replaceChildren(bars(shuffled));
    byId("cell-speakers").replaceChildren(bars(cell.speakers.map(([name, value, count]) => ({
      name, value, text: run.dimensions.length ? `${scored(value)}, n ${count}` : `${percent(value, 0)} %, n ${count}`,
    }))));
    const names = Object.keys(cell.curves);
    const before = byId("curve-choice").value;
    byId("curve-choice").replaceChildren(...names.map((name) => make("option", { value: name }, pretty(name))));
    if (names.includes(before)) byId("curve-choice").value = before;
    byId("cell-curve-block").hidden = !names.length;
    showCurve();
    const layers = cell.layers.flatMap(([side, weights]) => weights.map(([name, value]) => ({
      name: `${side} ${name}`, value, text: `${percent(value)} %`,
    })));
    byId("cell-layers-block").hidden = !layers.length;
    byId("cell-layers").replaceChildren(bars(layers, Math.max(0.01, ...layers.map((layer) => layer.value))));
    byId("cell-diagnostics-block").hidden = !cell.diagnostics.length;
    const table = make("table", { class: "plain" });
    const body = table.createTBody();
    for (const [name, value] of cell.diagnostics) {
      const row = body.insertRow();
      row.append(make("th", { scope: "row" }, pretty(name)));
      row.insertCell().textContent = format(value);
    }
    byId("cell-diagnostics").replaceChildren(table);
  };

  const choice = byId("cell-choice");
  choice.append(...run.cells.map((cell, index) => make("option", { value: index }, cell.title)));
  choice.addEventListener("change", () => {
    choose(Number(choice.value));
    rove();
  });

  const by = byId("space-by");
  if (by) {
    byId("space-controls").hidden = false;
    by.addEventListener("change", () => {
      byId("spaces").dataset.by = by.value;
    });
  }

  // On paper nothing can be unfolded.
  const folded = () => document.querySelectorAll("#provenance details, #published details, #answers > details");
  addEventListener("beforeprint", () => folded().forEach((part) => { part.dataset.before = part.open; part.open = true; }));
  addEventListener("afterprint", () => folded().forEach((part) => { part.open = part.dataset.before === "true"; }));

  byId("table-controls").hidden = false;
  byId("cell").hidden = false;
  paint();
  choose(chosen);
  rove();
})();
