/* cuDNN's recurrent networks: where the weights lie, what is kept for backward, and three kernels.
 *
 * Weights lie layer by layer, first all matrices, then all biases, as torch's flattening wants
 * them. The reserve space holds each gate of each step once; cuDNN's own is of another size. */
#include "cudnn.h"

#include <stdlib.h>
#include <string.h>

enum { LSTM = 2, GRU = 3 };           /* cudnnRNNMode_t; 0 and 1 are plain networks */
enum { BIDIRECTIONAL = 1 };           /* cudnnDirectionMode_t */
enum { DOUBLE_BIAS = 2 };             /* cudnnRNNBiasMode_t; 0 is none */
enum { SKIP_INPUT = 1 };              /* cudnnRNNInputMode_t */
enum { TRAINING = 1 };                /* cudnnForwardMode_t */
#define DROPOUT_STATE_BYTES (2 * MIB) /* of its random generators */

typedef struct {
  int data_type, cell, bias_mode, directions, input_size, hidden_size, projection_size, layers;
} Rnn;

typedef struct {
  int steps, batch, width;
} RnnData;

typedef struct {
  int data_type, dimensions, sizes[8], strides[8];
} Tensor;

static size_t element_bytes(int data_type) {
  switch (data_type) { /* cudnnDataType_t */
    case 1: return 8;  /* double */
    case 2:
    case 9: return 2; /* half, bfloat16 */
    default: return 4;
  }
}

/* ---- descriptors ---- */

int cudnnCreateTensorDescriptor(Tensor **made) {
  return (*made = calloc(1, sizeof **made)) ? CUDNN_SUCCESS : CUDNN_ALLOC_FAILED;
}

int cudnnSetTensorNdDescriptor(Tensor *tensor, int data_type, int dimensions, const int *sizes,
                               const int *strides) {
  if (dimensions > 8) return sim_refuse(__func__, CUDNN_NOT_SUPPORTED);
  *tensor = (Tensor){.data_type = data_type, .dimensions = dimensions};
  memcpy(tensor->sizes, sizes, (size_t)dimensions * sizeof *sizes);
  memcpy(tensor->strides, strides, (size_t)dimensions * sizeof *strides);
  return CUDNN_SUCCESS;
}

int cudnnGetTensorNdDescriptor(const Tensor *tensor, int requested, int *data_type, int *dimensions,
                               int *sizes, int *strides) {
  int count = requested < tensor->dimensions ? requested : tensor->dimensions;
  *data_type = tensor->data_type;
  *dimensions = tensor->dimensions;
  memcpy(sizes, tensor->sizes, (size_t)count * sizeof *sizes);
  memcpy(strides, tensor->strides, (size_t)count * sizeof *strides);
  return CUDNN_SUCCESS;
}

int cudnnCreateRNNDescriptor(Rnn **made) {
  return (*made = calloc(1, sizeof **made)) ? CUDNN_SUCCESS : CUDNN_ALLOC_FAILED;
}

int cudnnSetRNNDescriptor_v8(Rnn *rnn, int algorithm, int cell, int bias_mode, int direction,
                             int input_mode, int data_type, int math_precision, int math_type,
                             int32_t input_size, int32_t hidden_size, int32_t projection_size,
                             int32_t layers, void *dropout, uint32_t flags) {
  UNUSED(algorithm, math_precision, math_type, dropout, flags);
  if (input_mode == SKIP_INPUT) return sim_refuse(__func__, CUDNN_NOT_SUPPORTED);
  *rnn = (Rnn){
      .data_type = data_type,
      .cell = cell,
      .bias_mode = bias_mode,
      .directions = direction == BIDIRECTIONAL ? 2 : 1,
      .input_size = input_size,
      .hidden_size = hidden_size,
      .projection_size = projection_size,
      .layers = layers,
  };
  return CUDNN_SUCCESS;
}

int cudnnCreateRNNDataDescriptor(RnnData **made) {
  return (*made = calloc(1, sizeof **made)) ? CUDNN_SUCCESS : CUDNN_ALLOC_FAILED;
}

int cudnnSetRNNDataDescriptor(RnnData *data, int data_type, int layout, int steps, int batch,
                              int width, const int *lengths, void *padding) {
  UNUSED(data_type, layout, lengths, padding);
  *data = (RnnData){steps, batch, width};
  return CUDNN_SUCCESS;
}

int cudnnDropoutGetStatesSize(void *handle, size_t *size) {
  UNUSED(handle);
  *size = DROPOUT_STATE_BYTES;
  return CUDNN_SUCCESS;
}

/* ---- weights ----
 *
 * A pseudo layer is a layer in one direction. Its matrices are those of the gates on the input, of
 * the gates on the state, and the projection. */

static int gates(const Rnn *rnn) { return rnn->cell == LSTM ? 4 : rnn->cell == GRU ? 3 : 1; }
static int output_size(const Rnn *rnn) {
  return rnn->projection_size ? rnn->projection_size : rnn->hidden_size;
}
static int has_projection(const Rnn *rnn) {
  return rnn->projection_size != 0 && rnn->projection_size != rnn->hidden_size;
}
static int biases(const Rnn *rnn) {
  return rnn->bias_mode == DOUBLE_BIAS ? 2 * gates(rnn) : rnn->bias_mode ? gates(rnn) : 0;
}

typedef struct {
  int rows, columns;
} Shape;

static Shape matrix_shape(const Rnn *rnn, int pseudo_layer, int id) {
  if (id == 2 * gates(rnn)) return (Shape){rnn->projection_size, rnn->hidden_size};
  int of_state = id >= gates(rnn), is_first = pseudo_layer < rnn->directions;
  int columns = of_state   ? output_size(rnn)
                : is_first ? rnn->input_size
                           : output_size(rnn) * rnn->directions;
  return (Shape){rnn->hidden_size, columns};
}

static size_t matrix_elements(const Rnn *rnn, int pseudo_layer, int id) {
  Shape shape = matrix_shape(rnn, pseudo_layer, id);
  return (size_t)shape.rows * (size_t)shape.columns;
}

static int matrices(const Rnn *rnn) { return 2 * gates(rnn) + has_projection(rnn); }

/* How many elements of matrices lie before this one; with a pseudo layer past the last: of all. */
static size_t matrix_offset(const Rnn *rnn, int pseudo_layer, int id) {
  size_t sum = 0;
  for (int layer = 0; layer < pseudo_layer; layer++)
    for (int i = 0; i < matrices(rnn); i++) sum += matrix_elements(rnn, layer, i);
  for (int i = 0; i < id; i++) sum += matrix_elements(rnn, pseudo_layer, i);
  return sum;
}

static size_t bias_offset(const Rnn *rnn, int pseudo_layer, int id) {
  size_t before = matrix_offset(rnn, rnn->layers * rnn->directions, 0);
  return before + (size_t)(pseudo_layer * biases(rnn) + id) * (size_t)rnn->hidden_size;
}

int cudnnGetRNNWeightSpaceSize(void *handle, const Rnn *rnn, size_t *size) {
  UNUSED(handle);
  *size = bias_offset(rnn, rnn->layers * rnn->directions, 0) * element_bytes(rnn->data_type);
  return CUDNN_SUCCESS;
}

static void describe(Tensor *tensor, const Rnn *rnn, Shape shape) {
  *tensor = (Tensor){rnn->data_type,
                     3,
                     {1, shape.rows, shape.columns},
                     {shape.rows * shape.columns, shape.columns, 1}};
}

/* The caller asks for a matrix, for a bias, or for both; what it does not ask for is NULL. */
int cudnnGetRNNWeightParams(void *handle, const Rnn *rnn, int32_t pseudo_layer, size_t size,
                            char *weights, int32_t id, Tensor *matrix, char **matrix_at,
                            Tensor *bias, char **bias_at) {
  UNUSED(handle, size);
  size_t bytes = element_bytes(rnn->data_type);
  if (matrix_at) {
    int exists = id < matrices(rnn);
    *matrix_at = exists ? weights + matrix_offset(rnn, pseudo_layer, id) * bytes : NULL;
    if (matrix && exists) describe(matrix, rnn, matrix_shape(rnn, pseudo_layer, id));
  }
  if (bias_at) {
    int exists = id < biases(rnn);
    *bias_at = exists ? weights + bias_offset(rnn, pseudo_layer, id) * bytes : NULL;
    if (bias && exists) describe(bias, rnn, (Shape){rnn->hidden_size, 1});
  }
  return CUDNN_SUCCESS;
}

/* ---- steps ---- */

int cudnnGetRNNTempSpaceSizes(void *handle, const Rnn *rnn, int mode, const RnnData *x,
                              size_t *workspace, size_t *reserve) {
  UNUSED(handle);
  size_t steps =
      (size_t)x->steps * (size_t)x->batch * (size_t)rnn->layers * (size_t)rnn->directions;
  size_t kept =
      steps * (size_t)rnn->hidden_size * (size_t)gates(rnn) * element_bytes(rnn->data_type);
  if (workspace) *workspace = sim_number("CUDNN_WORKSPACE_BYTES", 0);
  if (reserve) *reserve = mode == TRAINING ? kept : 0;
  return CUDNN_SUCCESS;
}

int cudnnRNNForward(Handle *handle) { return sim_cudnn_work(handle, __func__); }
int cudnnRNNBackwardData_v8(Handle *handle) { return sim_cudnn_work(handle, __func__); }
int cudnnRNNBackwardWeights_v8(Handle *handle) { return sim_cudnn_work(handle, __func__); }
