// The sidebar shows where one is, and paper what can be opened, moved or scrolled on a screen.
addEventListener("load", () => {
  const bar = document.querySelector(".bd-sidebar-primary");
  const here = [...(bar?.querySelectorAll("li.current.active") ?? [])].pop();
  if (!here) return;
  const [place, frame] = [here, bar].map((e) => e.getBoundingClientRect());
  const seen = place.top > frame.top && place.bottom < Math.min(frame.bottom, innerHeight);
  if (!seen) bar.scrollTop += place.top - frame.top - innerHeight / 3;
});

let undo = [];
addEventListener("beforeprint", () => {
  const root = document.documentElement, theme = root.dataset.theme;
  root.dataset.theme = "light";
  undo = [() => { root.dataset.theme = theme; }];
  document.querySelectorAll("details.sd-dropdown:not([open])").forEach((box) => {
    box.open = true;
    undo.push(() => { box.open = false; });
  });
  document.querySelectorAll(".ncsn-player input").forEach((slider) => {
    const value = slider.value;
    slider.value = slider.max;
    slider.oninput();
    undo.push(() => { slider.value = value; slider.oninput(); });
  });
});
addEventListener("afterprint", () => undo.splice(0).forEach((step) => step()));
