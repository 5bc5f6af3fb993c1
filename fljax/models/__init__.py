"""The networks; `BY_NAME` maps each name to its factory."""

from fljax.models import (
    densenet,
    logistic,
    mobilenetv2,
    plain_cnn,
    resnet,
    resnet_small,
    small_convnet,
    transformer,
)

BY_NAME = {
    "mobilenetv2": mobilenetv2.mobilenetv2,
    "mobilenetv2_gn": mobilenetv2.mobilenetv2_gn,
    "mobilenetv2_large": mobilenetv2.mobilenetv2_large,
    "resnet18": resnet.resnet18,
    "resnet50": resnet.resnet50,
    "resnet20": resnet_small.resnet20,
    "resnet44": resnet_small.resnet44,
    "resnet56": resnet_small.resnet56,
    "densenet40": densenet.densenet40,
    "small_convnet": small_convnet.small_convnet,
    "transformer": transformer.transformer,
    "char_transformer": transformer.char_transformer,
    "cnn": plain_cnn.cnn,
    "cnn_dropout": plain_cnn.cnn_dropout,
    "logistic": logistic.logistic,
}
