// Talks to the agent. The token comes once in the address's fragment, which browsers don't send, and is kept for this tab only.

const KEY = "kybernate-token";

export class ApiError extends Error {
  constructor(status, { message, hint, code }) {
    super(message);
    this.status = status;
    this.hint = hint ?? null;
    this.code = code ?? "failed";
  }
}

let token = null;

export function takeToken() {
  const match = /^#token=([^&]+)$/.exec(location.hash);
  if (match) {
    try {
      keepToken(decodeURIComponent(match[1]));
    } catch {
      // Not what `kybernate dashboard` printed; the form asks for it.
    }
    history.replaceState(null, "", location.pathname);
    return true;
  }
  if (token === null) {
    try {
      token = sessionStorage.getItem(KEY);
    } catch {
      token = null;
    }
  }
  return false;
}

export function keepToken(text) {
  token = text.trim();
  try {
    sessionStorage.setItem(KEY, token);
  } catch {
    // It lasts until the page is loaded again, then.
  }
}

export function dropToken() {
  token = null;
  try {
    sessionStorage.removeItem(KEY);
  } catch {
    // There was none, then.
  }
}

export function hasToken() {
  return token !== null;
}

async function request(path, options = {}) {
  const headers = new Headers(options.headers);
  // A header can't hold what isn't Latin-1; a token that isn't is wrong anyway.
  if (token !== null) headers.set("authorization", `Bearer ${/^[\x21-\x7e]+$/.test(token) ? token : "?"}`);
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "same-origin", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: "the agent does not answer", hint: "is it running? `kybernate ps` on its machine tells", code: "away" });
  }
  if (response.ok) return response;
  let view = { message: `the agent answered ${response.status}` };
  try {
    view = { ...view, ...(await response.json()) };
  } catch {
    // Not the agent's own words; a proxy between, for instance.
  }
  throw new ApiError(response.status, view);
}

export async function get(path, { signal } = {}) {
  return (await request(path, { signal })).json();
}

export async function post(path, body = {}) {
  const headers = { "content-type": "application/json" };
  return (await request(path, { method: "POST", headers, body: JSON.stringify(body) })).json();
}

export function workloadPath(name, rest = "") {
  return `/v1/workloads/${encodeURIComponent(name)}${rest}`;
}

/** Server-sent events by fetch, since an EventSource can't carry a token. Calls `on(event, data)` until it ends or fails. */
export async function follow(path, { on, opened, heard, signal }) {
  const response = await request(path, { signal, headers: { accept: "text/event-stream" } });
  opened();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const parse = parser(on);
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    heard();
    parse(value);
  }
}

export function parser(on) {
  let rest = "";
  let event = "message";
  let data = [];
  return (text) => {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (data.length) on(event, JSON.parse(data.join("\n")));
        event = "message";
        data = [];
      } else if (line.startsWith("event: ")) event = line.slice(7);
      else if (line.startsWith("data: ")) data.push(line.slice(6));
    }
  };
}
