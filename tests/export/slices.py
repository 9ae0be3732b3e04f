"""The expected numbers of transformers' own tests: read, told apart by what we can run, compared.

A check says in the words of its test what is observed ("outputs.logits[0, :3]"). ``look_up`` reads
such an expression in a namespace that we fill; nothing of the file is executed.
"""

import ast
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

Test = dict[str, Any]
Check = dict[str, Any]
Names = Mapping[str, Any]
Verdict = Literal["run", "published", "out of scope"]

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
FILE = DATA / "expected_slices.json"
WEAK = "weak"
"""How checks begin that compare nothing in the original."""

ALIASES = {  # of checks that name only the variable of what is expected
    "expected_masks_sum": "encoding['labels'][0]['masks'].sum()",
    "expected_number_of_segments": "len(results['segments_info'])",
    "expected_first_segment": "results['segments_info'][0]",
}
LOOSE = {
    "expected_masks_sum": (1e-3, 0.0),
    "expected_first_segment": (0.0, 1e-3),
    "nested_simplify(outputs, decimals=4)": (1e-3, 1e-4),
    "nested_simplify(outputs[0][0])": (0.0, 1e-3),
}
"""Relative and absolute tolerance, where the test has one that the file does not give, or rounds
what it then compares for equality.
"""

OTHER_NETWORKS = {
    "a text encoder takes part in it": (
        *("align", "clip", "clipseg", "metaclip_2", "mm_grounding_dino", "omdet_turbo", "owlv2"),
        *("owlvit", "siglip", "siglip2"),
    ),
    "it estimates depth or poses, or enlarges": (
        *("depth_anything", "dpt", "glpn", "swin2sr", "vitpose", "zoedepth"),
    ),
    "a convolutional or mixed network": (
        *("bit", "convnext", "convnextv2", "cvt", "dinov3_convnext", "efficientnet", "focalnet"),
        *("levit", "mobilenet_v2", "mobilevit", "mobilevitv2", "poolformer", "pvt", "pvt_v2"),
        *("regnet", "resnet", "swiftformer", "textnet"),
    ),
    "another encoder than those of ViT, DeiT, MAE, DINO, DINOv2 and Swin": (
        *("beit", "data2vec", "dinat", "dinov3_vit", "hiera", "ijepa", "imagegpt", "mlcd"),
        *("perceiver", "pixio", "vit_msn"),
    ),
    "another detector than DETR and Deformable DETR": (
        *("d_fine", "dab_detr", "rt_detr_v2", "table_transformer"),
    ),
    "another segmenter than DETR, MaskFormer and Mask2Former": (
        *("eomt", "oneformer", "sam", "segformer", "upernet"),
    ),
}
"""Architectures of which nothing is run, and why."""

NETWORKS_ALONE = {
    **dict.fromkeys(("conditional_detr", "rt_detr", "yolos"), "another detector"),
    "grounding_dino": "a text encoder takes part in it",
}
"""Architectures whose preprocessing is run and whose network is not one of ours."""

_HALF = "it computes in half precision, which ours does through its own graphs only"
_DECODER = "it is about the decoder of pre-training, which is not loaded"
_SHAPES = "it compares shapes of transformers' own answers; ours are held to values elsewhere"
_ABSENT = "its pictures and maps are not among the data"
OTHER_TESTS = {
    ("swinv2", "test_inference_fp16"): _HALF,
    ("vit_mae", "test_inference_for_pretraining"): _DECODER,
    ("vit_mae", "test_inference_interpolate_pos_encoding"): _DECODER,
    ("vit_mae", "test_inference_interpolate_pos_encoding_custom_sizes"): _DECODER,
    ("timm_wrapper", "test_inference_image_classification_head"): "ResNet-18 is not loaded",
    ("timm_wrapper", "test_inference_with_pipeline"): "ResNet-18 is not loaded",
    ("timm_wrapper", "test_inference_image_classification_quantized"): (
        "its weights are quantised by another library"
    ),
    ("maskformer", "test_integration_instance_segmentation"): _ABSENT,
    ("maskformer", "test_integration_semantic_segmentation"): _ABSENT,
    ("mask2former", "test_integration_instance_segmentation"): _ABSENT,
    ("mask2former", "test_integration_semantic_segmentation"): _ABSENT,
    ("maskformer", "test_post_process_instance_segmentation"): _SHAPES,
    ("mask2former", "test_post_process_semantic_segmentation"): _SHAPES,
    ("mask2former", "test_post_process_instance_segmentation"): _SHAPES,
    ("mask2former", "test_post_process_panoptic_segmentation"): _SHAPES,
    ("yolos", "test_max_width_max_height_resizing_and_pad_strategy"): (
        "YOLOS rounds its sizes as no checkpoint of ours does"
    ),
    ("grounding_dino", "test_post_process_object_detection"): "a text encoder takes part in it",
}
"""Tests that are not run, of architectures of which others are."""

OTHER_PIPELINES = {
    "DepthEstimationPipelineTests": "depth",
    "MaskGenerationPipelineTests": "SAM",
    "ZeroShotImageClassificationPipelineTests": "a text encoder takes part in it",
    "ZeroShotObjectDetectionPipelineTests": "a text encoder takes part in it",
    "ImageClassificationPipelineTests.test_perceiver": "Perceiver",
    "ImageClassificationPipelineTests.test_torch_float16_pipeline": _HALF,
    "ImageClassificationPipelineTests.test_torch_bfloat16_pipeline": _HALF,
    "ImageClassificationPipelineTests.test_multilabel_classification": "a sigmoid over classes",
    "ImageClassificationPipelineTests.test_function_to_apply": "a sigmoid over classes",
    "ImageFeatureExtractionPipelineTests.test_small_model_w_pooler_pt": "ViT's pooler",
    "ImageFeatureExtractionPipelineTests.test_image_processing_small_model_pt": "ViT's pooler",
    "ImageSegmentationPipelineTests.test_small_model_pt": "a MobileNet backbone",
    "ImageSegmentationPipelineTests.test_small_model_pt_semantic": "BEiT",
    "ImageSegmentationPipelineTests.test_maskformer": _ABSENT,
    "ImageSegmentationPipelineTests.test_oneformer": "OneFormer",
    "ObjectDetectionPipelineTests.test_small_model_pt": "a MobileNet backbone",
    "ObjectDetectionPipelineTests.test_layoutlm": "LayoutLM",
}
"""Pipelines that are not run, by class or by class and test: what they need and we have not."""


@cache
def load() -> list[Test]:
    """All tests of the file; none where it is absent."""
    return json.loads(FILE.read_bytes())["tests"] if FILE.is_file() else []


def name_of(test: Test) -> str:
    return f"{test['arch']}.{test['class']}.{test['test']}"


def verdict(test: Test) -> tuple[Verdict, str]:
    """Whether a test is run here, with published weights, or not at all, and then why."""
    arch, name = test["arch"], test["test"]
    reasons = {arch: why for why, archs in OTHER_NETWORKS.items() for arch in archs}
    pipeline = f"{test['class']}.{name}" if arch == "pipelines" else ""
    why = (
        reasons.get(arch)
        or OTHER_TESTS.get((arch, name))
        or (OTHER_PIPELINES.get(pipeline) or OTHER_PIPELINES.get(test["class"]))
    )
    if why is None and test["needs_weights"]:
        why = NETWORKS_ALONE.get(arch)
    if why is not None:
        return "out of scope", why
    return ("published", "") if test["needs_weights"] else ("run", "")


def compare(check: Check, names: Names) -> str | None:
    """What a check finds wrong with what we observe; None if nothing, or if it compares nothing."""
    if check["check"].startswith(WEAK):
        return None
    variable: str = check["observed"].removeprefix("(see variable name) ")
    observed = plain(look_up(ALIASES.get(variable) or variable, names))
    expected = _expected(check["expected"], names)
    if check["check"] == "equal" and variable not in LOOSE:
        same = _equal(observed, expected)
    else:
        rtol, atol = LOOSE.get(variable, (check.get("rtol") or 1.3e-6, check.get("atol") or 1e-5))
        same = _close(observed, expected, rtol, atol)
    return None if same else f"{check['observed']} is {observed}, not {expected}"


def look_up(expression: str, names: Names) -> Any:
    """The value of names, attributes, subscripts, sums, ``len`` and a few methods.

    Raises:
        KeyError: a name is not there.
        ValueError: the expression has something else in it.
    """
    return _value(ast.parse(expression, mode="eval").body, names)


_METHODS = ("sum", "item", "tolist")


def _value(node: ast.expr, names: Names) -> Any:
    match node:
        case ast.Constant(value):
            return value
        case ast.Name(name):
            return names[name]
        case ast.Attribute(below, name):
            owner = _value(below, names)
            return owner[name] if isinstance(owner, Mapping) else getattr(owner, name)
        case ast.Subscript(below, index):
            return _value(below, names)[_value(index, names)]
        case ast.Slice(low, high, None):
            return slice(*(None if one is None else _value(one, names) for one in (low, high)))
        case ast.Tuple(parts):
            return tuple(_value(part, names) for part in parts)
        case ast.UnaryOp(ast.USub(), below):
            return -_value(below, names)
        case ast.BinOp(left, ast.Add(), right):
            return _value(left, names) + _value(right, names)
        case ast.Call(ast.Name("len"), [below]):
            return len(_value(below, names))
        case ast.Call(ast.Attribute(below, name), []) if name in _METHODS:
            return getattr(np.asarray(_value(below, names)), name)()
        case ast.Call(ast.Name("nested_simplify"), [below]):
            return _value(below, names)
    raise ValueError(f"cannot read {ast.unparse(node)}")


def _expected(value: Any, names: Names) -> Any:
    """What is stated, where "=..." stands for a setting and ``by_device`` for the CPU's numbers."""
    if isinstance(value, str) and value.startswith("="):
        return look_up(value[1:], names)
    if isinstance(value, dict) and "by_device" in value:
        return value["by_device"]["[null, null]"]
    return [_expected(one, names) for one in value] if isinstance(value, list) else value


def plain(value: Any) -> Any:
    """Lists and numbers instead of arrays and tensors."""
    if hasattr(value, "detach"):
        value = value.detach().numpy()
    return value.tolist() if hasattr(value, "tolist") else value


def _equal(observed: Any, expected: Any) -> bool:
    if isinstance(observed, tuple):
        observed = list(observed)
    return bool(observed == expected)


def _close(observed: Any, expected: Any, rtol: float, atol: float) -> bool:
    if isinstance(expected, dict):
        compared = expected.keys() - {"hash"}  # of a mask, which one pixel changes
        return observed.keys() >= compared and all(
            _close(observed[key], expected[key], rtol, atol) for key in compared
        )
    if isinstance(expected, list) and expected and isinstance(expected[0], dict | list):
        return len(observed) == len(expected) and all(
            _close(one, other, rtol, atol) for one, other in zip(observed, expected, strict=True)
        )
    if isinstance(expected, str) or expected is None:
        return bool(observed == expected)
    if np.shape(observed) != np.shape(expected) and np.size(observed) != np.size(expected):
        return False
    found, wanted = (np.asarray(one, dtype=np.float64).ravel() for one in (observed, expected))
    return bool((np.abs(found - wanted) <= atol + rtol * np.abs(wanted)).all())
