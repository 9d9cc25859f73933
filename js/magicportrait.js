/**
 * @import { GraphNode } from "../../scripts/app.js"
 * @import { Pair } from "./compare_view.js"
 * @import { Exploration } from "./correspondence_view.js"
 * @import { Advance, Beginning, Prompt } from "./layout_view.js"
 * @import { Picture, Told } from "./server.js"
 * @import { State } from "./training_view.js"
 */
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { CompareView } from "./compare_view.js";
import { ConceptPicker } from "./concept_picker.js";
import { ConceptView, linkStrengths, offerToMaskEditor } from "./concept_view.js";
import { CorrespondenceView } from "./correspondence_view.js";
import { element } from "./elements.js";
import {
  complaintOf,
  isOfPack,
  learnType,
  stopWaiting,
  tellFailure,
  watchQueueing,
} from "./failures.js";
import { CONCEPTS, EDIT_REFERENCES, findNode, openNodes, phrasesOf, textOf } from "./graph.js";
import { leadToDocuments } from "./help_links.js";
import { LayoutRun, LayoutView, offerPictures } from "./layout_view.js";
import { splitPhrases } from "./phrases.js";
import { Runs } from "./runs.js";
import { ask, listen, pictureUrl } from "./server.js";
import { SetView } from "./set_view.js";
import { endRunning, forgetRefused, onTabShown, rememberTab, startNext } from "./tabs.js";
import { TrainingRun, TrainingView } from "./training_view.js";
import { giveRoom, leaveOutHidden, lowerWhileLinked, showWhatCounts } from "./widgets.js";
import { WordsView } from "./words_view.js";

/**
 * How the nodes with a layout say which phrases they look for. outer: the node that stands for the
 * subgraph that they are in.
 *
 * @type {Record<string, (node: GraphNode, outer?: GraphNode) => Prompt>}
 */
const PROMPTS = {
  MagicFaceApply: (node, outer) => {
    const prompt = textOf(node, "prompt", outer);
    const phrases = phrasesOf(node, CONCEPTS, prompt, outer);
    return { phrases, prompt, complaint: complaintOf(node) };
  },
  MagicEditRegions: (node, outer) => {
    const prompt = textOf(node, "prompt", outer);
    // One without a phrase is for all of the picture.
    const phrases = phrasesOf(node, EDIT_REFERENCES, prompt, outer)?.filter(Boolean) ?? null;
    return { phrases, prompt, complaint: complaintOf(node) };
  },
  MagicSemanticLayout: (node, outer) => ({
    phrases: splitPhrases(textOf(node, "phrases", outer)),
    prompt: textOf(node, "prompt", outer),
    complaint: complaintOf(node),
  }),
};

/**
 * The text boxes that hold a prompt, by the node's type.
 *
 * @type {Record<string, string>}
 */
const PROMPT_BOXES = {
  MagicFaceApply: "prompt",
  MagicEditRegions: "prompt",
  MagicSemanticLayout: "prompt",
  MagicDetailPass: "text",
  MagicLayoutConditioning: "text",
};
const LOAD_CONCEPT = "MagicConceptLoad";
const APPLY_WORDS = "MagiCaptureApply";
/** Their presets stand for settings that Nodes 2.0 hides. */
const WITH_PRESETS = new Set(["MagicStyleApply", "MagicStyleNewPicture"]);
/**
 * Choices that saved graphs know by another name: by the node's type and the widget. The server
 * takes the old names too.
 *
 * @type {Record<string, Record<string, Record<string, string>>>}
 */
const RENAMED = { MagicStyleInvert: { method: { ddim: "euler" } } };

/**
 * Which view belongs to which node.
 *
 * @type {Record<string, unknown>}
 */
const VIEWS = {
  MagicFaceApply: LayoutView,
  MagicEditRegions: LayoutView,
  MagicSemanticLayout: LayoutView,
  MagicStyleInvert: CompareView,
  MagicCorrespondenceMap: CorrespondenceView,
  MagicFaceConcept: ConceptView,
  MagiCaptureSubject: SetView,
  MagiCaptureStyle: SetView,
  MagiCaptureTrain: TrainingView,
  MagiCaptureApply: WordsView,
  MagicConceptLoad: ConceptPicker,
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

/**
 * Layouts on the nodes that stand for subgraphs, which hide the node that has the layout.
 *
 * @type {WeakMap<GraphNode, LayoutView>}
 */
const covers = new WeakMap();

/**
 * The node with a layout in the subgraph that a node stands for.
 *
 * @param {GraphNode} node
 */
const covered = (node) => node.subgraph?.nodes.find((inner) => classOf(inner) in PROMPTS);

function renameChoices() {
  for (const node of openNodes()) {
    const renamed = RENAMED[classOf(node)] ?? {};
    for (const widget of node.widgets ?? []) {
      widget.value = renamed[widget.name]?.[String(widget.value)] ?? widget.value;
    }
  }
}

function coverSubgraphs() {
  for (const node of openNodes()) {
    const inner = covered(node);
    if (!inner || covers.has(node)) continue;
    covers.set(node, new LayoutView(node, (outer) => PROMPTS[classOf(inner)](inner, outer)));
  }
}

/**
 * @param {string} id of a node in a subgraph
 * @returns {LayoutView | null}
 */
function coverOf(id) {
  const [inner, ...outside] = id.split(":").reverse();
  const outer = outside.length ? findNode(outside.reverse().join(":")) : null;
  return outer && String(covered(outer)?.id) === inner ? (covers.get(outer) ?? null) : null;
}

/** @type {Runs<LayoutRun, LayoutView>} */
const layouts = new Runs((id) => viewOf(id, LayoutView));
/** @type {Runs<LayoutRun, LayoutView>} */
const coveredLayouts = new Runs(coverOf);

/**
 * The runs with a layout that are on screen, each with all that shows it.
 *
 * @returns {[LayoutRun, LayoutView[]][]}
 */
function layoutsOnScreen() {
  /** @type {Map<LayoutRun, LayoutView[]>} */
  const shown = new Map();
  for (const [run, view] of [...layouts.onScreen(), ...coveredLayouts.onScreen()]) {
    shown.set(run, [...(shown.get(run) ?? []), view]);
  }
  return [...shown];
}
/** @type {Runs<TrainingRun, TrainingView>} */
const trainings = new Runs((id) => viewOf(id, TrainingView));
/** @type {Runs<import("./compare_view.js").Comparison, CompareView>} */
const comparisons = new Runs((id) => viewOf(id, CompareView));
/** @type {Runs<Exploration, CorrespondenceView>} */
const explorations = new Runs((id) => viewOf(id, CorrespondenceView));

/** @type {Runs<import("./concept_view.js").Taken, ConceptView>} */
const takings = new Runs((id) => viewOf(id, ConceptView));

/** @type {Runs<import("./set_view.js").PictureSet, SetView>} */
const pictureSets = new Runs((id) => viewOf(id, SetView));

const OTHERS = [trainings, comparisons, explorations, takings, pictureSets];
const RUNS = [layouts, coveredLayouts, ...OTHERS];

/**
 * Pictures that nodes have shown last, for the runs of tabs that were not on screen then.
 *
 * @type {{ node: string, urls: string[], prompt: string }[]}
 */
const shownLast = [];
const SHOWN_LAST = 16;

/** What the tab on screen has queued, on the nodes that the host has made anew for it. */
function showRuns() {
  const shown = layoutsOnScreen().filter(([run]) => run.prompt && !run.hasPictures);
  for (const { node, urls, prompt } of shownLast) {
    const ofPrompt = shown.filter(([run]) => run.prompt === prompt);
    if (ofPrompt.length) offerPictures(ofPrompt, findNode(node), urls, prompt);
  }
  for (const runs of OTHERS) runs.onScreen();
}

/**
 * @param {string} node
 * @param {Picture[]} images
 * @param {string} prompt
 */
function remember(node, images, prompt) {
  shownLast.push({ node, urls: images.map(pictureUrl), prompt });
  if (shownLast.length > SHOWN_LAST) shownLast.shift();
}

/**
 * The pictures of runs that ended before the page was loaded: the host keeps what nodes have shown.
 *
 * @param {string[]} prompts
 */
async function fetchPictures(prompts) {
  for (const prompt of prompts) {
    const { [prompt]: entry } = await ask(`/history/${prompt}`);
    for (const [node, { images }] of Object.entries(entry?.outputs ?? {})) {
      if (images) remember(node, images, prompt);
    }
  }
  if (prompts.length) showRuns();
}

/** Whether the host says when a tab is on screen. */
let hasTabs = false;

let isRefreshing = false;
function refreshPrompts() {
  if (isRefreshing) return;
  isRefreshing = true;
  requestAnimationFrame(() => {
    isRefreshing = false;
    coverSubgraphs();
    for (const node of openNodes()) {
      try {
        views.get(node)?.refresh?.();
        covers.get(node)?.refresh();
      } catch (error) {
        console.error("MagicPortrait cannot read the prompt of node", node.id, error);
      }
    }
  });
}

/**
 * A run begins. One that is on screen comes again when the page was not connected for a while.
 *
 * @param {Beginning & Told} beginning
 */
function onRun(beginning) {
  const before = layouts.get(beginning);
  if (before?.id && before.id === beginning.run) return;
  const run = new LayoutRun(beginning);
  for (const runs of [layouts, coveredLayouts]) runs.viewOf(runs.begin(run, beginning.isEarlier));
}

/** @param {Advance} advance */
function onLayout(advance) {
  const run = layouts.get(advance);
  if (!run) return;
  run.add(advance);
  for (const runs of [layouts, coveredLayouts]) runs.viewOf(run)?.update();
}

/** @param {State & Told} state */
function onTraining(state) {
  const before = trainings.get(state);
  const run = before?.goesOn(state)
    ? before
    : trainings.begin(new TrainingRun(state), state.isEarlier);
  run.add(state);
  trainings.viewOf(run)?.update();
}

/**
 * What a node has given to the page.
 *
 * @typedef {{
 *   images?: Picture[],
 *   magic_comparison?: Pair[],
 *   magic_taken?: import("./concept_view.js").Taken["pictures"],
 *   magic_masked?: boolean[],
 *   magic_no_layout?: boolean[],
 *   magic_exploration?: Exploration[],
 *   magic_correspondence?: unknown,
 * }} Output
 */

/**
 * @param {{
 *   node: string,
 *   output: Output | null,
 *   prompt_id?: string,
 *   workflow?: string | null,
 * } & Told} event workflow: where the server has kept it for a page that is loaded again
 */
function onExecuted({ node, output, prompt_id: prompt, workflow, isEarlier }) {
  const pairs = output?.magic_comparison;
  if (pairs) comparisons.viewOf(comparisons.begin({ node, pairs }));
  const pictures = output?.magic_taken;
  if (pictures) takings.viewOf(takings.begin({ node, workflow, pictures }, isEarlier));
  const [isMasked] = output?.magic_masked ?? [];
  if (isMasked !== undefined) pictureSets.viewOf(pictureSets.begin({ node, isMasked }));
  if (output?.magic_no_layout) {
    const nothing = { sampler: "", steps: 0, phrases: [], references: [] };
    onRun({ node, workflow, prompt, isEarlier, ...nothing });
  }
  const [exploration] = output?.magic_exploration ?? [];
  if (exploration) {
    explorations.viewOf(explorations.begin({ ...exploration, node }));
  } else if (output?.magic_correspondence) {
    // This run was not recorded: what is on screen is of an older one.
    const before = explorations.forget({ node });
    const owner = nodeFor(node, CorrespondenceView);
    const view = owner && views.get(owner);
    if (before.includes(view?.run)) view.clear();
  }
  if (output?.images) {
    const urls = output.images.map(pictureUrl);
    offerPictures(layoutsOnScreen(), findNode(node), urls, prompt);
    if (prompt) remember(node, output.images, prompt);
  }
}

/** @param {{ blob: Blob, nodeId: string }} event of the host */
function onPreview({ blob, nodeId }) {
  for (const [run, shown] of layoutsOnScreen()) {
    if (run.sampler !== nodeId || run.isDone) continue;
    run.preview(blob);
    for (const view of shown) view.showBackdrops();
  }
}

app.registerExtension({
  name: "MagicPortrait",
  setup() {
    const { href } = new URL("./style.css", import.meta.url);
    document.head.append(element("link", { rel: "stylesheet", href }));
    const events = {
      "magicportrait.run": onRun,
      "magicportrait.layout": onLayout,
      "magicportrait.training": onTraining,
      executed: onExecuted,
      b_preview_with_metadata: onPreview,
      execution_error: tellFailure,
      promptQueueing: watchQueueing,
      promptQueued: stopWaiting,
    };
    listen(events, fetchPictures);
    hasTabs = onTabShown(showRuns, (tab) => {
      for (const runs of RUNS) runs.forgetTab(tab);
    });
    api.addEventListener("promptQueueing", ({ detail }) => rememberTab(detail));
    api.addEventListener("execution_start", startNext);
    for (const end of ["execution_success", "execution_error", "execution_interrupted"]) {
      api.addEventListener(end, endRunning);
    }
    api.addEventListener("status", ({ detail }) => forgetRefused(detail));
    leadToDocuments();
    // Typing, and everything else that changes the graph.
    document.addEventListener("input", refreshPrompts);
    api.addEventListener("graphChanged", refreshPrompts);
  },
  beforeRegisterNodeDef(_, data) {
    learnType(data);
    const { name, input } = data;
    // The host puts its button for uploads on required inputs only.
    const picture = input?.optional?.picture;
    if (name !== CONCEPTS.type || !input?.optional || !Array.isArray(picture)) return;
    input.optional.upload = ["IMAGEUPLOAD", { ...picture[1], imageInputName: "picture" }];
  },
  nodeCreated(node) {
    if (isOfPack(node)) leaveOutHidden(node);
    if (classOf(node) in PROMPT_BOXES) giveRoom(node, PROMPT_BOXES[classOf(node)]);
    const readPrompt = PROMPTS[classOf(node)];
    if (readPrompt) {
      lowerWhileLinked(node, "prompt");
      views.set(node, new LayoutView(node, readPrompt));
    }
    if (classOf(node) === LOAD_CONCEPT) views.set(node, new ConceptPicker(node));
    if (classOf(node) === APPLY_WORDS) views.set(node, new WordsView(node));
    if (WITH_PRESETS.has(classOf(node))) showWhatCounts(node);
    if (classOf(node) !== CONCEPTS.type) return;
    linkStrengths(node);
    offerToMaskEditor(node);
    views.set(node, new ConceptView(node));
  },
  afterConfigureGraph() {
    renameChoices();
    // Their nodes, and with them their views, have been made anew.
    coverSubgraphs();
    if (!hasTabs) showRuns();
    refreshPrompts();
  },
});
