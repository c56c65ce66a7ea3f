// An image with pixels rubbed out, and how the model fills them.

const model = new Inpainter(run);
const FRAMES = 90; // in which all holes are filled, to be watched
const image = new Uint8Array(run.pixels); // with its true pixels, also where they are hidden
const hidden = new Uint8Array(run.pixels);
const filled = new Uint8Array(run.pixels);
const left = new Uint8Array(run.pixels); // hidden and not filled yet
const thought = new Float64Array(run.pixels); // probabilities of ink before any pixel is filled
let finished = false;

/** Fills one hidden pixel after the other; as fastrnn.tasks.filling.from_both_sides. */
function* fill() {
  finished = false;
  filled.set(image);
  left.set(hidden);
  thought.fill(NaN);
  for (let pixel = 0; pixel < run.pixels; pixel++) model.set(pixel, image[pixel], hidden[pixel]);
  const count = left.reduce((sum, value) => sum + value, 0);
  const pace = Math.ceil(count / FRAMES);
  for (let done = 1; done <= count; done++) {
    yield* model.read(left.indexOf(1), left.lastIndexOf(1));
    let [surest, logit] = [-1, 0];
    for (let pixel = 0; pixel < run.pixels; pixel++) {
      if (!left[pixel]) continue;
      const found = model.logit(pixel);
      if (done === 1) thought[pixel] = sigmoid(found);
      if (surest < 0 || Math.abs(found) > Math.abs(logit)) [surest, logit] = [pixel, found];
      yield false;
    }
    filled[surest] = logit > 0 ? 1 : 0;
    left[surest] = 0;
    model.set(surest, filled[surest], 0);
    yield done % pace === 0;
  }
  finished = true;
}

/** How a pixel looks that nobody knows: neither ink nor paper. */
const unknown = (pixel) =>
  blend("model", (Math.floor(pixel / run.width) + pixel % run.width) % 2 ? 0.1 : 0.22, palette.pale);

function drawBoard(canvas) {
  paintBoard(canvas, run.height, run.width, (pixel) =>
    hidden[pixel] ? unknown(pixel) : blend("ink", image[pixel])
  );
}

function drawFilling() {
  paintPixels(find("filling"), run.height, run.width, (pixel) => {
    if (left[pixel]) return unknown(pixel);
    if (hidden[pixel]) return filled[pixel] ? palette.model : palette.faint;
    return blend("ink", image[pixel]);
  });
  paintPixels(find("heat"), run.height, run.width, (pixel) => {
    if (!hidden[pixel]) return blend("ink", 0.16 * image[pixel], palette.pale);
    return Number.isNaN(thought[pixel]) ? unknown(pixel) : blend("model", thought[pixel]);
  });
  const count = hidden.reduce((sum, value) => sum + value, 0);
  const right = hidden.reduce((sum, h, pixel) => sum + (h && filled[pixel] === image[pixel]), 0);
  const [pixels, kept] = count === 1 ? ["pixel", "as it was"] : ["pixels", "as they were"];
  const text = count
    ? `${right} of ${count} ${pixels} ${kept}.`
    : "Nothing is hidden: rub something out.";
  find("done").textContent = finished ? text : "";
  find("filling").setAttribute("aria-label", `The digit as the model filled it. ${text}`);
  find("heat").setAttribute("aria-label", `Probability of ink at ${count} hidden ${pixels}`);
}

function restart() {
  board.draw();
  work(fill(), drawFilling);
}

const board = new Board(find("board"), run, {
  radius: run.rubber,
  draw: drawBoard,
  describe: (pixel) => (hidden[pixel] ? "rubbed out" : image[pixel] ? "ink" : "no ink"),
  stroke(pixel, covered, erase) {
    const before = [image[pixel], hidden[pixel]];
    if (tool() === "draw") [image[pixel], hidden[pixel]] = [penned(image[pixel], covered, erase), 0];
    else if (covered >= 0.5) hidden[pixel] = (tool() === "rub") !== erase;
    if (before[0] !== image[pixel] || before[1] !== hidden[pixel]) restart();
  },
});

/** Rubs out a square near the middle, to begin with. */
function rubSquare() {
  hidden.fill(0);
  const side = Math.round(run.height / 4);
  const [top, start] = [Math.round(run.height / 2 - side / 2), Math.round(run.width / 2 - side / 2)];
  for (let row = top; row < top + side; row++) {
    hidden.fill(1, row * run.width + start, row * run.width + start + side);
  }
}

find("clear").addEventListener("click", () => {
  hidden.fill(0);
  restart();
});
offerExamples((chosen) => {
  image.set(chosen);
  restart();
});
pictures.push(() => board.draw(), drawFilling);
image.set(run.examples[2].image);
rubSquare();
startPictures();
restart();
