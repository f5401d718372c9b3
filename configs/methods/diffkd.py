"""DiffKD: [Knowledge Diffusion for Distillation](https://arxiv.org/abs/2305.15712).

A student's feature is taken for a noisy version of its teacher's. A light diffusion model is trained on the teacher's features.
It removes the noise from the student's, and only the result is compared with the teacher's, so the student is not asked to copy
what it cannot hold. How noisy the student's feature is, a small network (the noise adapter) learns. Images: the last map and
the logits. Detectors: the levels of the neck. Segmenters: the map of class logits, compared by DIST (by KL where it has a
single output).

**Not the paper's:** the authors' code of detection was never published. The weight of 5 there is taken for all three losses,
one denoiser serves all levels of a neck, its norm is a group norm, and the distillation of box regression is left out.
`DiffKDDistiller` lists all of it.
"""

model = dict(type='dskd_mm.DiffKDDistiller')
pairs = {
    # The latent of the authors' code for the ResNets of ImageNet.
    'in1k': dict(pairs=dict(feature=dict(autoencoder=dict(latent_channels=1024)), logits=dict())),
}
