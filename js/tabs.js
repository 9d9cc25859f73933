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
/** What runs, when it was queued before the page was loaded. @type {Queued} */
const EARLIER = { tab: null, workflow: null };

/**
 * Tabs that may have queued a run whose tab is not known: those that the host brought back when the
 * page was loaded, and those that have queued something since.
 *
 * @type {WeakSet<object>}
 */
const asking = new WeakSet();
let isLoaded = false;

/** The tab on screen; null where the host has none. */
export const openTab = () => app.extensionManager.workflow?.activeWorkflow ?? null;

/**
 * Whether a tab may have queued what began before the page was loaded, or while it was not
 * connected. A template that has just been opened has not.
 *
 * @param {object | null} tab
 */
export const mayHaveQueued = (tab) => !tab || asking.has(tab);

/** The host brings back what was open, before it opens the template of a link. */
function rememberRestored() {
  if (isLoaded) return;
  for (const tab of app.extensionManager.workflow?.openWorkflows ?? []) asking.add(tab);
}

const isOpenedByLink = () => new URLSearchParams(window.location.search).has("template");

/**
 * What follows when a tab is on screen with its nodes: one that was opened, and after an undo. The
 * host says which tab it is only after it has made the nodes.
 *
 * @param {() => void} act
 * @param {(tab: object) => void} renew before it, for a tab in which a link has opened its template
 * anew
 * @returns {boolean} false for a host without tabs, where it does not follow
 */
export function onTabShown(act, renew) {
  const tabs = app.extensionManager.workflow;
  if (!tabs?.$onAction) return false;
  tabs.$onAction(({ name, after }) => {
    // Older hosts open those that are not on screen last.
    if (name === "openWorkflowsInBackground") after(rememberRestored);
    if (name !== "openWorkflow") return;
    after(() => {
      const tab = openTab();
      rememberRestored();
      if (tab && isLoaded && isOpenedByLink()) {
        asking.delete(tab);
        renew(tab);
      }
      isLoaded = true;
      act();
    });
  }, true);
  return true;
}

/** What the server runs of this page's; null between two, and where the host does not say. */
export const runningNow = () => running;

/** @param {{ batchCount?: number } | null} detail of the host's event */
export function rememberTab(detail) {
  latest = { tab: openTab(), workflow: workflowId() };
  if (latest.tab) asking.add(latest.tab);
  for (let i = 0; i < (detail?.batchCount ?? 1); i++) waiting.push(latest);
}

/** One of those that wait begins. The host has no event for one that it refused to queue. */
export function startNext() {
  running = waiting.shift() ?? latest ?? EARLIER;
}

/** Whether what runs was queued before the page was loaded. */
export const runsFromEarlier = () => running === EARLIER;

export function endRunning() {
  running = null;
}

/** @param {{ exec_info?: { queue_remaining?: number } } | null} status of the server */
export function forgetRefused(status) {
  if (status?.exec_info?.queue_remaining === 0) waiting = [];
}
