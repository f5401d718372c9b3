_base_ = 'mmdet::detr/detr_r101_8xb2-500e_coco.py'
