"""SimKD: [Knowledge Distillation with the Reused Teacher Classifier](https://arxiv.org/abs/2203.14001).

Images: the student's feature, through a projector, shall be the teacher's, and the teacher's frozen classifier reads it. The
mean squared error of the maps, weight 1, is all that trains: the student's own loss counts 0, as in the
[authors' code](https://github.com/DefangChen/SimKD).

**Not the paper's:** the projector. The authors' is a bottleneck of three convolutions, which stays in the deployed student.
Ours is a 1x1 convolution and batch norm, so that it and the teacher's classifier fold into the student's own last layer.
"""

model = dict(type='dskd_mm.SimKDDistiller')
detection = None
segmentation = None
