for (const section of document.querySelectorAll(".side-by-side")) {
  const scenes = [...section.querySelectorAll(".scene")], none = section.querySelector("#no-scene");
  const [prompt, seed] = section.querySelectorAll("select"), dial = section.querySelector("input"), button = section.querySelector("button");
  let frame = 0, timer = null, scene = scenes[0];
  const show = (number) => {
    frame = number;
    if (dial) dial.value = number;
    if (!scene) return;
    const own = Math.min(number, Number(scene.dataset.frames) - 1), columns = Number(scene.dataset.columns);
    scene.style.setProperty("--x", own % columns);
    scene.style.setProperty("--y", Math.floor(own / columns));
  };
  const choose = () => {
    scene = scenes.find((one) => one.dataset.prompt === prompt.value && one.dataset.seed === seed.value);
    for (const one of scenes) one.hidden = one !== scene;
    none.hidden = scene !== undefined;
    show(frame);
  };
  prompt.onchange = seed.onchange = choose;
  if (dial) {
    const frames = Number(section.dataset.frames);
    const stop = () => { clearInterval(timer); timer = null; button.textContent = "play"; };
    const play = () => { timer = setInterval(() => show((frame + 1) % frames), 125); button.textContent = "pause"; };
    button.onclick = () => (timer ? stop() : play());
    dial.oninput = () => { stop(); show(Number(dial.value)); };
    stop();
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) play();
  }
  choose();
}
