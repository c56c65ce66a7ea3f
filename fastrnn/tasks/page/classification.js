// An image, drawn or picked, and what the model makes of it after each of its rows.

const model = new Classifier(run);
const CLASSES = Array.from({ length: run.classes }, (_, label) => label);
const image = new Uint8Array(run.pixels);
const answers = []; // [rows read] the probabilities of the classes; of no row: before the first pixel
let read = 0; // rows whose answer is shown

function probabilities(logits) {
  const most = Math.max(...logits);
  const weights = Array.from(logits, (logit) => Math.exp(logit - most));
  const sum = weights.reduce((total, weight) => total + weight, 0);
  return weights.map((weight) => weight / sum);
}

/** Reads the image row by row. With frames, each row's answer is shown for so many of them. */
function* readRows(frames) {
  for (let pixel = 0; pixel < run.pixels; pixel++) model.set(pixel, image[pixel]);
  const same = Math.floor(model.reader.read / run.width); // rows that have not changed
  for (let rows = frames ? 0 : same; rows <= run.height; rows++) {
    yield* model.reader.advance(rows * run.width);
    answers[rows] = probabilities(model.after(rows * run.width));
    if (frames) read = rows;
    for (let frame = 0; frame < frames; frame++) yield true;
  }
  read = run.height;
}

/** Reads it from the top, to be watched. */
function watch(frames) {
  answers.length = 0;
  work(readRows(Math.ceil(frames / run.height)), drawAnswer);
}

function drawBoard(canvas) {
  const end = read * run.width;
  paintBoard(canvas, run.height, run.width, (pixel) => {
    const light = brightness(image[pixel]);
    return pixel < end ? blend("ink", light) : blend("ink", 0.4 * light, palette.pale);
  });
  if (read > 0 && read < run.height) paintCut(canvas, read * run.width);
}

const bars = CLASSES.map((label) => {
  const bar = document.createElement("li");
  bar.innerHTML = `<span>${label}</span><i></i><output></output>`;
  find("bars").append(bar);
  document.querySelector(".axis").append(Object.assign(document.createElement("span"), { textContent: label }));
  return bar;
});

function drawAnswer() {
  board.draw();
  paintPixels(find("rows"), run.height, run.classes, (cell) => {
    const row = Math.floor(cell / run.classes) + 1;
    return answers[row] ? blend("model", answers[row][cell % run.classes]) : palette.pale;
  });
  const shares = answers[read];
  if (!shares) return;
  const best = shares.indexOf(Math.max(...shares));
  bars.forEach((bar, label) => {
    bar.style.setProperty("--share", shares[label]);
    bar.classList.toggle("best", label === best);
    bar.querySelector("output").value = percent(shares[label]);
  });
  find("verdict").value = best;
  find("seen").value = `${read} of ${run.height}`;
  find("read").value = read;
  const summary = `After ${read} rows: ${best}, ${percent(shares[best])}`;
  find("rows").setAttribute("aria-label", `Probabilities of the digits after each row. ${summary}`);
}

function restart() {
  board.draw();
  work(readRows(0), drawAnswer);
}

const board = new Board(find("board"), run, {
  radius: run.pen,
  draw: drawBoard,
  describe: (pixel) => (run.grey ? percent(image[pixel] / 255) : image[pixel] ? "ink" : "no ink"),
  stroke(pixel, covered, erase) {
    const value = penned(image[pixel], covered, erase);
    if (value === image[pixel]) return;
    image[pixel] = value;
    restart();
  },
});

find("read").max = run.height;
find("read").addEventListener("input", (event) => {
  const wanted = Number(event.target.value);
  work.current = null; // stop a reading that is being watched
  finish(readRows(0));
  read = wanted;
  drawAnswer();
});
find("again").addEventListener("click", () => watch(200));
/** Moves the ink so that its centre of mass is in the middle, as MNIST's makers did. */
function centre() {
  let [mass, down, right] = [0, 0, 0];
  image.forEach((value, pixel) => {
    mass += value;
    down += value * Math.floor(pixel / run.width);
    right += value * (pixel % run.width);
  });
  if (!mass) return;
  down = Math.round((run.height - 1) / 2 - down / mass);
  right = Math.round((run.width - 1) / 2 - right / mass);
  const old = image.slice();
  image.fill(0);
  old.forEach((value, pixel) => {
    const row = Math.floor(pixel / run.width) + down;
    const column = (pixel % run.width) + right;
    const inside = row >= 0 && row < run.height && column >= 0 && column < run.width;
    if (inside) image[row * run.width + column] = value;
  });
  restart();
}

find("centre").addEventListener("click", centre);
find("clear").addEventListener("click", () => {
  image.fill(0);
  restart();
});
offerExamples((chosen) => {
  image.set(chosen);
  watch(30);
});
pictures.push(drawAnswer);
image.set(run.examples[2].image);
startPictures();
watch(30);
