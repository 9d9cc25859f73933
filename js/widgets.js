/**
 * The widgets of a node.
 *
 * @import { GraphNode, Widget } from "../../scripts/app.js"
 */

import { app } from "../../scripts/app.js";
import { isLinked } from "./graph.js";

const CUSTOM = "custom";
const INPUT = 1;
/** The least of a text box for prompts, in pixels with the margin: five lines in the classic mode. */
const FIVE_LINES = 80;
/** What is left of a text box that shows nothing, in pixels: room for its socket. */
const LOW = 26;

/**
 * @param {GraphNode} node
 * @param {string} name
 * @returns {Widget | undefined}
 */
export const widgetOf = (node, name) => node.widgets?.find((widget) => widget.name === name);

/**
 * What follows when a widget is turned, beside what follows already.
 *
 * @param {Widget | undefined} widget
 * @param {(value: unknown) => void} act
 */
export function onTurn(widget, act) {
  if (!widget) return;
  const { callback } = widget;
  widget.callback = function (value, ...rest) {
    callback?.call(this, value, ...rest);
    act(value);
  };
}

/**
 * Nodes 2.0 hides advanced inputs, and still the host makes a node as high as if they were shown,
 * because it looks for `advanced` among a widget's options there, and here at the widget itself:
 * what is left over went to the text box. The classic mode shows them all.
 *
 * @param {GraphNode} node
 */
export function leaveOutHidden(node) {
  const hidden = node.widgets?.filter(({ options }) => options?.advanced) ?? [];
  if (!hidden.length) return;
  const get = () => isHidingAdvanced();
  for (const widget of hidden) Object.defineProperty(widget, "advanced", { get, set() {} });
  if (isHidingAdvanced()) node.setSize([node.size[0], node.computeSize()[1]]);
}

const isHidingAdvanced = () =>
  globalThis.LiteGraph?.vueNodesMode === true &&
  !app.extensionManager.setting?.get("Comfy.Node.AlwaysShowAdvancedWidgets");

/**
 * The host's text boxes show two lines of the classic mode, and a prompt seldom fits into them. In
 * Nodes 2.0 they are higher by themselves.
 *
 * @param {GraphNode} node
 * @param {string} name of the widget
 */
export function giveRoom(node, name) {
  const options = widgetOf(node, name)?.options;
  if (!options) return;
  options.getMinHeight = () => FIVE_LINES;
  const [width, height] = node.size;
  node.setSize([width, Math.max(height, node.computeSize()[1])]);
}

/**
 * A text box shows nothing while its text comes from another node: then it is as low as a socket,
 * and the node lower by as much.
 *
 * @param {GraphNode} node
 * @param {string} name of the widget
 */
export function lowerWhileLinked(node, name) {
  const options = widgetOf(node, name)?.options;
  if (!options) return;
  const { getMinHeight, getMaxHeight } = options;
  /** @type {boolean | null} */
  let assumed = null;
  const isLow = () => assumed ?? isLinked(node, name);
  // Undefined leaves it to the host.
  options.getMinHeight = () => (isLow() ? LOW : getMinHeight?.());
  options.getMaxHeight = () => (isLow() ? LOW : getMaxHeight?.());
  const least = (/** @type {boolean} */ linked) => {
    assumed = linked;
    const [, height] = node.computeSize();
    assumed = null;
    return height;
  };
  const changed = node.onConnectionsChange;
  /** How much higher than it must be the node is without the link. */
  let room = 0;
  node.onConnectionsChange = function (type, slot, ...rest) {
    changed?.call(this, type, slot, ...rest);
    // A file has the height that the node has with its links.
    if (app.configuringGraph || type !== INPUT || node.inputs?.[slot]?.name !== name) return;
    const [width, height] = node.size;
    if (isLinked(node, name)) {
      room = Math.max(height - least(false), 0);
      node.setSize([width, least(true)]);
    } else {
      node.setSize([width, Math.max(height, least(false) + room)]);
    }
  };
}

/**
 * With the preset `custom` the settings themselves count, which Nodes 2.0 hides as advanced ones.
 *
 * @param {GraphNode} node
 */
export function showWhatCounts(node) {
  onTurn(widgetOf(node, "preset"), (preset) => {
    if (preset === CUSTOM) node.showAdvanced = true;
  });
}
