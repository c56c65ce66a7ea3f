// The beginning of an image, drawn or picked, and how the model goes on from it.

const model = new PixelModel(run);
const SAMPLES = 12;
const FRAMES = 90; // in which a whole image is drawn, to be watched
const image = new Uint8Array(run.pixels);
const expected = new Float64Array(run.pixels).fill(NaN); // probabilities of ink; NaN where there is none yet
const samples = Array.from({ length: SAMPLES }, () => ({
  image: new Uint8Array(run.pixels),
  state: new Float64Array(model.stack.size),
}));
let known = Math.floor((run.height * run.width + run.width) / 2); // pixels that the model sees
let drawn = 0; // pixels of the samples that are known so far

/** Reads the beginning, then draws all endings side by side. */
function* complete() {
  expected.fill(NaN);
  drawn = known;
  for (let pixel = 0; pixel < known; pixel++) model.reader.set(pixel, image[pixel]);
  yield* model.reader.advance(known);
  for (let pixel = 1; pixel <= known; pixel++) expected[pixel] = sigmoid(model.after(pixel));
  const { stack, reader } = model;
  for (const sample of samples) {
    sample.image.set(image.subarray(0, known));
    sample.image.fill(0, known);
    sample.state.set(reader.states.subarray(known * stack.size, (known + 1) * stack.size));
  }
  const pace = Math.ceil(run.pixels / FRAMES);
  while (drawn < run.pixels) {
    let sum = 0;
    for (const sample of samples) {
      const chance = sigmoid(model.logit(sample.state, stack.top));
      sum += chance;
      sample.image[drawn] = Math.random() < chance ? 1 : 0;
      stack.step(sample.image, drawn, 1, sample.state);
    }
    expected[drawn] = sum / SAMPLES;
    drawn++;
    yield drawn % pace === 0;
  }
}

function drawBoard(canvas) {
  paintBoard(canvas, run.height, run.width, (pixel) =>
    pixel < known ? blend("ink", image[pixel]) : blend("ink", 0.16 * image[pixel], palette.pale)
  );
  paintCut(canvas, known);
}

const tiles = samples.map(() => {
  const tile = document.createElement("canvas");
  tile.setAttribute("role", "img");
  find("tiles").append(tile);
  return tile;
});

function drawEndings() {
  samples.forEach((sample, number) => {
    paintPixels(tiles[number], run.height, run.width, (pixel) => {
      if (pixel >= drawn) return palette.pale;
      return blend(pixel < known ? "ink" : "model", sample.image[pixel]);
    });
    const ink = sample.image.subarray(known).reduce((sum, value) => sum + value, 0);
    tiles[number].setAttribute("aria-label", `Ending ${number + 1}: ${ink} more pixels of ink`);
  });
  paintBoard(find("heat"), run.height, run.width, (pixel) =>
    Number.isNaN(expected[pixel]) ? palette.pale : blend("model", expected[pixel])
  );
  paintMark(find("heat"), known);
  const next = expected[known];
  if (Number.isNaN(next)) return;
  find("percent").value = percent(next);
  find("heat").setAttribute(
    "aria-label",
    `Probability of ink at each pixel. In the marked one, the next: ${percent(next)}`
  );
  if (drawn < run.pixels) return;
  const count = SAMPLES * (run.pixels - known);
  find("done").textContent = `${count.toLocaleString("en")} pixels drawn by the model.`;
}

function restart() {
  find("seen").value = `${known} of ${run.pixels} pixels`;
  find("done").textContent = "";
  board.draw();
  work(complete(), drawEndings);
}

const board = new Board(find("board"), run, {
  radius: run.pen,
  draw: drawBoard,
  describe: (pixel) => (image[pixel] ? "ink" : "no ink"),
  stroke(pixel, covered, erase) {
    const value = penned(image[pixel], covered, erase);
    if (value === image[pixel]) return;
    image[pixel] = value;
    restart();
  },
});

find("known").max = run.pixels - 1;
find("known").value = known;
find("known").addEventListener("input", (event) => {
  known = Number(event.target.value);
  restart();
});
find("again").addEventListener("click", restart);
find("clear").addEventListener("click", () => {
  image.fill(0);
  restart();
});
offerExamples((chosen) => {
  image.set(chosen);
  restart();
});
pictures.push(() => board.draw(), drawEndings);
image.set(run.examples[2].image);
startPictures();
restart();
