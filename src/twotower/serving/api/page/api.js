// Asks the server. A key stays in the tab's own storage and is shown with each request.

const KEY = "twotower-key";

export class Refusal extends Error {
  constructor(status, line) {
    super(line);
    this.status = status;
  }
}

export const keepKey = (key) => sessionStorage.setItem(KEY, key);
export const holdsKey = () => sessionStorage.getItem(KEY) !== null;

// The answer to a POST with a body, or to a GET without one. Addresses are relative, so a prefix before them is kept.
// Under a request id of an earlier answer, whoever has no user id is answered by the same variant.
export async function ask(path, body, { signal, requestId } = {}) {
  return (await send(path, { body, signal, requestId })).json();
}

export async function read(path) {
  return (await send(path, {})).text();
}

async function send(path, { body, signal, requestId }) {
  const headers = {};
  if (requestId !== undefined) headers["X-Request-ID"] = requestId;
  if (holdsKey()) headers.Authorization = `Bearer ${sessionStorage.getItem(KEY)}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const what = { method: body === undefined ? "GET" : "POST", headers, signal, body: body && JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, what);
  } catch (fault) {
    if (fault.name === "AbortError") throw fault;
    throw new Refusal(0, "The server cannot be reached. See whether it runs, and ask again.");
  }
  if (response.ok) return response;
  const line = await response.json().then((answer) => answer.error, () => response.statusText);
  if (response.status === 401) document.dispatchEvent(new CustomEvent("locked", { detail: line }));
  throw new Refusal(response.status, line);
}
