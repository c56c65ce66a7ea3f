// What the pages of all tasks share: colours, pictures of pixels, work in slices, test digits, tools.

const run = readRun();
const find = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)}%`;
const pictures = []; // draws everything again, in the colours of another scheme
const palette = {};

/** A colour of the style sheet, as it is written there. */
function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function readPalette() {
  for (const name of ["paper", "ink", "model", "pale", "faint"]) {
    palette[name] = [1, 3, 5].map((at) => parseInt(colour(name).slice(at, at + 2), 16));
  }
}

/** A colour of the palette on another one, as [r, g, b]. */
function blend(name, share, on = palette.paper) {
  return palette[name].map((value, i) => on[i] + (value - on[i]) * share);
}

/**
 * Paints pixels; the canvas has one point for each.
 *
 * @param shown gives a pixel's colour [r, g, b], or nothing where there is none.
 */
function paintPixels(canvas, height, width, shown) {
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  const context = canvas.getContext("2d");
  const points = context.createImageData(width, height);
  for (let pixel = 0; pixel < height * width; pixel++) {
    const found = shown(pixel);
    if (found) points.data.set([...found, 255], 4 * pixel);
  }
  context.putImageData(points, 0, 0);
}

const small = document.createElement("canvas");

/** Paints pixels at a size where lines between them are thin, with the lines of a grid. */
function paintBoard(canvas, height, width, shown) {
  const side = Math.ceil(840 / width);
  paintPixels(small, height, width, shown);
  if (canvas.width !== width * side) [canvas.width, canvas.height] = [width * side, height * side];
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
  context.fillStyle = colour("grid");
  for (let line = 1; line < width; line++) context.fillRect(line * side - 1, 0, 2, canvas.height);
  for (let line = 1; line < height; line++) context.fillRect(0, line * side - 1, canvas.width, 2);
}

/** A line on a canvas of paintBoard, after so many pixels. */
function paintCut(canvas, pixels) {
  const side = canvas.width / run.width;
  const top = Math.floor(pixels / run.width) * side;
  const x = (pixels % run.width) * side;
  const context = canvas.getContext("2d");
  context.strokeStyle = colour("model");
  context.lineWidth = 6;
  context.beginPath();
  if (x > 0) context.moveTo(0, top + side);
  if (x > 0) context.lineTo(x, top + side);
  context.lineTo(x, top);
  context.lineTo(canvas.width, top);
  context.stroke();
}

/** A frame around a pixel of a canvas of paintBoard. */
function paintMark(canvas, pixel, name = "text") {
  const side = canvas.width / run.width;
  const context = canvas.getContext("2d");
  context.strokeStyle = colour(name);
  context.lineWidth = Math.max(4, side / 10);
  context.strokeRect((pixel % run.width) * side, Math.floor(pixel / run.width) * side, side, side);
}

const calm = matchMedia("(prefers-reduced-motion: reduce)");

/**
 * Does long work in slices, so that the page never freezes: 8 ms of each frame. New work replaces
 * the old. A generator that yields true ends the slice, for something that is to be watched.
 */
function work(steps, show) {
  const own = (work.current = steps);
  document.querySelector("main").setAttribute("aria-busy", "true");
  const slice = () => {
    if (work.current !== own) return;
    const end = performance.now() + 8;
    let step;
    do step = steps.next();
    while (!step.done && (calm.matches || !step.value) && performance.now() < end);
    show();
    if (step.done) document.querySelector("main").setAttribute("aria-busy", "false");
    else requestAnimationFrame(slice);
  };
  requestAnimationFrame(slice);
}

/** Test digits to choose from, ten at a time: chosen(image) is called with the one that is taken. */
function offerExamples(chosen) {
  const holder = find("examples");
  const rows = Math.ceil(run.examples.length / 10);
  let shown = 0;
  const buttons = Array.from({ length: Math.min(10, run.examples.length) }, (_, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(document.createElement("canvas"));
    button.addEventListener("click", () => chosen(example(place).image));
    holder.append(button);
    return button;
  });
  const example = (place) => run.examples[(10 * shown + place) % run.examples.length];
  const draw = () =>
    buttons.forEach((button, place) => {
      const { image, label } = example(place);
      button.setAttribute("aria-label", `Test digit ${label}`);
      paintPixels(button.firstChild, run.height, run.width, (pixel) =>
        blend("ink", brightness(image[pixel]))
      );
    });
  find("others").addEventListener("click", () => {
    shown = (shown + 1) % rows;
    draw();
  });
  pictures.push(draw);
}

/** A pixel's share of full ink. */
const brightness = (value) => (run.grey ? value / 255 : value);

/** The value that the pen, or the eraser, leaves in a pixel of which it covers so much. */
function penned(value, covered, erase) {
  if (erase || tool() === "erase") return covered >= 0.5 ? 0 : value;
  if (run.grey) return Math.max(value, Math.round(255 * covered));
  return value || covered >= run.threshold ? 1 : 0;
}

/** The tool that is chosen among the radio buttons. */
const tool = () => document.querySelector("input[name=tool]:checked").value;

/** Draws all pictures, now and whenever the colour scheme changes. */
function startPictures() {
  const draw = () => {
    readPalette();
    for (const each of pictures) each();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
}
