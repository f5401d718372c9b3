"""CrossKD: [Cross-Head Knowledge Distillation for Object Detection](https://arxiv.org/abs/2306.11369).

Dense detectors whose heads have a tower for classes and one for boxes (RetinaNet, FCOS, ATSS, GFL): the student's feature after
the last convolution but one of its tower goes through the rest of the teacher's frozen head, and these cross-head predictions
follow the teacher's. Weights as in the [authors' code](https://github.com/jbwang1997/CrossKD): classes 1 and boxes 1. GFL:
boxes 3, summed over 17 bins. FCOS of four convolutions: 0.4 and 0.75, two convolutions of the teacher's, and PKD at the neck.

**Not the paper's:** boxes are compared in the head's own encoding (offsets and distances by their absolute difference) where
the authors compare decoded ones by GIoU, and have that beside the distributions of GFL. Centerness, which they distil for ATSS,
is left out. Where widths differ, a 1x1 convolution maps the student's feature.
"""

model = dict(type='dskd_mm.CrossKDDistiller')
classification = None
segmentation = None
two_stage_detection = None
pairs = {
    # Heads without such towers.
    'detr|reppoints|rtmdet': None,
    'gfl': dict(box=dict(temperature=1.0, loss_weight=51.0)),
    'fcos_r101_r50': dict(
        teacher_layers=2,
        loss_weights=dict(cls=0.4, box=0.75),
        layers=dict(neck=dict(student=dict(path='neck', index='all'), teacher=dict(path='neck', index='all'))),
        distill_losses=dict(pkd=dict(type='dskd_mm.PKDLoss', on='neck', loss_weight=2.0)),
    ),
}
