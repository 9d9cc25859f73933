import { knownId, workflowId } from "./graph.js";

const LIMIT = 8;

const keyOf = ({ node, workflow }) => `${knownId(workflow)} ${node}`;

/**
 * The last runs of one kind, by workflow and node. They are kept apart from their views: the host makes nodes, and views with them, anew
 * at every undo, reload and change of tab.
 *
 * A run has `node`, its id, perhaps `workflow`, the id of the one that was queued, and perhaps `close`. Without a workflow it belongs to
 * the first one on screen that has a view for it.
 */
export class Runs {
  #runs = new Map();
  #findView;

  /** `findView` gives the view for a node's id, null without one. A view has `run`, and `show` for another run. */
  constructor(findView) {
    this.#findView = findView;
  }

  /** The run that an event, with `node` and perhaps `workflow`, speaks of. */
  get(event) {
    return this.#runs.get(keyOf(event));
  }

  /** Takes the place of the node's run before. */
  begin(run) {
    const key = keyOf(run);
    this.#drop(key);
    run.workflow = knownId(run.workflow);
    this.#runs.set(key, run);
    if (this.#runs.size > LIMIT) this.#drop(this.#runs.keys().next().value);
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

  forget(event) {
    this.#drop(keyOf(event));
  }

  #drop(key) {
    this.#runs.get(key)?.close?.();
    this.#runs.delete(key);
  }
}
