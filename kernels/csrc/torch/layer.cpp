#include "layer.h"

#include <algorithm>

#include "sizes.h"

namespace fastrnn {
namespace {

// What both passes share: the tensors one by one, each checked.
class Layer {
 public:
  Layer(std::vector<Tensor> *tensors, const LayerOptions &options, const fastrnn_cpu_functions &cpu,
        int threads)
      : options_(options), cpu_(cpu), threads_(threads), next_(tensors->begin()),
        end_(tensors->end()), order_(options.batch_first ? kTimeFirst : kInOrder) {}

  bool forward(std::vector<Tensor> *results) {
    const size_t biases = options_.biases ? 2 : 0;
    if (left() != inputs() + 2 + biases + options_.projected || !read_sizes()) return false;
    fastrnn_forward_arrays arrays{};
    const void *w_hr = nullptr;
    Tensor y, h_n, c_n, gates, cells;
    const bool ready = states(&arrays.h0, &arrays.c0) && weight(size_.features, &arrays.w_ih) &&
                       weight(out_, &arrays.w_hh) && (!biases || bias(&arrays.b_ih)) &&
                       (!biases || bias(&arrays.b_hh)) && projection(&w_hr) &&
                       like_x(out_, &y, &arrays.y) && state(out_, &h_n, &arrays.h_n) &&
                       (options_.gru || state(size_.hidden, &c_n, &arrays.c_n)) &&
                       rows(4 * size_.hidden, &gates, &arrays.gates) &&
                       (options_.gru || rows(size_.hidden, &cells, &arrays.cells));
    if (!ready) return false;
    arrays.x = x_->data;
    const fastrnn_problem problem = this->problem();
    const int error = w_hr ? cpu_.forward_projected(&problem, &arrays, w_hr, out_)
                           : cpu_.forward(&problem, &arrays);
    if (error != FASTRNN_OK) return false;
    move({&y, &h_n, &c_n, &gates, &cells}, results);
    return true;
  }

  bool backward(std::vector<Tensor> *results) {
    const size_t given = size_t{options_.has_dy} + options_.has_dh_n + options_.has_dc_n;
    if (left() != inputs() + 3 + options_.projected + options_.saved() + given || !read_sizes() ||
        (options_.gru && options_.has_dc_n))
      return false;
    fastrnn_backward_arrays arrays{};
    const void *w_hr = nullptr;
    void *d_projection = nullptr;
    Tensor dx, dh0, dc0, dw_ih, dw_hh, dw_hr, db_ih, db_hh;
    const bool ready =
        states(&arrays.h0, &arrays.c0) && weight(size_.features, &arrays.w_ih) &&
        weight(out_, &arrays.w_hh) && projection(&w_hr) && take_like_x(&arrays.y) &&
        take({size_.rows, 4 * size_.hidden}, &arrays.gates) &&
        (options_.gru || take({size_.rows, size_.hidden}, &arrays.cells)) &&
        (!options_.has_dy || take_like_x(&arrays.dy)) &&
        d_state(options_.has_dh_n, out_, &arrays.dh_n) &&
        (options_.gru || d_state(options_.has_dc_n, size_.hidden, &arrays.dc_n)) &&
        (!options_.need_dx || like_x(size_.features, &dx, &arrays.dx)) &&
        (!options_.need_d_states || (state(out_, &dh0, &arrays.dh0) &&
                                     (options_.gru || state(size_.hidden, &dc0, &arrays.dc0)))) &&
        d_weight(size_.features, &dw_ih, &arrays.dw_ih) && d_weight(out_, &dw_hh, &arrays.dw_hh) &&
        d_bias(&db_ih, &arrays.db_ih) && (!options_.gru || d_bias(&db_hh, &arrays.db_hh)) &&
        (!w_hr || make({out_, size_.hidden}, &dw_hr, &d_projection));
    if (!ready) return false;
    arrays.x = x_->data;
    const fastrnn_problem problem = this->problem();
    const int error = w_hr ? cpu_.backward_projected(&problem, &arrays, w_hr, d_projection, out_)
                           : cpu_.backward(&problem, &arrays);
    if (error != FASTRNN_OK) return false;
    move({&dh0, &dc0, &dw_ih, &dw_hh, &db_ih, &db_hh, &dw_hr, &dx}, results);
    return true;
  }

 private:
  using Shape = std::initializer_list<int64_t>;

  size_t left() const { return size_t(end_ - next_); }
  // How many tensors come before the weights.
  size_t inputs() const { return 1 + options_.packed + options_.states(); }

  bool read_sizes() {
    x_ = &*next_++;
    Tensor *batch_sizes = options_.packed ? &*next_++ : nullptr;
    return size_.read_input(x_, batch_sizes, options_.batch_first) && read_size(*next_, &out_) &&
           read_size(next_[options_.projected], &size_.hidden) &&
           (options_.projected ? !options_.gru && out_ <= size_.hidden : out_ == size_.hidden) &&
           x_->make_contiguous(order_) && (options_.projected || most_bytes() < kMostBytes);
  }

  // The size of a state's elements, and the states' axes.
  bool read_size(Tensor &state, int64_t *size) {
    if (!state.describe() || state.dim < 2 || state.dim > 3) return false;
    flat_states_ = state.dim == 2;
    *size = state.sizes[state.dim - 1];
    return *size > 0 && *size <= kLargestSize;
  }

  // The address of the next tensor, which must have this shape.
  bool take(Shape shape, const void **data) {
    Tensor &tensor = *next_++;
    if (!tensor.describe() || !has_shape(tensor, size_.own_dtype, shape) ||
        !tensor.make_contiguous(kInOrder))
      return false;
    *data = tensor.data;
    return true;
  }
  // The same for y or dy, which has x's axes.
  bool take_like_x(const void **data) {
    Tensor &tensor = *next_++;
    if (!tensor.describe() || tensor.dtype != size_.own_dtype || tensor.dim != x_->dim)
      return false;
    for (int64_t i = 0; i < tensor.dim; ++i)
      if (tensor.sizes[i] != (i == tensor.dim - 1 ? out_ : x_->sizes[i])) return false;
    if (!tensor.make_contiguous(order_)) return false;
    *data = tensor.data;
    return true;
  }
  bool take_state(int64_t size, const void **data) {
    return flat_states_ ? take({size_.batch, size}, data) : take({1, size_.batch, size}, data);
  }
  bool states(const void **h, const void **c) {
    return take_state(out_, h) && (options_.gru || take_state(size_.hidden, c));
  }
  bool weight(int64_t width, const void **data) {
    return take({options_.gates() * size_.hidden, width}, data);
  }
  bool bias(const void **data) { return take({options_.gates() * size_.hidden}, data); }
  bool projection(const void **data) {
    return !options_.projected || take({out_, size_.hidden}, data);
  }
  // A final state's gradient; zeros if it is not given.
  bool d_state(bool given, int64_t size, const void **data) {
    if (given) return take_state(size, data);
    const size_t bytes = size_t(size_.batch * size_.hidden * size_.element_bytes());
    if (zeros_.size() < bytes) zeros_.resize(bytes);
    *data = zeros_.data();
    return true;
  }

  bool make(Shape shape, Tensor *tensor, void **data) {
    return make(int64_t(shape.size()), shape.begin(), kInOrder, tensor, data);
  }
  bool make(int64_t dim, const int64_t *sizes, const int *order, Tensor *tensor, void **data) {
    if (!Tensor::empty(dim, sizes, order, size_.own_dtype, tensor)) return false;
    *data = tensor->data;
    return true;
  }
  bool like_x(int64_t width, Tensor *tensor, void **data) {
    int64_t sizes[3];
    for (int64_t i = 0; i < x_->dim; ++i) sizes[i] = x_->sizes[i];
    sizes[x_->dim - 1] = width;
    return make(x_->dim, sizes, order_, tensor, data);
  }
  bool state(int64_t size, Tensor *tensor, void **data) {
    return flat_states_ ? make({size_.batch, size}, tensor, data)
                        : make({1, size_.batch, size}, tensor, data);
  }
  bool rows(int64_t width, Tensor *tensor, void **data) {
    return make({size_.rows, width}, tensor, data);
  }
  bool d_weight(int64_t width, Tensor *tensor, void **data) {
    return make({options_.gates() * size_.hidden, width}, tensor, data);
  }
  bool d_bias(Tensor *tensor, void **data) {
    return make({options_.gates() * size_.hidden}, tensor, data);
  }

  // The size of the largest result that has rows.
  int64_t most_bytes() const {
    return size_.rows * std::max(4 * size_.hidden, size_.features) * size_.element_bytes();
  }

  fastrnn_problem problem() const {
    fastrnn_problem problem{};
    problem.cell = options_.gru ? FASTRNN_GRU : FASTRNN_LSTM, problem.dtype = size_.dtype;
    problem.reverse = options_.reverse, problem.threads = threads_;
    problem.steps = size_.steps, problem.batch = size_.batch;
    problem.input_size = size_.features, problem.hidden_size = size_.hidden;
    problem.batch_sizes = size_.batch_sizes;
    return problem;
  }

  // Moves the tensors that were made into the results.
  static void move(std::initializer_list<Tensor *> made, std::vector<Tensor> *results) {
    for (Tensor *tensor : made)
      if (tensor->data) results->push_back(std::move(*tensor));
  }

  const LayerOptions &options_;
  const fastrnn_cpu_functions &cpu_;
  const int threads_;
  std::vector<Tensor>::iterator next_;
  const std::vector<Tensor>::iterator end_;
  const int *order_;
  Tensor *x_ = nullptr;
  bool flat_states_ = false;
  Sizes size_;
  int64_t out_ = 0;  // elements of h: H, or the projection's size
  std::vector<char> zeros_;
};

}  // namespace

bool run_layer(std::vector<Tensor> *tensors, const LayerOptions &options,
               const fastrnn_cpu_functions &cpu, int threads, std::vector<Tensor> *results) {
  return Layer(tensors, options, cpu, threads).forward(results);
}

bool run_layer_backward(std::vector<Tensor> *tensors, const LayerOptions &options,
                        const fastrnn_cpu_functions &cpu, int threads,
                        std::vector<Tensor> *results) {
  return Layer(tensors, options, cpu, threads).backward(results);
}

}  // namespace fastrnn
