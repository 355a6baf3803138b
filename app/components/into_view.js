// Scrolls to a container that has just appeared, again while it still grows, until the visitor moves the page.
const GROWS = 2000; // milliseconds
const MOVES = ["wheel", "touchstart", "pointerdown", "keydown"];
export default function ({ data, parentElement }) {
  const box = document.querySelector(`.st-key-${CSS.escape(data.place)}`);
  const mark = parentElement.querySelector("span");
  if (!box || mark.dataset.done) return;
  mark.dataset.done = "true";
  if (document.activeElement === document.body) { // what was pressed is gone: the keyboard goes on from here
    box.tabIndex = -1;
    box.focus({ preventScroll: true });
  }
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const watch = new ResizeObserver(() => {
    const { scrollMarginTop, scrollMarginBottom } = getComputedStyle(box);
    const room = innerHeight - parseFloat(scrollMarginTop) - parseFloat(scrollMarginBottom);
    box.scrollIntoView({ block: box.offsetHeight > room ? "start" : "nearest", behavior: calm ? "instant" : "smooth" });
  });
  const leave = () => {
    watch.disconnect();
    MOVES.forEach((name) => removeEventListener(name, leave));
  };
  watch.observe(box);
  MOVES.forEach((name) => addEventListener(name, leave, { passive: true }));
  setTimeout(leave, GROWS);
  return leave;
}
