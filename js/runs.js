import { knownId, workflowId } from "./graph.js";

const LIMIT = 8;

/**
 * What a run is found by. node: its id; workflow: the id of the one that was queued, if it is
 * known.
 *
 * @typedef {{ node: string, workflow?: string | null }} Place
 *
 * id: the server's, where it has given one; close: called when nothing shows the run any more.
 * @typedef {Place & { id?: string, close?: () => void }} Run
 */

/**
 * @template {Run} R
 * @typedef {{ run: R | null, show: (run: R) => void }} View
 */

const keyOf = (/** @type {Place} */ { node, workflow }) => `${knownId(workflow)} ${node}`;

/**
 * The last runs of one kind, by workflow and node. They are kept apart from their views: the host
 * makes nodes, and views with them, anew at every undo, reload and change of tab.
 *
 * A run without a workflow belongs to the first one on screen that has a view for it.
 *
 * @template {Run} R
 * @template {View<R>} V
 */
export class Runs {
  /** @type {Map<string, R>} */
  #runs = new Map();
  #findView;

  /**
   * @param {(node: string) => V | null} findView gives the view for a node's id, null without one.
   * A view has `run`, and `show` for another run.
   */
  constructor(findView) {
    this.#findView = findView;
  }

  /**
   * The run that an event speaks of.
   *
   * @param {Place} event
   */
  get(event) {
    return this.#runs.get(keyOf(event));
  }

  /**
   * Takes the place of the node's run before.
   *
   * @param {R} run
   */
  begin(run) {
    const key = keyOf(run);
    this.#drop(key);
    run.workflow = knownId(run.workflow);
    this.#runs.set(key, run);
    if (this.#runs.size > LIMIT) {
      const [oldest] = this.#runs.keys();
      this.#drop(oldest);
    }
    return run;
  }

  /**
   * The view of a run, which shows it; null while there is none on screen.
   *
   * @param {R} run
   */
  viewOf(run) {
    const view = this.#findView(run.node);
    if (!view) return null;
    run.workflow ??= workflowId();
    if (run.workflow !== workflowId()) return null;
    if (view.run !== run) view.show(run);
    return view;
  }

  /**
   * The runs that are on screen, with their views.
   *
   * @returns {[R, V][]}
   */
  onScreen() {
    return [...this.#runs.values()].flatMap((run) => {
      const view = this.viewOf(run);
      /** @type {[R, V][]} */
      const pair = view ? [[run, view]] : [];
      return pair;
    });
  }

  /** @param {Place} event */
  forget(event) {
    this.#drop(keyOf(event));
  }

  /** @param {string} key */
  #drop(key) {
    this.#runs.get(key)?.close?.();
    this.#runs.delete(key);
  }
}
