/** What this pack uses of ComfyUI's frontend, whose modules come without types. */

declare module "*/scripts/app.js" {
  export interface Slot {
    name: string;
    type: string | number;
    link?: number | null;
    widget?: { name: string };
  }

  export interface Link {
    origin_id: number | string;
    origin_slot: number;
    target_id: number | string;
  }

  export interface OutputSlot {
    name: string;
    type?: string | number;
    links?: number[] | null;
  }

  export interface WidgetOptions extends Record<string, unknown> {
    getMinHeight?: () => number | undefined;
    getMaxHeight?: () => number | undefined;
  }

  export interface Widget {
    name: string;
    type: string;
    value: unknown;
    hidden?: boolean;
    disabled?: boolean;
    serialize?: boolean;
    options?: WidgetOptions;
    callback?(value: unknown, ...rest: unknown[]): void;
    computeSize?(): number[];
  }

  export interface DomWidget extends Widget {
    element: HTMLElement;
    /** Pixels around the element. */
    margin: number;
    /** Without it the widget is as high as computeSize says. */
    computeLayoutSize?: unknown;
  }

  export interface DomWidgetOptions {
    serialize?: boolean;
    /** No row of its own in the panel of parameters. */
    hideInPanel?: boolean;
    /** Whether the classic mode leaves it out where it draws small. */
    hideOnZoom?: boolean;
    getMinHeight?: () => number;
    getMaxHeight?: () => number;
  }

  export interface GraphNode {
    id: number | string;
    type: string;
    comfyClass?: string;
    mode: number;
    graph: Graph | null;
    /** Of a node that stands for a subgraph. */
    subgraph?: Graph;
    title: string;
    inputs?: Slot[];
    outputs?: OutputSlot[];
    widgets?: Widget[];
    /** Whether its pictures are left out in Nodes 2.0. */
    hideOutputImages?: boolean;
    /** Whether Nodes 2.0 shows its advanced inputs. */
    showAdvanced?: boolean;
    onDrawBackground?(): void;
    size: [width: number, height: number];
    setSize(size: [width: number, height: number]): void;
    /** The least that it needs. */
    computeSize(): number[];
    /** type: 1 for inputs. */
    onConnectionsChange?(type: number, slot: number, ...rest: unknown[]): void;
    onSerialize?(data: { size?: [width: number, height: number] }): void;
    getInputLink(slot: number): Link | null | undefined;
    addDOMWidget(
      name: string,
      type: string,
      element: HTMLElement,
      options?: DomWidgetOptions,
    ): DomWidget;
  }

  export interface Graph {
    id?: string;
    nodes: GraphNode[];
    /** Of the root graph: all definitions, by id. */
    subgraphs?: Map<string, Graph>;
    getNodeById(id: number | string): GraphNode | null | undefined;
    getLink(id: number): Link | null | undefined;
    /** Of a subgraph. */
    inputs?: { name: string }[];
    outputs?: { name: string; linkIds?: number[] }[];
    setDirtyCanvas(foreground: boolean, background?: boolean): void;
  }

  /** What the server says of a type of nodes. */
  export interface NodeData {
    name: string;
    input?: {
      required?: Record<string, unknown>;
      optional?: Record<string, unknown>;
    };
    python_module?: string;
  }

  export interface Toast {
    severity: "info" | "warn" | "error";
    summary: string;
    detail: string;
    /** Milliseconds; stays until it is closed without. */
    life?: number;
    /** A CSS class of its element. */
    styleClass?: string;
  }

  export interface Extension {
    name: string;
    beforeRegisterNodeDef?(nodeType: unknown, nodeData: NodeData): void;
    setup?(): void | Promise<void>;
    nodeCreated?(node: GraphNode): void;
    afterConfigureGraph?(): void;
  }

  /** The host's store of them. activeWorkflow: an object for each tab. */
  export interface Tabs {
    activeWorkflow?: object | null;
    openWorkflows?: object[];
    $onAction?(
      listener: (action: { name: string; after(act: () => void): void }) => void,
      isDetached: boolean,
    ): void;
  }

  export interface NodeErrors {
    class_type: string;
    errors: { type: string; message: string; details: string }[];
  }

  export const app: {
    graph?: Graph;
    /** Of newer frontends: the workflow itself when a subgraph is open. */
    rootGraph?: Graph;
    /** What /prompt complained about last, by node; null without complaints. */
    lastNodeErrors?: Record<string, NodeErrors> | null;
    /** While a workflow is opened. */
    configuringGraph?: boolean;
    canvas: { selectNode(node: GraphNode): void };
    extensionManager: {
      command: { execute(id: string): void };
      setting?: { get(id: string): unknown };
      toast: { add(toast: Toast): void; remove(toast: Toast): void };
      workflow?: Tabs;
    };
    registerExtension(extension: Extension): void;
  };
}

/** Nodes 2.0 is on. */
declare var LiteGraph: { vueNodesMode?: boolean } | undefined;

declare module "*/scripts/api.js" {
  export const api: Omit<EventTarget, "addEventListener"> & {
    clientId?: string;
    apiURL(route: string): string;
    fetchApi(route: string, options?: RequestInit): Promise<Response>;
    addEventListener(type: string, listener: (event: CustomEvent) => unknown): void;
  };
}
