# The paper's temperature for ImageNet. Its 4 for CIFAR-100 is a weight of 64, which a short schedule does not bear.
