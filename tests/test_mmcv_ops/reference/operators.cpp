// mmcv's own CPU operators, of its sources, with a module of their names.
#include <torch/extension.h>

#include "pytorch/nms.cpp"
#include "pytorch/roi_align.cpp"
#include "pytorch/deform_conv.cpp"
#include "pytorch/modulated_deform_conv.cpp"
#include "pytorch/psamask.cpp"
#include "pytorch/bbox_overlaps.cpp"
#include "pytorch/cpu/nms.cpp"
#include "pytorch/cpu/roi_align.cpp"
#include "pytorch/cpu/deform_conv.cpp"
#include "pytorch/cpu/modulated_deform_conv.cpp"
#include "pytorch/cpu/bbox_overlaps_cpu.cpp"
#include "pytorch/cpu/psamask.cpp"
#undef max
#undef min

PYBIND11_MODULE(operators, m) {
#include "definitions.inc"
}
