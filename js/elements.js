/** @import { DomWidget, GraphNode } from "../../scripts/app.js" */

const PICTURES_A_ROW = 4;
/** What the host adds to the height of a widget. */
const ROW_GAP = 4;

/**
 * `element("p", { className: "x" }, "text", child)`: an element with properties and children;
 * properties with a dash are attributes.
 *
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {Record<string, unknown>} [properties]
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[Tag]}
 */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") made.setAttribute(name, String(value));
    else Object.assign(made, { [name]: value });
  }
  made.append(...children);
  return made;
}

/**
 * A labelled slider. `onInput` gets its value as a number.
 *
 * @param {string} label
 * @param {{ min: number, max: number, step: number, value: number }} range
 * @param {(value: number) => void} onInput
 */
export function slider(label, { min, max, step, value }, onInput) {
  const options = { type: "range", min, max, step, value, "aria-label": label };
  const input = element("input", options);
  const shown = element("output", {}, String(value));
  input.addEventListener("input", () => onInput(Number(input.value)));
  const name = element("span", {}, label);
  return { input, shown, row: element("label", { className: "magic-slider" }, name, input, shown) };
}

/**
 * A labelled choice. `setOptions` keeps what is chosen if it is still there.
 *
 * @param {string} label
 * @param {() => void} onChange
 */
export function choice(label, onChange) {
  const input = element("select", { "aria-label": label });
  input.addEventListener("change", () => onChange());
  const setOptions = (/** @type {string[]} */ names) => {
    const chosen = input.value;
    input.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
    if (names.includes(chosen)) input.value = chosen;
  };
  const name = element("span", {}, label);
  return { input, setOptions, row: element("label", { className: "magic-slider" }, name, input) };
}

/**
 * A widget for `content` at the end of a node. It is as high as its content, and the node grows and
 * shrinks by as much: no other widget gives way. It is no part of the workflow or of the prompt, and
 * neither is what the node has grown by.
 *
 * @param {GraphNode} node
 * @param {string} name
 * @param {HTMLElement} content
 * @returns {DomWidget}
 */
export function addView(node, name, content) {
  let height = 0;
  const frame = element("div", { className: "magic-frame" }, content);
  frame.style.maxHeight = "0";
  const widget = node.addDOMWidget(name, "magicportrait", frame, {
    serialize: false,
    hideInPanel: true,
    hideOnZoom: false,
    getMinHeight: () => height,
    getMaxHeight: () => height,
  });
  widget.serialize = false;
  // A fixed height in both modes. Of a widget that could be laid out higher, Nodes 2.0 makes a row
  // that takes its part of what is left over in the node, and shows it as a gap below our content.
  widget.computeSize = () => [0, height - ROW_GAP];
  widget.computeLayoutSize = undefined;
  new ResizeObserver(() => {
    // A widget that is hidden, as that of a collapsed node, has no height of its own.
    const measured = frame.isConnected && frame.offsetParent ? content.offsetHeight : 0;
    const needed = content.childElementCount ? measured + 2 * widget.margin : 0;
    if ((measured === 0 && content.childElementCount) || needed === height) return;
    const [width, before] = node.size;
    node.setSize([width, before + needed - height]);
    height = needed;
    // The content gets its room after the node has: a node that it pushes open grows twice.
    frame.style.maxHeight = `${needed}px`;
    node.graph?.setDirtyCanvas(true, true);
  }).observe(content);
  const serialized = node.onSerialize;
  node.onSerialize = function (data) {
    serialized?.call(this, data);
    if (data.size) data.size = [data.size[0], data.size[1] - height];
  };
  return widget;
}

/**
 * A node shows the pictures of its output, or the one that it reads, in our view only.
 *
 * @param {GraphNode} node
 */
export function hideHostsPictures(node) {
  node.hideOutputImages = true;
  // The classic mode draws them here.
  node.onDrawBackground = () => {};
}

/**
 * Pictures in even rows: of six there are two rows of three.
 *
 * @param {HTMLElement} stage
 */
export function arrange(stage) {
  const count = stage.childElementCount;
  const rows = Math.ceil(count / PICTURES_A_ROW);
  stage.style.setProperty("--magic-columns", String(Math.ceil(count / Math.max(rows, 1)) || 1));
}

/** Of pictures that masks make dark in part, and of those that none does. */
export const LEFT_OUT = "dark: left out by the mask";
export const ALL_TAKEN = "All of it is taken, the background too.";

/**
 * What has to be known of the pictures beside it.
 *
 * @param {string} words
 */
export const caption = (words) => element("p", { className: "magic-caption" }, words);

/**
 * A picture from base64.
 *
 * @param {"png" | "jpeg"} kind
 * @param {string} base64
 */
export const dataUrl = (kind, base64) => `data:image/${kind};base64,${base64}`;
