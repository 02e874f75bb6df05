// Begins: the token, then the parts, then the agent.

import * as api from "./api.js";
import { byId, setText, show } from "./dom.js";
import * as help from "./help.js";
import * as panels from "./panels.js";
import { watch } from "./state.js";
import * as switches from "./switches.js";
import * as tiers from "./tiers.js";
import * as timeline from "./timeline.js";
import * as workloads from "./workloads.js";

const THEMES = [null, "light", "dark"];
const THEME_KEY = "kybernate-theme";

let running = null;

async function begin() {
  running?.abort();
  const round = (running = new AbortController());
  if (!api.hasToken() && location.protocol !== "https:") {
    ask("");
    return;
  }
  try {
    // Over TLS without a token, too: a client certificate is as good.
    await api.get("/v1/node", { signal: round.signal });
  } catch (error) {
    if (round.signal.aborted) return;
    if (error.status === 401) {
      ask(api.hasToken() ? "That token is not the agent's." : "");
      return;
    }
    // The agent may be starting; the watch below tries again.
  }
  show(byId("sign-in"), false);
  show(byId("board"), true);
  try {
    await watch(round.signal);
  } catch (error) {
    if (!round.signal.aborted) ask(error.message);
  }
}

function ask(problem) {
  api.dropToken();
  show(byId("board"), false);
  show(byId("trouble"), false);
  show(byId("sign-in"), true);
  setText(byId("token-problem"), problem);
  byId("token").value = "";
  byId("token").focus();
}

function theme() {
  const root = document.documentElement;
  const current = () => THEMES.indexOf(root.dataset.theme ?? null);
  const tell = () => {
    const word = THEMES[current()] ?? "auto";
    setText(byId("theme-word"), word);
    byId("theme").setAttribute("aria-label", `Theme: ${word === "auto" ? "as the system" : word}`);
  };
  byId("theme").addEventListener("click", () => {
    const next = THEMES[(current() + 1) % THEMES.length];
    if (next === null) delete root.dataset.theme;
    else root.dataset.theme = next;
    try {
      if (next === null) localStorage.removeItem(THEME_KEY);
      else localStorage.setItem(THEME_KEY, next);
    } catch {
      // It holds until the page is loaded again, then.
    }
    tell();
  });
  tell();
}

byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  api.keepToken(byId("token").value);
  begin();
});
addEventListener("hashchange", () => api.takeToken() && begin());

api.takeToken();
theme();
for (const part of [help, timeline, tiers, workloads, switches, panels]) part.start();
begin();
