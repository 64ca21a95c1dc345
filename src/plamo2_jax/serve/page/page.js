// The chat page: what the buttons do, and how an answer grows.

import { show } from "./blocks.js";
import * as memory from "./memory.js";
import { Problem, listModels, streamChat } from "./stream.js";
import { languages, text, translate } from "./texts.js";

const part = (id) => document.getElementById(id);
const main = document.querySelector("main");
const question = part("question");

const messages = memory.loadMessages();
let settings = memory.loadSettings();
let language = memory.loadLanguage() in languages ? memory.loadLanguage() : "en";
let key = memory.loadKey();
/** Ends the answer that is being streamed; null while there is none. */
let answering = null;
/** The problem that is shown, to write it again in the other language. */
let problem = null;

const say = (name, values) => text(language, name, values);
const number = (value, digits = 0) =>
  value.toLocaleString(language, { minimumFractionDigits: digits, maximumFractionDigits: digits });

// The conversation

function render() {
  part("conversation").replaceChildren(...messages.map(item));
  part("welcome").hidden = messages.length > 0;
}

/** Make the list item of a message. */
function item(message) {
  const made = part("message").content.cloneNode(true).firstElementChild;
  made.classList.add(message.role);
  made.querySelector("h2").textContent = message.role === "user" ? say("you") : "PLaMo";
  translate(made, language);
  made.querySelector(".copy").addEventListener("click", (event) => copy(message.content, event.currentTarget));
  made.querySelector(".again").addEventListener("click", answerAgain);
  fill(made, message);
  return made;
}

/** Show a message's text and figures in its list item. */
function fill(made, message) {
  const body = made.querySelector(".text");
  if (message.role === "user") body.textContent = message.content;
  else show(body, message.content, codeBlock);
  made.querySelector(".facts").textContent = factsOf(message);
  made.classList.toggle("waiting", message.content === "" && message === messages.at(-1) && answering !== null);
}

function factsOf({ facts = {} }) {
  const { completion, rate, seconds, prompt, cached, seed, ended } = facts;
  const parts = [];
  if (completion !== undefined) parts.push(say("tokens", { completion: completion === 1 ? 1 : number(completion) }));
  if (rate !== undefined) parts.push(say("rate", { rate: number(rate, rate < 100 ? 1 : 0) }));
  if (seconds !== undefined) parts.push(say("first", { seconds: number(seconds, 2) }));
  if (prompt !== undefined) parts.push(say("prompt", { prompt: number(prompt), cached: cached ? number(cached) : "" }));
  if (seed !== undefined) parts.push(say("seedOf", { seed }));
  if (ended) parts.push(say(ended));
  return parts.join(" · ");
}

function codeBlock() {
  const made = part("code-block").content.cloneNode(true).firstElementChild;
  translate(made, language);
  made.querySelector("button").addEventListener("click", (event) => {
    copy(made.querySelector("code").textContent, event.currentTarget);
  });
  return made;
}

async function copy(content, button) {
  try {
    await navigator.clipboard.writeText(content);
  } catch {
    // Browsers have no clipboard for pages of other machines without https.
    const field = document.createElement("textarea");
    field.value = content;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    button.focus();
  }
  const label = button.textContent;
  if (label === say("copied")) return;
  button.textContent = say("copied");
  announce(say("copied"));
  setTimeout(() => (button.textContent = label), 1500);
}

function save() {
  if (!memory.saveMessages(messages)) report(new Problem("unsaved"));
}

// Reports

/** Show a problem in one sentence; null removes it. */
function report(found) {
  problem = found;
  const place = part("problem");
  place.textContent = found ? say(found.text, found.values) : "";
  place.hidden = !found;
  if (found?.text === "refusedKey") {
    part("key-form").hidden = false;
    part("key").focus();
  }
}

/** Let screen readers say a text. */
function announce(said) {
  const line = document.createElement("p");
  line.textContent = said.trim();
  part("announcer").append(line);
  while (part("announcer").children.length > 20) part("announcer").firstElementChild.remove();
}

/** Return a function that takes a growing text and announces its sentences when they are complete. */
function sentences() {
  let said = 0;
  return (whole, complete) => {
    const rest = whole.slice(said);
    const ends = [". ", "! ", "? ", "\n", "。", "！", "？"].map((each) => rest.lastIndexOf(each));
    const end = complete ? rest.length : 1 + Math.max(...ends);
    if (end > 0) announce(rest.slice(0, end).replace(/^ {0,3}`{3,}.*$/gm, ""));
    said += end;
  };
}

// Answers

async function answer() {
  const asked = messages.filter((message) => message.content !== "").map(({ role, content }) => ({ role, content }));
  if (settings.system.trim()) asked.unshift({ role: "system", content: settings.system });
  // A page that is closed before the end keeps this reason.
  const message = { role: "assistant", content: "", facts: { ended: "stopped" } };
  messages.push(message);
  answering = new AbortController();
  report(null);
  render();
  scrollDown();
  setAnswering(true);
  announce(say("thinking"));
  const speak = sentences();
  const begun = performance.now();
  let drawn = true;
  let saved = begun;
  let first = null;
  let last = null;
  const draw = () => {
    drawn = true;
    const follow = atBottom();
    const place = part("conversation").lastElementChild;
    if (place) fill(place, message);
    if (follow) scrollDown();
  };
  try {
    if (!part("model").value) await loadModels();
    for await (const chunk of streamChat(body(asked), key, answering.signal)) {
      // Servers of others may not report it.
      if (Number.isInteger(chunk.seed)) message.facts.seed = chunk.seed;
      const choice = chunk.choices?.[0];
      const piece = choice?.delta?.content ?? "";
      if (piece) {
        last = performance.now();
        first ??= last;
        message.content += piece;
        message.facts.seconds = (first - begun) / 1000;
        speak(message.content, false);
      }
      if (choice?.finish_reason) message.facts.ended = { stop: "", length: "length" }[choice.finish_reason] ?? "aborted";
      if (chunk.usage) count(message.facts, chunk.usage, (last - first) / 1000);
      if (drawn) {
        drawn = false;
        requestAnimationFrame(draw);
      }
      if (performance.now() - saved > 500) {
        saved = performance.now();
        save();
      }
    }
    speak(message.content, true);
    announce(say("ended"));
  } catch (error) {
    if (error.name !== "AbortError") {
      if (!(error instanceof Problem)) throw error;
      report(error);
    }
    // A question without any answer can be asked again.
    if (message.content === "" && messages.at(-1) === message) messages.pop();
  } finally {
    answering = null;
    const follow = atBottom();
    render();
    if (follow) scrollDown();
    setAnswering(false);
    save();
  }
}

function body(asked) {
  const { temperature, topP, maxTokens, seed } = settings;
  return {
    model: part("model").value,
    messages: asked,
    temperature,
    top_p: topP,
    max_tokens: maxTokens,
    ...(seed === "" ? {} : { seed: Number(seed) }),
  };
}

/** Take a server's token counts. The rate leaves out the wait for the first text. */
function count(facts, usage, seconds) {
  facts.completion = usage.completion_tokens;
  facts.prompt = usage.prompt_tokens;
  facts.cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  if (seconds > 0 && facts.completion > 1) facts.rate = (facts.completion - 1) / seconds;
}

function ask() {
  const content = question.value.trim();
  if (!content || answering) return;
  messages.push({ role: "user", content });
  question.value = "";
  fit();
  save();
  answer();
}

function answerAgain() {
  if (answering) return;
  if (messages.at(-1)?.role === "assistant") messages.pop();
  answer();
}

function setAnswering(active) {
  const [shown, hidden] = active ? [part("stop"), part("send")] : [part("send"), part("stop")];
  const focused = document.activeElement === hidden;
  document.body.classList.toggle("answering", active);
  shown.hidden = false;
  if (focused) shown.focus();
  hidden.hidden = true;
}

const atBottom = () => main.scrollHeight - main.scrollTop - main.clientHeight < 60;

function scrollDown() {
  main.scrollTop = main.scrollHeight;
}

// Models, settings, language

async function loadModels() {
  const names = await listModels(key);
  if (!names.length) throw new Problem("noModel");
  const chosen = memory.loadModel();
  part("model").replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
  part("model").disabled = false;
}

async function showModels() {
  try {
    await loadModels();
    return true;
  } catch (error) {
    if (!(error instanceof Problem)) throw error;
    report(error);
    return false;
  }
}

function showSettings() {
  part("system").value = settings.system;
  for (const [id, name] of [["temperature", "temperature"], ["top-p", "topP"]]) {
    part(id).value = settings[name];
    part(`${id}-value`).textContent = number(Number(settings[name]), 2);
  }
  part("max-tokens").value = settings.maxTokens;
  part("seed").value = settings.seed;
}

function readSettings() {
  const whole = (id, otherwise) => (part(id).value !== "" && part(id).checkValidity() ? Number(part(id).value) : otherwise);
  settings = {
    system: part("system").value,
    temperature: Number(part("temperature").value),
    topP: Number(part("top-p").value),
    maxTokens: whole("max-tokens", memory.defaults.maxTokens),
    seed: whole("seed", ""),
  };
  memory.saveSettings(settings);
}

function showLanguage() {
  document.documentElement.lang = language;
  translate(document, language);
  part("language").textContent = language === "ja" ? "English" : "日本語";
  part("language").lang = language === "ja" ? "en" : "ja";
  showSettings();
  render();
  if (problem) report(problem);
}

/** Make the message field as high as its text. */
function fit() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
}

part("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
question.addEventListener("input", fit);
question.addEventListener("keydown", (event) => {
  // While an input method composes, Enter accepts its text. Safari says so by the key code alone.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  ask();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing && !part("panel").open) answering?.abort();
});
part("stop").addEventListener("click", () => answering?.abort());
part("new").addEventListener("click", () => {
  answering?.abort();
  messages.length = 0;
  save();
  report(null);
  part("announcer").replaceChildren();
  render();
  question.focus();
});
part("settings").addEventListener("click", () => {
  showSettings();
  part("panel").showModal();
});
part("panel").addEventListener("input", () => {
  readSettings();
  part("temperature-value").textContent = number(settings.temperature, 2);
  part("top-p-value").textContent = number(settings.topP, 2);
});
part("panel").addEventListener("click", (event) => {
  if (event.target === part("panel")) part("panel").close();
});
part("defaults").addEventListener("click", () => {
  settings = { ...memory.defaults };
  memory.saveSettings(settings);
  showSettings();
});
part("model").addEventListener("change", () => memory.saveModel(part("model").value));
part("language").addEventListener("click", () => {
  language = language === "ja" ? "en" : "ja";
  memory.saveLanguage(language);
  showLanguage();
});
part("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  key = part("key").value.trim();
  memory.saveKey(key);
  part("key-form").hidden = true;
  report(null);
  if (!(await showModels())) return;
  question.focus();
  if (messages.at(-1)?.role === "user" && !answering) answer();
});
addEventListener("pagehide", save);

showLanguage();
scrollDown();
question.focus();
showModels();
