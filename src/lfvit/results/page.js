"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  document.documentElement.classList.add("ready");

  // --- drawing --------------------------------------------------------------------------------

  const NS = "http://www.w3.org/2000/svg";
  const DASHES = ["", "7 3", "2 3", "9 3 2 3"];
  const SHAPES = [
    (r) => `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0z`,
    (r) => `M${-r},${-r}h${2 * r}v${2 * r}h${-2 * r}z`,
    (r) => `M0,${-1.25 * r}L${1.15 * r},${0.85 * r}H${-1.15 * r}z`,
    (r) => `M0,${-1.35 * r}L${1.35 * r},0L0,${1.35 * r}L${-1.35 * r},0z`,
    (r) => `M0,${1.25 * r}L${1.15 * r},${-0.85 * r}H${-1.15 * r}z`,
    (r) => `M${-r},${-r / 3}H${-r / 3}V${-r}H${r / 3}V${-r / 3}H${r}V${r / 3}H${r / 3}V${r}H${-r / 3}V${r / 3}H${-r}z`,
    (r) => `M0,${-1.3 * r}L${1.24 * r},${-0.4 * r}L${0.76 * r},${1.05 * r}H${-0.76 * r}L${-1.24 * r},${-0.4 * r}z`,
  ];

  function svg(name, attributes, ...children) {
    const node = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }

  function html(name, attributes, ...children) {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }

  const fixed = (value, digits) => value.toFixed(digits).replace(/^-(?=0(\.0*)?$)/, "").replace("-", "−");
  const short = (value) => String(Number(value.toPrecision(3)));

  function linearTicks(low, high, count) {
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].find((s) => s * power >= rough * 0.999) * power;
    const ticks = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) ticks.push(i * step);
    return ticks;
  }

  function logTicks(low, high) {
    const make = (digits) => {
      const ticks = [];
      for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++)
        for (const d of digits) {
          const value = d * 10 ** p;
          if (value >= low * (1 - 1e-9) && value <= high * (1 + 1e-9)) ticks.push(value);
        }
      return ticks;
    };
    return [[1], [1, 3], [1, 2, 5], [1, 2, 3, 4, 5, 6, 8]].map(make).find((t) => t.length >= 4) || make([1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9]);
  }

  function scale(low, high, from, to, log) {
    const f = log ? Math.log : (v) => v;
    const k = (to - from) / (f(high) - f(low));
    return (v) => from + (f(v) - f(low)) * k;
  }

  function extent(values, log, share) {
    let low = Math.min(...values), high = Math.max(...values);
    if (log) {
      const pad = Math.max((high / low) ** share, 1.05);
      return [low / pad, high * pad];
    }
    const pad = Math.max((high - low) * share, Math.abs(high) * 0.02, 1e-9);
    return [low - pad, high + pad];
  }

  function axes(chart, box, x, y, xTicks, yTicks, labels) {
    const { left, right, top, bottom, width, height } = box;
    for (const t of yTicks) {
      chart.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(t), y2: y(t) }));
      chart.append(svg("text", { x: left - 7, y: y(t) + 4, "text-anchor": "end" }, short(t)));
    }
    let last = -Infinity;
    for (const t of xTicks) {
      chart.append(svg("line", { class: "grid", x1: x(t), x2: x(t), y1: top, y2: height - bottom }));
      if (x(t) - last < 30) continue;
      last = x(t);
      chart.append(svg("text", { x: x(t), y: height - bottom + 17, "text-anchor": "middle" }, short(t)));
    }
    chart.append(svg("line", { class: "axis-line", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
    chart.append(svg("text", { class: "axis", x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, labels.x));
    if (labels.y) chart.append(svg("text", { class: "axis", x: 2, y: 13 }, labels.y));
  }

  // --- accuracy against cost or speed -----------------------------------------------------------

  let count = 0, pale = 0;
  const looks = new Map(); // published figures of a method look like ours, paler
  const entries = data.series.map((entry, index) => {
    let look = entry.published ? looks.get(entry.method) : null;
    if (!look) {
      const n = entry.published ? pale++ : count++;
      look = { shape: SHAPES[n % SHAPES.length], dash: DASHES[n % DASHES.length], colour: entry.published ? "--pale" : `--s${n % 8}` };
      if (!looks.has(entry.method)) looks.set(entry.method, look);
    }
    return { ...entry, ...look, index };
  });

  function describe(entry, point, by) {
    const lines = [`${fixed(point.top1, 2)} % top-1` + (point.spread ? ` ± ${fixed(point.spread, 2)}` : "")];
    lines.push(`${short(point.gmacs)} GMACs` + (entry.one_pass ? `, ${fixed((100 * point.gmacs) / entry.one_pass, 0)} % of one pass` : ""));
    if (point.eta != null) lines.push(`η = ${short(point.eta)}`);
    if (point.exits != null) lines.push(`${fixed(100 * point.exits, 1)} % answered early`);
    if (by === "speed") lines.push(`${fixed(point.speed, 0)} images/s${point.how ? ": " + point.how : ", interpolated"}`);
    lines.push(entry.note);
    return [entry.name, point.run || "early exit", ...lines];
  }

  function scatter(holder, legend, options) {
    const shown = new Set(entries.filter((e) => (e.published ? options.published() : e.featured)).map((e) => e.index));
    const useful = entries.filter((e) => e.points.some((p) => options.anyX(e, p) != null));
    let spots = [], at = -1, tip = null, ring = null, moreOpen = false;

    const visible = () => useful.filter((e) => shown.has(e.index) && e.points.some((p) => options.x(e, p) != null));

    function draw() {
      const width = Math.max(holder.clientWidth - 14, 240), narrow = width < 560;
      const height = Math.round(Math.min(Math.max(width * 0.52, 290), 470));
      const box = { left: 42, right: narrow ? 12 : 20, top: 24, bottom: 46, width, height };
      const log = options.log();
      const list = visible();
      const xs = [], ys = [];
      for (const e of list) for (const p of [...e.curve, ...e.points]) {
        const v = options.x(e, p);
        if (v == null) continue;
        xs.push(v);
        ys.push(p.top1 - (p.spread || 0), p.top1 + (p.spread || 0));
      }
      holder.replaceChildren();
      spots = [], at = -1, tip = null;
      const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
      holder.append(chart);
      if (!xs.length) {
        chart.append(svg("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "nothing is switched on, or nothing has this measure"));
        return;
      }
      const [x0, x1] = extent(xs, log, 0.05);
      let [y0, y1] = extent(ys, false, 0.08);
      y1 = Math.min(y1, Math.max(100.5, ...ys)), y0 = Math.max(y0, 0);
      const x = scale(log ? x0 : Math.max(x0, 0), x1, box.left, width - box.right, log);
      const y = scale(y0, y1, height - box.bottom, box.top, false);
      const xTicks = log ? logTicks(x0, x1) : linearTicks(Math.max(x0, 0), x1, narrow ? 4 : 8);
      axes(chart, box, x, y, xTicks, linearTicks(y0, y1, 6), { x: options.label(), y: "top-1 (%)" });
      for (const e of [...list].sort((a, b) => b.published - a.published)) {
        const group = svg("g", { class: e.published ? "published" : "ours", style: `--c:var(${e.colour})`, "data-series": e.index });
        const marks = e.points.filter((p) => options.x(e, p) != null && (p.kind !== "certificate" || options.all));
        let line = e.curve.filter((p) => options.x(e, p) != null);
        if (!line.length && e.published) line = [...marks];
        line = line.map((p) => [x(options.x(e, p)), y(p.top1)]).sort((a, b) => a[0] - b[0]);
        if (line.length > 1)
          group.append(svg("path", { class: "curve", d: "M" + line.map((p) => p.map((v) => v.toFixed(1)).join(",")).join("L"), "stroke-dasharray": e.dash }));
        for (const p of e.curve) if (options.x(e, p) != null) spots.push({ e, p, x: x(options.x(e, p)), y: y(p.top1), mark: false });
        for (const p of marks) {
          const px = x(options.x(e, p)), py = y(p.top1);
          if (p.spread) group.append(svg("line", { class: "bar-sd", x1: px, x2: px, y1: y(p.top1 - p.spread), y2: y(p.top1 + p.spread) }));
          group.append(svg("path", { class: p.kind === "pass" ? "mark" : "mark open", d: e.shape(e.published ? 4 : 5.5), transform: `translate(${px.toFixed(1)},${py.toFixed(1)})` }));
          spots.push({ e, p, x: px, y: py, mark: true });
        }
        chart.append(group);
      }
      ring = svg("path", { class: "halo", d: SHAPES[0](9), visibility: "hidden" });
      chart.append(ring);
      holder.querySelector("svg").dataset.points = spots.filter((s) => s.mark).length;
    }

    function hide() {
      at = -1;
      if (tip) tip.remove();
      tip = null;
      if (ring) ring.setAttribute("visibility", "hidden");
    }

    function show(spot, aloud) {
      const words = describe(spot.e, spot.p, options.by);
      if (!tip) holder.append((tip = html("div", { class: "tip" })));
      tip.replaceChildren(html("b", {}, words[0]), words[1], ...words.slice(2).flatMap((w) => [html("br", {}), w]));
      ring.setAttribute("transform", `translate(${spot.x},${spot.y})`);
      ring.setAttribute("visibility", "visible");
      const k = holder.querySelector("svg").clientWidth / holder.querySelector("svg").viewBox.baseVal.width;
      const left = spot.x * k, wide = tip.offsetWidth;
      tip.style.left = `${Math.max(4, Math.min(left + (left > holder.clientWidth / 2 ? -wide - 16 : 22), holder.clientWidth - wide - 4))}px`;
      tip.style.top = `${Math.max(4, Math.min(spot.y * k - 30, holder.clientHeight - tip.offsetHeight - 4))}px`;
      if (aloud) find("live").textContent = words.join(", ");
    }

    const nearest = (event) => {
      const frame = holder.querySelector("svg").getBoundingClientRect();
      const k = holder.querySelector("svg").viewBox.baseVal.width / frame.width;
      const px = (event.clientX - frame.left) * k, py = (event.clientY - frame.top) * k;
      let best = null, least = 30;
      for (const s of spots) {
        const distance = Math.hypot(s.x - px, s.y - py) - (s.mark ? 4 : 0);
        if (distance < least) [best, least] = [s, distance];
      }
      return best;
    };
    const point = (event) => {
      const spot = nearest(event);
      if (spot) show(spot, false);
      else hide();
    };
    holder.addEventListener("pointermove", point);
    holder.addEventListener("pointerdown", point);
    holder.addEventListener("pointerleave", hide);
    holder.addEventListener("blur", hide);
    holder.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") return hide();
      if (!step) return;
      event.preventDefault();
      const marks = spots.filter((s) => s.mark).sort((a, b) => a.e.index - b.e.index || a.x - b.x);
      if (!marks.length) return;
      at = at < 0 ? (step > 0 ? 0 : marks.length - 1) : (at + step + marks.length) % marks.length;
      show(marks[at], true);
    });

    function legendButton(e) {
      const glyph = svg("svg", { width: 30, height: 14, viewBox: "0 0 30 14", class: e.published ? "published" : "", style: `--c:var(${e.colour})`, "aria-hidden": "true" });
      if (e.curve.length || e.points.length > 1) glyph.append(svg("path", { class: "curve", d: "M1,7H29", "stroke-dasharray": e.dash }));
      glyph.append(svg("path", { class: "mark", d: e.shape(4.5), transform: "translate(15,7)" }));
      const button = html("button", { type: "button", "aria-pressed": String(shown.has(e.index)), title: e.note, "data-series": e.index }, glyph, e.name);
      if (e.published) button.classList.add("faint");
      button.addEventListener("click", () => {
        if (!shown.delete(e.index)) shown.add(e.index);
        refresh();
      });
      return button;
    }

    function refresh() {
      for (const button of legend.querySelectorAll("[data-series]")) button.setAttribute("aria-pressed", String(shown.has(Number(button.dataset.series))));
      draw();
    }

    function switchAll(name, on) {
      const button = html("button", { type: "button", class: "plain", "aria-label": `${name} measured models` }, name);
      button.addEventListener("click", () => {
        for (const e of useful) if (!e.published) (on ? shown.add(e.index) : shown.delete(e.index));
        refresh();
      });
      return button;
    }

    function fillLegend() {
      const ours = useful.filter((e) => !e.published), papers = useful.filter((e) => e.published);
      legend.replaceChildren(...ours.filter((e) => e.featured).map(legendButton));
      if (ours.length > 1) legend.append(switchAll("All", true), switchAll("None", false));
      const others = ours.filter((e) => !e.featured);
      if (others.length) {
        const summary = html("summary", {}, `${others.length} more model${others.length === 1 ? "" : "s"}`);
        const more = html("details", { class: "more" }, summary, html("div", { class: "chips" }, ...others.map(legendButton)));
        more.open = moreOpen;
        more.addEventListener("toggle", () => (moreOpen = more.open));
        legend.append(more);
      }
      if (papers.length && options.published()) legend.append(html("span", { class: "break" }, "Published, ImageNet-1k:"), ...papers.map(legendButton));
    }

    function published(on) {
      for (const e of useful) if (e.published) (on ? shown.add(e.index) : shown.delete(e.index));
      fillLegend();
      draw();
    }
    fillLegend();
    redraws.push(draw);
    return { draw, published };
  }

  const redraws = [];
  const ours = entries.filter((e) => !e.published);
  const shares = ours.some((e) => e.one_pass);
  const unit = find("unit");
  unit.value = shares && !data.imagenet ? "share" : "gmacs";
  if (!shares) unit.querySelector('[value="share"]').disabled = true;
  find("cost-log").checked = unit.value === "gmacs" && !data.imagenet;
  const inUnit = (e, p, of) => (p.gmacs == null ? null : of === "gmacs" ? p.gmacs : e.one_pass ? (100 * p.gmacs) / e.one_pass : null);
  const cost = scatter(find("cost-chart"), find("cost-legend"), {
    by: "gmacs",
    all: false,
    x: (e, p) => inUnit(e, p, unit.value),
    anyX: (e, p) => p.gmacs,
    log: () => find("cost-log").checked,
    published: () => find("cost-published").checked,
    label: () => (unit.value === "gmacs" ? "GMACs per image" : "cost, % of the one-pass model"),
  });
  unit.addEventListener("change", cost.draw);
  find("cost-log").addEventListener("change", cost.draw);
  find("cost-published").addEventListener("change", (event) => cost.published(event.target.checked));

  if (find("speed-chart")) {
    const speed = scatter(find("speed-chart"), find("speed-legend"), {
      by: "speed",
      all: true,
      x: (e, p) => (p.speed ? p.speed : null),
      anyX: (e, p) => p.speed,
      log: () => find("speed-log").checked,
      published: () => find("speed-published").checked,
      label: () => "images per second",
    });
    find("speed-log").addEventListener("change", speed.draw);
    find("speed-published").addEventListener("change", (event) => speed.published(event.target.checked));
  }

  // --- the threshold ----------------------------------------------------------------------------

  if (find("eta")) {
    const slider = find("eta"), select = find("curve");
    data.curves.forEach((c, i) => select.append(html("option", { value: i }, c.name)));

    const current = () => data.curves[select.value];

    function panel(holder, c, lines, range, i, ticks) {
      const width = Math.max(holder.clientWidth - 14, 220), height = 210;
      const box = { left: 40, right: 12, top: 12, bottom: 40, width, height };
      const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
      const x = scale(0, Math.max(1, ...c.threshold), box.left, width - box.right, false);
      const y = scale(...range, height - box.bottom, box.top, false);
      axes(chart, box, x, y, [0, 0.2, 0.4, 0.6, 0.8, 1], linearTicks(...range, ticks), { x: "threshold η" });
      chart.append(svg("line", { class: "cursor", x1: x(c.threshold[i]), x2: x(c.threshold[i]), y1: box.top, y2: height - box.bottom }));
      for (const { values, colour, dash } of lines) {
        const d = "M" + values.map((v, k) => `${x(c.threshold[k]).toFixed(1)},${y(v).toFixed(1)}`).join("L");
        chart.append(svg("path", { class: "curve", d, style: `--c:var(${colour})`, "stroke-dasharray": dash }));
        chart.append(svg("circle", { class: "dot", cx: x(c.threshold[i]), cy: y(values[i]), r: 6, style: `--c:var(${colour})` }));
      }
      holder.replaceChildren(chart);
    }

    function draw() {
      const c = current(), i = Number(slider.value);
      const percent = (values) => values && values.map((v) => 100 * v);
      const eta = c.threshold[i], exits = c.exit_fraction[i];
      const say = (id, text) => (find(id).textContent = text);
      say("out-eta", fixed(eta, 2));
      say("out-top1", `${fixed(c.top1[i], 2)} %`);
      say("sub-top1", `both passes ${fixed(c.second.top1, 2)} %`);
      say("out-gmacs", `${fixed(c.gmacs[i], 4)} GMACs`);
      say("sub-gmacs", `${fixed((100 * c.gmacs[i]) / c.second.gmacs, 0)} % of both passes`);
      say("out-exits", `${fixed(100 * exits, 1)} %`);
      say("sub-exits", `${Math.round(exits * c.images).toLocaleString("en")} of ${c.images.toLocaleString("en")} images`);
      say("out-consistency", c.consistency ? `${fixed(100 * c.consistency[i], 2)} %` : "not measured");
      say("out-gap", c.gap ? `${fixed(100 * c.gap[i], 2)} points` : "not measured");
      slider.setAttribute("aria-valuetext", `eta ${fixed(eta, 2)}: top-1 ${fixed(c.top1[i], 2)} percent, ${fixed(c.gmacs[i], 4)} GMACs`);
      panel(find("eta-top1"), c, [{ values: c.top1, colour: "--s0", dash: "" }], extent(c.top1, false, 0.08), i, 6);
      const lines = [{ values: percent(c.exit_fraction), colour: "--s0", dash: "" }];
      if (c.consistency) lines.push({ values: percent(c.consistency), colour: "--s1", dash: "6 3" });
      panel(find("eta-exits"), c, lines, [0, 100], i, 5);
      find("eta-top1").setAttribute("aria-label", `Top-1 of ${c.name} against the threshold, from ${fixed(c.top1[0], 1)} % where every image exits to ${fixed(c.top1.at(-1), 1)} % where none does.`);
      find("eta-exits").setAttribute("aria-label", `Images that ${c.name} answers early, and those among all that get another answer, against the threshold.`);
    }

    const closest = (c, eta) => c.threshold.reduce((best, t, i) => (Math.abs(t - eta) < Math.abs(c.threshold[best] - eta) ? i : best), 0);

    function choose() {
      const c = current();
      slider.max = c.threshold.length - 1;
      const presets = [["as evaluated", c.start], ["calibrated", c.max_loss], ["never exit", c.threshold.at(-1)]];
      find("presets").replaceChildren(...presets.filter(([, eta]) => eta != null).map(([name, eta]) => {
        const button = html("button", { type: "button" }, `${name} (${short(eta)})`);
        button.addEventListener("click", () => { slider.value = closest(c, eta); draw(); });
        return button;
      }));
      slider.value = closest(c, c.max_loss ?? c.start);
      draw();
    }
    slider.addEventListener("input", draw);
    select.addEventListener("change", choose);
    choose();
    redraws.push(draw);
  }

  // --- the page -----------------------------------------------------------------------------------

  const redraw = () => redraws.forEach((draw) => draw());
  redraw();
  let waiting = 0, lastWidth = document.documentElement.clientWidth;
  addEventListener("resize", () => {
    if (document.documentElement.clientWidth === lastWidth) return;
    lastWidth = document.documentElement.clientWidth;
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(redraw);
  });

  const themes = [["", "system"], ["light", "light"], ["dark", "dark"]];
  let theme = 0;
  find("theme").addEventListener("click", (event) => {
    theme = (theme + 1) % themes.length;
    const [value, name] = themes[theme];
    if (value) document.documentElement.dataset.theme = value;
    else delete document.documentElement.dataset.theme;
    event.target.textContent = `Colours: ${name}`;
    event.target.setAttribute("aria-label", `Colours: ${name === "system" ? "as the system says" : name}`);
  });

  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const node of opened) node.open = true;
  });
  addEventListener("afterprint", () => { for (const node of opened) node.open = false; });
})();
