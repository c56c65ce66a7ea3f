#include "op_call.h"

using fake::Tensor;
using fake::Tensors;

namespace {

// The same call with another argument at a place.
OpCall with(const OpCall &call, size_t place, Tensor tensor) {
  OpCall changed = call.copy();
  *changed.tensors()[place] = std::move(tensor);
  return changed;
}

Tensor zeros(const std::vector<int64_t> &sizes, int32_t dtype) {
  Tensor tensor = fake::empty(sizes, dtype);
  int64_t bytes = fake::element_bytes(dtype);
  for (const int64_t size : sizes) bytes *= size;
  if (bytes) std::memset(tensor->data, 0, size_t(bytes));
  return tensor;
}

std::string at(const std::string &where, size_t tensor, const std::string &what) {
  return where + ", tensor " + std::to_string(tensor) + " " + what;
}

template <class S>
void fill(const Tensor &tensor, const Values &values) {
  for (size_t i = 0; i < values.size(); ++i) {
    const S value(values[i]);
    std::memcpy(static_cast<char *>(tensor->data) + i * sizeof(S), &value, sizeof(S));
  }
}

bool same(const Tensors &results, const std::vector<Bytes> &expected) {
  if (results.size() != expected.size()) return false;
  for (size_t i = 0; i < results.size(); ++i)
    if (fake::bytes(results[i]) != expected[i]) return false;
  return true;
}

// Tensors of which at least one property does not fit, whatever the call.
void check_other_tensors(const OpCall &call, size_t place, const Tensor &own,
                         const std::string &where) {
  const auto decline = [&](const char *what, Tensor tensor) {
    expect_declined(with(call, place, std::move(tensor)), at(where, place, what));
  };
  const auto changed = [&](auto change) {
    Tensor tensor = fake::copy(own);
    change(*tensor);
    return tensor;
  };
  decline("null", nullptr);
  decline("undefined", changed([](auto &t) { t.defined = false; }));
  decline("on another device", changed([](auto &t) { t.device = fake::CUDA; }));
  decline("of another layout", changed([](auto &t) { t.layout = fake::SPARSE; }));
  decline("without memory", changed([](auto &t) { t.data = nullptr; }));
  for (const int dtype : {fake::FLOAT32, fake::FLOAT64, fake::BFLOAT16, fake::FLOAT16, fake::INT32,
                          fake::INT64, fake::UINT8})
    if (dtype != own->dtype) decline("of another dtype", zeros(own->sizes, dtype));
}

}  // namespace

OpCall OpCall::copy() const {
  OpCall result;
  result.op = op;
  for (const Argument &argument : arguments)
    std::visit(
        [&](const auto &value) {
          if constexpr (std::is_same_v<std::decay_t<decltype(value)>, int64_t>)
            result.arguments.emplace_back(value);
          else
            result.arguments.emplace_back(fake::copy(value));
        },
        argument);
  return result;
}

std::vector<Tensor *> OpCall::tensors() {
  std::vector<Tensor *> result;
  for (Argument &argument : arguments) {
    if (auto *tensor = std::get_if<Tensor>(&argument)) result.push_back(tensor);
    if (auto *list = std::get_if<Tensors>(&argument))
      for (Tensor &tensor : *list) result.push_back(&tensor);
  }
  return result;
}

fake::Outcome OpCall::run(Tensors *results) const {
  OpCall own = copy();
  std::vector<fake::Value> values;
  for (Argument &argument : own.arguments)
    std::visit([&](auto &value) { values.emplace_back(std::move(value)); }, argument);
  return fake::call(op, values, results);
}

Tensor random_tensor(const std::vector<int64_t> &sizes, int32_t dtype, std::mt19937 &random) {
  Tensor tensor = fake::empty(sizes, dtype);
  int64_t count = 1;
  for (const int64_t size : sizes) count *= size;
  const Values values = draw(count, random);
  dtype == fake::FLOAT32   ? fill<float>(tensor, values)
  : dtype == fake::FLOAT64 ? fill<double>(tensor, values)
                           : fill<Bfloat16>(tensor, values);
  return tensor;
}

Tensor exchanged(const Tensor &tensor, int axis, int other) {
  Tensor view = fake::copy(tensor);
  std::swap(view->sizes[size_t(axis)], view->sizes[size_t(other)]);
  std::swap(view->strides[size_t(axis)], view->strides[size_t(other)]);
  return view;
}

void fail_call(const std::string &where, const std::string &what) {
  std::printf("FAILED %s: %s\n", where.c_str(), what.c_str());
  ++failures;
}

void expect_results(const OpCall &call, const std::vector<Bytes> &expected,
                    const std::string &where) {
  Tensors results;
  if (call.run(&results) != fake::DONE)
    fail_call(where, "was declined");
  else if (!same(results, expected))
    fail_call(where, "has other results");
}

void expect_declined(const OpCall &call, const std::string &where) {
  const int before = fake::handles_in_use();
  Tensors results;
  const fake::Outcome outcome = call.run(&results);
  results.clear();
  if (outcome != fake::DECLINED) fail_call(where, "was not declined");
  if (fake::handles_in_use() != before) fail_call(where, "does not free every handle once");
}

void check_misfits(const OpCall &call, const std::function<bool(int tensor, int axis)> &fits,
                   const std::string &where) {
  OpCall source = call.copy();
  const std::vector<Tensor *> tensors = source.tensors();
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor &own = *tensors[i];
    check_other_tensors(call, i, own, where);
    const auto decline = [&](const std::vector<int64_t> &sizes, const char *what) {
      expect_declined(with(call, i, zeros(sizes, own->dtype)), at(where, i, what));
    };
    decline({}, "without axes");
    std::vector<int64_t> sizes = own->sizes;
    sizes.insert(sizes.begin(), 1);
    decline(sizes, "with one more axis");
    for (size_t axis = 0; axis < own->sizes.size(); ++axis) {
      sizes = own->sizes;
      sizes[axis] = 0;
      decline(sizes, "without elements");
      Tensor nothing = zeros(sizes, own->dtype);  // but with an address, as a slice may have
      nothing->data = own->memory.get() + fake::bytes(own).size();
      expect_declined(with(call, i, std::move(nothing)), at(where, i, "without elements"));
      for (const int64_t power : {21, 32, 62}) {  // far more than there is memory for, as expanded
        Tensor expanded = fake::copy(own);
        expanded->sizes[axis] = int64_t{1} << power, expanded->strides[axis] = 0;
        expect_declined(with(call, i, std::move(expanded)), at(where, i, "expanded"));
      }
      if (fits(int(i), int(axis))) continue;
      for (const int change : {-1, 1}) {
        sizes[axis] = own->sizes[axis] + change;
        decline(sizes, "of another size");
      }
      sizes.erase(sizes.begin() + int(axis));
      decline(sizes, "with one axis fewer");
    }
  }
  for (size_t i = 0; i < source.arguments.size(); ++i) {
    const auto *list = std::get_if<Tensors>(&source.arguments[i]);
    if (!list) continue;
    for (const int change : {-1, 1}) {
      OpCall changed = call.copy();
      Tensors &tensors = std::get<Tensors>(changed.arguments[i]);
      if (change < 0 && (tensors.empty() || fits(-1, int(i)))) continue;
      change < 0 ? tensors.pop_back() : tensors.push_back(zeros({2, 2}, fake::FLOAT32));
      expect_declined(changed, where + ", a list of another size");
    }
  }
}

void check_strides(const OpCall &call, const std::vector<Bytes> &expected,
                   const std::set<int> &declined, const std::string &where) {
  OpCall source = call.copy();
  const std::vector<Tensor *> tensors = source.tensors();
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor &own = *tensors[i];
    Tensor other;
    if (own->sizes.size() == 1) {  // every second element
      other = fake::empty({own->sizes[0], 2}, own->dtype);
      other->sizes.pop_back(), other->strides.pop_back();
      const int64_t bytes = fake::element_bytes(own->dtype);
      for (int64_t j = 0; j < own->sizes[0]; ++j)
        std::memcpy(static_cast<char *>(other->data) + 2 * j * bytes,
                    static_cast<char *>(own->data) + j * bytes, size_t(bytes));
    } else {
      std::vector<int> axes;
      for (int axis = int(own->sizes.size()); axis-- > 0;) axes.push_back(axis);
      other = fake::in_order(own, axes);
    }
    const OpCall changed = with(call, i, std::move(other));
    if (declined.count(int(i)))
      expect_declined(changed, at(where, i, "not contiguous"));
    else
      expect_results(changed, expected, at(where, i, "not contiguous"));
  }
}

void check_failures(const OpCall &call, const std::vector<Bytes> &expected,
                    std::set<std::string> *failed, const std::string &where) {
  const int before = fake::handles_in_use();
  for (int number = 0;; ++number) {
    fake::fail_call(number);
    Tensors results;
    const fake::Outcome outcome = call.run(&results);
    const char *function = fake::failed_function();
    fake::fail_call(-1);
    if (outcome == fake::DONE && !same(results, expected))
      fail_call(where, std::string("has other results where this fails: ") + function);
    results.clear();
    if (!function) return;  // the call takes no more functions
    failed->insert(function);
    const bool of_list =
        function == std::string("torch_new_list_reserve_size") ||
        function == std::string("torch_list_push_back");  // an empty list cannot be returned
    if (outcome == fake::THROWN && !of_list)
      fail_call(where, std::string("throws where this fails: ") + function);
    if (fake::handles_in_use() != before)
      return fail_call(
          where, std::string("does not free every handle once where this fails: ") + function);
  }
}
