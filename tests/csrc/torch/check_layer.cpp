// Checks the ops for training a layer: the same bits as libfastrnn_cpu.
#include "op_call.h"

namespace {

using fake::Tensor;
using fake::Tensors;

struct Case {
  bool gru, packed, reverse, biases;
  int32_t dtype;
  bool projected = false;

  std::string name() const {
    return std::string("layer") + (gru ? " GRU" : " LSTM") + (packed ? " packed" : "") +
           (reverse ? " reverse" : "") + (projected ? " projected" : "") + " dtype " +
           std::to_string(dtype);
  }
  int64_t options() const {
    return gru | biases << 1 | reverse << 2 | packed << 4 | projected << 6;
  }
};

OpCall call_of(const char *op, const std::vector<const Tensor *> &tensors, int64_t options) {
  Tensors list;
  for (const Tensor *tensor : tensors)
    if (*tensor) list.push_back(fake::copy(*tensor));
  OpCall call;
  call.op = op;
  call.arguments.emplace_back(std::move(list));
  call.arguments.emplace_back(options);
  return call;
}

std::vector<Bytes> bytes_of(const std::vector<const Tensor *> &tensors) {
  std::vector<Bytes> bytes;
  for (const Tensor *tensor : tensors)
    if (*tensor) bytes.push_back(fake::bytes(*tensor));
  return bytes;
}

void *data(const Tensor &tensor) { return tensor ? tensor->data : nullptr; }

void check_all(const OpCall &call, const std::vector<Bytes> &expected, const Case &c,
               std::set<std::string> *failed, std::vector<KnownCall> *known) {
  const std::string where = c.name() + " " + call.op;
  const bool forward = call.op == "layer";
  expect_results(call, expected, where);
  check_strides(call, expected, c.packed ? std::set<int>{1} : std::set<int>{}, where);
  check_failures(call, expected, failed, where);
  // Any number of steps fits a forward call, and a state [B, H] where it is the only one.
  const auto fits = [&](int tensor, int axis) {
    return forward && axis == 0 &&
           ((tensor == 0 && !c.packed) || (tensor == 1 + c.packed && c.gru));
  };
  check_misfits(call, fits, where);
  known->push_back({call.copy(), expected, where});
}

void check(const Case &c, std::set<std::string> *failed, std::vector<KnownCall> *known,
           std::mt19937 &random) {
  const int64_t T = 4, B = 3, I = 5, H = 6, P = c.projected ? 2 : H, G = c.gru ? 3 : 4,
                N = c.packed ? 10 : T * B;
  const auto sequence = [&](int64_t width) {
    return c.packed ? std::vector<int64_t>{N, width} : std::vector<int64_t>{T, B, width};
  };
  const auto draw = [&](const std::vector<int64_t> &sizes, bool drawn = true) {
    return drawn ? random_tensor(sizes, c.dtype, random) : nullptr;
  };
  const auto make = [&](const std::vector<int64_t> &sizes, bool made = true) {
    return made ? fake::empty(sizes, c.dtype) : nullptr;
  };
  Tensor batch_sizes;
  if (c.packed) {
    const int64_t sizes[] = {3, 3, 2, 2};
    batch_sizes = fake::empty({T}, fake::INT64);
    std::memcpy(batch_sizes->data, sizes, sizeof sizes);
  }
  const Tensor x = draw(sequence(I)), h0 = draw({1, B, P}), c0 = draw({1, B, H}, !c.gru),
               w_ih = draw({G * H, I}), w_hh = draw({G * H, P}), b_ih = draw({G * H}, c.biases),
               b_hh = draw({G * H}, c.biases), w_hr = draw({P, H}, c.projected),
               y = make(sequence(P)), h_n = make({1, B, P}), c_n = make({1, B, H}, !c.gru),
               gates = make({N, 4 * H}), cells = make({N, H}, !c.gru);
  const fastrnn_problem problem = {c.gru ? FASTRNN_GRU : FASTRNN_LSTM,
                                   c.dtype == fake::FLOAT32   ? FASTRNN_FLOAT32
                                   : c.dtype == fake::FLOAT64 ? FASTRNN_FLOAT64
                                                              : FASTRNN_BFLOAT16,
                                   c.reverse,
                                   1,
                                   T,
                                   B,
                                   I,
                                   H,
                                   static_cast<const int64_t *>(data(batch_sizes))};
  const fastrnn_forward_arrays forward = {data(x),    data(h0),   data(c0),    data(w_ih),
                                          data(w_hh), data(b_ih), data(b_hh),  data(y),
                                          data(h_n),  data(c_n),  data(gates), data(cells)};
  require(c.projected ? fastrnn_cpu_forward_projected(&problem, &forward, data(w_hr), P)
                      : fastrnn_cpu_forward(&problem, &forward),
          c.name());
  check_all(call_of("layer", {&x, &batch_sizes, &h0, &c0, &w_ih, &w_hh, &b_ih, &b_hh, &w_hr},
                    c.options()),
            bytes_of({&y, &h_n, &c_n, &gates, &cells}), c, failed, known);

  const Tensor dy = draw(sequence(P)), dh_n = draw({1, B, P}), dc_n = draw({1, B, H}, !c.gru),
               dx = make(sequence(I)), dh0 = make({1, B, P}), dc0 = make({1, B, H}, !c.gru),
               dw_ih = make({G * H, I}), dw_hh = make({G * H, P}), db_ih = make({G * H}),
               db_hh = make({G * H}, c.gru), dw_hr = make({P, H}, c.projected);
  const fastrnn_backward_arrays backward = {
      data(dy),   data(dh_n), data(dc_n),  data(x),     data(h0),    data(c0),
      data(w_ih), data(w_hh), data(y),     data(gates), data(cells), data(dx),
      data(dh0),  data(dc0),  data(dw_ih), data(dw_hh), data(db_ih), data(db_hh)};
  require(c.projected
              ? fastrnn_cpu_backward_projected(&problem, &backward, data(w_hr), data(dw_hr), P)
              : fastrnn_cpu_backward(&problem, &backward),
          c.name());
  check_all(call_of("layer_backward",
                    {&x, &batch_sizes, &h0, &c0, &w_ih, &w_hh, &w_hr, &y, &gates, &cells, &dy,
                     &dh_n, &dc_n},
                    c.options() | 32 | 128 | 256 | (c.gru ? 0 : 512) | 1024),
            bytes_of({&dh0, &dc0, &dw_ih, &dw_hh, &db_ih, &db_hh, &dw_hr, &dx}), c, failed, known);
}

}  // namespace

std::vector<KnownCall> check_layers(std::set<std::string> *failed) {
  std::mt19937 random(17);
  std::vector<KnownCall> known;
  check({false, false, false, true, fake::FLOAT32}, failed, &known, random);
  check({true, false, true, false, fake::FLOAT64}, failed, &known, random);
  check({false, true, true, false, fake::BFLOAT16}, failed, &known, random);
  check({true, true, false, true, fake::FLOAT32}, failed, &known, random);
  check({false, false, false, true, fake::FLOAT32, true}, failed, &known, random);
  check({false, true, true, false, fake::BFLOAT16, true}, failed, &known, random);
  return known;
}
