"""LSHFM: [Distilling Knowledge by Mimicking Features](https://arxiv.org/abs/2011.01424).

The vectors that enter the classifier shall point where the teacher's point: each of thousands of random hyperplanes shall have
both on the same side (locality-sensitive hashing), while a mean squared error cares for their lengths. Images give one vector
each, two-stage detectors one for each sampled proposal, dense detectors and segmenters one for each of 256 sampled locations.

**Not the paper's:** the biases 'median' and 'mean' are running statistics. Dense detectors hash 256 locations of an image
instead of all. Segmenters and the neck of DETR, of which the paper says nothing, take its setting for images. The student is
trained in one go; the paper's detectors take two. Where the widths differ, the layer that maps the student's feature is left
behind after training; the authors' students keep it before their classifier. All images count; the authors' scripts count
those that the teacher gets right (`correct_only=True`). `LSHFMDistiller` has the table of settings.
"""

model = dict(type='dskd_mm.LSHFMDistiller')
pairs = {
    # The paper's setting for CIFAR-100: 32 hash functions for each of the teacher's channels.
    'cifar100|fashion-mnist': dict(beta=6, lsh=dict(bias='median')),
    'r56_cifar100|r14-w16_fashion-mnist': dict(lsh=dict(bits=32 * 64)),
    'wrn40-2_cifar100|r14-w32_cifar100-subset': dict(lsh=dict(bits=32 * 128)),
    'r32x4_cifar100': dict(lsh=dict(bits=32 * 256)),
    'r50_cifar100': dict(lsh=dict(bits=32 * 2048)),
    # The paper's for this teacher.
    'r34_in1k': dict(lsh=dict(std=0.06)),
    # The first stage of the teacher's cascade knows proposals as the student's are.
    'cascade-mask-rcnn_x101_faster-rcnn': dict(site=dict(stage=0)),
}
