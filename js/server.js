/** Tells the server that this page shows the pack's events; it sends them to nobody else. */

import { api } from "../../scripts/api.js";

/**
 * A picture that a node saved, as in the host's `images`.
 *
 * @typedef {{ filename: string, subfolder?: string, type?: string }} Picture
 */

/** @type {string | null} */
let told = null;

/**
 * Whether the server told of it before this page was loaded, or while it was not connected.
 *
 * @typedef {{ isEarlier?: boolean }} Told
 */

/**
 * @param {Record<string, (detail: any) => void>} events what to do with each, by name
 * @param {(prompts: string[]) => void} look at what was queued earlier, by the host's ids
 */
async function tell(events, look) {
  if (!api.clientId || told === api.clientId) return;
  told = api.clientId;
  const body = JSON.stringify({ client_id: told });
  const answer = await api.fetchApi("/magicportrait/listen", { method: "POST", body });
  if (!answer.ok) {
    told = null;
    return;
  }
  const { events: earlier } = await answer.json();
  const prompts = new Set();
  for (const [name, detail] of earlier) {
    events[name]?.({ ...detail, isEarlier: true });
    if (detail.prompt) prompts.add(detail.prompt);
  }
  look([...prompts]);
}

/**
 * @param {Record<string, (detail: any) => void>} events what to do with each, by name; what was told
 * earlier comes once more, when the page is loaded again
 * @param {(prompts: string[]) => void} look at what was queued earlier, by the host's ids
 */
export function listen(events, look) {
  for (const [name, handle] of Object.entries(events)) {
    api.addEventListener(name, ({ detail }) => handle(detail));
  }
  // The server forgets its listeners with their connection. 'status' is the first message of each.
  api.addEventListener("reconnecting", () => {
    told = null;
  });
  api.addEventListener("status", () => tell(events, look));
  tell(events, look);
}

/**
 * The JSON of a route of ours; `{ error }` with a sentence when there is none.
 *
 * @param {string} route
 */
export async function ask(route) {
  try {
    return await (await api.fetchApi(route)).json();
  } catch {
    return { error: "ComfyUI does not answer" };
  }
}

/**
 * The address of a file of the input folder as a widget names it, such as 'clipspace/a.png [input]'.
 *
 * @param {string} file
 * @param {string} channel 'rgb', or 'a' for black with its transparency
 */
export function inputPictureUrl(file, channel) {
  const [, path, type = "input"] = file.match(/^(.*?)(?: \[(input|output|temp)\])?$/) ?? [];
  const parts = (path ?? file).split("/");
  const filename = parts.pop() ?? "";
  const query = { filename, subfolder: parts.join("/"), type, channel };
  return api.apiURL(`/view?${new URLSearchParams(query)}`);
}

/**
 * The address of a picture that a node saved.
 *
 * @param {Picture} picture
 */
export const pictureUrl = ({ filename, subfolder = "", type = "output" }) =>
  api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);

/**
 * The address of the picture in a concept's file.
 *
 * @param {string} file as Load Concept lists it
 */
export const conceptPictureUrl = (file) =>
  api.apiURL(`/magicportrait/concept_picture?${new URLSearchParams({ file })}`);
