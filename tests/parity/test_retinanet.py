"""RetinaNet against torchvision's: its file opens, outputs, anchors and boxes are the same."""

import numpy as np
import pytest
from parity import image_models

from khub import cv, ops
from khub.applications.resnet import ResNetBackbone
from khub.cv import retinanet

SIZE = (64, 96)


@pytest.fixture(scope="module")
def theirs():
    """A random RetinaNet of torchvision on a ResNet-18, and its outputs for two images."""
    image_models.site()
    import torch
    from torchvision.models import resnet
    from torchvision.models.detection import backbone_utils, retinanet
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    body = backbone_utils._resnet_fpn_extractor(
        resnet.resnet18(), 5, [2, 3, 4], LastLevelP6P7(256, 256)
    )
    module = retinanet.RetinaNet(body, 3, anchor_generator=retinanet._default_anchorgen())
    return image_models.spread(module).to(torch.float32)


def test_is_torchvisions(theirs, tmp_path):
    import torch
    from torchvision.models.detection.image_list import ImageList

    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    backbone = ResNetBackbone.variant("resnet18", reference="torchvision")
    model = cv.RetinaNetDetector(backbone, 3)
    model.load_weights(tmp_path / "weights.pth")
    x = image_models.images(SIZE)
    with torch.no_grad():
        images = torch.tensor(x).permute(0, 3, 1, 2)
        features = [*theirs.backbone(images).values()]
        wanted = theirs.head(features)
        anchors = theirs.anchor_generator(ImageList(images, [SIZE] * 2), features)[0]
        boxes = theirs.box_coder.decode_single(wanted["bbox_regression"][0], anchors)
    found = image_models.call(model, x)
    found = {name: ops.convert_to_numpy(value) for name, value in found.items()}
    for ours, name in (("classes", "cls_logits"), ("boxes", "bbox_regression")):
        want = wanted[name].numpy()
        assert found[ours].shape == want.shape and 0.1 < np.abs(want).max() < 100
        assert np.abs(found[ours] - want).max() <= 1e-4
    np.testing.assert_array_equal(retinanet.anchors(SIZE), anchors.numpy())
    decoded, scores = model.decode({k: ops.convert_to_tensor(v) for k, v in found.items()}, SIZE)
    boxes = np.clip(boxes.numpy(), 0, [96, 64, 96, 64])
    np.testing.assert_allclose(ops.convert_to_numpy(decoded)[0], boxes, atol=2e-2, rtol=1e-4)
    assert ops.convert_to_numpy(scores).max() <= 1
