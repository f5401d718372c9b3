# The schedule of CRD's CIFAR-100 tables, for teachers and students alike. MobileNetV2 and the
# ShuffleNets start at 0.01 instead of 0.05.
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=5e-4))

param_scheduler = dict(type='MultiStepLR', by_epoch=True, milestones=[150, 180, 210], gamma=0.1)

# Every tenth epoch, and every one once the learning rate no longer changes.
train_cfg = dict(by_epoch=True, max_epochs=240, val_interval=10, dynamic_intervals=[(211, 1)])
val_cfg = dict()
test_cfg = dict()

auto_scale_lr = dict(base_batch_size=64)
