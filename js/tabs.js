/**
 * Which tab has queued what the server runs. The workflow's id does not say: all tabs that were
 * opened from one template have the same.
 */

import { app } from "../../scripts/app.js";
import { workflowId } from "./graph.js";

/**
 * tab: the host's object, the same through undo and renaming; workflow: the id of what was queued.
 *
 * @typedef {{ tab: object | null, workflow: string | null }} Queued
 */

/** In their order, what waits for its turn. @type {Queued[]} */
let waiting = [];
/** What was queued last. @type {Queued | null} */
let latest = null;
/** @type {Queued | null} */
let running = null;

/** The tab on screen; null where the host has none. */
export const openTab = () => app.extensionManager.workflow?.activeWorkflow ?? null;

/**
 * What follows when a tab is on screen with its nodes: one that was opened, and after an undo. The
 * host says which tab it is only after it has made the nodes.
 *
 * @param {() => void} act
 * @returns {boolean} false for a host without tabs, where it does not follow
 */
export function onTabShown(act) {
  const tabs = app.extensionManager.workflow;
  if (!tabs?.$onAction) return false;
  tabs.$onAction(({ name, after }) => {
    if (name === "openWorkflow") after(act);
  }, true);
  return true;
}

/** What the server runs of this page's; null between two, and where the host does not say. */
export const runningNow = () => running;

/** @param {{ batchCount?: number } | null} detail of the host's event */
export function rememberTab(detail) {
  latest = { tab: openTab(), workflow: workflowId() };
  for (let i = 0; i < (detail?.batchCount ?? 1); i++) waiting.push(latest);
}

/** One of those that wait begins. The host has no event for one that it refused to queue. */
export function startNext() {
  running = waiting.shift() ?? latest;
}

export function endRunning() {
  running = null;
}

/** @param {{ exec_info?: { queue_remaining?: number } } | null} status of the server */
export function forgetRefused(status) {
  if (status?.exec_info?.queue_remaining === 0) waiting = [];
}
