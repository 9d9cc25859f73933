import { workflowId } from "./graph.js";

const LIMIT = 8;

/**
 * The last runs of one kind, by the ids of their nodes. They are kept apart from their views: the host makes nodes, and views with them,
 * anew at every undo, reload and change of tab.
 *
 * A run has `node`, its id, and perhaps `close`. It belongs to the first workflow on screen that has a view for it: the server does not
 * say which one was queued.
 */
export class Runs {
  #runs = new Map();
  #findView;

  /** `findView` gives the view for a node's id, null without one. A view has `run`, and `show` for another run. */
  constructor(findView) {
    this.#findView = findView;
  }

  get(node) {
    return this.#runs.get(node);
  }

  /** Takes the place of the node's run before. */
  begin(run) {
    this.#forget(run.node);
    this.#runs.set(run.node, run);
    if (this.#runs.size > LIMIT) this.#forget(this.#runs.keys().next().value);
    return run;
  }

  /** The view of a run, which shows it; null while there is none on screen. */
  viewOf(run) {
    const view = this.#findView(run.node);
    if (!view) return null;
    run.workflow ??= workflowId();
    if (run.workflow !== workflowId()) return null;
    if (view.run !== run) view.show(run);
    return view;
  }

  /** The runs that are on screen with their views: [[run, view]]. */
  onScreen() {
    return [...this.#runs.values()].map((run) => [run, this.viewOf(run)]).filter(([, view]) => view);
  }

  #forget(node) {
    this.#runs.get(node)?.close?.();
    this.#runs.delete(node);
  }
}
