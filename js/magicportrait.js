/**
 * @import { GraphNode } from "../../scripts/app.js"
 * @import { Pair } from "./compare_view.js"
 * @import { Exploration } from "./correspondence_view.js"
 * @import { Advance, Beginning, Prompt } from "./layout_view.js"
 * @import { Picture } from "./server.js"
 * @import { State } from "./training_view.js"
 */
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { CompareView } from "./compare_view.js";
import { ConceptView, linkStrengths, offerToMaskEditor } from "./concept_view.js";
import { CorrespondenceView } from "./correspondence_view.js";
import { element } from "./elements.js";
import { UNCONNECTED, stopWaiting, tellFailure, watchQueueing } from "./failures.js";
import { conceptPhrases, findNode, lacksItsPositive, openNodes, textOf } from "./graph.js";
import { LayoutRun, LayoutView, offerPictures } from "./layout_view.js";
import { splitPhrases } from "./phrases.js";
import { Runs } from "./runs.js";
import { listen, pictureUrl } from "./server.js";
import { TrainingRun, TrainingView } from "./training_view.js";

/**
 * How the nodes with a layout say which phrases they look for.
 *
 * @type {Record<string, (node: GraphNode) => Prompt>}
 */
const PROMPTS = {
  MagicFaceApply: (node) => ({
    phrases: conceptPhrases(node),
    prompt: textOf(node, "prompt"),
    complaint: lacksItsPositive(node) ? UNCONNECTED : null,
  }),
  MagicSemanticLayout: (node) => ({
    phrases: splitPhrases(textOf(node, "phrases")),
    prompt: textOf(node, "prompt"),
    complaint: lacksItsPositive(node) ? UNCONNECTED : null,
  }),
};

const CONCEPT = "MagicFaceConcept";

/**
 * Which view belongs to which node.
 *
 * @type {Record<string, unknown>}
 */
const VIEWS = {
  MagicFaceApply: LayoutView,
  MagicSemanticLayout: LayoutView,
  MagicStyleInvert: CompareView,
  MagicCorrespondenceMap: CorrespondenceView,
  MagicFaceConcept: ConceptView,
  MagiCaptureTrain: TrainingView,
};

/**
 * By node. One that the host has thrown away takes its view along.
 *
 * @type {WeakMap<GraphNode, any>}
 */
const views = new WeakMap();

const classOf = (/** @type {GraphNode} */ node) => node.comfyClass ?? node.type;

/**
 * The node of an event that is for a kind of view; null when it is another's, as in another
 * workflow that is on screen by now.
 *
 * @param {string} id
 * @param {unknown} View
 */
function nodeFor(id, View) {
  const node = findNode(id);
  return node && VIEWS[classOf(node)] === View ? node : null;
}

/**
 * The view of a node, made when it is first needed.
 *
 * @template V
 * @param {string} id
 * @param {new (node: GraphNode, readPrompt: (node: GraphNode) => Prompt) => V} View
 * @returns {V | null}
 */
function viewOf(id, View) {
  const node = nodeFor(id, View);
  if (!node) return null;
  if (!views.has(node)) views.set(node, new View(node, PROMPTS[classOf(node)]));
  return views.get(node);
}

/** @type {Runs<LayoutRun, LayoutView>} */
const layouts = new Runs((id) => viewOf(id, LayoutView));
/** @type {Runs<TrainingRun, TrainingView>} */
const trainings = new Runs((id) => viewOf(id, TrainingView));
/** @type {Runs<import("./compare_view.js").Comparison, CompareView>} */
const comparisons = new Runs((id) => viewOf(id, CompareView));
/** @type {Runs<Exploration, CorrespondenceView>} */
const explorations = new Runs((id) => viewOf(id, CorrespondenceView));

let isRefreshing = false;
function refreshPrompts() {
  if (isRefreshing) return;
  isRefreshing = true;
  requestAnimationFrame(() => {
    isRefreshing = false;
    for (const node of openNodes()) {
      try {
        views.get(node)?.refresh?.();
      } catch (error) {
        console.error("MagicPortrait cannot read the prompt of node", node.id, error);
      }
    }
  });
}

/**
 * A run begins. One that is on screen comes again when the page was not connected for a while.
 *
 * @param {Beginning} beginning
 */
function onRun(beginning) {
  const before = layouts.get(beginning);
  if (before?.id && before.id === beginning.run) return;
  layouts.viewOf(layouts.begin(new LayoutRun(beginning)));
}

/** @param {Advance} advance */
function onLayout(advance) {
  const run = layouts.get(advance);
  if (!run) return;
  run.add(advance);
  layouts.viewOf(run)?.update();
}

/** @param {State} state */
function onTraining(state) {
  const before = trainings.get(state);
  const run = before?.goesOn(state) ? before : trainings.begin(new TrainingRun(state));
  run.add(state);
  trainings.viewOf(run)?.update();
}

/**
 * What a node has given to the page.
 *
 * @typedef {{
 *   images?: Picture[],
 *   magic_comparison?: Pair[],
 *   magic_exploration?: Exploration[],
 *   magic_correspondence?: unknown,
 * }} Output
 */

/** @param {{ node: string, output: Output | null }} event */
function onExecuted({ node, output }) {
  const pairs = output?.magic_comparison;
  if (pairs) comparisons.viewOf(comparisons.begin({ node, pairs }));
  const [exploration] = output?.magic_exploration ?? [];
  if (exploration) {
    explorations.viewOf(explorations.begin({ ...exploration, node }));
  } else if (output?.magic_correspondence) {
    // This run was not recorded: what is on screen is of an older one.
    explorations.forget({ node });
    const owner = nodeFor(node, CorrespondenceView);
    if (owner) views.get(owner)?.clear();
  }
  if (output?.images) {
    offerPictures(layouts.onScreen(), findNode(node), output.images.map(pictureUrl));
  }
}

/** @param {{ blob: Blob, nodeId: string }} event of the host */
function onPreview({ blob, nodeId }) {
  for (const [run, view] of layouts.onScreen()) {
    if (run.sampler !== nodeId || run.isDone) continue;
    run.preview(blob);
    view.showBackdrops();
  }
}

app.registerExtension({
  name: "MagicPortrait",
  setup() {
    const { href } = new URL("./style.css", import.meta.url);
    document.head.append(element("link", { rel: "stylesheet", href }));
    listen({
      "magicportrait.run": onRun,
      "magicportrait.layout": onLayout,
      "magicportrait.training": onTraining,
      executed: onExecuted,
      b_preview_with_metadata: onPreview,
      execution_error: tellFailure,
      promptQueueing: watchQueueing,
      promptQueued: stopWaiting,
    });
    // Typing, and everything else that changes the graph.
    document.addEventListener("input", refreshPrompts);
    api.addEventListener("graphChanged", refreshPrompts);
  },
  beforeRegisterNodeDef(_, { name, input }) {
    // The host puts its button for uploads on required inputs only.
    const picture = input?.optional?.picture;
    if (name !== CONCEPT || !input?.optional || !Array.isArray(picture)) return;
    input.optional.upload = ["IMAGEUPLOAD", { ...picture[1], imageInputName: "picture" }];
  },
  nodeCreated(node) {
    const readPrompt = PROMPTS[classOf(node)];
    if (readPrompt) views.set(node, new LayoutView(node, readPrompt));
    if (classOf(node) !== CONCEPT) return;
    linkStrengths(node);
    offerToMaskEditor(node);
    views.set(node, new ConceptView(node));
  },
  afterConfigureGraph() {
    // Their nodes, and with them their views, have been made anew.
    for (const runs of [layouts, trainings, comparisons, explorations]) runs.onScreen();
    refreshPrompts();
  },
});
