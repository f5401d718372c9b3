_base_ = [
    '../_base_/models/mask-rcnn_r14-w32_256px.py',
    '../_base_/datasets/dsb2018-instance_bs8.py',
    '../_base_/schedules/adamw_10e_bs8.py',
    '../_base_/default_runtime_det.py',
]
