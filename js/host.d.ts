/** What this pack uses of ComfyUI's frontend, whose modules come without types. */

declare module "*/scripts/app.js" {
  export interface Slot {
    name: string;
    type: string | number;
    link?: number | null;
    widget?: { name: string };
  }

  export interface Widget {
    name: string;
    type: string;
    value: unknown;
    serialize?: boolean;
    options?: Record<string, unknown>;
  }

  export interface DomWidget extends Widget {
    element: HTMLElement;
    /** Pixels around the element. */
    margin: number;
  }

  export interface DomWidgetOptions {
    serialize?: boolean;
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
    inputs?: Slot[];
    widgets?: Widget[];
    getInputNode(slot: number): GraphNode | null;
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
    setDirtyCanvas(foreground: boolean, background?: boolean): void;
  }

  export interface Extension {
    name: string;
    setup?(): void | Promise<void>;
    nodeCreated?(node: GraphNode): void;
    afterConfigureGraph?(): void;
  }

  export const app: {
    graph?: Graph;
    /** Of newer frontends: the workflow itself when a subgraph is open. */
    rootGraph?: Graph;
    registerExtension(extension: Extension): void;
  };
}

declare module "*/scripts/api.js" {
  export const api: Omit<EventTarget, "addEventListener"> & {
    clientId?: string;
    apiURL(route: string): string;
    fetchApi(route: string, options?: RequestInit): Promise<Response>;
    addEventListener(type: string, listener: (event: CustomEvent) => unknown): void;
  };
}
