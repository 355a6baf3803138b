// Two texts, and lines between pairs of their words, which follow when the texts are laid out anew.
const SVG = "http://www.w3.org/2000/svg";
export default function ({ data, parentElement }) {
  const root = parentElement.querySelector(".pairs");
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("aria-hidden", "true"); // the list below says the same
  const texts = data.texts.map(text);
  root.replaceChildren(...texts, drawing);
  const watch = new ResizeObserver(draw);
  watch.observe(root);
  texts.forEach((each) => each.querySelector(".text").addEventListener("scroll", draw));
  draw();
  return () => watch.disconnect();

  function text({ pieces, title }) {
    const figure = element("figure");
    const body = element("div", "text");
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

  function draw() {
    const frame = root.getBoundingClientRect();
    drawing.setAttribute("width", frame.width);
    drawing.setAttribute("height", frame.height);
    drawing.replaceChildren();
    for (const [one, other, strength, said] of data.lines) {
      const [from, to] = [box(texts[0], one), box(texts[1], other)];
      if (!from || !to) continue;
      const line = document.createElementNS(SVG, "path");
      line.setAttribute("d", path(from, to));
      line.setAttribute("class", strength < 0 ? "against" : "for");
      line.setAttribute("stroke-width", 1 + 4 * Math.abs(strength));
      const title = document.createElementNS(SVG, "title");
      title.textContent = said;
      line.append(title);
      drawing.append(line);
    }

    function box(figure, number) {
      const found = figure.querySelector(`[data-word="${number}"]`), within = figure.querySelector(".text").getBoundingClientRect();
      const place = found?.getBoundingClientRect();
      if (!place || place.bottom < within.top || place.top > within.bottom) return null; // scrolled out of sight
      return { left: place.left - frame.left, right: place.right - frame.left, top: place.top - frame.top, bottom: place.bottom - frame.top };
    }
  }

  // Under the words' lines and not through them: to the edge of one text, over to the other's, and on to the word there.
  function path(from, to) {
    const [one, other] = texts.map((each) => each.getBoundingClientRect());
    const left = root.getBoundingClientRect().left;
    if (other.left < one.right) {
      const [a, b] = [(from.left + from.right) / 2, (to.left + to.right) / 2];
      const half = (from.bottom + to.top) / 2;
      return `M${a} ${from.bottom} C${a} ${half} ${b} ${half} ${b} ${to.top}`;
    }
    const [edge, start] = [one.right - left, other.left - left];
    const half = (edge + start) / 2;
    return `M${from.left} ${from.bottom} H${edge} C${half} ${from.bottom} ${half} ${to.bottom} ${start} ${to.bottom} H${to.right}`;
  }

  function element(tag, name, said) {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (said !== undefined) made.textContent = said;
    return made;
  }
}
