// Stands for mmcv's header of this name: its one-dimensional CUDA kernels, compiled as plain loops for the CPU.
#pragma once
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>

#define __global__ static
#define __device__ static
#define __forceinline__ inline
#define CUDA_1D_KERNEL_LOOP(i, n) for (int i = 0; i < (n); i++)

// What kernels with shared memory need to be read; none of them is called.
#define __shared__
struct Index {
  unsigned int x, y, z;
};
static Index threadIdx, blockIdx, blockDim;
static inline void __syncthreads() {}

using std::abs;
using std::max;
using std::min;

template <typename T>
static void atomicAdd(T *address, T value) {
  *address += value;
}
