/**
 * Our own sentences where the host shows one of its own ("threw an error during execution", "a node
 * rejected one or more input values") and keeps ours two clicks away.
 *
 * @import { NodeErrors } from "../../scripts/app.js"
 */

import { app } from "../../scripts/app.js";
import { findNode, lacksItsPositive, openNodes } from "./graph.js";

// The folder of this pack: /extensions/<folder>/failures.js.
const FOLDER =
  decodeURIComponent(new URL(".", import.meta.url).pathname)
    .split("/")
    .at(-2) ?? "";
const PATCHING = new Set(["MagicFaceApply", "MagicSemanticLayout", "MagicAttentionMap"]);
/** What a node's own check is called by the host, with what comes before its sentence. */
const CHECKS = new Map([
  ["custom_validation_failed", /^\w+ - /],
  ["exception_during_validation", /^/],
  ["exception_during_inner_validation", /^/],
]);
const CHECK_EVERY = 250;
const CHECKS_AT_MOST = 60;
const LIFE = 10_000;

/** @type {ReturnType<typeof setInterval> | undefined} */
let waiting;

/**
 * @param {string} id
 * @param {string} type
 */
const nameOf = (id, type) => findNode(id)?.title || type;

/**
 * A node failed, ours or one that called us, such as a sampler.
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
  if (!detail || !traceback?.some((call) => call.includes(FOLDER))) return;
  app.extensionManager.toast.add({ severity: "error", summary: nameOf(id, type), detail });
}

/** Before a workflow is sent: what would fail, and then what the server says of its values. */
export function watchQueueing() {
  for (const node of openNodes()) {
    if (!PATCHING.has(node.comfyClass ?? "") || !lacksItsPositive(node)) continue;
    app.extensionManager.toast.add({
      severity: "warn",
      summary: node.title,
      detail: `${UNCONNECTED}.`,
      life: LIFE,
    });
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

/** What is said of a node whose MODEL is used and whose positive is not. */
export const UNCONNECTED =
  "MODEL is connected, positive is not: the sampler needs both from this node";

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
    const sentences = errors.flatMap((error) => {
      const before = CHECKS.get(error.type);
      return before ? [error.details.replace(before, "")] : [];
    });
    const isOurs = /^Magi[cC]/.test(type);
    if (!isOurs) continue;
    for (const detail of new Set(sentences)) {
      app.extensionManager.toast.add({ severity: "error", summary: nameOf(id, type), detail });
    }
  }
}
