"""The networks; `BY_NAME` maps each name to its factory."""

from fljax.models import logistic, mobilenetv2, small_convnet

BY_NAME = {
    "mobilenetv2": mobilenetv2.mobilenetv2,
    "small_convnet": small_convnet.small_convnet,
    "logistic": logistic.logistic,
}
