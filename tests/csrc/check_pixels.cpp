// Compares the pixel loop with the layer interface: one step and one layer at a time, in float64.
#include "check.h"

namespace {

struct Shape {
  int cell;
  int64_t layers, steps, batch, hidden;
  bool ragged, drawn;

  bool lstm() const { return cell == FASTRNN_LSTM; }
  int64_t length(int64_t b) const { return ragged ? steps - (steps + 1) * b / batch : steps; }
  std::string name() const {
    std::ostringstream text;
    text << "pixels " << (lstm() ? "LSTM" : "GRU") << " L" << layers << " T" << steps << " B"
         << batch << " H" << hidden << (ragged ? " ragged" : "") << (drawn ? " drawn" : "");
    return text.str();
  }
};

struct Model {
  std::vector<Values> weights;  // per layer: w_ih, w_hh, b_ih, b_hh
  Values head, bias;

  Model(const Shape &s, std::mt19937 &random)
      : head(draw(s.hidden, random)), bias(draw(1, random)) {
    const int64_t rows = (s.lstm() ? 4 : 3) * s.hidden;
    for (int64_t l = 0; l < s.layers; ++l)
      for (int64_t width : {l ? s.hidden : 1, s.hidden, int64_t(1), int64_t(1)})
        weights.push_back(draw(rows * width, random));
  }
};

struct Run {
  Values h, c, logit, thresholds, logits;
  std::vector<uint8_t> pixels;

  Run(const Shape &s, std::mt19937 &random)
      : h(draw(s.layers * s.batch * s.hidden, random)),
        c(draw(s.lstm() ? s.layers * s.batch * s.hidden : 0, random)), logit(draw(s.batch, random)),
        thresholds(draw(s.drawn ? s.batch * s.steps : 0, random)),
        logits(size_t(s.batch * s.steps)) {
    for (int64_t i = 0; i < s.batch * s.steps; ++i) pixels.push_back(uint8_t(random() & 1));
  }
};

// Updates the states h and c of the first `rows` rows of one layer with input x.
void step(const Shape &s, const Values *weights, int64_t rows, const Values &x, double *h,
          double *c) {
  const int64_t size = rows * s.hidden;
  const fastrnn_problem problem = {s.cell, FASTRNN_FLOAT64,          0,        1,      1,
                                   rows,   int64_t(x.size()) / rows, s.hidden, nullptr};
  const Values h0(h, h + size), c0(c, c + (s.lstm() ? size : 0));
  Values y(h0);
  fastrnn_forward_arrays arrays{};
  arrays.x = x.data();
  arrays.h0 = h0.data();
  arrays.c0 = c0.data();
  arrays.w_ih = weights[0].data();
  arrays.w_hh = weights[1].data();
  arrays.b_ih = weights[2].data();
  arrays.b_hh = weights[3].data();
  arrays.y = y.data();
  arrays.h_n = h;
  arrays.c_n = c;
  require(fastrnn_cpu_forward(&problem, &arrays), s.name());
}

void run_by_layers(const Shape &s, const Model &model, Run &run) {
  for (int64_t t = 0; t < s.steps; ++t) {
    int64_t rows = 0;
    while (rows < s.batch && s.length(rows) > t) ++rows;
    if (!rows) return;
    Values x;
    for (int64_t b = 0; b < rows; ++b) {
      uint8_t &pixel = run.pixels[b * s.steps + t];
      if (s.drawn) pixel = run.logit[b] > run.thresholds[b * s.steps + t];
      x.push_back(pixel);
    }
    for (int64_t l = 0; l < s.layers; ++l) {
      const int64_t offset = l * s.batch * s.hidden;
      double *h = run.h.data() + offset;
      step(s, &model.weights[4 * l], rows, x, h, s.lstm() ? run.c.data() + offset : nullptr);
      x.assign(h, h + rows * s.hidden);
    }
    for (int64_t b = 0; b < rows; ++b) {
      double sum = model.bias[0];
      for (int64_t j = 0; j < s.hidden; ++j) sum += x[b * s.hidden + j] * model.head[j];
      run.logits[b * s.steps + t] = run.logit[b] = sum;
    }
  }
}

void run_pixels(const Shape &s, const Model &model, Run &run, int threads) {
  std::vector<Buffer<float>> buffers;
  std::vector<const float *> weights;
  for (const Values &values : model.weights) {
    buffers.emplace_back(values);
    weights.push_back(buffers.back().get());
  }
  const Buffer<float> head(model.head), bias(model.bias), thresholds(run.thresholds);
  const Buffer<float> h(run.h), c(run.c), logit(run.logit), logits(run.logits);
  std::vector<int64_t> lengths;
  for (int64_t b = 0; b < s.batch; ++b) lengths.push_back(s.length(b));
  const fastrnn_pixel_problem problem = {s.cell,
                                         int32_t(s.layers),
                                         threads,
                                         s.steps,
                                         s.batch,
                                         s.hidden,
                                         s.ragged ? lengths.data() : nullptr};
  const fastrnn_pixel_arrays arrays = {weights.data(),   head.get(),        bias.get(),
                                       h.get(),          c.get(),           logit.get(),
                                       thresholds.get(), run.pixels.data(), logits.get()};
  require(fastrnn_cpu_pixels(&problem, &arrays), s.name());
  run.h = h.values();
  run.c = c.values();
  run.logit = logit.values();
  run.logits = logits.values();
}

void check(const Shape &s) {
  std::mt19937 random(11);
  const Model model(s, random);
  const Run start(s, random);
  require(fastrnn_cpu_select_level("baseline"), "select_level");
  Run expected = start;
  run_by_layers(s, model, expected);
  for (const std::string &level : levels()) {
    require(fastrnn_cpu_select_level(level.c_str()), "select_level");
    for (int threads : {1, 2, 3, 4}) {
      const std::string where = s.name() + " " + level + " threads " + std::to_string(threads);
      Run found = start;
      run_pixels(s, model, found, threads);
      if (found.pixels != expected.pixels) fail(where, "pixels", 1, 0);
      compare(found.h, expected.h, 1e-6, where, "h");
      compare(found.c, expected.c, 1e-6, where, "c");
      compare(found.logit, expected.logit, 1e-6, where, "logit");
      compare(found.logits, expected.logits, 1e-6, where, "logits");
    }
  }
}

void check_interface() {
  const auto expect = [](const char *what, int got, int expected) {
    if (got != expected) fail("pixel interface", what, got, expected);
  };
  const fastrnn_pixel_arrays none{};
  fastrnn_pixel_problem problem = {FASTRNN_LSTM, 1, 1, 0, 2, 4, nullptr};
  expect("no steps", fastrnn_cpu_pixels(&problem, &none), FASTRNN_OK);
  problem.steps = 3;
  expect("no arrays", fastrnn_cpu_pixels(&problem, &none), FASTRNN_ERROR_ARGUMENT);
  expect("null arrays", fastrnn_cpu_pixels(&problem, nullptr), FASTRNN_ERROR_ARGUMENT);
  problem.batch = 0;
  expect("empty batch", fastrnn_cpu_pixels(&problem, &none), FASTRNN_OK);
  problem.batch = 2;
  const int64_t growing[] = {1, 2}, long_first[] = {4, 1}, negative[] = {1, -1};
  for (const int64_t *lengths : {growing, long_first, negative}) {
    problem.lengths = lengths;
    expect("lengths", fastrnn_cpu_pixels(&problem, &none), FASTRNN_ERROR_ARGUMENT);
  }
}

}  // namespace

int check_pixels() {
  check_interface();
  // L, T, B, H: around the widths of vectors and tiles, and the number of rows per block.
  const int64_t sizes[][4] = {{1, 1, 1, 1}, {2, 3, 7, 5}, {1, 5, 70, 33}, {3, 4, 130, 16}};
  int shapes = 0;
  for (int cell : {FASTRNN_LSTM, FASTRNN_GRU})
    for (const int64_t *size : sizes)
      for (bool ragged : {false, true})
        for (bool drawn : {false, true}) {
          if (skip_shape()) continue;
          check({cell, size[0], size[1], size[2], size[3], ragged, drawn});
          ++shapes;
        }
  return shapes;
}
