// A call of an op of libfastrnn_torch, and what holds for every op: arguments that do not fit are
// declined, and whatever fails, every handle is freed once.
#pragma once

#include "../layer.h"
#include "fake_torch.h"

#include <functional>
#include <set>
#include <variant>

struct OpCall {
  using Argument = std::variant<fake::Tensor, fake::Tensors, int64_t>;

  std::string op;
  std::vector<Argument> arguments;

  // Calls the op with handles of its own.
  fake::Outcome run(fake::Tensors *results) const;
  OpCall copy() const;
  // All its tensors, at places that are the same in a copy.
  std::vector<fake::Tensor *> tensors();
};

using Bytes = std::vector<char>;

// A tensor of random numbers, of small size.
fake::Tensor random_tensor(const std::vector<int64_t> &sizes, int32_t dtype, std::mt19937 &random);
// The same tensor with two axes exchanged.
fake::Tensor exchanged(const fake::Tensor &tensor, int axis, int other);

void fail_call(const std::string &where, const std::string &what);

// Runs a call that must succeed and have these results.
void expect_results(const OpCall &call, const std::vector<Bytes> &expected,
                    const std::string &where);
void expect_declined(const OpCall &call, const std::string &where);

// Replaces each tensor in turn by one that does not fit, and each list by one with a tensor too few
// or too many. `fits`: what fits nevertheless, by the number of the tensor and the axis that gets
// another size or is lacking; or, with -1 for the tensor, the number of the argument that is a list
// and may have a tensor too few.
void check_misfits(const OpCall &call, const std::function<bool(int tensor, int axis)> &fits,
                   const std::string &where);

// Gives each tensor in turn other strides; the results are the same. `declined`: the numbers of
// tensors that must be contiguous.
void check_strides(const OpCall &call, const std::vector<Bytes> &expected,
                   const std::set<int> &declined, const std::string &where);

// Lets each call of a function of torch fail in turn. Adds the functions that failed.
void check_failures(const OpCall &call, const std::vector<Bytes> &expected,
                    std::set<std::string> *failed, const std::string &where);

// A call with its results.
struct KnownCall {
  OpCall call;
  std::vector<Bytes> expected;
  std::string where;
};

// Print and count their failures; they return the calls that they have checked and that any thread
// may repeat at the same time as others.
std::vector<KnownCall> check_stacks(std::set<std::string> *failed);
std::vector<KnownCall> check_layers(std::set<std::string> *failed);
