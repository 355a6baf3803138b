// Links to the steps of a page. The marked one is the last whose heading has reached the window's upper half, or the one
// that was clicked as long as its heading is in view: at the end of a page no heading can reach the top.
export default function ({ data, parentElement }) {
  const bar = parentElement.querySelector(".ns-steps");
  bar.setAttribute("aria-label", data.label);
  let clicked = null;
  const links = data.steps.map((step, place) => {
    const link = document.createElement("a");
    link.href = "#" + step.anchor;
    link.setAttribute("aria-label", `Step ${place + 1}: ${step.title}`);
    link.append(text("b", place + 1), text("span", step.title));
    link.onclick = () => {
      clicked = place;
      requestAnimationFrame(mark); // also where there is nothing to scroll
    };
    return link;
  });
  bar.replaceChildren(...links);
  document.addEventListener("scroll", mark, { capture: true, passive: true });
  window.addEventListener("resize", mark);
  mark();
  return () => {
    document.removeEventListener("scroll", mark, { capture: true });
    window.removeEventListener("resize", mark);
  };

  function mark() {
    const tops = data.steps.map((step) => document.getElementById(step.anchor)?.getBoundingClientRect().top ?? Infinity);
    if (clicked !== null && !(tops[clicked] >= 0 && tops[clicked] < innerHeight)) clicked = null;
    const current = clicked ?? Math.max(0, tops.findLastIndex((top) => top < innerHeight / 2));
    links.forEach((link, place) => {
      if (place === current) link.setAttribute("aria-current", "step");
      else link.removeAttribute("aria-current");
    });
  }

  function text(tag, content) {
    const made = document.createElement(tag);
    made.textContent = content;
    return made;
  }
}
