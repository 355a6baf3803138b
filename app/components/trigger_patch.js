// image + patch = stamped image. A click on a square of the patch goes to Python as a trigger.
export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".trigger-patch");
  const focused = root.getRootNode().activeElement;
  const held = [...root.querySelectorAll(".square")].indexOf(focused);
  root.replaceChildren(shown(data.clean), sign("+"), patch(), sign("="), shown(data.stamped));
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
    grid.setAttribute("aria-label", "The patch: click its squares to draw your own");
    const side = data.pattern.length;
    grid.style.setProperty("--side", side);
    data.pattern.flat().forEach((white, place) => {
      const square = element("button", "square" + (white ? " white" : ""));
      square.type = "button";
      square.setAttribute("aria-label", `row ${Math.floor(place / side) + 1}, column ${place % side + 1}, ${white ? "white" : "black"}`);
      square.setAttribute("aria-pressed", String(Boolean(white)));
      square.onclick = () => setTriggerValue("drawn", place);
      grid.append(square);
    });
    const caption = element("figcaption");
    caption.append(element("span", "title", data.note), element("span", "hint", "Click its squares to draw your own."));
    figure.append(grid, caption);
    return figure;
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
