_base_ = [
    '../_base_/models/retinanet_r18-w8_320px.py',
    '../_base_/datasets/bccd_bs8.py',
    '../_base_/schedules/adamw_60e_bs8.py',
    '../_base_/default_runtime_det.py',
]
