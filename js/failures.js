/**
 * Our own sentences where the host shows one of its own ("threw an error during execution", "a node
 * rejected one or more input values") and keeps ours two clicks away.
 *
 * @import { GraphNode, NodeData, NodeErrors, Toast } from "../../scripts/app.js"
 */

import { app } from "../../scripts/app.js";
import { findNode, lacksItsPositive, openNodes, passesNoPositive } from "./graph.js";

// The folder of this pack: /extensions/<folder>/failures.js.
const FOLDER =
  decodeURIComponent(new URL(".", import.meta.url).pathname)
    .split("/")
    .at(-2) ?? "";
/** The folders of our source; others in the pack's folder, such as .venv, hold everybody's. */
const SOURCE = ["demo", "host", "magic", "nodes"];
const PATCHING = new Set([
  "MagicFaceApply",
  "MagicEditRegions",
  "MagicSemanticLayout",
  "MagicAttentionMap",
]);
/** What a node's own check is called by the host, with what comes before its sentence. */
const CHECKS = new Map([
  ["custom_validation_failed", /^\w+ - /],
  ["exception_during_validation", /^/],
  ["exception_during_inner_validation", /^/],
]);
const CHECK_EVERY = 250;
const CHECKS_AT_MOST = 60;
const LIFE = 10_000;

/** Where the host says its own sentence, and may say ours. */
const HOSTS_WORDS = '[role="dialog"], [role="alertdialog"], [role="alert"], [role="status"]';
/** The host's card, in the corner in which its toasts appear. */
const HOSTS_CARD = '[data-testid="error-overlay"]';
const NOTICE = "magic-notice";
/** The host comes first, in milliseconds, and its card slides in. */
const HOST_FIRST = 400;
const LOOKS_AT_CARD = 8;
const GAP = 8;

/** @type {ReturnType<typeof setInterval> | undefined} */
let waiting;

/** What has been said since the last time that a workflow was queued. @type {Toast[]} */
let said = [];

/** The types of the nodes of this pack. @type {Set<string>} */
const ours = new Set();

/** @param {NodeData} data of a type of nodes */
export function learnType({ name, python_module: module }) {
  if (module === `custom_nodes.${FOLDER}`) ours.add(name);
}

/** @param {GraphNode} node */
export const isOfPack = (node) => ours.has(node.comfyClass ?? node.type);

/**
 * @param {string} id
 * @param {string} type
 */
const nameOf = (id, type) => findNode(id)?.title || type;

/**
 * What is said of a node whose MODEL is used and whose positive is not, and of one that is bypassed
 * and leaves the sampler without a positive; null when nothing is wrong.
 *
 * @param {GraphNode} node
 */
export function complaintOf(node) {
  if (lacksItsPositive(node)) {
    return "MODEL is connected, positive is not: the sampler needs both from this node";
  }
  if (!passesNoPositive(node)) return null;
  const instead = node.type === "MagicFaceApply" ? ", or mute the concepts instead" : "";
  return `${node.title} is bypassed and passes no conditioning on: connect its positive input${instead}`;
}

/** @param {string} sentence */
const isSaid = (sentence) =>
  [...document.querySelectorAll(HOSTS_WORDS)].some(
    (element) => !element.closest(".magic-view") && element.textContent?.includes(sentence),
  );

/**
 * Says a sentence once: not where the host has said it already, and below its card.
 *
 * @param {Toast} toast
 */
function notify(toast) {
  setTimeout(() => {
    if (isSaid(toast.detail)) return;
    const notice = { ...toast, styleClass: NOTICE };
    said.push(notice);
    app.extensionManager.toast.add(notice);
    let looks = 0;
    const looking = setInterval(() => {
      looks += 1;
      if (looks === LOOKS_AT_CARD) clearInterval(looking);
      leaveCardInSight();
    }, CHECK_EVERY);
  }, HOST_FIRST);
}

function leaveCardInSight() {
  /** @type {HTMLElement | null} */
  const first = document.querySelector(`.${NOTICE}`);
  const card = document.querySelector(HOSTS_CARD)?.getBoundingClientRect();
  if (!first || !card) return;
  const notice = first.getBoundingClientRect();
  if (notice.left > card.right || notice.right < card.left) return;
  const top = notice.top - (parseFloat(first.style.marginTop) || 0);
  first.style.marginTop = `${Math.max(0, card.bottom + GAP - top)}px`;
}

/**
 * Whether a failure is ours to tell: of a node of ours, or of one that calls us, such as a sampler,
 * when it is we who complain. The last call of a traceback is the one that failed.
 *
 * @param {string} type
 * @param {string[] | undefined} traceback
 */
function isOurs(type, traceback) {
  if (ours.has(type)) return true;
  const path = traceback?.at(-1)?.match(/File "([^"]*)"/)?.[1] ?? "";
  const folders = path.split(/[\\/]/);
  return SOURCE.includes(folders[folders.lastIndexOf(FOLDER) + 1]) && folders.includes(FOLDER);
}

/**
 * A node failed.
 *
 * @param {{
 *   node_id: string,
 *   node_type: string,
 *   exception_message?: string,
 *   traceback?: string[],
 * }} failure
 */
export function tellFailure({ node_id: id, node_type: type, exception_message, traceback }) {
  const detail = exception_message?.trim();
  if (!detail || !isOurs(type, traceback)) return;
  notify({ severity: "error", summary: nameOf(id, type), detail });
}

/**
 * Before a workflow is sent: what would fail, and then what the server says of its values. What was
 * said of the time before goes: it may have been mended.
 */
export function watchQueueing() {
  for (const notice of said) app.extensionManager.toast.remove(notice);
  said = [];
  for (const node of openNodes()) {
    const complaint = PATCHING.has(node.comfyClass ?? "") && complaintOf(node);
    if (!complaint) continue;
    notify({ severity: "warn", summary: node.title, detail: `${complaint}.`, life: LIFE });
  }
  // The host has no event for a refusal.
  stopWaiting();
  let checks = 0;
  waiting = setInterval(() => {
    checks += 1;
    const errors = app.lastNodeErrors;
    if (errors || checks === CHECKS_AT_MOST) stopWaiting();
    if (errors) tellRefusal(errors);
  }, CHECK_EVERY);
}

export function stopWaiting() {
  clearInterval(waiting);
}

/**
 * The host repeats a sentence for every input that a check looks at.
 *
 * @param {Record<string, NodeErrors>} refused by node
 */
function tellRefusal(refused) {
  for (const [id, { class_type: type, errors }] of Object.entries(refused)) {
    if (!ours.has(type)) continue;
    const sentences = errors.flatMap((error) => {
      const before = CHECKS.get(error.type);
      return before ? [error.details.replace(before, "")] : [];
    });
    for (const detail of new Set(sentences)) {
      notify({ severity: "error", summary: nameOf(id, type), detail });
    }
  }
}
