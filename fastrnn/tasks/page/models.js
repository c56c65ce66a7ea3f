// The models of fastrnn.tasks.models: the same steps from the same weights, one image at a time.
// Weights are float32; everything is computed in float64, JavaScript's own numbers.

const sigmoid = (x) => 1 / (1 + Math.exp(-x));

/** The bytes in base64. */
function decoded(text) {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
}

/** The run that Python wrote into the page, with its weights and its test images as arrays. */
function readRun() {
  const run = JSON.parse(document.getElementById("run").textContent);
  const weights = new Float32Array(decoded(run.values).buffer); // little-endian, as all browsers are
  let at = 0;
  run.weights = {};
  for (const [name, size] of run.parameters) {
    run.weights[name] = weights.subarray(at, at + size);
    at += size;
  }
  run.pixels = run.height * run.width;
  const images = decoded(run.images);
  run.examples = run.labels.map((label, i) => ({
    label,
    image: images.subarray(i * run.pixels, (i + 1) * run.pixels),
  }));
  return run;
}

/** The sum of w[at + i] * x[from + i] for i < n, in four sums that do not wait for each other. */
function dot(w, at, x, from, n) {
  let a = 0, b = 0, c = 0, d = 0, i = 0;
  for (; i + 3 < n; i += 4) {
    a += w[at + i] * x[from + i];
    b += w[at + i + 1] * x[from + i + 1];
    c += w[at + i + 2] * x[from + i + 2];
    d += w[at + i + 3] * x[from + i + 3];
  }
  for (; i < n; i++) a += w[at + i] * x[from + i];
  return a + b + (c + d);
}

/** A fully connected layer, torch.nn.Linear; returns its outputs. */
function linear(weights, name, x, from = 0, n = x.length) {
  const w = weights[`${name}.weight`];
  const outputs = new Float64Array(weights[`${name}.bias`]);
  for (let k = 0; k < outputs.length; k++) outputs[k] += dot(w, k * n, x, from, n);
  return outputs;
}

/** A hidden layer of rectified units, then an output layer. */
function perceptron(weights, x, from, n) {
  const units = linear(weights, "head.0", x, from, n);
  for (let k = 0; k < units.length; k++) units[k] = Math.max(units[k], 0);
  return linear(weights, "head.2", units);
}

// ---- the cells. Each writes h (an LSTM's also c) in place of the old one.
// own: [gates, H] biases and what the input gives. w: [gates, H, H]. b: [gates, H], of the recurrent
// product. h: a state's units start at `at`; an LSTM's cell states follow them.

const CELLS = {
  LSTM(own, w, b, h, at, H) {
    for (let k = 0; k < 4 * H; k++) own[k] += b[k] + dot(w, k * H, h, at, H);
    for (let k = 0; k < H; k++) {
      const i = sigmoid(own[k]);
      const f = sigmoid(own[H + k]);
      const g = Math.tanh(own[2 * H + k]);
      const o = sigmoid(own[3 * H + k]);
      const c = f * h[at + H + k] + i * g;
      h[at + H + k] = c;
      h[at + k] = o * Math.tanh(c);
    }
  },

  GRU(own, w, b, h, at, H) {
    const product = own.subarray(3 * H);
    for (let k = 0; k < 3 * H; k++) product[k] = b[k] + dot(w, k * H, h, at, H);
    for (let k = 0; k < H; k++) {
      const r = sigmoid(own[k] + product[k]);
      const z = sigmoid(own[H + k] + product[H + k]);
      const n = Math.tanh(own[2 * H + k] + r * product[2 * H + k]);
      h[at + k] = n + z * (h[at + k] - n);
    }
  },

  /** The reset gate comes before the recurrent product; see fastrnn.tasks.reset_before. */
  "GRU-RESET-BEFORE"(own, w, b, h, at, H) {
    for (let k = 0; k < 2 * H; k++) own[k] += b[k] + dot(w, k * H, h, at, H);
    const reset = own.subarray(3 * H);
    for (let k = 0; k < H; k++) reset[k] = sigmoid(own[k]) * h[at + k];
    for (let k = 0; k < H; k++) {
      const z = sigmoid(own[H + k]);
      const row = 2 * H + k;
      const n = Math.tanh(own[row] + b[row] + dot(w, row * H, reset, 0, H));
      h[at + k] = n + z * (h[at + k] - n);
    }
  },
};

/** Recurrent layers, one upon the other. */
class Stack {
  constructor(run, name) {
    const { hidden: H, layers } = run;
    this.cell = CELLS[run.cell];
    this.hidden = H;
    this.width = run.cell === "LSTM" ? 2 * H : H; // numbers that are a layer's state
    this.size = layers * this.width;
    this.top = this.size - this.width; // where the last layer's h starts
    this.layers = Array.from({ length: layers }, (_, layer) => ({
      input: run.weights[`${name}.weight_ih_l${layer}`],
      inputBias: run.weights[`${name}.bias_ih_l${layer}`],
      hidden: run.weights[`${name}.weight_hh_l${layer}`],
      hiddenBias: run.weights[`${name}.bias_hh_l${layer}`],
    }));
    this.scratch = new Float64Array(6 * H);
  }

  /** Reads one step's input, `features` numbers of x from `from` on, into the state at `at`. */
  step(x, from, features, state, at = 0) {
    const H = this.hidden;
    this.layers.forEach((layer, number) => {
      const gates = layer.inputBias.length;
      for (let k = 0; k < gates; k++) {
        this.scratch[k] = layer.inputBias[k] + dot(layer.input, k * features, x, from, features);
      }
      const own = at + number * this.width;
      this.cell(this.scratch, layer.hidden, layer.hiddenBias, state, own, H);
      [x, from, features] = [state, own, H];
    });
  }
}

/**
 * What a stack has read of a sequence, with its state after every step: a pixel that changes costs
 * only the steps from there on.
 */
class Reader {
  constructor(stack, steps, features) {
    Object.assign(this, { stack, features });
    this.input = new Float64Array(steps * features);
    this.states = new Float64Array((steps + 1) * stack.size);
    this.read = 0;
  }

  /** Sets a step's input; what was read from there on no longer counts. */
  set(step, ...values) {
    values.forEach((value, i) => {
      const at = step * this.features + i;
      if (this.input[at] === value) return;
      this.input[at] = value;
      this.read = Math.min(this.read, step);
    });
  }

  /** Reads on until so many steps are read; a generator, so that the caller can pause. */
  *advance(steps) {
    const { stack, states, features } = this;
    for (; this.read < steps; yield) {
      const at = this.read * stack.size;
      states.copyWithin(at + stack.size, at, at + stack.size);
      stack.step(this.input, this.read * features, features, states, at + stack.size);
      this.read++;
    }
  }

  /** Where the last layer's h after so many steps starts in `states`. */
  top(steps) {
    return steps * this.stack.size + this.stack.top;
  }
}

/** fastrnn.tasks.models.PixelModel: the next pixel from those before it. */
class PixelModel {
  constructor(run) {
    this.run = run;
    this.stack = new Stack(run, "recurrent");
    this.reader = new Reader(this.stack, run.pixels, 1);
  }

  /** The logit of the pixel after a state whose top h starts at `at`. */
  logit(states, at) {
    return linear(this.run.weights, "head", states, at, this.stack.hidden)[0];
  }

  /** The logit after so many pixels of the reader, which has read them. */
  after(pixels) {
    return this.logit(this.reader.states, this.reader.top(pixels));
  }

  /** [P] logits, each of the pixel after one of image [P]. */
  logits(image) {
    image.forEach((value, pixel) => this.reader.set(pixel, value));
    finish(this.reader.advance(image.length));
    return Array.from(image, (_, pixel) => this.after(pixel + 1));
  }
}

/** fastrnn.tasks.models.Classifier: the class of an image. */
class Classifier {
  constructor(run) {
    this.run = run;
    this.stack = new Stack(run, "recurrent");
    this.reader = new Reader(this.stack, run.pixels, 1);
  }

  /** Sets a pixel of the image: 0 or 1, or a grey value up to 255. */
  set(pixel, value) {
    this.reader.set(pixel, this.run.grey ? value / 255 : value);
  }

  /** Logits of the classes after so many pixels, which the reader has read. */
  after(pixels) {
    const at = this.reader.top(pixels);
    return perceptron(this.run.weights, this.reader.states, at, this.stack.hidden);
  }

  /** Logits of the classes of image [P]. */
  logits(image) {
    image.forEach((value, pixel) => this.set(pixel, value));
    finish(this.reader.advance(image.length));
    return Array.from(this.after(image.length));
  }
}

/** fastrnn.tasks.models.Inpainter: a pixel from all others that are known. */
class Inpainter {
  constructor(run) {
    this.run = run;
    this.before = new Reader(new Stack(run, "before"), run.pixels, 2);
    this.after = new Reader(new Stack(run, "after"), run.pixels, 2);
    this.reach = Math.min(3, Math.floor(run.height / 4), Math.floor(run.width / 4));
    this.hidden = new Uint8Array(run.pixels);
    this.seen = new Float64Array(2 * (run.hidden + (2 * this.reach + 1) ** 2 - 1));
  }

  /** Sets a pixel of the image; the value of a hidden one is ignored. */
  set(pixel, value, hidden) {
    this.hidden[pixel] = hidden;
    const seen = [hidden ? 0 : value, hidden ? 1 : 0];
    this.before.set(pixel, ...seen);
    this.after.set(this.run.pixels - 1 - pixel, ...seen);
  }

  /** Reads all that the logits of pixels from `first` to `last` depend on. */
  *read(first, last) {
    yield* this.before.advance(last);
    yield* this.after.advance(this.run.pixels - 1 - first);
  }

  /** A pixel's logit; what it depends on has been read. */
  logit(pixel) {
    const { hidden: H, height, width, pixels } = this.run;
    const { before, after, reach, seen } = this;
    let at = before.top(pixel);
    seen.set(before.states.subarray(at, at + H));
    at = after.top(pixels - 1 - pixel);
    seen.set(after.states.subarray(at, at + H), H);
    let next = 2 * H; // then the square around the pixel, with blank margins
    const row = Math.floor(pixel / width);
    const column = pixel % width;
    for (let r = row - reach; r <= row + reach; r++) {
      for (let c = column - reach; c <= column + reach; c++) {
        if (r === row && c === column) continue;
        const inside = r >= 0 && r < height && c >= 0 && c < width;
        at = 2 * (r * width + c);
        seen[next++] = inside ? before.input[at] : 0;
        seen[next++] = inside ? before.input[at + 1] : 0;
      }
    }
    return perceptron(this.run.weights, seen)[0];
  }

  /** [P] logits of the hidden pixels of image [P], and 0 elsewhere. */
  logits(image, hidden) {
    image.forEach((value, pixel) => this.set(pixel, value, hidden[pixel]));
    finish(this.read(0, image.length - 1));
    return Array.from(image, (_, pixel) => (hidden[pixel] ? this.logit(pixel) : 0));
  }
}

/** Runs a generator to its end. */
function finish(steps) {
  while (!steps.next().done);
}
