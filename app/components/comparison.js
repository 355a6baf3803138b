// The comparison figure: the query on the left, one row of examples a method, or one column of texts. A click goes to Python as a trigger.
export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".comparison");
  const rows = element("div", "rows");
  data.strips.forEach((strip) => rows.append(row(strip)));
  root.classList.toggle("worded", Boolean(data.query.text));
  root.replaceChildren(query(), rows);

  function query() {
    const cell = element("figure", "query");
    const example = data.query.text ? passage(data.query.text) : picture(data.query.src, "query: " + data.query.name);
    const caption = element("figcaption");
    caption.append(element("strong", "", data.query.says), element("span", "", data.query.name));
    cell.append(example, caption);
    return cell;
  }

  function row(strip) {
    const line = element("section", "row");
    line.setAttribute("aria-label", strip.title + " " + strip.note);
    const head = element("div", "head");
    head.append(element("strong", "", strip.title), element("span", "note", strip.note));
    const tiles = element("div", "tiles");
    if (strip.failure) tiles.append(element("p", "failure", strip.failure));
    strip.tiles.forEach((tile) => tiles.append(card(tile)));
    line.append(head, tiles);
    return line;
  }

  function card(tile) {
    const cell = element("figure", "tile");
    const button = element("button", "picture");
    button.type = "button";
    button.title = tile.title;
    button.setAttribute("aria-label", tile.alt);
    button.dataset.image = tile.image;
    if (tile.colour) button.style.setProperty("--mark", tile.colour);
    button.classList.toggle("shared", Boolean(tile.colour));
    button.append(tile.text.length ? passage(tile.text) : picture(tile.src, ""));
    if (tile.tag) button.append(element("span", "tag", tile.tag));
    button.onclick = () => setTriggerValue("picked", tile.image);
    for (const [event, on] of [["mouseenter", true], ["focus", true], ["mouseleave", false], ["blur", false]])
      button.addEventListener(event, () => light(tile, on));
    const caption = element("figcaption");
    caption.append(element("span", "rank", tile.rank), " ", element("span", "label", tile.caption));
    caption.title = tile.caption;
    cell.append(button, caption);
    return cell;
  }

  function picture(src, alt) {
    const image = element("img");
    image.src = src;
    image.alt = alt;
    return image;
  }

  // A user's words are never read as HTML.
  function passage(pieces) {
    const text = element("span", "text", pieces.map(([said]) => said).join(""));
    text.dir = "auto";
    return text;
  }

  // What several rows have stands out in all of them while it is pointed at.
  function light(tile, on) {
    root.classList.toggle("lit", on && Boolean(tile.tag));
    root.querySelectorAll(".picture").forEach((other) =>
      other.classList.toggle("same", on && other.dataset.image === String(tile.image)));
  }

  function element(tag, name, text) {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  }
}
