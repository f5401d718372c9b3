// Stands for mmcv's header of this name.
#pragma once
#include "pytorch_cuda_helper.hpp"
