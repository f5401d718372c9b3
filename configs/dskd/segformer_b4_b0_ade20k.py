# ADE20K, 160,000 iterations, 8 GPUs with 2 crops each.
_base_ = '../plain/segformer_b0_ade20k.py'

model = dict(
    _delete_=True,
    type='dskd_mm.DSKDDistiller',
    student=_base_.model,
    teacher=dict(
        config='mmseg::segformer/segformer_mit-b4_8xb2-160k_ade20k-512x512.py',
        checkpoint='https://mmassets.onedl.ai/mmsegmentation/v0.5/segformer/segformer_mit-b4_512x512_160k_ade20k/'
        'segformer_mit-b4_512x512_160k_ade20k_20210728_183055-7f509d7d.pth',
    ),
)
