import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from export.preprocessor import Preprocessing, PreprocessorError, read_preprocessor
from export.processor_types import DEFAULTS, PADDING
from service.geometry import Size, choose_canvas, place, to_canvas

DATA = Path(__file__).parents[3] / "shared" / "data"
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}

MODULES = {
    "Beit": "beit",
    "Bit": "bit",
    "CLIP": "clip",
    "ConditionalDetr": "conditional_detr",
    "ConvNext": "convnext",
    "DeformableDetr": "deformable_detr",
    "DeiT": "deit",
    "Detr": "detr",
    "Levit": "levit",
    "Mask2Former": "mask2former",
    "MaskFormer": "maskformer",
    "Pvt": "pvt",
    "RTDetr": "rt_detr",
    "Segformer": "segformer",
    "Siglip": "siglip",
    "ViT": "vit",
}

CLASSIFIERS: dict[str, dict[str, Any]] = {
    "vit squash bilinear": {
        "image_processor_type": "ViTImageProcessor",
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "rescale_factor": 0.00392156862745098,
        "size": {"height": 224, "width": 224},
    },
    "an old file with a feature extractor": {
        "feature_extractor_type": "ViTFeatureExtractor",
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "size": 384,
    },
    "the fast class": {"image_processor_type": "ViTImageProcessorFast", "size": [192, 224]},
    "swin": {"image_processor_type": "ViTImageProcessor", "size": 224, "resample": 3, **IMAGENET},
    "rectangle, lanczos": {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 160, "width": 288},
        "resample": 1,
    },
    "box filter": {"image_processor_type": "ViTImageProcessor", "resample": 4},
    "hamming filter": {"image_processor_type": "ViTImageProcessor", "resample": 5},
    "nearest": {"image_processor_type": "ViTImageProcessor", "resample": 0},
    "deit bicubic, squash 256, crop 224": {
        "feature_extractor_type": "DeiTFeatureExtractor",
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "resample": 3,
        "size": 256,
        **IMAGENET,
    },
    "dinov2": {
        "image_processor_type": "BitImageProcessor",
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": {"shortest_edge": 256},
        **IMAGENET,
    },
    "odd crop": {"image_processor_type": "BitImageProcessor", "size": 255, "crop_size": 224},
    "crop larger than the picture": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 150},
        "crop_size": {"height": 225, "width": 224},
    },
    "no resize, crop": {"image_processor_type": "BitImageProcessor", "do_resize": False},
    "shortest and longest edge": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 224, "longest_edge": 260},
    },
    "fit inside, crop": {
        "image_processor_type": "DeiTImageProcessor",
        "size": {"max_height": 300, "max_width": 200},
        "crop_size": 224,
    },
    "convnext 224": {
        "feature_extractor_type": "ConvNextFeatureExtractor",
        "crop_pct": 0.875,
        "size": 224,
        "resample": 3,
        **IMAGENET,
    },
    "convnext 384": {"image_processor_type": "ConvNextImageProcessor", "size": 384},
    "levit": {"image_processor_type": "LevitImageProcessor", "size": 224},
    "rescaled to -1..1": {
        "image_processor_type": "ViTImageProcessor",
        "rescale_factor": 1 / 127.5,
        "image_mean": 1.0,
        "image_std": 1.0,
    },
    "not rescaled": {"image_processor_type": "ViTImageProcessor", "do_rescale": False},
    "not normalised": {"image_processor_type": "ViTImageProcessor", "do_normalize": False},
    "neither": {
        "image_processor_type": "ViTImageProcessor",
        "do_rescale": False,
        "do_normalize": False,
    },
    "rt-detr": {"image_processor_type": "RTDetrImageProcessor"},
    "mask2former, squash": {
        "image_processor_type": "Mask2FormerImageProcessor",
        "size": {"height": 380, "width": 384},
        "size_divisor": 32,
        "ignore_index": 255,
        "num_labels": 133,
        "do_reduce_labels": False,
        **IMAGENET,
    },
    "detr, squash": {
        "image_processor_type": "DetrImageProcessor",
        "size": {"height": 300, "width": 400},
    },
}

DETECTORS: dict[str, dict[str, Any]] = {
    "detr": {"image_processor_type": "DetrImageProcessor"},
    "old detr": {
        "feature_extractor_type": "DetrFeatureExtractor",
        "format": "coco_detection",
        "do_normalize": True,
        "do_resize": True,
        "max_size": 700,
        "size": 480,
        **IMAGENET,
    },
    "detr, max_size left out": {"image_processor_type": "DetrImageProcessor", "size": 480},
    "detr, fit": {
        "image_processor_type": "DetrImageProcessor",
        "size": {"max_height": 300, "max_width": 500},
        "do_pad": True,
        "pad_size": {"height": 320, "width": 512},
    },
    "deformable detr": {
        "image_processor_type": "DeformableDetrImageProcessorFast",
        "size": {"shortest_edge": 600, "longest_edge": 800},
        "pad_and_return_pixel_mask": True,
    },
    "detr, not resized": {
        "image_processor_type": "DetrImageProcessor",
        "do_resize": False,
        "pad_size": {"height": 700, "width": 900},
    },
    "maskformer": {"image_processor_type": "MaskFormerImageProcessor", "size_divisor": 32},
    "old maskformer": {
        "feature_extractor_type": "MaskFormerFeatureExtractor",
        "size": 512,
        "max_size": 640,
        "size_divisor": 0,
        "reduce_labels": True,
        "ignore_index": 255,
    },
    "mask2former, max_size alone": {
        "image_processor_type": "Mask2FormerImageProcessor",
        "max_size": 900,
    },
}


def reference(config: dict[str, Any]) -> Any:
    """The processor that transformers builds from the same file."""
    name = config.get("image_processor_type") or config["feature_extractor_type"]
    kind = name.removesuffix("Fast").removesuffix("ImageProcessor").removesuffix("FeatureExtractor")
    module = importlib.import_module(
        f"transformers.models.{MODULES[kind]}.image_processing_pil_{MODULES[kind]}"
    )
    options = {key: value for key, value in config.items() if key != "image_processor_type"}
    return getattr(module, f"{kind}ImageProcessorPil")(**options)


def drawn(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth waves, noise and hard edges."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [127 + 120 * np.sin(x / (5 + 3 * c) + y / (9 - 2 * c)) for c in range(3)]
    pixels = np.stack(waves, axis=-1) + generator.normal(0, 8, (height, width, 3))
    pixels[height // 3 : height // 2, width // 4 : width // 2] = generator.integers(0, 256, 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def pictures(photos: int) -> Iterator[Image.Image]:
    """Landscape, portrait, odd, tiny and elongated; and real photographs where there are."""
    for seed, size in enumerate([(213, 320), (333, 250), (97, 61), (19, 300), (224, 1)]):
        yield drawn(*size, seed)
    for path in sorted((DATA / "coco_photos").glob("*.jpg"))[:photos]:
        with Image.open(path) as image:
            yield image.convert("RGB")


def normalised(image: Image.Image, preprocessing: Preprocessing, canvas: Size) -> NDArray[Any]:
    """What our graph's entry makes of what our geometry hands it: (3, H, W), valid part only."""
    geometry = preprocessing.geometry
    placement = place(geometry, Size(height=image.height, width=image.width), canvas)
    pixels = to_canvas(image, placement)[: placement.valid.height, : placement.valid.width]
    values = (pixels * preprocessing.scale - preprocessing.mean) / preprocessing.std
    return values.transpose(2, 0, 1)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_fixed_canvas_equals_the_processor_of_transformers(name: str) -> None:
    config = CLASSIFIERS[name]
    processor = reference(config)
    ours = read_preprocessor(config)
    for image in pictures(photos=3):
        theirs = np.asarray(processor(image)["pixel_values"][0])
        assert theirs.shape[1:] == (ours.geometry.nominal.height, ours.geometry.nominal.width)
        # 1e-6 of the range: the reference rounds to float32 after each step
        span = max(1.0, float(np.abs(theirs).max()))
        np.testing.assert_allclose(
            normalised(image, ours, ours.geometry.nominal), theirs, rtol=0, atol=1e-6 * span
        )


@pytest.mark.parametrize("name", DETECTORS)
def test_a_padded_canvas_equals_the_processor_of_transformers_where_it_is_valid(name: str) -> None:
    config = DETECTORS[name]
    processor = reference(config)
    ours = read_preprocessor(config, canvas=(900, 900))
    for image in pictures(photos=1):
        if min(image.size) * 40 < max(image.size):
            continue  # the reference rounds the short side to nothing
        if name == "detr, not resized" and image.height > 700:
            continue
        found = processor(image)
        theirs, mask = np.asarray(found["pixel_values"][0]), np.asarray(found["pixel_mask"][0])
        rows, columns = int(mask[:, 0].sum()), int(mask[0].sum())
        large = Size(height=1408, width=1408)
        values = normalised(image, ours, large)
        assert values.shape == (3, rows, columns)
        np.testing.assert_allclose(values, theirs[:, :rows, :columns], rtol=0, atol=3e-6)
        assert not theirs[:, rows:].any()
        assert not theirs[:, :, columns:].any()


@pytest.mark.parametrize("kind", DEFAULTS)
def test_every_default_is_that_of_the_class_in_transformers(kind: str) -> None:
    config = {"image_processor_type": f"{kind}ImageProcessor"}
    saved = reference(config).to_dict()
    saved = {key: value for key, value in saved.items() if key not in ("format", "data_format")}
    spelled_out = {**saved, **config}
    assert read_preprocessor(config) == read_preprocessor(spelled_out)
    assert (read_preprocessor(config).geometry.placement == "pad") == (kind in PADDING)


def test_a_saved_processor_reads_as_the_file_it_was_made_from() -> None:
    for config in [*CLASSIFIERS.values(), *DETECTORS.values()]:
        name = str(config.get("image_processor_type") or config["feature_extractor_type"])
        saved = json.loads(reference(config).to_json_string())
        saved["image_processor_type"] = name.replace("FeatureExtractor", "ImageProcessor")
        again = read_preprocessor(saved)
        first = read_preprocessor(config)
        assert again.geometry == first.geometry, config
        assert (again.scale, again.mean, again.std) == (first.scale, first.mean, first.std)


def test_an_unknown_key_is_refused_with_its_value() -> None:
    config = {"image_processor_type": "ViTImageProcessor", "do_thumbnail": True}
    with pytest.raises(PreprocessorError, match="do_thumbnail is True"):
        read_preprocessor(config)


def test_an_unknown_key_that_is_off_is_no_obstacle() -> None:
    plain = {"image_processor_type": "ViTImageProcessor"}
    silent = {**plain, "do_thumbnail": False, "auto_map": None, "rescale_offset": 0}
    assert read_preprocessor(silent) == read_preprocessor(plain)


def test_keys_about_the_file_and_about_training_are_harmless() -> None:
    plain = {"image_processor_type": "ViTImageProcessor"}
    chatty = {**plain, "processor_class": "ViTProcessor", "ignore_index": 255, "num_labels": 150}
    assert read_preprocessor(chatty) == read_preprocessor(plain)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image_processor_type": "FancyImageProcessor"}, "image_processor_type is 'FancyImage"),
        ({"image_processor_type": None}, "image_processor_type is None; known are"),
        ({"size": "224"}, "size is '224'"),
        ({"size": 0}, "not a whole number"),
        ({"size": {"longest_edge": 224}}, "size is {'longest_edge': 224}"),
        ({"size": {"shortest_edge": 224}}, "every picture would end in another size"),
        ({"do_center_crop": True}, "there is no crop_size"),
        ({"do_center_crop": True, "crop_size": {"shortest_edge": 3}}, "crop_size is"),
        ({"do_resize": False}, "Name a canvas"),
        ({"do_pad": True}, "do_pad is True"),
        ({"size_divisor": 32}, "size_divisor is 32"),
        ({"resample": 7}, "resample is 7"),
        ({"rescale_factor": -1}, "rescale_factor is -1"),
        ({"image_mean": [0.5]}, "image_mean is"),
        ({"image_std": [0.5, 0.5, 0]}, "must be above 0"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order is True"),
        ({"crop_rounding": "up", "do_center_crop": True, "crop_size": 200}, "crop_rounding is"),
        ({"image_processor_type": "DetrImageProcessor", "do_center_crop": True}, "does not crop"),
        ({"image_processor_type": "DetrImageProcessor", "size_divisor": 32}, "has none"),
        (
            {"image_processor_type": "DetrImageProcessor", "size": {"shortest_edge": 800}},
            "needs longest_edge",
        ),
        ({"image_processor_type": "DetrImageProcessor", "do_resize": False}, "no pad_size"),
        ({"image_processor_type": "MaskFormerImageProcessor", "size": 512}, "without max_size"),
        (
            {"image_processor_type": "ConvNextImageProcessor", "size": {"height": 9, "width": 9}},
            "shortest_edge alone",
        ),
        (
            {
                "image_processor_type": "ConvNextImageProcessor",
                "do_center_crop": True,
                "crop_size": 200,
            },
            "already ends at",
        ),
    ],
)
def test_what_cannot_be_reproduced_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PreprocessorError, match=sentence):
        read_preprocessor({"image_processor_type": "ViTImageProcessor", **changes})


def test_a_crop_rounds_as_the_file_says() -> None:
    config = {"image_processor_type": "DeiTImageProcessor", "crop_rounding": "torchvision"}
    found = read_preprocessor(config)
    assert found.geometry.crop_rounding == "torchvision"
    assert found.geometry.nominal == Size(height=224, width=224)


def test_an_unresized_picture_of_the_canvas_passes_unchanged() -> None:
    config = {"image_processor_type": "ViTImageProcessor", "do_resize": False}
    ours = read_preprocessor(config, canvas=(48, 64))
    image = drawn(48, 64)
    pixels = to_canvas(
        image, place(ours.geometry, Size(height=48, width=64), ours.geometry.nominal)
    )
    assert np.array_equal(pixels, np.asarray(image))


def test_a_padded_canvas_without_a_name_is_the_bound_of_the_file() -> None:
    config = {"image_processor_type": "DetrImageProcessor"}
    assert read_preprocessor(config).geometry.nominal == Size(height=800, width=1333)
    chosen = read_preprocessor(config, canvas=(832, 1344)).geometry
    assert chosen.nominal == Size(height=832, width=1344)


def reference_entries() -> list[dict[str, Any]]:
    path = DATA / "preprocessing_reference" / "preprocessing_reference.json"
    if not path.is_file():
        return []
    entries = json.loads(path.read_text())["entries"]
    return [
        entry
        for entry in entries
        if entry["backend"] == "pil"
        and entry["processor_class"] != "YolosImageProcessorPil"
        and (DATA / entry["image"]).is_file()
    ]


@pytest.mark.skipif(not reference_entries(), reason="../shared/data is not here")
def test_stored_reference_pixels_are_reproduced() -> None:
    checked = 0
    for entry in reference_entries():
        name = entry["processor_class"].removesuffix("Pil")
        ours = read_preprocessor({"image_processor_type": name, **entry["explicit_options"]})
        with Image.open(DATA / entry["image"]) as file:
            image = file.convert("RGB")
        size = Size(height=image.height, width=image.width)
        padded = ours.geometry.placement == "pad"
        canvas = Size(height=1408, width=1408) if padded else ours.geometry.nominal
        assert choose_canvas(ours.geometry, size, [canvas]) == canvas
        values = normalised(image, ours, canvas)
        assert [1, *values.shape] == entry["shape"]
        for channel, row, column, expected in entry["sample_points_chw"]:
            assert values[channel, row, column] == pytest.approx(expected, abs=2e-6)
        assert values.mean(axis=(1, 2)) == pytest.approx(entry["mean_per_channel"], abs=1e-6)
        checked += 1
    assert checked == len(reference_entries()) >= 44


@pytest.mark.skipif(not reference_entries(), reason="../shared/data is not here")
def test_stored_reference_arrays_are_reproduced() -> None:
    options = {entry["preprocess"]: entry for entry in reference_entries()}
    with (
        np.load(DATA / "preprocessing_reference" / "full_arrays_cats_pil.npz") as arrays,
        Image.open(DATA / "hf_coco_fixtures" / "000000039769.png") as file,
    ):
        image = file.convert("RGB")
        for name in arrays.files:
            kind = options[name]["processor_class"].removesuffix("Pil")
            config = {"image_processor_type": kind, **options[name]["explicit_options"]}
            ours = read_preprocessor(config)
            values = normalised(image, ours, ours.geometry.nominal)
            np.testing.assert_allclose(values, arrays[name], rtol=0, atol=1e-6)


@pytest.mark.skipif(
    not (DATA / "expected_slices.json").is_file(), reason="../shared/data is absent"
)
def test_pixels_that_the_tests_of_transformers_expect_are_reproduced() -> None:
    tests = json.loads((DATA / "expected_slices.json").read_text())["tests"]
    kinds = {"detr": "Detr", "conditional_detr": "ConditionalDetr"}
    kinds |= {"deformable_detr": "DeformableDetr", "rt_detr": "RTDetr"}
    checked = 0
    for test in tests:
        images = [item["local"] for item in test["images"] if str(item["local"]).endswith("g")]
        if test["arch"] not in kinds or test["needs_weights"] or len(images) != 1:
            continue
        pixels = [c for c in test["checks"] if "['pixel_values'][0, 0, 0, :3]" in c["observed"]]
        ours = read_preprocessor({"image_processor_type": f"{kinds[test['arch']]}ImageProcessor"})
        if not pixels or not (DATA / images[0]).is_file():
            continue
        with Image.open(DATA / images[0]) as file:
            image = file.convert("RGB")
        placement = ours.geometry.placement
        canvas = Size(height=1344, width=1344) if placement == "pad" else ours.geometry.nominal
        values = normalised(image, ours, canvas)
        for check in pixels:
            assert values[0, 0, :3] == pytest.approx(check["expected"], abs=check["atol"])
            checked += 1
    assert checked >= 4
