_base_ = [
    '../_base_/models/pspnet_r14-w32_256px.py',
    '../_base_/datasets/dsb2018-semantic_bs8.py',
    '../_base_/schedules/adamw_30e_bs8.py',
    '../_base_/default_runtime_seg.py',
]
