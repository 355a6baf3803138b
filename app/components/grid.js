// A grid of examples: one element, however many there are. Clicks and keys go to Python as triggers.
const EXPLAIN = `<svg viewBox="0 0 24 24" width="16" height="16" fill="none" stroke="currentColor" stroke-width="2" aria-hidden="true">
  <circle cx="12" cy="12" r="7"/><circle cx="12" cy="12" r="2.5" fill="currentColor"/><path d="M12 1v4M12 19v4M1 12h4M19 12h4"/></svg>`;
export default function ({ data, parentElement, setTriggerValue }) {
  const grid = parentElement.querySelector(".grid");
  grid.style.setProperty("--size", data.size + "px");
  grid.setAttribute("aria-label", data.label);
  grid.setAttribute("aria-keyshortcuts", "ArrowLeft ArrowRight ArrowUp ArrowDown Home End");
  grid.classList.toggle("bare", data.items.every((item) => !item.rank) && !data.appear);
  grid.classList.toggle("worded", data.items.some((item) => item.text.length));
  grid.classList.toggle("told", Boolean(data.appear));
  grid.classList.toggle("parted", Boolean(data.appear) && data.items.some((item) => item.framed));
  // Redrawing must not take the focus from who uses the keyboard: it goes to the same button of the same place.
  const focused = grid.getRootNode().activeElement;
  const held = [...grid.children].findIndex((cell) => cell.contains(focused));
  grid.replaceChildren(...data.items.map(card));
  grid.dataset.shown = data.label;
  const found = held >= 0 && grid.children[held]?.querySelector("." + focused.className);
  reach(found ? held : Math.max(0, data.selected ?? 0));
  if (found) found.focus({ preventScroll: true });
  grid.onkeydown = (event) => {
    const cells = [...grid.children], place = cells.findIndex((cell) => cell.contains(event.target));
    const across = cells.filter((cell) => cell.offsetTop === cells[0].offsetTop).length;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across, Home: -place, End: cells.length - 1 - place };
    if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    cells[place + steps[event.key]]?.querySelector(".picture").focus();
  };

  // One stop of the Tab key for a whole grid; the arrow keys go on from there.
  function reach(place) {
    [...grid.children].forEach((cell, at) =>
      cell.querySelectorAll(".picture, .reuse").forEach((button) => (button.tabIndex = at === place ? 0 : -1)));
  }

  // U+2060 keeps a class's name, such as T-shirt, on one line.
  function card(item, place) {
    const cell = element("figure", "card" + (item.framed ? " framed" : "") + (place === data.selected ? " selected" : ""));
    if (data.appear && grid.dataset.shown !== data.label) {
      cell.classList.add("appear");
      cell.style.animationDelay = 45 * place + "ms";
    }
    const button = element(item.href ? "a" : "button", "picture");
    if (item.href) Object.assign(button, { href: item.href, target: "_blank", rel: "noreferrer" });
    else {
      button.type = "button";
      button.onclick = () => {
        setTriggerValue("picked", place);
        comeBack(place);
      };
    }
    button.title = item.title;
    button.setAttribute("aria-label", item.alt);
    if (place === data.selected) button.setAttribute("aria-pressed", "true");
    button.append(item.text.length ? passage(item.text) : picture(item.src));
    if (item.tag) button.append(element("span", "tag", item.tag));
    button.onfocus = () => reach(place);
    cell.append(button);
    if (item.caption) {
      const caption = element("figcaption");
      if (item.rank) {
        const bar = element("span", "strength");
        bar.style.width = Math.max(2, 100 * item.strength) + "%";
        cell.append(bar);
        const head = element("span", "head");
        head.append(element("span", "rank", item.rank), element("span", "value " + item.tone, item.value));
        caption.append(head);
      }
      caption.append(element("span", "label " + (item.rank ? "" : item.tone), item.caption.replaceAll("-", "-\u2060")));
      if (item.note) caption.append(element("span", "note", item.note));
      cell.append(caption);
    }
    if (data.reuse) {
      const reuse = element("button", "reuse");
      reuse.innerHTML = EXPLAIN;
      reuse.type = "button";
      reuse.title = data.reuse;
      reuse.setAttribute("aria-label", data.reuse + ": " + item.alt);
      reuse.onclick = () => setTriggerValue("reused", place);
      cell.append(reuse);
    }
    return cell;
  }

  function picture(src) {
    const image = element("img");
    image.src = src;
    image.alt = "";
    return image;
  }

  // Pieces of a text, tinted by their sign and share: a user's words are never read as HTML.
  function passage(pieces) {
    const text = element("span", "text");
    text.dir = "auto";
    for (const [said, tint] of pieces) text.append(tint ? word(said, tint) : document.createTextNode(said));
    return text;
  }

  function word(said, tint) {
    const made = element("span", tint < 0 ? "against" : "for", said);
    made.style.setProperty("--tint", Math.round(100 * Math.abs(tint)) + "%");
    return made;
  }

  // A dialog that a click opens gives the focus back to who uses the keyboard, not to the page's beginning.
  function comeBack(place) {
    const open = () => document.querySelector("[role=dialog]");
    let seen = false;
    const watch = new MutationObserver(() => {
      if (open()) seen = true;
      else if (seen) {
        watch.disconnect();
        for (const later of [50, 300, 1000]) setTimeout(() => restore(place), later); // until the page is drawn
      }
    });
    watch.observe(document.body, { childList: true, subtree: true });
    setTimeout(() => seen || watch.disconnect(), 5000);
  }

  function restore(place) {
    if (document.activeElement !== document.body) return;
    grid.children[place]?.querySelector(".picture")?.focus({ preventScroll: true });
  }

  function element(tag, name, text) {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  }
}
