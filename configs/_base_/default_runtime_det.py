_base_ = './default_runtime.py'

# Everything but the parts of dskd_mm, which carry their prefix, is looked up in mmdet.
default_scope = 'mmdet'

default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(max_keep_ckpts=1, save_best='auto'),
    visualization=dict(_delete_=True, type='DetVisualizationHook'),
)
visualizer = dict(_delete_=True, type='DetLocalVisualizer', vis_backends=_base_.vis_backends, name='visualizer')
