/* The theme lets the keyboard reach what scrolls sideways, but measures only when the window changes: code in a fold
   that is opened later would stay out of reach. So opening a fold counts as such a change. */
(() => {
  "use strict";
  const measure = () => window.dispatchEvent(new Event("resize"));
  document.addEventListener("toggle", measure, true);
  document.addEventListener("click", (event) => event.target.closest(".toggle") && measure());
})();
