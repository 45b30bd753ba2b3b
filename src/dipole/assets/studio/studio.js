// The page on which people compare answers. One module, no library: what it shows comes from the server as inert HTML,
// what a person says is kept in this browser until the server has acknowledged it.

const element = (id) => document.getElementById(id);

// ---------------------------------------------------------------------------------------------- talking to the server

class Refusal extends Error {
  constructor(status, words) {
    super(words);
    this.status = status;
  }
}

/** Sends an object and returns the one that comes back; a Refusal is the server's word, anything else a lost line. */
async function post(path, values) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(values),
    signal: AbortSignal.timeout(20_000),
  });
  const said = await response.json();
  if (!response.ok) throw new Refusal(response.status, said.problem);
  return said;
}

/** A random UUID; crypto.randomUUID is missing where a page comes from another machine without TLS. */
function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 15) | 64;
  bytes[8] = (bytes[8] & 63) | 128;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

/** Comes in with the key that stands behind the # of an address, which is never sent to a server with the address. */
async function enterWithKey() {
  const token = location.hash.slice(1);
  if (!/^[\w-]{20,}$/.test(token)) return false;
  history.replaceState(null, "", location.pathname);
  await post("/api/enter", { token });
  location.replace("/");
  return true;
}

// ----------------------------------------------------------------------------------------------------------- the keys

const ACTIONS = {
  left: { words: "A is better", keys: ["1", "ArrowLeft"] },
  "slightly left": { words: "A is slightly better", keys: ["2", "Shift+ArrowLeft"] },
  tie: { words: "Tie", keys: ["3", "t"] },
  "slightly right": { words: "B is slightly better", keys: ["4", "Shift+ArrowRight"] },
  right: { words: "B is better", keys: ["5", "ArrowRight"] },
  "both bad": { words: "Both are bad", keys: ["b"] },
  skip: { words: "Skip this pair", keys: ["s"] },
  reason: { words: "Give a reason", keys: ["r"] },
  undo: { words: "Take back the last answer", keys: ["u"] },
  view: { words: "Markdown, or as written", keys: ["m"] },
  help: { words: "Help", keys: ["?"] },
};
const KEYS = "dipole-keys";
const SIGNS = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", " ": "Space" };

const keys = { on: true, of: {} };

function loadKeys() {
  let kept = {};
  try {
    kept = JSON.parse(localStorage.getItem(KEYS)) ?? {};
  } catch {
    // what can't be read is as good as nothing
  }
  keys.on = kept.on !== false;
  for (const [action, { keys: usual }] of Object.entries(ACTIONS)) keys.of[action] = kept.of?.[action] ?? usual;
}

function saveKeys() {
  localStorage.setItem(KEYS, JSON.stringify(keys));
}

const keyName = (event) =>
  event.key.length === 1 ? event.key.toLowerCase() : (event.shiftKey ? "Shift+" : "") + event.key;
const keySign = (key) => {
  const [, shift, name] = /^(Shift\+)?(.+)$/.exec(key);
  return (shift ? "⇧" : "") + (SIGNS[name] ?? (name.length === 1 ? name.toUpperCase() : name));
};

/** The action that a key press stands for; none while someone types, or where the key means something else. */
function actionOf(event) {
  if (!keys.on || event.ctrlKey || event.altKey || event.metaKey || event.isComposing || event.repeat) return undefined;
  if (event.target.closest?.("input, textarea, select, dialog") || document.querySelector("dialog[open]")) return undefined;
  const name = keyName(event);
  if (/Arrow/.test(name) && event.target.closest?.("pre, table")) return undefined; // they scroll it
  return Object.keys(ACTIONS).find((action) => keys.of[action].includes(name));
}

/** Writes keys where people see them: on the buttons, and in the help, where they can be changed. */
function showKeys() {
  for (const button of document.querySelectorAll("button[data-action]")) {
    const [key] = keys.on ? keys.of[button.dataset.action] : [];
    const cap = button.querySelector("kbd");
    cap.hidden = !key;
    cap.textContent = key ? keySign(key) : "";
    if (key) button.setAttribute("aria-keyshortcuts", key);
    else button.removeAttribute("aria-keyshortcuts");
  }
  element("keys").replaceChildren(
    ...Object.entries(ACTIONS).map(([action, { words }]) => {
      const row = document.createElement("li");
      const button = document.createElement("button");
      const caps = keys.of[action].map((key) => {
        const cap = document.createElement("kbd");
        cap.textContent = keySign(key);
        return cap;
      });
      button.type = "button";
      button.dataset.key = action;
      button.append(...(caps.length ? caps : ["none"]));
      button.setAttribute("aria-label", `${words}: ${keys.of[action].map(keySign).join(" or ") || "no key"}. Change`);
      row.append(words, button);
      return row;
    }),
  );
  element("keys-on").checked = keys.on;
}

/** Waits for the key that an action is to have; whatever had it before loses it. */
function changeKey(button) {
  const action = button.dataset.key;
  button.textContent = "press a key";
  button.addEventListener("blur", showKeys, { once: true });
  button.addEventListener("keydown", (event) => {
    if (["Shift", "Control", "Alt", "Meta", "Tab"].includes(event.key)) return;
    event.preventDefault();
    event.stopPropagation(); // it was pressed to be chosen, not to answer
    if (event.key !== "Escape") {
      const name = keyName(event);
      for (const other of Object.keys(ACTIONS)) keys.of[other] = keys.of[other].filter((key) => key !== name);
      keys.of[action] = [name];
      saveKeys();
    }
    showKeys();
    document.querySelector(`[data-key="${action}"]`).focus();
  });
}

// --------------------------------------------------------------------------------------------------------- the outbox

/** Answers that the server hasn't acknowledged: each under a name of its own, so that two tabs never overwrite one. */
class Outbox {
  constructor(box) {
    this.prefix = `dipole:${box}:`;
    this.memory = new Map(); // of a browser that keeps nothing
  }

  all() {
    const names = Object.keys(localStorage).filter((name) => name.startsWith(this.prefix));
    const kept = names.map((name) => JSON.parse(localStorage.getItem(name))).filter(Boolean);
    return [...kept, ...this.memory.values()].sort((one, other) => one.at - other.at);
  }

  put(event) {
    try {
      localStorage.setItem(this.prefix + event.id, JSON.stringify(event));
    } catch {
      this.memory.set(event.id, event);
    }
  }

  drop(event) {
    localStorage.removeItem(this.prefix + event.id);
    this.memory.delete(event.id);
  }
}

// ---------------------------------------------------------------------------------------------------------- the pairs

const LOOK = 200; // milliseconds for which a new pair can't be answered, lest a key that was pressed twice answers it
const RETRY = [1, 2, 4, 8, 15]; // seconds

class Desk {
  constructor(outbox) {
    this.outbox = outbox;
    this.queue = []; // keys of pairs, the one on the page first
    this.texts = new Map();
    this.shown = null;
    this.looked = 0; // milliseconds for which the pair was looked at, without the time in which the page was hidden
    this.since = 0;
    this.sending = null;
    this.tries = 0;
    this.asked = 0;
    this.news = 0; // replies taken over
  }

  /** Takes over what the server says lies before this person, less what was answered and isn't sent yet. */
  accept({ pairs, answered, left }) {
    this.news += 1;
    const waiting = new Set(this.outbox.all().flatMap((event) => event.key ?? []));
    const held = new Set(pairs.map((pair) => pair.key));
    for (const key of this.texts.keys()) if (!held.has(key)) this.texts.delete(key);
    for (const pair of pairs) {
      if ("prompt" in pair) {
        this.texts.set(pair.key, pair);
        preloadImages(pair);
      }
    }
    this.queue = pairs.map((pair) => pair.key).filter((key) => !waiting.has(key) && this.texts.has(key));
    this.answered = answered + waiting.size;
    this.left = Math.max(0, left - waiting.size);
    this.asked = Date.now();
    this.show();
  }

  show() {
    showProgress(this.answered, this.left);
    const [key] = this.queue;
    const wasShown = this.shown;
    if (key === this.shown && key !== undefined) return;
    this.shown = key;
    for (const id of ["pair", "dock"]) element(id).hidden = key === undefined;
    element("empty").hidden = key !== undefined;
    if (key === undefined) return this.showEmpty(wasShown);
    const pair = this.texts.get(key);
    for (const part of ["prompt", "left", "right"]) fill(element(`${part}-text`), pair[part]);
    this.looked = 0;
    this.since = performance.now();
    scrollTo({ top: 0, behavior: "instant" });
    const prompt = element("prompt-text");
    prompt.scrollTop = prompt.querySelectorAll(".turn").length > 1 ? prompt.scrollHeight : 0; // its last words count
    if (wasShown !== null) element("prompt").focus({ preventScroll: true });
  }

  showEmpty(wasShown) {
    const [title, words] = element("empty").children;
    const pairs = `${this.answered.toLocaleString("en")} ${this.answered === 1 ? "pair" : "pairs"}`;
    title.textContent = this.left ? "Nothing for you just now" : "That's all. Thank you!";
    words.textContent = this.left
      ? "Others are looking at the last pairs. What they leave comes to you; this page looks again by itself."
      : `You answered ${pairs}. New ones appear here by themselves.`;
    if (wasShown) element("empty").focus();
    clearTimeout(this.again);
    this.again = setTimeout(() => this.shown === undefined && this.ask(), 5_000);
  }

  async ask() {
    const { news } = this;
    try {
      const reply = await post("/api/pairs", { have: [...this.texts.keys()] });
      if (news === this.news) this.accept(reply); // a vote's reply that came meanwhile knows more
      notice("");
    } catch (fault) {
      this.failed(fault);
      setTimeout(() => this.ask(), 3_000);
    }
  }

  time() {
    return Math.round(this.looked + (document.hidden ? 0 : performance.now() - this.since));
  }

  answer(action) {
    const ms = this.time();
    if (this.shown === undefined || this.shown === null || ms < LOOK) return;
    const slightly = action.startsWith("slightly ");
    const choice = slightly ? action.slice(9) : action;
    const reason = element("reason").value.trim();
    this.send({ key: this.shown, choice, slightly, reason, ms });
    status(`Answered: ${ACTIONS[action].words}.`);
    element("reason").value = "";
    showReason(false);
    this.queue.shift();
    this.answered += choice === "skip" ? 0 : 1;
    this.left -= 1;
    this.show();
  }

  undo() {
    status("Taking back your last answer …");
    this.send({ undo: true });
  }

  send(event) {
    this.outbox.put({ ...event, id: newId(), at: Date.now() + performance.now() / 1e9 });
    this.flush();
  }

  /** Sends what waits, one after the other. */
  flush() {
    this.sending ??= oneAtATime(this.outbox.prefix, () => this.sendAll())
      .catch((fault) => this.failed(fault))
      .finally(() => {
        this.sending = null;
        if (!this.tries && this.outbox.all().length) this.flush(); // came in the last moment
      });
  }

  async sendAll() {
    for (let event; ([event] = this.outbox.all()) && event; ) {
      const { at, undo, ...values } = event;
      try {
        const reply = await post(undo ? "/api/undo" : "/api/vote", { ...values, have: [...this.texts.keys()] });
        this.outbox.drop(event);
        this.accept(reply);
        if (undo) status("Taken back. Judge this pair again.");
      } catch (fault) {
        const isFinal = fault instanceof Refusal && [400, 409, 413].includes(fault.status);
        if (!isFinal) throw fault;
        this.outbox.drop(event);
        await this.ask();
        status(`Not counted: ${fault.message}.`);
      }
      this.tries = 0;
      notice("");
    }
  }

  failed(fault) {
    this.tries += 1;
    const count = this.outbox.all().length;
    const answers = count === 1 ? "1 answer is" : `${count} answers are`;
    const kept = count ? ` ${answers} kept in this browser and will be sent.` : "";
    if (fault.status === 403) return notice(`Please come in again: ${fault.message}.${kept}`);
    const why = fault instanceof Refusal ? fault.message : "the server can't be reached";
    notice(`Not saved yet: ${why}.${kept} Trying again by itself.`);
    clearTimeout(this.later);
    const seconds = RETRY[Math.min(this.tries, RETRY.length) - 1];
    this.later = setTimeout(() => this.outbox.all().length && this.flush(), 1000 * seconds);
  }

  hiddenOrSeen() {
    if (document.hidden) this.looked += performance.now() - this.since;
    else {
      this.since = performance.now();
      if (Date.now() - this.asked > 60_000) this.ask(); // another tab may have been used meanwhile
    }
  }
}

/** Works while no other tab works under that name, where the browser can hold them apart. */
function oneAtATime(name, work) {
  return navigator.locks ? navigator.locks.request(name, work) : work();
}

/** Puts a server's HTML in its place; what scrolls sideways can be reached by keyboard. */
function fill(place, html) {
  place.innerHTML = html;
  for (const block of place.querySelectorAll("pre, table")) {
    if (block.scrollWidth > block.clientWidth) block.tabIndex = 0;
  }
}

function preloadImages(pair) {
  const draft = document.createElement("template");
  draft.innerHTML = pair.prompt + pair.left + pair.right;
  for (const image of draft.content.querySelectorAll("img")) new Image().src = image.getAttribute("src");
}

function showProgress(answered, left) {
  const number = (count) => count.toLocaleString("en");
  element("count").textContent = `${number(answered)} answered · ${number(left)} left for you`;
  Object.assign(element("progress"), { max: Math.max(1, answered + left), value: answered });
}

function status(words) {
  element("status").textContent = words;
}

function notice(words) {
  const place = element("notice");
  if (place.textContent !== words) place.textContent = words;
  place.hidden = !words;
}

function showReason(open) {
  element("reason-field").hidden = !open;
  if (open) element("reason").focus();
  else if (document.activeElement === element("reason")) element("prompt").focus({ preventScroll: true });
}

/** Whether a click fell outside of a dialog; one between its paragraphs has the dialog for its target, too. */
function isBeside(dialog, { clientX, clientY }) {
  const { left, right, top, bottom } = dialog.getBoundingClientRect();
  return clientX < left || clientX > right || clientY < top || clientY > bottom;
}

function toggleView() {
  const asWritten = document.body.classList.toggle("as-written");
  document.querySelector("[data-action=view]").setAttribute("aria-pressed", asWritten);
  localStorage.setItem("dipole-view", asWritten ? "written" : "");
}

// ---------------------------------------------------------------------------------------------------------- the pages

function studio() {
  const desk = new Desk(new Outbox(document.body.dataset.box));
  const help = element("help");
  const act = (action) => {
    if (action === "undo") desk.undo();
    else if (action === "view") toggleView();
    else if (action === "help") help.showModal();
    else if (action === "reason") showReason(element("reason-field").hidden || !element("reason").value);
    else desk.answer(action);
  };
  loadKeys();
  showKeys();
  if (localStorage.getItem("dipole-view")) toggleView();
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button?.dataset.action) act(button.dataset.action);
    else if (button?.dataset.key) changeKey(button);
    else if (event.target === help && isBeside(help, event)) help.close();
  });
  document.addEventListener("keydown", (event) => {
    const action = actionOf(event);
    if (action) {
      event.preventDefault();
      act(action);
    }
  });
  element("reason").addEventListener("keydown", (event) => {
    if (event.key === "Escape" || (event.key === "Enter" && (event.ctrlKey || event.metaKey))) {
      event.preventDefault();
      showReason(false);
      if (element("reason").value.trim()) status("Your reason goes with your next answer.");
    }
  });
  element("keys-on").addEventListener("change", (event) => {
    keys.on = event.target.checked;
    saveKeys();
    showKeys();
  });
  element("keys-reset").addEventListener("click", () => {
    localStorage.removeItem(KEYS);
    loadKeys();
    showKeys();
  });
  document.addEventListener("visibilitychange", () => desk.hiddenOrSeen());
  addEventListener("online", () => desk.flush());
  if (desk.outbox.all().length) desk.flush();
  desk.ask();
}

async function enter() {
  const problem = element("problem");
  if (document.body.dataset.step === "token") {
    // The browser keeps the cookie back when another site's link leads here; asked from this page, it shows it.
    const { known } = await (await fetch("/api/me")).json();
    if (known && !sessionStorage.getItem("reloaded")) {
      sessionStorage.setItem("reloaded", "1");
      location.reload();
    }
    return;
  }
  element("name-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await post("/api/name", { name: element("name").value });
      location.replace("/");
    } catch (fault) {
      problem.textContent = `${fault.message}.`;
    }
  });
}

function host() {
  let shown = "";
  setInterval(async () => {
    if (document.hidden) return;
    try {
      const response = await fetch("/host/live");
      if (!response.ok) throw new Error(response.statusText);
      const words = await response.text();
      if (shown !== words) element("live").innerHTML = shown = words;
      notice("");
    } catch {
      notice("The server can't be reached; this is how it was.");
    }
  }, 2_000);
}

const page = { studio, enter, host }[document.body.dataset.page];
try {
  if (!(await enterWithKey())) await page?.();
} catch (fault) {
  const place = element("problem") ?? element("notice");
  place.textContent = `${fault.message}.`;
  place.hidden = false;
}
