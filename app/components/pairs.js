// Two texts, lines between pairs of their words in the gap between them, and the list of these pairs. A pair that is
// pointed at, focused or clicked stands out, and its line goes on to its words. The list is one stop of the Tab key, for
// a dialog lets that key reach one thing of a component; the arrow keys go on from there.
const SVG = "http://www.w3.org/2000/svg";
export default function ({ data, parentElement }) {
  const root = parentElement.querySelector(".pairs");
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("aria-hidden", "true"); // the list says the same
  // What was chosen, and the focus, stay when the same pairs are drawn again.
  const before = [...root.querySelectorAll("ol button")], focused = root.getRootNode().activeElement;
  const same = before.length === data.lines.length && before.every((each, place) => each.textContent === data.lines[place][3]);
  const held = same ? before.indexOf(focused) : -1, kept = same ? before.findIndex((each) => each.ariaPressed === "true") : -1;
  let pinned = kept < 0 ? null : kept, lit = pinned === null ? [] : [pinned];
  const texts = data.texts.map(text);
  const listed = data.lines.map(entry);
  const list = element("ol");
  list.setAttribute("aria-label", data.label);
  list.setAttribute("aria-keyshortcuts", "ArrowLeft ArrowRight Home End");
  list.onkeydown = (event) => {
    const place = listed.indexOf(event.target), steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1, Home: -place, End: listed.length - 1 - place };
    if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    listed[place + steps[event.key]]?.focus();
  };
  list.append(...listed.map((button) => { const item = element("li"); item.append(button); return item; }));
  root.replaceChildren(...texts, element("p", "", data.label), list, drawing);
  data.lines.forEach((line) => line.slice(0, 2).forEach((number, side) => {
    const found = word(side, number);
    found?.classList.add("paired");
    const own = data.lines.flatMap((other, place) => (other[side] === number ? [place] : []));
    if (found) Object.assign(found, { onmouseenter: () => light(own), onmouseleave: rest });
  }));
  const watch = new ResizeObserver(draw);
  watch.observe(root);
  texts.forEach((each) => each.querySelector(".text").addEventListener("scroll", draw));
  reach(Math.max(held, kept, 0));
  rest();
  listed[held]?.focus({ preventScroll: true });
  return () => watch.disconnect();

  function text({ pieces, title }) {
    const figure = element("figure");
    const body = element("div", "text");
    body.dir = "auto";
    // A user's words are never read as HTML.
    for (const [said, tint, number] of pieces) {
      if (number === null) body.append(document.createTextNode(said));
      else {
        const made = element("span", tint < 0 ? "against" : tint > 0 ? "for" : "", said);
        made.style.setProperty("--tint", Math.round(100 * Math.abs(tint)) + "%");
        made.dataset.word = number;
        body.append(made);
      }
    }
    const caption = element("figcaption");
    title.forEach((line, place) => caption.append(element(place ? "span" : "strong", "", line)));
    figure.append(caption, body);
    return figure;
  }

  function entry([, , , said], place) {
    const button = element("button", "", said);
    button.type = "button";
    button.setAttribute("aria-pressed", String(place === pinned));
    button.onmouseenter = () => light([place]);
    button.onfocus = () => { reach(place); light([place]); };
    button.onmouseleave = button.onblur = rest;
    button.onclick = () => {
      pinned = pinned === place ? null : place;
      listed.forEach((each, at) => each.setAttribute("aria-pressed", String(at === pinned)));
      light([place], true);
    };
    return button;
  }

  function reach(place) {
    listed.forEach((each, at) => (each.tabIndex = at === place ? 0 : -1));
  }

  function rest() {
    light(pinned === null ? [] : [pinned]);
  }

  function light(places, bring = false) {
    lit = places;
    listed.forEach((each, place) => each.classList.toggle("lit", lit.includes(place)));
    root.querySelectorAll(".text .lit").forEach((each) => each.classList.remove("lit"));
    for (const place of lit)
      data.lines[place].slice(0, 2).forEach((number, side) => {
        const found = word(side, number), body = texts[side].querySelector(".text");
        found?.classList.add("lit");
        if (!found || !bring) return;
        const [own, frame] = [found.getBoundingClientRect(), body.getBoundingClientRect()];
        if (own.top < frame.top || own.bottom > frame.bottom) body.scrollTop += own.top - frame.top - frame.height / 2;
      });
    draw();
  }

  function draw() {
    const frame = root.getBoundingClientRect();
    const [edge, start] = [texts[0].getBoundingClientRect().right - frame.left, texts[1].getBoundingClientRect().left - frame.left];
    drawing.setAttribute("width", frame.width);
    drawing.setAttribute("height", frame.height);
    drawing.replaceChildren();
    if (start <= edge) return; // one above the other: there is no gap
    const ends = data.lines.map((line, place) => ({ line, place, boxes: [box(0, line[0]), box(1, line[1])] })).filter(({ boxes }) => boxes[0] && boxes[1]);
    const heights = [apart(ends, 0), apart(ends, 1)];
    ends.forEach(({ line: [, , strength], place, boxes: [from, to] }) => {
      const chosen = lit.includes(place), half = (edge + start) / 2;
      const [out, into] = chosen ? [from.bottom, to.bottom] : [heights[0].get(place), heights[1].get(place)];
      const line = document.createElementNS(SVG, "path");
      const [begin, end] = chosen ? [`M${from.left} ${out} H${edge}`, ` H${to.right}`] : [`M${edge} ${out}`, ""];
      line.setAttribute("d", `${begin} C${half} ${out} ${half} ${into} ${start} ${into}${end}`);
      line.setAttribute("class", (strength < 0 ? "against" : "for") + (chosen ? " lit" : lit.length ? " dim" : ""));
      line.setAttribute("stroke-width", 1 + 3 * Math.abs(strength));
      drawing.append(line);
    });

    function box(side, number) {
      const place = word(side, number)?.getBoundingClientRect(), within = texts[side].querySelector(".text").getBoundingClientRect();
      if (!place || place.bottom < within.top || place.bottom > within.bottom + 1) return null; // scrolled out of sight
      return { left: place.left - frame.left, right: place.right - frame.left, bottom: place.bottom - frame.top, height: place.height };
    }
  }

  // Where lines end on a side, by place: those of one row of words share its height, so that they can be told apart.
  function apart(ends, side) {
    const found = new Map();
    for (const bottom of new Set(ends.map(({ boxes }) => Math.round(boxes[side].bottom)))) {
      const row = ends.filter(({ boxes }) => Math.round(boxes[side].bottom) === bottom);
      row.sort((one, other) => one.boxes[1 - side].bottom - other.boxes[1 - side].bottom);
      row.forEach(({ place, boxes }, at) => found.set(place, boxes[side].bottom - ((row.length - 1 - at) / row.length) * boxes[side].height));
    }
    return found;
  }

  function word(side, number) {
    return texts[side].querySelector(`[data-word="${number}"]`);
  }

  function element(tag, name, said) {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (said !== undefined) made.textContent = said;
    return made;
  }
}
