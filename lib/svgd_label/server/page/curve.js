// The learning curve as SVG: Dice by model version, of proposals with saved labels and of validation images.

function svg(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.append(text);
  return element;
}

/** The parts of an <svg> of 400 by 220, for versions as the state has them under "curve". */
export function drawCurve(versions) {
  const values = versions.flatMap((v) => [v.validation, v.proposed?.lowest]).filter((value) => typeof value === "number");
  if (!values.length) return [svg("text", { x: 200, y: 110, "text-anchor": "middle" }, "No Dice yet: train, then save corrected labels.")];
  const low = Math.min(0.9, Math.floor(Math.min(...values) * 10) / 10);
  const y = (value) => 185 - (170 * (value - low)) / (1 - low);
  const x = (index) => (versions.length === 1 ? 215 : 50 + (330 * index) / (versions.length - 1));
  const parts = [svg("text", { x: 215, y: 217, "text-anchor": "middle" }, "model version")];
  const tick = low < 0.5 ? 0.2 : 0.1;
  for (let value = 1; value > low - 0.01; value -= tick) {
    parts.push(svg("line", { class: "grid", x1: 40, x2: 390, y1: y(value), y2: y(value) }));
    parts.push(svg("text", { x: 34, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(1)));
  }
  const every = Math.ceil(versions.length / 10);
  versions.forEach((v, index) => {
    if (index % every === 0) parts.push(svg("text", { x: x(index), y: 202, "text-anchor": "middle" }, String(v.version)));
  });
  const line = (kind, value) => {
    const known = versions.map((v, index) => [index, value(v)]).filter(([, found]) => typeof found === "number");
    parts.push(svg("polyline", { class: kind, points: known.map(([index, found]) => `${x(index)},${y(found)}`).join(" ") }));
    for (const [index, found] of known) {
      const title = svg("title", {}, `version ${versions[index].version}: ${found.toFixed(3)}`);
      const mark = kind === "proposed"
        ? svg("circle", { class: kind, cx: x(index), cy: y(found), r: 4.5 })
        : svg("rect", { class: kind, x: x(index) - 4, y: y(found) - 4, width: 8, height: 8 });
      mark.append(title);
      parts.push(mark);
    }
  };
  versions.forEach((v, index) => {
    if (v.proposed) parts.push(svg("line", { class: "proposed", x1: x(index), x2: x(index), y1: y(v.proposed.lowest), y2: y(v.proposed.highest) }));
  });
  line("proposed", (v) => v.proposed?.mean);
  line("validation", (v) => v.validation);
  return parts;
}
