_base_ = './default_runtime.py'

# Everything but the parts of dskd_mm, which carry their prefix, is looked up in mmseg.
default_scope = 'mmseg'

default_hooks = dict(
    logger=dict(interval=20),
    # 'auto' would take the first metric, which is the accuracy of pixels.
    checkpoint=dict(max_keep_ckpts=1, save_best='mIoU'),
    visualization=dict(_delete_=True, type='SegVisualizationHook'),
)
visualizer = dict(_delete_=True, type='SegLocalVisualizer', vis_backends=_base_.vis_backends, name='visualizer')
