import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { CompareView } from "./compare_view.js";
import { CorrespondenceView } from "./correspondence_view.js";
import { element } from "./elements.js";
import { conceptPhrases, findNode, openNodes, textOf } from "./graph.js";
import { LayoutRun, LayoutView, offerPictures } from "./layout_view.js";
import { splitPhrases } from "./phrases.js";
import { Runs } from "./runs.js";
import { listen, pictureUrl } from "./server.js";
import { TrainingRun, TrainingView } from "./training_view.js";

/** How the nodes with a layout say which phrases they look for, null while that is not known. */
const PROMPTS = {
  MagicFaceApply: (node) => ({ phrases: conceptPhrases(node), prompt: textOf(node, "prompt") }),
  MagicSemanticLayout: (node) => ({
    phrases: splitPhrases(textOf(node, "phrases")),
    prompt: textOf(node, "prompt"),
  }),
};

/** Which view belongs to which node. */
const VIEWS = {
  MagicFaceApply: LayoutView,
  MagicSemanticLayout: LayoutView,
  MagicStyleInvert: CompareView,
  MagicCorrespondenceMap: CorrespondenceView,
  MagiCaptureTrain: TrainingView,
};

// By node. One that the host has thrown away takes its view along.
const views = new WeakMap();

/** The node of an event that is for a kind of view; null when it is another's, as in another workflow that is on screen by now. */
function nodeFor(id, View) {
  const node = findNode(id);
  return VIEWS[node?.comfyClass] === View ? node : null;
}

/** The view of a node, made when it is first needed. */
function viewOf(id, View) {
  const node = nodeFor(id, View);
  if (node && !views.has(node)) views.set(node, new View(node, PROMPTS[node.comfyClass]));
  return node && views.get(node);
}

const runsOf = (View) => new Runs((id) => viewOf(id, View));
const layouts = runsOf(LayoutView);
const trainings = runsOf(TrainingView);
const comparisons = runsOf(CompareView);
const explorations = runsOf(CorrespondenceView);

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

function onLayout(layout) {
  const run = layouts.get(layout);
  if (!run) return;
  run.add(layout);
  layouts.viewOf(run)?.update();
}

function onTraining(state) {
  const known = trainings.get(state);
  const run = known?.goesOn(state) ? known : trainings.begin(new TrainingRun(state));
  run.add(state);
  trainings.viewOf(run)?.update();
}

function onExecuted({ node: id, output }) {
  if (output?.magic_comparison) comparisons.viewOf(comparisons.begin({ node: id, pairs: output.magic_comparison }));
  if (output?.magic_exploration) explorations.viewOf(explorations.begin({ ...output.magic_exploration[0], node: id }));
  else if (output?.magic_correspondence) {
    // This run was not recorded: what is on screen is of an older one.
    explorations.forget({ node: id });
    views.get(nodeFor(id, CorrespondenceView))?.clear();
  }
  if (output?.images) offerPictures(layouts.onScreen(), findNode(id), output.images.map(pictureUrl));
}

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
    document.head.append(element("link", { rel: "stylesheet", href: new URL("./style.css", import.meta.url).href }));
    listen({
      "magicportrait.run": (run) => layouts.viewOf(layouts.begin(new LayoutRun(run))),
      "magicportrait.layout": onLayout,
      "magicportrait.training": onTraining,
      executed: onExecuted,
      b_preview_with_metadata: onPreview,
    });
    // Typing, and everything else that changes the graph.
    document.addEventListener("input", refreshPrompts);
    api.addEventListener("graphChanged", refreshPrompts);
  },
  nodeCreated(node) {
    const readPrompt = PROMPTS[node.comfyClass];
    if (readPrompt) views.set(node, new LayoutView(node, readPrompt));
  },
  afterConfigureGraph() {
    // Their nodes, and with them their views, have been made anew.
    for (const runs of [layouts, trainings, comparisons, explorations]) runs.onScreen();
    refreshPrompts();
  },
});
