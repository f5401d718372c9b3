"""A CPU-sized DeepLabV3 on the backbone of fcn_r14-w32_256px.py."""

_base_ = './fcn_r14-w32_256px.py'

model = dict(
    decode_head=dict(
        _delete_=True,
        type='ASPPHead',
        in_channels=128,
        in_index=2,
        channels=64,
        # Half the usual ones: the crops are half as large.
        dilations=(1, 6, 12, 18),
        dropout_ratio=0.1,
        num_classes=2,
        norm_cfg=dict(type='BN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
)
