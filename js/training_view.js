/**
 * A training as it runs: loss, previews, time left.
 *
 * magicportrait.training  { node, step, steps, loss, preview: JPEG or null, seconds_left: number or null }
 */

import { addView, dataUrl, element } from "./elements.js";

const WIDTH = 300;
const HEIGHT = 90;
const PREVIEWS = 8;
const SMOOTHING = 0.9;
const SVG = "http://www.w3.org/2000/svg";

export function timeLeft(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const minutes = Math.floor(seconds / 60);
  return minutes ? `, ${minutes} min ${Math.round(seconds % 60)} s left` : `, ${Math.round(seconds)} s left`;
}

/** An exponential mean, which shows where a noisy loss is going; the first values count as much as they would later. */
export function smoothed(losses) {
  let [sum, weight] = [0, 0];
  return losses.map((loss) => {
    sum = SMOOTHING * sum + loss;
    weight = SMOOTHING * weight + 1;
    return sum / weight;
  });
}

function line(className, points) {
  const made = document.createElementNS(SVG, "polyline");
  made.setAttribute("class", className);
  made.setAttribute("points", points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" "));
  return made;
}

export class TrainingView {
  constructor(node) {
    this.points = [];
    this.words = element("p", { role: "status" });
    this.curve = document.createElementNS(SVG, "svg");
    this.curve.setAttribute("class", "magic-curve");
    this.curve.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.curve.setAttribute("preserveAspectRatio", "none");
    this.curve.setAttribute("role", "img");
    this.previews = element("div", { className: "magic-references", "aria-label": "Previews" });
    this.content = element("section", { className: "magic-view", "aria-label": "Training" }, this.words, this.curve, this.previews);
    addView(node, "training", this.content);
  }

  add({ step, steps, loss, preview, seconds_left }) {
    if (step <= (this.points.at(-1)?.step ?? -1)) {
      this.points = [];
      this.previews.replaceChildren();
    }
    this.points.push({ step, loss });
    this.words.textContent = `step ${step} of ${steps}, loss ${loss.toPrecision(3)}${timeLeft(seconds_left)}`;
    this.#draw(steps);
    if (!preview) return;
    this.previews.append(element("img", { src: dataUrl("jpeg", preview), alt: `Preview at step ${step}`, title: `step ${step}` }));
    if (this.previews.childElementCount > PREVIEWS) this.previews.firstElementChild.remove();
  }

  #draw(steps) {
    const losses = this.points.map((point) => point.loss).filter(Number.isFinite);
    const [low, high] = [Math.min(...losses), Math.max(...losses)];
    const place = (step, loss) => [(step / steps) * WIDTH, HEIGHT - 4 - ((loss - low) / (high - low || 1)) * (HEIGHT - 8)];
    const draw = (values) => this.points.map(({ step }, i) => place(step, values[i])).filter(([, y]) => Number.isFinite(y));
    const all = this.points.map((point) => point.loss);
    this.curve.replaceChildren(line("magic-loss", draw(all)), line("magic-trend", draw(smoothed(all))));
    this.curve.setAttribute("aria-label", `Loss from ${losses[0]?.toPrecision(3)} to ${losses.at(-1)?.toPrecision(3)}, lowest ${low.toPrecision(3)}`);
  }
}
