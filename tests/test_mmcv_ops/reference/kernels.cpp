// The CUDA kernels of mmcv that have no CPU counterpart, run one thread after the other, with launchers as in mmcv.
#include <torch/extension.h>

#include "carafe_naive_cuda_kernel.cuh"
#include "masked_conv2d_cuda_kernel.cuh"
#include "ms_deform_attn_cuda_kernel.cuh"
#include "roi_pool_cuda_kernel.cuh"
#include "sigmoid_focal_loss_cuda_kernel.cuh"
#include "softmax_focal_loss_cuda_kernel.cuh"

using at::Tensor;

#define DISPATCH(tensor, ...) AT_DISPATCH_FLOATING_TYPES((tensor).scalar_type(), "kernel", [&] { __VA_ARGS__; })
#define P(tensor) ((tensor).numel() ? (tensor).data_ptr<scalar_t>() : nullptr)
#define L(tensor) (tensor).data_ptr<int64_t>()

void sigmoid_focal_loss_forward(Tensor input, Tensor target, Tensor weight, Tensor output, float gamma, float alpha) {
  DISPATCH(input, sigmoid_focal_loss_forward_cuda_kernel<scalar_t>(output.numel(), P(input), L(target), P(weight),
                                                                   P(output), gamma, alpha, input.size(1)));
}

void sigmoid_focal_loss_backward(Tensor input, Tensor target, Tensor weight, Tensor grad, float gamma, float alpha) {
  DISPATCH(input, sigmoid_focal_loss_backward_cuda_kernel<scalar_t>(grad.numel(), P(input), L(target), P(weight),
                                                                    P(grad), gamma, alpha, input.size(1)));
}

void softmax_focal_loss_forward(Tensor input, Tensor target, Tensor weight, Tensor output, float gamma, float alpha) {
  DISPATCH(input, softmax_focal_loss_forward_cuda_kernel<scalar_t>(output.numel(), P(input), L(target), P(weight),
                                                                   P(output), gamma, alpha, input.size(1)));
}

void softmax_focal_loss_backward(Tensor input, Tensor target, Tensor weight, Tensor buff, Tensor grad, float gamma,
                                 float alpha) {
  DISPATCH(input, softmax_focal_loss_backward_cuda1_kernel<scalar_t>(buff.numel(), P(input), L(target), P(weight),
                                                                     P(buff), gamma, alpha, input.size(1)));
  DISPATCH(input, softmax_focal_loss_backward_cuda2_kernel<scalar_t>(grad.numel(), P(input), L(target), P(buff),
                                                                     P(grad), input.size(1)));
}

void roi_pool_forward(Tensor input, Tensor rois, Tensor output, Tensor argmax, int pooled_height, int pooled_width,
                      float spatial_scale) {
  DISPATCH(input, roi_pool_forward_cuda_kernel<scalar_t>(output.numel(), P(input), P(rois), P(output),
                                                         argmax.data_ptr<int>(), pooled_height, pooled_width,
                                                         spatial_scale, input.size(1), input.size(2), input.size(3)));
}

void roi_pool_backward(Tensor grad_output, Tensor rois, Tensor argmax, Tensor grad_input, int pooled_height,
                       int pooled_width, float spatial_scale) {
  grad_output = grad_output.contiguous();
  DISPATCH(grad_output,
           roi_pool_backward_cuda_kernel<scalar_t>(grad_output.numel(), P(grad_output), P(rois), argmax.data_ptr<int>(),
                                                   P(grad_input), pooled_height, pooled_width, grad_input.size(1),
                                                   grad_input.size(2), grad_input.size(3)));
}

void masked_im2col_forward(Tensor im, Tensor mask_h_idx, Tensor mask_w_idx, Tensor col, int kernel_h, int kernel_w,
                           int pad_h, int pad_w) {
  int count = mask_h_idx.numel();
  DISPATCH(im, MaskedIm2colForward<scalar_t>(count * im.size(1), P(im), im.size(2), im.size(3), kernel_h, kernel_w,
                                             pad_h, pad_w, L(mask_h_idx), L(mask_w_idx), count, P(col)));
}

void masked_col2im_forward(Tensor col, Tensor mask_h_idx, Tensor mask_w_idx, Tensor im, int height, int width,
                           int channels) {
  int count = mask_h_idx.numel();
  DISPATCH(im, MaskedCol2imForward<scalar_t>(count * channels, P(col), height, width, channels, L(mask_h_idx),
                                             L(mask_w_idx), count, P(im)));
}

void carafe_naive_forward(Tensor features, Tensor masks, Tensor output, int kernel_size, int group_size,
                          int scale_factor) {
  DISPATCH(features, carafe_naive_forward_cuda_kernel<scalar_t>(output.numel(), P(features), P(masks), P(output),
                                                                kernel_size, group_size, scale_factor,
                                                                output.size(1), output.size(2), output.size(3)));
}

void carafe_naive_backward(Tensor top_grad, Tensor features, Tensor masks, Tensor bottom_grad, Tensor mask_grad,
                           int kernel_size, int group_size, int scale_factor) {
  DISPATCH(features, carafe_naive_backward_cuda_kernel<scalar_t>(
                         top_grad.numel(), P(top_grad), P(features), P(masks), P(bottom_grad), P(mask_grad),
                         kernel_size, group_size, scale_factor, top_grad.size(1), top_grad.size(2), top_grad.size(3)));
}

// The fast variant's kernels need shared memory; it computes the same.
void carafe_forward(Tensor features, Tensor masks, Tensor rfeatures, Tensor routput, Tensor rmasks, Tensor output,
                    int kernel_size, int group_size, int scale_factor) {
  rfeatures.copy_(features);
  carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor);
}

void carafe_backward(Tensor top_grad, Tensor rfeatures, Tensor masks, Tensor rtop_grad, Tensor rbottom_grad_hs,
                     Tensor rbottom_grad, Tensor rmask_grad, Tensor bottom_grad, Tensor mask_grad, int kernel_size,
                     int group_size, int scale_factor) {
  carafe_naive_backward(top_grad, rfeatures, masks, bottom_grad, mask_grad, kernel_size, group_size, scale_factor);
}

Tensor ms_deform_attn_forward(Tensor value, Tensor shapes, Tensor starts, Tensor locations, Tensor weights,
                              int im2col_step) {
  auto output = at::zeros({value.size(0), locations.size(1), value.size(2) * value.size(3)}, value.options());
  DISPATCH(value, ms_deformable_im2col_gpu_kernel<scalar_t>(
                      output.numel(), P(value), L(shapes), L(starts), P(locations), P(weights), value.size(0),
                      value.size(1), value.size(2), value.size(3), shapes.size(0), locations.size(1),
                      locations.size(4), P(output)));
  return output;
}

void ms_deform_attn_backward(Tensor value, Tensor shapes, Tensor starts, Tensor locations, Tensor weights,
                             Tensor grad_output, Tensor grad_value, Tensor grad_locations, Tensor grad_weights,
                             int im2col_step) {
  DISPATCH(value, ms_deformable_col2im_gpu_kernel_gm<scalar_t>(
                      grad_output.numel(), P(grad_output), P(value), L(shapes), L(starts), P(locations), P(weights),
                      value.size(0), value.size(1), value.size(2), value.size(3), shapes.size(0), locations.size(1),
                      locations.size(4), P(grad_value), P(grad_locations), P(grad_weights)));
}

PYBIND11_MODULE(kernels, m) {
#define DEF(name, ...) m.def(#name, &name, __VA_ARGS__)
  using py::arg;
  DEF(sigmoid_focal_loss_forward, arg("input"), arg("target"), arg("weight"), arg("output"), arg("gamma"), arg("alpha"));
  DEF(sigmoid_focal_loss_backward, arg("input"), arg("target"), arg("weight"), arg("grad_input"), arg("gamma"),
      arg("alpha"));
  DEF(softmax_focal_loss_forward, arg("input"), arg("target"), arg("weight"), arg("output"), arg("gamma"), arg("alpha"));
  DEF(softmax_focal_loss_backward, arg("input"), arg("target"), arg("weight"), arg("buff"), arg("grad_input"),
      arg("gamma"), arg("alpha"));
  DEF(roi_pool_forward, arg("input"), arg("rois"), arg("output"), arg("argmax"), arg("pooled_height"),
      arg("pooled_width"), arg("spatial_scale"));
  DEF(roi_pool_backward, arg("grad_output"), arg("rois"), arg("argmax"), arg("grad_input"), arg("pooled_height"),
      arg("pooled_width"), arg("spatial_scale"));
  DEF(masked_im2col_forward, arg("im"), arg("mask_h_idx"), arg("mask_w_idx"), arg("col"), arg("kernel_h"),
      arg("kernel_w"), arg("pad_h"), arg("pad_w"));
  DEF(masked_col2im_forward, arg("col"), arg("mask_h_idx"), arg("mask_w_idx"), arg("im"), arg("height"), arg("width"),
      arg("channels"));
  DEF(carafe_naive_forward, arg("features"), arg("masks"), arg("output"), arg("kernel_size"), arg("group_size"),
      arg("scale_factor"));
  DEF(carafe_naive_backward, arg("top_grad"), arg("features"), arg("masks"), arg("bottom_grad"), arg("mask_grad"),
      arg("kernel_size"), arg("group_size"), arg("scale_factor"));
  DEF(carafe_forward, arg("features"), arg("masks"), arg("rfeatures"), arg("routput"), arg("rmasks"), arg("output"),
      arg("kernel_size"), arg("group_size"), arg("scale_factor"));
  DEF(carafe_backward, arg("top_grad"), arg("rfeatures"), arg("masks"), arg("rtop_grad"), arg("rbottom_grad_hs"),
      arg("rbottom_grad"), arg("rmask_grad"), arg("bottom_grad"), arg("mask_grad"), arg("kernel_size"),
      arg("group_size"), arg("scale_factor"));
  DEF(ms_deform_attn_forward, arg("value"), arg("value_spatial_shapes"), arg("value_level_start_index"),
      arg("sampling_locations"), arg("attention_weights"), arg("im2col_step"));
  DEF(ms_deform_attn_backward, arg("value"), arg("value_spatial_shapes"), arg("value_level_start_index"),
      arg("sampling_locations"), arg("attention_weights"), arg("grad_output"), arg("grad_value"),
      arg("grad_sampling_loc"), arg("grad_attn_weight"), arg("im2col_step"));
}
