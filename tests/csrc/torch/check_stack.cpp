// Checks the ops for stacks of layers: the same bits as libfastrnn_cpu layer by layer.
#include "op_call.h"

namespace {

using fake::Tensor;
using fake::Tensors;

enum Kind { PADDED, PACKED, STEP };  // a step is one of a cell

struct Stack {
  bool gru;
  int32_t dtype;
  int64_t layers;
  bool bidirectional, batch_first, biases;
  Kind kind;
  bool frozen = false, has_output = false;  // frozen: whether there is room for the output
  int64_t steps = 4, batch = 3, input = 5, hidden = 6;
  int64_t proj_size = 0;

  std::string op() const {
    return std::string(frozen ? "frozen_" : "") + (kind == PACKED ? "packed_stack" : "stack");
  }
  std::string name() const {
    std::ostringstream text;
    text << op() << (gru ? " GRU" : " LSTM") << " dtype " << dtype << " layers " << layers
         << (bidirectional ? " bidirectional" : "") << (batch_first ? " batch_first" : "")
         << (biases ? "" : " no-bias") << (kind == STEP ? " step" : "")
         << (has_output ? " output" : "") << (proj_size ? " projected" : "");
    return text.str();
  }
  int64_t directions() const { return bidirectional ? 2 : 1; }
  int64_t sets() const { return layers * directions(); }
  int64_t states() const { return gru ? 1 : 2; }
  int64_t weights_per_set() const { return (biases ? 4 : 2) + (proj_size > 0); }
  int64_t out() const { return proj_size ? proj_size : hidden; }  // elements of h
  int64_t state(int64_t i) const { return i ? hidden : out(); }
  int64_t input_of(int64_t set) const { return set < directions() ? input : directions() * out(); }
  int64_t options() const {
    return gru | biases << 1 | bidirectional << 2 | batch_first << 3 | layers << 4;
  }
  std::vector<int64_t> batch_sizes() const {
    std::vector<int64_t> sizes;
    const int64_t count = kind == STEP ? 1 : steps;
    for (int64_t t = 0; t < count; ++t)
      sizes.push_back(kind == PACKED ? batch - (batch - 1) * t / steps : batch);
    return sizes;
  }
  int64_t rows() const {
    int64_t rows = 0;
    for (const int64_t size : batch_sizes()) rows += size;
    return rows;
  }
  // [T, B, width] or what the kind of call has in its place.
  std::vector<int64_t> sequence(int64_t width) const {
    if (kind != PADDED) return {rows(), width};
    return batch_first ? std::vector<int64_t>{batch, steps, width}
                       : std::vector<int64_t>{steps, batch, width};
  }
  int cpu_dtype() const {
    return dtype == fake::FLOAT32   ? FASTRNN_FLOAT32
           : dtype == fake::FLOAT64 ? FASTRNN_FLOAT64
                                    : FASTRNN_BFLOAT16;
  }
};

// The tensors of a call, the weights also where it takes them prepacked.
struct Arguments {
  Tensor input, batch_sizes, prepacked, output;
  Tensors states, weights;
};

fastrnn_problem problem_of(const Stack &s, int64_t set, const int64_t *batch_sizes) {
  return {s.gru ? FASTRNN_GRU : FASTRNN_LSTM,
          s.cpu_dtype(),
          int32_t(set % s.directions()),
          1,
          int64_t(s.batch_sizes().size()),
          s.batch,
          s.input_of(set),
          s.hidden,
          s.kind == PACKED ? batch_sizes : nullptr};
}

fastrnn_forward_arrays weights_of(const Stack &s, int64_t set, const Tensors &weights) {
  const Tensor *w = &weights[size_t(set * s.weights_per_set())];
  fastrnn_forward_arrays arrays{};
  arrays.w_ih = w[0]->data, arrays.w_hh = w[1]->data;
  if (s.biases) arrays.b_ih = w[2]->data, arrays.b_hh = w[3]->data;
  return arrays;
}

Tensor prepack(const Stack &s, const Tensors &weights) {
  std::vector<int64_t> starts = {0};
  for (int64_t set = 0; set < s.sets(); ++set) {
    const fastrnn_problem problem = problem_of(s, set, nullptr);
    starts.push_back(starts.back() + fastrnn_cpu_prepacked_bytes(&problem));
  }
  Tensor prepacked = fake::empty({starts.back()}, fake::UINT8);
  for (int64_t set = 0; set < s.sets(); ++set) {
    const fastrnn_problem problem = problem_of(s, set, nullptr);
    const fastrnn_forward_arrays arrays = weights_of(s, set, weights);
    char *to = static_cast<char *>(prepacked->data) + starts[size_t(set)];
    require(fastrnn_cpu_prepack(&problem, &arrays, to), s.name());
  }
  return prepacked;
}

Arguments arguments_of(const Stack &s, std::mt19937 &random) {
  Arguments a;
  a.input = random_tensor(s.sequence(s.input), s.dtype, random);
  const std::vector<int64_t> batch_sizes = s.batch_sizes();
  a.batch_sizes = fake::empty({int64_t(batch_sizes.size())}, fake::INT64);
  std::copy(batch_sizes.begin(), batch_sizes.end(), static_cast<int64_t *>(a.batch_sizes->data));
  for (int64_t i = 0; i < s.states(); ++i) {
    std::vector<int64_t> state = {s.sets(), s.batch, s.state(i)};
    if (s.kind == STEP) state.erase(state.begin());
    a.states.push_back(random_tensor(state, s.dtype, random));
  }
  const int64_t gates = (s.gru ? 3 : 4) * s.hidden;
  for (int64_t set = 0; set < s.sets(); ++set) {
    a.weights.push_back(random_tensor({gates, s.input_of(set)}, s.dtype, random));
    a.weights.push_back(random_tensor({gates, s.out()}, s.dtype, random));
    for (int i = 0; i < 2 && s.biases; ++i)
      a.weights.push_back(random_tensor({gates}, s.dtype, random));
    if (s.proj_size) a.weights.push_back(random_tensor({s.proj_size, s.hidden}, s.dtype, random));
  }
  if (s.frozen) a.prepacked = prepack(s, a.weights);
  if (s.has_output) {
    a.output = fake::empty(s.sequence(s.directions() * s.out()), s.dtype);
    if (s.batch_first) a.output = fake::in_order(a.output, {1, 0, 2});
  }
  return a;
}

OpCall call_of(const Stack &s, const Arguments &a) {
  OpCall call;
  call.op = s.op();
  call.arguments.emplace_back(fake::copy(a.input));
  if (s.kind == PACKED) call.arguments.emplace_back(fake::copy(a.batch_sizes));
  call.arguments.emplace_back(fake::copy(a.states));
  if (s.frozen) {
    Tensors outputs;
    if (s.has_output) outputs.push_back(fake::copy(a.output));
    call.arguments.emplace_back(fake::copy(a.prepacked));
    call.arguments.emplace_back(std::move(outputs));
  } else {
    call.arguments.emplace_back(fake::copy(a.weights));
  }
  call.arguments.emplace_back(s.options());
  return call;
}

// A sequence whose first axis is time.
Tensor time_first(const Stack &s, const Tensor &sequence) {
  return s.batch_first ? exchanged(sequence, 0, 1) : fake::copy(sequence);
}

// The output, but for a step, and the final states, from calls of libfastrnn_cpu. Time moves
// slowest in the output.
std::vector<Bytes> layer_by_layer(const Stack &s, const Arguments &a) {
  const std::vector<int64_t> batch_sizes = s.batch_sizes();
  const int64_t element = fake::element_bytes(s.dtype), rows = s.rows();
  const size_t row = size_t(s.out() * element);
  const auto state = [&](int64_t i) { return size_t(s.batch * s.state(i) * element); };
  Bytes x = fake::bytes(time_first(s, a.input));
  std::vector<Bytes> finals;
  for (int64_t i = 0; i < s.states(); ++i) finals.emplace_back(size_t(s.sets()) * state(i));
  for (int64_t layer = 0; layer < s.layers; ++layer) {
    Bytes y(size_t(rows * s.directions()) * row);
    for (int64_t direction = 0; direction < s.directions(); ++direction) {
      const int64_t set = layer * s.directions() + direction;
      const fastrnn_problem problem = problem_of(s, set, batch_sizes.data());
      fastrnn_forward_arrays arrays = weights_of(s, set, a.weights);
      Bytes half(size_t(rows) * row);
      const size_t h = size_t(set) * state(0), c = size_t(set) * state(1);
      arrays.x = x.data(), arrays.y = half.data();
      arrays.h0 = static_cast<char *>(a.states[0]->data) + h;
      arrays.h_n = finals[0].data() + h;
      if (!s.gru) {
        arrays.c0 = static_cast<char *>(a.states[1]->data) + c;
        arrays.c_n = finals[1].data() + c;
      }
      const auto forward = [&] {
        if (!s.proj_size) return fastrnn_cpu_forward(&problem, &arrays);
        const Tensor &w_hr = a.weights[size_t((set + 1) * s.weights_per_set() - 1)];
        return fastrnn_cpu_forward_projected(&problem, &arrays, w_hr->data, s.proj_size);
      };
      require(forward(), s.name());
      for (int64_t n = 0; n < rows; ++n)
        std::memcpy(&y[size_t(n * s.directions() + direction) * row], &half[size_t(n) * row], row);
    }
    x = y;
  }
  if (s.kind != STEP) finals.insert(finals.begin(), x);
  return finals;
}

// What the op returns of layer_by_layer's results, each in the order of its own axes.
std::vector<Bytes> results_of(const Stack &s, std::vector<Bytes> found) {
  if (s.has_output)
    found.erase(found.begin());
  else if (s.batch_first)
    found[0] = [&] {
      const Tensor y = fake::empty({s.steps, s.batch, s.directions() * s.out()}, s.dtype);
      std::copy(found[0].begin(), found[0].end(), static_cast<char *>(y->data));
      return fake::bytes(exchanged(y, 0, 1));
    }();
  return found;
}

void check_batch_sizes(const Stack &s, const Arguments &a) {
  // The right ones are 3, 3, 2, 2.
  const int64_t huge = int64_t{1} << 62;
  const std::vector<int64_t> wrong[] = {
      {3, 3, 3, 2},   // more rows than there are
      {3, 2, 2, 1},   // fewer
      {3, 2, 1, 4},   // rising
      {4, 2, 2, 2},   // not the batch of the states
      {4, 3, 3, 0},   // ending early
      {3, 3, 5, -1},  // negative
      {-3, 4, 4, 5}, {10, 0, 0, 0}, {huge, huge, huge, huge + 10}};
  for (const std::vector<int64_t> &sizes : wrong) {
    OpCall call = call_of(s, a);
    Tensor &tensor = std::get<Tensor>(call.arguments[1]);
    tensor = fake::empty({int64_t(sizes.size())}, fake::INT64);
    std::copy(sizes.begin(), sizes.end(), static_cast<int64_t *>(tensor->data));
    expect_declined(call, s.name() + ", batch sizes");
  }
}

void check_options(const Stack &s, const Arguments &a) {
  for (const int64_t flip : {1, 2, 4, 8}) {  // another cell, and so on
    if (flip == 2 && s.frozen) continue;     // prepacked weights have biases, which may be 0
    OpCall call = call_of(s, a);
    call.arguments.back() = s.options() ^ flip;
    expect_declined(call, s.name() + ", option " + std::to_string(flip));
  }
  const int64_t most = std::numeric_limits<int64_t>::max() >> 4;
  for (const int64_t layers :
       {int64_t{0}, s.layers - 1, s.layers + 1, int64_t{-1}, int64_t{2000}, most, -most - 1}) {
    OpCall call = call_of(s, a);
    call.arguments.back() = (s.options() & 15) + layers * 16;
    expect_declined(call, s.name() + ", layers " + std::to_string(layers));
  }
}

// Arguments that are wrong for frozen layers alone.
void check_frozen(const Stack &s, const Arguments &a) {
  const size_t place = s.kind == PACKED ? 3 : 2;
  const auto decline = [&](auto change, const char *what) {
    OpCall call = call_of(s, a);
    Tensor &prepacked = std::get<Tensor>(call.arguments[place]);
    prepacked = fake::in_order(prepacked, {0});  // its own memory
    change(call, *prepacked);
    expect_declined(call, s.name() + ", " + what);
  };
  decline([](OpCall &, auto &t) { std::memset(t.data, 0, 64); }, "no prepacked weights");
  decline(
      [](OpCall &, auto &t) {
        Tensor longer = fake::empty({t.sizes[0] + 4}, fake::UINT8);
        std::memcpy(static_cast<char *>(longer->data) + 4, t.data, size_t(t.sizes[0]));
        t.memory = longer->memory, t.data = t.memory.get() + 4;
      },
      "weights that are not aligned");
  if (!s.has_output) return;
  decline(
      [&](OpCall &call, auto &) {
        Tensors &outputs = std::get<Tensors>(call.arguments[place + 1]);
        outputs.push_back(fake::copy(outputs[0]));
      },
      "two outputs");
}

KnownCall check(const Stack &s, std::mt19937 &random) {
  const Arguments a = arguments_of(s, random);
  const std::vector<Bytes> found = layer_by_layer(s, a);
  KnownCall known = {call_of(s, a), results_of(s, found), s.name()};
  expect_results(known.call, known.expected, known.where);
  if (s.has_output && fake::bytes(time_first(s, a.output)) != found[0])
    fail_call(s.name(), "has another output");
  return known;
}

// What a call does that cannot be run, or fails.
void check_refusals(const Stack &s, std::set<std::string> *failed, std::mt19937 &random) {
  const Arguments a = arguments_of(s, random);
  const OpCall call = call_of(s, a);
  const std::vector<Bytes> expected = results_of(s, layer_by_layer(s, a));
  // Any number of steps fits, unless there is room for the output of another number. There need not
  // be room.
  const bool any_steps = s.kind == PADDED && !s.has_output;
  check_misfits(
      call,
      [&](int tensor, int axis) {
        if (tensor < 0) return s.has_output && axis == (s.kind == PACKED ? 4 : 3);
        return any_steps && tensor == 0 && axis == (s.batch_first ? 1 : 0);
      },
      s.name());
  std::set<int> contiguous;
  const int packed = s.kind == PACKED;
  if (packed) contiguous.insert(1);
  if (s.frozen) contiguous.insert({1 + packed + int(s.states()), 2 + packed + int(s.states())});
  check_strides(call, expected, contiguous, s.name());
  check_failures(call, expected, failed, s.name());
  check_options(s, a);
  if (packed) check_batch_sizes(s, a);
  if (s.frozen) check_frozen(s, a);
}

}  // namespace

std::vector<KnownCall> check_stacks(std::set<std::string> *failed) {
  std::mt19937 random(13);
  std::vector<KnownCall> known;
  int count = 0;
  for (const bool gru : {false, true})
    for (const int32_t dtype : {fake::FLOAT32, fake::FLOAT64, fake::BFLOAT16})
      for (const int64_t layers : {1, 2, 3})
        for (const bool bidirectional : {false, true})
          for (const Kind kind : {PADDED, PACKED, STEP})
            for (const bool batch_first : {false, true}) {
              if (batch_first && kind != PADDED) continue;
              if (kind == STEP && (bidirectional || layers > 1)) continue;
              Stack s = {gru, dtype, layers, bidirectional, batch_first, count % 3 != 0, kind};
              if (count++ % 4 == 0) s.steps = 3, s.batch = 20, s.input = 40, s.hidden = 33;
              known.push_back(check(s, random));
              if (!gru && kind != STEP) {
                s.proj_size = 1 + count % 5;
                known.push_back(check(s, random));
                s.proj_size = 0;
              }
              s.frozen = true;
              known.push_back(check(s, random));
              s.has_output = kind != STEP;
              if (s.has_output) check(s, random);
            }
  const Stack refused[] = {
      {false, fake::FLOAT32, 2, true, false, true, PADDED},
      {true, fake::FLOAT64, 1, true, true, false, PADDED},
      {true, fake::FLOAT32, 2, false, false, true, PACKED},
      {false, fake::BFLOAT16, 1, false, false, true, STEP},
      {false, fake::FLOAT32, 2, true, true, true, PADDED, true, true},
      {true, fake::FLOAT32, 2, false, false, true, PADDED, true},
      {true, fake::BFLOAT16, 2, true, false, true, PACKED, true, true},
      {false, fake::FLOAT32, 1, false, false, false, STEP, true},
      {false, fake::FLOAT32, 2, true, false, true, PADDED, false, false, 4, 3, 5, 6, 2},
  };
  for (const Stack &s : refused) check_refusals(s, failed, random);
  // Python makes outputs of 1 MiB and more.
  Stack large = {false, fake::FLOAT32, 1, false, false, true, PADDED};
  large.steps = 64, large.batch = 64, large.input = 1, large.hidden = 64;
  expect_declined(call_of(large, arguments_of(large, random)), "a large output");
  large.frozen = true;
  expect_declined(call_of(large, arguments_of(large, random)), "a large output, frozen");
  large.has_output = true;
  check(large, random);
  return known;
}
