_base_ = '../dskd/resnet18_r34_in1k.py'

model = dict(
    _delete_=True,
    type='dskd_mm.DiffKDDistiller',
    student=_base_.model.student,
    teacher=_base_.model.teacher,
    # The latent of the authors' code for the ResNets of ImageNet.
    pairs=dict(feature=dict(autoencoder=dict(latent_channels=1024)), logits=dict()),
)
