import { knownId, workflowId } from "./graph.js";
import { mayHaveQueued, openTab, runningNow, runsFromEarlier } from "./tabs.js";

const LIMIT = 8;

/**
 * What a run is found by. node: its id; workflow: the id of the one that was queued, if it is
 * known.
 *
 * @typedef {{ node: string, workflow?: string | null }} Place
 *
 * id: the server's, where it has given one; tab: that queued it, null while it is not known; close:
 * called when nothing shows the run any more.
 * @typedef {Place & { id?: string, tab?: object | null, close?: () => void }} Run
 */

/**
 * @template {Run} R
 * @typedef {{ run: R | null, show: (run: R) => void }} View
 */

/** The host's own events do not say the workflow: what comes while one runs is of that one. */
const workflowOf = (/** @type {Place} */ { workflow }) =>
  knownId(workflow) ?? runningNow()?.workflow ?? null;

/** The tab that queued what an event speaks of; null when it is not known. */
const tabOf = (/** @type {Place} */ place) => {
  const running = runningNow();
  return running && running.workflow === workflowOf(place) ? running.tab : null;
};

/**
 * The last runs of one kind, by workflow, tab and node. They are kept apart from their views: the
 * host makes nodes, and views with them, anew at every undo, reload and change of tab.
 *
 * A run without a workflow or a tab belongs to the first one on screen that has a view for it; one
 * from before the page was loaded only to a tab that was there then.
 *
 * @template {Run} R
 * @template {View<R>} V
 */
export class Runs {
  /** The newest last. @type {R[]} */
  #runs = [];
  #findView;
  /** Those that began without a workflow that is known. @type {WeakSet<R>} */
  #unsaid = new WeakSet();
  /** Those from before the page was loaded. @type {WeakSet<R>} */
  #earlier = new WeakSet();

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
    return this.#runs.filter((run) => this.#isOf(run, event)).at(-1);
  }

  /**
   * Takes the place of the node's run before.
   *
   * @param {R} run
   * @param {boolean} [isEarlier] whether the page was told of it before it was loaded again
   */
  begin(run, isEarlier = runsFromEarlier()) {
    if (isEarlier) this.#earlier.add(run);
    this.forget(run);
    run.workflow = workflowOf(run);
    if (!run.workflow) this.#unsaid.add(run);
    run.tab = tabOf(run);
    this.#runs.push(run);
    if (this.#runs.length > LIMIT) this.#runs.shift()?.close?.();
    return run;
  }

  /**
   * The view of a run, which shows it; null while there is none on screen.
   *
   * @param {R} run
   */
  viewOf(run) {
    const [workflow, tab] = [workflowId(), openTab()];
    if ((run.workflow ?? workflow) !== workflow || (run.tab ?? tab) !== tab) return null;
    if (!run.tab && this.#earlier.has(run) && !mayHaveQueued(tab)) return null;
    const view = this.#findView(run.node);
    if (!view) return null;
    run.workflow = workflow;
    run.tab = tab;
    if (view.run !== run) view.show(run);
    return view;
  }

  /**
   * The runs that are on screen, with their views.
   *
   * @returns {[R, V][]}
   */
  onScreen() {
    return this.#runs.flatMap((run) => {
      const view = this.viewOf(run);
      /** @type {[R, V][]} */
      const pair = view ? [[run, view]] : [];
      return pair;
    });
  }

  /**
   * The runs that a node had in the tab that an event is for; those of other tabs stay.
   *
   * @param {Place} event
   * @returns {R[]} what is forgotten
   */
  forget(event) {
    const workflow = workflowOf(event) ?? workflowId();
    const tab = tabOf(event) ?? (workflow === workflowId() ? openTab() : null);
    return this.#drop((run) => this.#isOf(run, event) && (!tab || !run.tab || run.tab === tab));
  }

  /**
   * All that a tab has queued: another workflow is in it.
   *
   * @param {object} tab
   */
  forgetTab(tab) {
    this.#drop((run) => run.tab === tab);
  }

  /**
   * @param {(run: R) => boolean} isGone
   * @returns {R[]} what is dropped
   */
  #drop(isGone) {
    const gone = this.#runs.filter(isGone);
    this.#runs = this.#runs.filter((run) => !gone.includes(run));
    for (const run of gone) run.close?.();
    return gone;
  }

  /**
   * Whether an event may be of a run. One that says no workflow may be of the one on screen.
   *
   * @param {R} run
   * @param {Place} event
   */
  #isOf(run, event) {
    if (run.node !== event.node) return false;
    const workflow = workflowOf(event);
    if (workflow) return run.workflow === workflow;
    return this.#unsaid.has(run) || run.workflow === workflowId();
  }
}
