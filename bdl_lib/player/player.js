/* Moves the explorable figures of a page: a range input or two choose which of the embedded frames is shown.
   Markup: bdl_lib/widgets/page.py. */
(() => {
  "use strict";
  const STEP_MS = 700; // one frame of the play button
  const QUIET_MS = 500; // a screen reader is told once the controls rest
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)");

  function start(root) {
    root.dataset.ready = "";
    const original = root.querySelector(".bdl-explore-frame");
    const template = root.querySelector("template");
    const frames = [...template.content.children];
    frames.splice(Number(template.dataset.default), 0, original);
    const fields = [...root.querySelectorAll("input, select")];
    const status = root.querySelector(".bdl-explore-status");
    const play = root.querySelector(".bdl-explore-play");

    // The original stays where it is for the printer; on screen a copy of it changes.
    const view = original.cloneNode();
    original.classList.add("bdl-explore-print");
    original.hidden = true;
    original.after(view);

    const count = (field) => (field.options ? field.options.length : Number(field.max) + 1);
    const position = (field) => (field.options ? field.selectedIndex : Number(field.value));
    const text = (field) =>
      field.options ? field.options[position(field)].text : JSON.parse(field.dataset.texts)[position(field)];
    const move = (field, to) => {
      if (field.options) field.selectedIndex = to;
      else field.value = to;
    };

    function show() {
      const frame = frames[fields.reduce((at, field) => at * count(field) + position(field), 0)];
      view.src = frame.src;
      view.alt = frame.alt;
      for (const field of fields.filter((each) => !each.options)) {
        field.setAttribute("aria-valuetext", text(field));
        field.parentNode.querySelector(".bdl-explore-value").textContent = text(field);
      }
    }

    let talk = 0;
    function announce() {
      clearTimeout(talk);
      talk = setTimeout(() => (status.textContent = view.alt), QUIET_MS);
    }

    let clock = 0;
    function pause() {
      if (!clock) return;
      clock = clearInterval(clock) || 0;
      play.textContent = "Play";
      delete root.dataset.playing;
      announce();
    }
    function advance(field) {
      move(field, position(field) + 1);
      show();
      if (position(field) === count(field) - 1) pause();
    }
    function begin() {
      const [field] = fields;
      if (position(field) === count(field) - 1) {
        move(field, 0);
        show();
      }
      play.textContent = "Pause";
      root.dataset.playing = "";
      clock = setInterval(advance, STEP_MS, field);
    }

    for (const field of fields) {
      field.addEventListener("input", () => {
        pause();
        show();
        announce();
      });
    }
    if (play) {
      // A reader who wants no motion steps with the slider; a second button for that would add nothing.
      const respect = () => {
        pause();
        play.hidden = calm.matches || count(fields[0]) < 2;
      };
      play.addEventListener("click", () => (clock ? pause() : begin()));
      calm.addEventListener("change", respect);
      respect();
    }
    show();
    root.querySelector(".bdl-explore-controls").hidden = false;
  }

  const startAll = () => document.querySelectorAll(".bdl-explore:not([data-ready])").forEach(start);
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", startAll);
  else startAll();
})();
