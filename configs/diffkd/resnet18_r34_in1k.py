_base_ = '../dskd/resnet18_r34_in1k.py'

model = dict(
    type='dskd_mm.DiffKDDistiller',
    # The latent of the authors' code for the ResNets of ImageNet.
    pairs=dict(feature=dict(autoencoder=dict(latent_channels=1024)), logits=dict()),
)
