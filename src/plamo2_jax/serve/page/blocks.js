// Shows an answer: text with its line breaks, and fenced code as blocks. Texts become text nodes only, so no markup of an answer runs.

/** Divide a text into `{code, name, text}` blocks; `name` stands behind a fence. A fence that is not closed yet reaches to the end. */
export function blocksOf(text) {
  const blocks = [];
  let lines = [];
  let fence = null;
  let name = "";
  const end = (code) => {
    const joined = code ? lines.join("\n") : lines.join("\n").replace(/^\n+|\n+$/g, "");
    if (joined || code) blocks.push({ code, name: code ? name : "", text: joined });
    lines = [];
  };
  for (const line of text.split("\n")) {
    const found = /^ {0,3}(`{3,})([^`]*)$/.exec(line);
    if (fence === null && found) {
      end(false);
      fence = found[1].length;
      name = found[2].trim().slice(0, 40);
    } else if (fence !== null && found && found[1].length >= fence && !found[2].trim()) {
      end(true);
      fence = null;
    } else lines.push(line);
  }
  end(fence !== null);
  return blocks;
}

/** Show a text in an element. Blocks that are shown already stay, so that a growing text keeps the reader's selection. */
export function show(element, text, codeBlock) {
  const blocks = blocksOf(text);
  blocks.forEach((block, i) => {
    let child = element.children[i];
    if (child?.classList.contains("code") !== block.code) {
      const made = block.code ? codeBlock() : document.createElement("p");
      if (child) child.replaceWith(made);
      else element.append(made);
      child = made;
    }
    if (block.code) child.querySelector(".name").textContent = block.name;
    const place = block.code ? child.querySelector("code") : child;
    const shown = place.textContent;
    if (shown === block.text) return;
    if (place.firstChild && block.text.startsWith(shown)) place.firstChild.appendData(block.text.slice(shown.length));
    else place.textContent = block.text;
  });
  while (element.children.length > blocks.length) element.lastElementChild.remove();
}
