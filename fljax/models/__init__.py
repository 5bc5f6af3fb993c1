"""The networks; `BY_NAME` maps each name to its factory."""

from fljax.models import logistic, mobilenetv2, plain_cnn, small_convnet

BY_NAME = {
    "mobilenetv2": mobilenetv2.mobilenetv2,
    "small_convnet": small_convnet.small_convnet,
    "cnn": plain_cnn.cnn,
    "cnn_dropout": plain_cnn.cnn_dropout,
    "logistic": logistic.logistic,
}
