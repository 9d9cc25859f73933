/** Reading the graph: which node an id means, and what flows into a node. */

/** @import { Graph, GraphNode, Link } from "../../scripts/app.js" */
import { app } from "../../scripts/app.js";
import { nameOf } from "./phrases.js";

const MUTED = 2;
const BYPASSED = 4;
const NO_ID = "00000000-0000-0000-0000-000000000000";
/** What a subgraph calls the side that its inputs come from. */
const SUBGRAPH_INPUTS = "-10";
const TEXT_SOURCES = new Set(["PrimitiveNode", "PrimitiveString", "PrimitiveStringMultiline"]);

const rootGraph = () => app.rootGraph ?? app.graph;

/**
 * An id of a workflow; null for none, and for one that the host has not given yet.
 *
 * @param {string | null | undefined} id
 */
export const knownId = (id) => (id && id !== NO_ID ? id : null);

/** Tells workflows apart, through undo, reload and a change of tab. */
export const workflowId = () => knownId(rootGraph()?.id);

/** The nodes of the workflow that is open, in subgraphs too. */
export function openNodes() {
  const root = rootGraph();
  return [root, ...(root?.subgraphs?.values() ?? [])].flatMap((graph) => graph?.nodes ?? []);
}

/**
 * The node that the server calls `id`: '7', or '5:7' for node 7 in the subgraph of node 5.
 *
 * @param {string | number} id
 */
export function findNode(id) {
  /** @type {Graph | undefined} */
  let graph = rootGraph();
  /** @type {GraphNode | null} */
  let node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(part) ?? graph?.getNodeById(Number(part)) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

/**
 * The link at an input; null without one.
 *
 * @param {GraphNode} node
 * @param {string} name
 */
function linkAt(node, name) {
  const slot = node.inputs?.findIndex((input) => input.name === name) ?? -1;
  return slot < 0 ? null : (node.getInputLink(slot) ?? null);
}

/**
 * The node at an input, inside a subgraph if it is there; null without one, and at the edge of the
 * subgraph that the node is in.
 *
 * @param {GraphNode} node
 * @param {string} name
 * @returns {GraphNode | null}
 */
function sourceOf(node, name) {
  const link = linkAt(node, name);
  return link && node.graph ? originOf(node.graph, link) : null;
}

/**
 * @param {Graph} graph
 * @param {Link} link in it
 * @returns {GraphNode | null}
 */
function originOf(graph, link) {
  const source = graph.getNodeById(link.origin_id);
  if (!source) return null;
  if (source.type === "Reroute") {
    const [before] = source.inputs ?? [];
    return before ? sourceOf(source, before.name) : null;
  }
  if (!source.subgraph || source.mode === MUTED || source.mode === BYPASSED) return source;
  const [inside] = source.subgraph.outputs?.[link.origin_slot]?.linkIds ?? [];
  const end = inside === undefined ? null : source.subgraph.getLink(inside);
  return end ? originOf(source.subgraph, end) : null;
}

/**
 * The name of the subgraph's input that a node's input is linked to; null when it is linked to
 * something else.
 *
 * @param {GraphNode} node
 * @param {string} name
 */
function outsideName(node, name) {
  const link = linkAt(node, name);
  if (String(link?.origin_id) !== SUBGRAPH_INPUTS) return null;
  return node.graph?.inputs?.[link?.origin_slot ?? -1]?.name ?? null;
}

/**
 * The node that stands for the subgraph that a node is in; null for several, and for none.
 *
 * @param {GraphNode} node
 */
function outerOf(node) {
  const standing = openNodes().filter(({ subgraph }) => subgraph && subgraph === node.graph);
  return standing.length === 1 ? standing[0] : null;
}

/**
 * @param {GraphNode} node
 * @param {string} name of an input
 */
export const isLinked = (node, name) =>
  node.inputs?.some((input) => input.name === name && input.link != null) ?? false;

/**
 * @param {GraphNode} node
 * @param {string} name of an output
 */
const leadsOn = (node, name) =>
  node.outputs?.some((output) => output.name === name && output.links?.length) ?? false;

/**
 * Whether a node's model is used without the conditioning that belongs to it. What does not run is
 * not used.
 *
 * @param {GraphNode} node
 */
export const lacksItsPositive = (node) =>
  node.mode !== MUTED &&
  node.mode !== BYPASSED &&
  leadsOn(node, "MODEL") &&
  !leadsOn(node, "positive");

/**
 * Whether a node is bypassed, and what its positive leads to gets nothing in its place: the host
 * passes on what is connected to its input of that name.
 *
 * @param {GraphNode} node
 */
export const passesNoPositive = (node) =>
  node.mode === BYPASSED && leadsOn(node, "positive") && !isLinked(node, "positive");

// A workflow of another version may put a number into a widget for text.
const asText = (/** @type {unknown} */ value) => (typeof value === "string" ? value : null);

/**
 * The text of a widget; null when it comes from somewhere that is known only when it runs.
 *
 * @param {GraphNode} node
 * @param {string} name
 * @param {GraphNode | null} [outer] stands for the subgraph that the node is in
 * @returns {string | null}
 */
export function textOf(node, name, outer = outerOf(node)) {
  if (!isLinked(node, name)) {
    return asText(node.widgets?.find((widget) => widget.name === name)?.value);
  }
  const outside = outsideName(node, name);
  if (outside) return outer && textOf(outer, outside);
  const source = sourceOf(node, name);
  return source && TEXT_SOURCES.has(source.type) ? asText(source.widgets?.[0]?.value) : null;
}

/**
 * Nodes that hang together by one input, each with a phrase of its own.
 *
 * type: of the nodes with pictures; others: of nodes without, which stand with those of the same
 * phrase; input: their name for those before, and that of the node at the end for all.
 *
 * @typedef {{ type: string, others: string[], input: string }} Chain
 */

/** @type {Chain} */
export const CONCEPTS = {
  type: "MagicFaceConcept",
  others: ["MagicConceptLora", "MagicLayoutConditioning"],
  input: "concepts",
};
// A node of the chain without a phrase.
const OPTIONS = "MagicConceptOptions";
/** @type {Chain} */
export const EDIT_REFERENCES = { type: "MagicEditReference", others: [], input: "references" };

/**
 * Nodes with words of MagiCapture, and at which inputs they have those of others.
 *
 * @type {Record<string, string[]>}
 */
const WORD_INPUTS = {
  MagiCaptureTrain: ["subject", "style"],
  MagiCaptureSubject: ["subjects"],
  MagiCaptureStyle: [],
  MagicEmbeddingLoad: ["embeddings"],
};
/**
 * Nodes that encode one text with a CLIP, and the name of its input.
 *
 * @type {Record<string, string>}
 */
const ENCODERS = {
  CLIPTextEncode: "text",
  MagicFaceApply: "prompt",
  MagicSemanticLayout: "prompt",
};
const PASS_ON_CLIP = new Set(["Reroute", "CLIPSetLastLayer", "LoraLoader"]);

/**
 * The phrases of the chain that flows into a node, in the server's order; null when that is not
 * known yet.
 *
 * @param {GraphNode} node
 * @param {Chain} chain
 * @param {string | null} prompt in which they are
 * @param {GraphNode | null} [outer] stands for the subgraph that the node is in
 */
export const phrasesOf = (node, chain, prompt, outer) =>
  linksOf(node, chain, prompt, outer)?.map(({ phrase }) => phrase) ?? null;

/**
 * @param {GraphNode} node
 * @param {Chain} chain
 * @param {string | null} prompt
 * @param {GraphNode | null} [outer] stands for the subgraph that the node is in
 * @param {string} [input] of the node
 * @returns {{ phrase: string, isBare: boolean }[] | null} isBare: of a node without pictures
 */
function linksOf(node, chain, prompt, outer = outerOf(node), input = chain.input) {
  if (!isLinked(node, input)) return [];
  const outside = outsideName(node, input);
  if (outside) return outer && linksOf(outer, chain, prompt, undefined, outside);
  const source = sourceOf(node, input);
  if (!source) return null;
  // Nothing comes out of it, as if it were not connected.
  if (source.mode === MUTED) return [];
  const around = source.graph === node.graph ? outer : outerOf(source);
  const before = linksOf(source, chain, prompt, around);
  if (source.mode === BYPASSED || source.type === OPTIONS || before === null) return before;
  const isBare = chain.others.includes(source.type);
  if (source.type !== chain.type && !isBare) return null;
  const phrase = textOf(source, "phrase", around)?.trim();
  if (phrase === undefined) return null;
  // As magic/concepts.py joins them: pictures, LoRA and text of one phrase are one concept.
  const name = nameOf(phrase, prompt);
  const isPartner = before.map(
    (other) => nameOf(other.phrase, prompt) === name && (isBare || other.isBare),
  );
  const place = isPartner.lastIndexOf(true);
  if (place < 0) return [...before, { phrase, isBare }];
  // It is called as the node with pictures is.
  if (!isBare) before[place] = { phrase, isBare };
  return before;
}

/**
 * The words that a training learns or a file brings, behind an input of a node; null when that is
 * not known.
 *
 * @param {GraphNode} node
 * @param {string} name of the input
 * @returns {string[] | null}
 */
function wordsAt(node, name) {
  if (!isLinked(node, name)) return [];
  const source = sourceOf(node, name);
  if (!source || source.mode === MUTED || source.mode === BYPASSED) return null;
  const parts = (WORD_INPUTS[source.type] ?? []).map((input) => wordsAt(source, input));
  if (source.type !== "MagiCaptureTrain") {
    // Without one, a file has that which it was saved with.
    const word = source.type in WORD_INPUTS && textOf(source, "placeholder")?.trim();
    parts.push(word ? [word] : null);
  }
  return parts.reduce((all, part) => all && part && [...all, ...part], []);
}

/**
 * The learned words of a MagiCapture Apply, trigger words too; null when they are not known.
 *
 * @param {GraphNode} node
 */
export const learnedWordsOf = (node) => wordsAt(node, "embeddings");

/**
 * The texts that are encoded with a node's CLIP; null when one of them is not known.
 *
 * @param {GraphNode} node
 * @returns {string[] | null}
 */
export function promptsBehind(node, depth = 8) {
  const outputs = (node.outputs ?? []).filter(({ type }) => type === "CLIP" || type === "*");
  /** @type {string[]} */
  const texts = [];
  for (const id of outputs.flatMap(({ links }) => links ?? [])) {
    const link = node.graph?.getLink(id);
    const target = link && node.graph?.getNodeById(link.target_id);
    if (!target || depth === 0) return null;
    if (target.mode === MUTED) continue;
    const input = ENCODERS[target.type];
    const passes = PASS_ON_CLIP.has(target.type);
    if (target.mode === BYPASSED || (!input && !passes)) return null;
    const own = passes ? promptsBehind(target, depth - 1) : [textOf(target, input)];
    for (const text of own ?? [null]) {
      if (text === null) return null;
      texts.push(text);
    }
  }
  return texts;
}

/**
 * Whether a node shows pictures of a sampler as they are: nothing of ours lies between them.
 *
 * @param {GraphNode | null} node
 * @param {GraphNode | null} sampler
 * @returns {boolean}
 */
export function showsPicturesOf(node, sampler, depth = 4) {
  if (!node || depth === 0) return false;
  const inputs = node.inputs ?? [];
  if (inputs.some(({ type }) => typeof type === "string" && type.startsWith("MAGIC_"))) {
    return false;
  }
  if (node === sampler) return true;
  return inputs
    .filter(({ type }) => type === "IMAGE" || type === "LATENT")
    .some(({ name }) => showsPicturesOf(sourceOf(node, name), sampler, depth - 1));
}
