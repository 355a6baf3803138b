// image + patch = stamped image. The patch is drawn on here, and goes to Python as a whole soon after the last click;
// until Python has heard that number, what was drawn stays, whatever an earlier run of the page still sends. In another
// turn Python has put another patch there, and what was drawn before no longer counts.
const PAUSE = 300; // milliseconds after the last click

export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".trigger-patch");
  const side = data.pattern.length;
  if (root.turn !== data.turn || root.drawn?.length !== side * side || (root.timer === undefined && data.heard === root.number)) {
    clearTimeout(root.timer);
    root.timer = root.drawn = undefined;
  }
  root.turn = data.turn;
  root.number = Math.max(root.number ?? 0, data.heard);
  root.send = (text) => setTriggerValue("drawn", `${root.turn}.${root.number}.${text}`);
  const focused = root.getRootNode().activeElement;
  const held = [...root.querySelectorAll(".square")].indexOf(focused);
  root.replaceChildren(shown(data.clean), sign("+"), patch(), sign("="), shown(data.stamped));
  mark();
  if (held >= 0) root.querySelectorAll(".square")[held]?.focus({ preventScroll: true });

  function shown(part) {
    const figure = element("figure", "shown");
    const image = element("img");
    image.src = part.src;
    image.alt = part.title + ": the model says " + part.says;
    const caption = element("figcaption");
    const verdict = element("span", "verdict" + (part.wrong ? " wrong" : ""));
    verdict.append(element("span", "mark", part.wrong ? "✗" : "✓"), element("strong", "", part.says), element("span", "share", part.share));
    caption.append(element("span", "title", part.title), verdict);
    figure.append(image, caption);
    return figure;
  }

  function patch() {
    const figure = element("figure", "shown patch");
    const grid = element("div", "squares");
    grid.setAttribute("role", "group");
    grid.setAttribute("aria-label", "The patch: press its squares to draw your own");
    grid.style.setProperty("--side", side);
    data.pattern.flat().forEach((_, place) => {
      const square = element("button", "square");
      square.type = "button";
      square.onclick = () => flip(place);
      grid.append(square);
    });
    const caption = element("figcaption");
    caption.append(element("span", "title", data.note), element("span", "hint", "Tap its squares to draw your own."));
    figure.append(grid, caption);
    return figure;
  }

  function bits() {
    return root.drawn ?? data.pattern.flat().join("");
  }

  function flip(place) {
    const text = bits();
    root.drawn = text.slice(0, place) + (text[place] === "1" ? "0" : "1") + text.slice(place + 1);
    clearTimeout(root.timer);
    root.timer = setTimeout(() => {
      root.timer = undefined;
      root.number += 1;
      root.send(root.drawn);
    }, PAUSE);
    mark();
  }

  function mark() {
    const text = bits();
    root.classList.toggle("waiting", root.drawn !== undefined);
    root.querySelectorAll(".square").forEach((square, place) => {
      const white = text[place] === "1";
      square.classList.toggle("white", white);
      square.setAttribute("aria-pressed", String(white));
      square.setAttribute("aria-label", `row ${Math.floor(place / side) + 1}, column ${(place % side) + 1}, ${white ? "white" : "black"}`);
    });
  }

  function sign(text) {
    const made = element("span", "sign", text);
    made.setAttribute("aria-hidden", "true");
    return made;
  }

  function element(tag, name, text) {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  }
}
