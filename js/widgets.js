/**
 * The widgets of a node.
 *
 * @import { GraphNode, Widget } from "../../scripts/app.js"
 */

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
 * With the preset `custom` the settings themselves count, which Nodes 2.0 hides as advanced ones.
 *
 * @param {GraphNode} node
 */
export function showWhatCounts(node) {
  onTurn(widgetOf(node, "preset"), (preset) => {
    if (preset === CUSTOM) node.showAdvanced = true;
  });
}
