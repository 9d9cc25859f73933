import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { CompareView } from "./compare_view.js";
import { CorrespondenceView } from "./correspondence_view.js";
import { element } from "./elements.js";
import { conceptPhrases, findNode, textOf } from "./graph.js";
import { LayoutView, offerPictures } from "./layout_view.js";
import { listen, pictureUrl } from "./server.js";
import { TrainingView } from "./training_view.js";

/** How the nodes with a layout say which phrases they look for, null while that is not known. */
const PROMPTS = {
  MagicFaceApply: (node) => ({ phrases: conceptPhrases(node), prompt: textOf(node, "prompt") }),
  MagicSemanticLayout: (node) => ({
    phrases: textOf(node, "phrases")?.split(",").map((phrase) => phrase.trim()).filter(Boolean) ?? null,
    prompt: textOf(node, "prompt"),
  }),
};

const layouts = new Map();
const comparisons = new WeakMap();
const correspondences = new WeakMap();
const trainings = new WeakMap();

/** The view of a node, made when it is first needed. */
function viewOf(views, node, View) {
  if (node && !views.has(node)) views.set(node, new View(node));
  return node && views.get(node);
}

let isRefreshing = false;
function refreshPrompts() {
  if (isRefreshing) return;
  isRefreshing = true;
  requestAnimationFrame(() => {
    isRefreshing = false;
    for (const [node, view] of layouts) {
      if (node.graph) view.refresh();
      else layouts.delete(node);
    }
  });
}

function onExecuted({ node: id, output }) {
  const node = findNode(id);
  if (output?.magic_comparison) viewOf(comparisons, node, CompareView)?.show(output.magic_comparison);
  if (output?.magic_exploration) viewOf(correspondences, node, CorrespondenceView)?.show(output.magic_exploration[0]);
  else if (output?.magic_correspondence) correspondences.get(node)?.show(null);
  if (output?.images) offerPictures(layouts.values(), node, output.images.map(pictureUrl));
}

function onPreview({ blob, nodeId }) {
  for (const view of layouts.values()) {
    if (view.run?.sampler !== nodeId) continue;
    URL.revokeObjectURL(view.preview);
    view.preview = URL.createObjectURL(blob);
    view.setBackdrop(0, view.preview);
  }
}

app.registerExtension({
  name: "MagicPortrait",
  setup() {
    document.head.append(element("link", { rel: "stylesheet", href: new URL("./style.css", import.meta.url).href }));
    listen({
      "magicportrait.run": (run) => layouts.get(findNode(run.node))?.begin(run),
      "magicportrait.layout": (layout) => layouts.get(findNode(layout.node))?.add(layout),
      "magicportrait.training": (state) => viewOf(trainings, findNode(state.node), TrainingView)?.add(state),
      executed: onExecuted,
      b_preview_with_metadata: onPreview,
    });
    // Typing, and everything else that changes the graph.
    document.addEventListener("input", refreshPrompts);
    api.addEventListener("graphChanged", refreshPrompts);
  },
  nodeCreated(node) {
    const readPrompt = PROMPTS[node.comfyClass];
    if (readPrompt) layouts.set(node, new LayoutView(node, readPrompt));
  },
  afterConfigureGraph: refreshPrompts,
});
