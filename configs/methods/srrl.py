"""SRRL: [Knowledge Distillation via Softmax Regression Representation Learning](https://openreview.net/forum?id=ZzwDy_wiWv).

Images: the student's feature, through a connector, in the teacher's frozen classifier. Squared errors of the pooled feature and
of the logits that the classifier makes of it, weight 1 each, as in the [authors' code](https://github.com/jingyang2017/KD_SRRL)
for ImageNet. DSKD's anchor is this idea. The authors' students for CIFAR-100 have weights that we do not know.
"""

model = dict(type='dskd_mm.SRRLDistiller')
detection = None
segmentation = None
