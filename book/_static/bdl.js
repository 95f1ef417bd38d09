/* The theme lets the keyboard reach what scrolls sideways, but measures only when the window changes: code in a fold
   that is opened later would stay out of reach. So opening a fold counts as such a change. */
(() => {
  "use strict";
  const measure = () => window.dispatchEvent(new Event("resize"));
  document.addEventListener("toggle", measure, true);
  document.addEventListener("click", (event) => event.target.closest(".toggle") && measure());
})();

/* An equation that is wider than its column is set smaller, down to two thirds; what is wider still scrolls. */
(() => {
  "use strict";
  const SMALLEST = 0.65;
  const fit = () => {
    const equations = [...document.querySelectorAll("article mjx-container[display]")];
    for (const equation of equations) {
      equation.dataset.size ??= parseFloat(equation.style.fontSize) || 100;
      equation.style.fontSize = `${equation.dataset.size}%`;
    }
    const shares = equations.map((equation) => equation.clientWidth / equation.scrollWidth);
    for (const [i, equation] of equations.entries()) {
      if (shares[i] < 1) equation.style.fontSize = `${0.99 * Math.max(shares[i], SMALLEST) * equation.dataset.size}%`;
    }
  };
  window.addEventListener("resize", fit);
  window.addEventListener("load", () => window.MathJax?.startup?.promise.then(fit));
})();
