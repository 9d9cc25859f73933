/** Tells the server that this page shows the pack's events; it sends them to nobody else. */

import { api } from "../../scripts/api.js";

let told = null;

async function tell() {
  if (!api.clientId || told === api.clientId) return;
  told = api.clientId;
  const answer = await api.fetchApi("/magicportrait/listen", { method: "POST", body: JSON.stringify({ client_id: told }) });
  if (!answer.ok) told = null;
}

export function listen(events) {
  for (const [name, handle] of Object.entries(events)) api.addEventListener(name, ({ detail }) => handle(detail));
  // The server forgets its listeners with their connection. 'status' is the first message of each.
  api.addEventListener("reconnecting", () => (told = null));
  api.addEventListener("status", tell);
  tell();
}

/** The JSON of a route of ours; `{ error }` with a sentence when there is none. */
export async function ask(route) {
  try {
    return await (await api.fetchApi(route)).json();
  } catch {
    return { error: "ComfyUI does not answer" };
  }
}

/** The address of a picture that a node saved. */
export const pictureUrl = ({ filename, subfolder = "", type = "output" }) =>
  api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
