// Runs the ops of libfastrnn_torch without torch, whose functions fake_torch.h provides.
#include <torch/fastrnn_torch.h>

#include "op_call.h"

#include <atomic>
#include <thread>

namespace {

std::atomic<int> answer{1}, questions{0};
std::atomic<bool> changes_mind{false};

int choose(const fastrnn_torch_call *call) {
  ++questions;
  if (call->steps < 1 || call->batch < 1 || call->hidden_size < 1) fail_call("choose", "sizes");
  const int given = answer;
  if (changes_mind.exchange(false)) {  // while the answer is under way
    answer = !given;
    fastrnn_torch_forget();
  }
  return given;
}

const fastrnn_cpu_functions kCpu = {fastrnn_cpu_forward,           fastrnn_cpu_backward,
                                    fastrnn_cpu_prepacked_bytes,   fastrnn_cpu_forward_prepacked,
                                    fastrnn_cpu_forward_projected, fastrnn_cpu_backward_projected};

void expect(const char *what, int got, int expected) {
  if (got != expected) fail("interface", what, got, expected);
}

void check_interface(std::set<std::string> *failed) {
  std::vector<void *> functions = fake::functions(fastrnn_torch_functions());
  const auto bind = [&](const fastrnn_cpu_functions *cpu) {
    return fastrnn_torch_bind(functions.data(), cpu, choose);
  };
  expect("ABI version", fastrnn_abi_version(), FASTRNN_ABI_VERSION);
  expect("no functions", fastrnn_torch_bind(nullptr, &kCpu, choose), FASTRNN_ERROR_ARGUMENT);
  expect("no library", bind(nullptr), FASTRNN_ERROR_ARGUMENT);
  expect("no choice", fastrnn_torch_bind(functions.data(), &kCpu, nullptr), FASTRNN_ERROR_ARGUMENT);
  for (void *&function : functions) {
    void *const own = function;
    function = nullptr;
    expect("a function is missing", bind(&kCpu), FASTRNN_ERROR_ARGUMENT);
    function = own;
  }
  fastrnn_cpu_functions cpu = kCpu;
  cpu.backward = nullptr;
  expect("a function is missing", bind(&cpu), FASTRNN_ERROR_ARGUMENT);
  expect("bind", bind(&kCpu), FASTRNN_OK);
  for (int number = 0;; ++number) {
    fake::fail_call(number);
    const int error = fastrnn_torch_register();
    const char *function = fake::failed_function();
    fake::fail_call(-1);
    expect("register", error, function ? FASTRNN_ERROR_ARGUMENT : FASTRNN_OK);
    if (!function) break;
    failed->insert(function);
  }
  std::istringstream words(fastrnn_torch_ops());
  const std::vector<std::string> registered = fake::ops();
  const std::set<std::string> names{std::istream_iterator<std::string>(words), {}};
  if (names != std::set<std::string>(registered.begin(), registered.end()))
    fail_call("register", "other ops than fastrnn_torch_ops");
}

// Each different call is asked about once, until the choices are forgotten.
void check_choices(const std::vector<KnownCall> &known) {
  const auto &call = *std::find_if(known.begin(), known.end(),
                                   [](const KnownCall &k) { return k.call.op == "stack"; });
  fastrnn_torch_forget();
  questions = 0;
  for (int i = 0; i < 3; ++i) expect_results(call.call, call.expected, call.where);
  expect("questions", questions, 1);
  answer = 0;
  expect_results(call.call, call.expected, call.where);
  fastrnn_torch_forget();
  for (int i = 0; i < 3; ++i) expect_declined(call.call, call.where);
  expect("questions", questions, 2);
  fake::set_num_threads(7);
  expect_declined(call.call, call.where);
  fastrnn_torch_limit_threads(1);  // as in a forked process
  expect_declined(call.call, call.where);
  expect("questions", questions, 3);
  fastrnn_torch_limit_threads(1 << 16);
  fake::set_num_threads(1);
  // An answer that is outdated when it arrives is not remembered.
  fastrnn_torch_forget();
  changes_mind = true;
  expect_declined(call.call, call.where);
  expect_results(call.call, call.expected, call.where);
  // So many different calls that they are all forgotten; they differ in the number of threads.
  answer = 0;
  fastrnn_torch_forget();
  for (int threads = 1; threads < 5000; ++threads) {
    fake::set_num_threads(threads);
    expect_declined(call.call, call.where);
  }
  answer = 1;
  fake::set_num_threads(1);
  expect_results(call.call, call.expected, call.where);
}

// Several threads call ops while the choices are forgotten and the threads of a call are limited.
void check_at_once(const std::vector<KnownCall> &known) {
  std::atomic<int> running{3};
  std::vector<std::thread> callers;
  for (size_t first = 0; first < 3; ++first)
    callers.emplace_back([&, first] {
      for (size_t i = first; i < known.size() + first; ++i) {
        const KnownCall &call = known[i % known.size()];
        expect_results(call.call, call.expected, call.where + " at once");
      }
      --running;
    });
  for (int i = 0; running; ++i) {
    fastrnn_torch_forget();
    fastrnn_torch_limit_threads(1 + i % 3);
    fake::set_num_threads(1 + i % 2);
    std::this_thread::yield();
  }
  for (std::thread &caller : callers) caller.join();
}

// A call of every function of torch has failed.
void check_failed(const std::set<std::string> &failed) {
  std::istringstream words(fastrnn_torch_functions());
  for (std::string name; words >> name;)
    if (name.find("_dtype_") == name.npos && name != "aoti_torch_device_type_cpu" &&
        name != "aoti_torch_layout_strided" && !failed.count(name))
      fail_call(name, "has never failed");
}

}  // namespace

int main() {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // the leak sanitizer does not flush
  std::set<std::string> failed;
  check_interface(&failed);
  {
    std::vector<KnownCall> known = check_stacks(&failed);
    for (KnownCall &call : check_layers(&failed)) known.push_back(std::move(call));
    check_choices(known);
    check_at_once(known);
  }
  check_failed(failed);
  if (fake::handles_in_use()) fail("torch", "handles in use", fake::handles_in_use(), 0);
  std::printf("ops %s: %d failures\n", fastrnn_torch_ops(), failures);
  return failures ? 1 : 0;
}
