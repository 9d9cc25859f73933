/**
 * A training as it runs: loss, previews, time left.
 *
 * magicportrait.training  { node, workflow, step, steps, loss, preview: JPEG or null, seconds_left: number or null }
 */

import { addView, dataUrl, element } from "./elements.js";

const WIDTH = 300;
const HEIGHT = 90;
const PREVIEWS = 8;
const POINTS = 1000;
const SMOOTHING = 0.9;
const SVG = "http://www.w3.org/2000/svg";

export function timeLeft(seconds) {
  if (seconds === null || seconds === undefined) return "";
  const whole = Math.round(seconds);
  const minutes = Math.floor(whole / 60);
  return minutes ? `, ${minutes} min ${whole % 60} s left` : `, ${whole} s left`;
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

/** What the server has told of one training: its last event, the losses of about POINTS steps, the last PREVIEWS previews. */
export class TrainingRun {
  constructor({ node, workflow, steps }) {
    Object.assign(this, { node, workflow, steps });
    this.points = [];
    this.previews = [];
  }

  /** Whether an event goes on with this training. The last step may come twice, again with its preview. */
  goesOn({ step, steps }) {
    return steps === this.steps && step >= (this.latest?.step ?? 0);
  }

  add(event) {
    const { step, loss, preview } = event;
    this.latest = event;
    if (Number.isFinite(loss)) this.#addPoint(step, loss);
    if (!preview) return;
    this.previews.push({ step, preview });
    if (this.previews.length > PREVIEWS) this.previews.shift();
  }

  /** The last point stays only if it is far enough from the one before it, for the width of the curve. */
  #addPoint(step, loss) {
    const [before, last] = [this.points.at(-2), this.points.at(-1)];
    const isClose = before && last.step - before.step < this.steps / POINTS;
    if (last?.step === step || isClose) this.points.pop();
    this.points.push({ step, loss });
  }
}

function line(className, points) {
  const made = document.createElementNS(SVG, "polyline");
  made.setAttribute("class", className);
  made.setAttribute("points", points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" "));
  return made;
}

export class TrainingView {
  constructor(node) {
    this.run = null;
    // Not read out: it changes a few times a second.
    this.words = element("p", { role: "status", "aria-live": "off" });
    this.curve = document.createElementNS(SVG, "svg");
    this.curve.setAttribute("class", "magic-curve");
    this.curve.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.curve.setAttribute("preserveAspectRatio", "none");
    this.curve.setAttribute("role", "img");
    this.previews = element("div", { className: "magic-references", "aria-label": "Previews" });
    this.content = element("section", { className: "magic-view", "aria-label": "Training" }, this.words, this.curve, this.previews);
    addView(node, "training", this.content);
  }

  /** Another run. */
  show(run) {
    this.run = run;
    this.shownPreview = null; // none of this run's
    this.update();
  }

  /** More of the run is known. */
  update() {
    const { step, steps, loss, seconds_left } = this.run.latest;
    const said = Number.isFinite(loss) ? `, loss ${loss.toPrecision(3)}` : "";
    this.words.textContent = `step ${step} of ${steps}${said}${timeLeft(seconds_left)}`;
    this.#draw();
    const last = this.run.previews.at(-1);
    if (last === this.shownPreview) return;
    this.shownPreview = last;
    this.previews.replaceChildren(
      ...this.run.previews.map(({ step, preview }) =>
        element("img", { src: dataUrl("jpeg", preview), alt: `Preview at step ${step}`, title: `step ${step}` }),
      ),
    );
  }

  #draw() {
    const { points, steps } = this.run;
    const losses = points.map(({ loss }) => loss);
    const low = losses.reduce((a, b) => Math.min(a, b), Infinity);
    const high = losses.reduce((a, b) => Math.max(a, b), -Infinity);
    const place = (step, loss) => [(step / steps) * WIDTH, HEIGHT - 4 - ((loss - low) / (high - low || 1)) * (HEIGHT - 8)];
    const draw = (values) => points.map(({ step }, i) => place(step, values[i]));
    this.curve.replaceChildren(line("magic-loss", draw(losses)), line("magic-trend", draw(smoothed(losses))));
    const [from, to, lowest] = [losses[0], losses.at(-1), low].map((loss) => loss?.toPrecision(3));
    this.curve.setAttribute("aria-label", losses.length ? `Loss from ${from} to ${to}, lowest ${lowest}` : "No loss yet");
  }
}
