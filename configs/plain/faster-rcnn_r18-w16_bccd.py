_base_ = [
    '../_base_/models/faster-rcnn_r18-w16_320px.py',
    '../_base_/datasets/bccd_bs8.py',
    '../_base_/schedules/adamw_40e_bs8.py',
    '../_base_/default_runtime_det.py',
]
