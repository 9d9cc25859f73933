/**
 * The widgets of a node.
 *
 * @import { GraphNode, Widget } from "../../scripts/app.js"
 */

import { app } from "../../scripts/app.js";

const CUSTOM = "custom";

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
 * With the preset `custom` the settings themselves count, which Nodes 2.0 hides as advanced ones.
 *
 * @param {GraphNode} node
 */
export function showWhatCounts(node) {
  onTurn(widgetOf(node, "preset"), (preset) => {
    if (preset === CUSTOM) node.showAdvanced = true;
  });
}
