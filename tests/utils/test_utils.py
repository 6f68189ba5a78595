"""Files, images, folders, plots, settings: what stands around models and data."""

import http.server
import io
import json
import os
import tarfile
import threading
import zipfile

import numpy as np
import pytest

import khub
from khub import utils

once = pytest.mark.once
RANDOM = np.random.default_rng(0)


# --- files ---------------------------------------------------------------------------------------
def packed(names, kind="tar", link=None):
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            for name in names:
                archive.writestr(name, b"hello")
        return file.getvalue()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 5
            archive.addfile(member, io.BytesIO(b"hello"))
        if link:
            member = tarfile.TarInfo("link")
            member.type, member.linkname = tarfile.SYMTYPE, link
            archive.addfile(member)
    return file.getvalue()


CONTENT = {
    "a.txt": b"hello",
    "good.tar.gz": packed(["x/a.txt"]),
    "good.zip": packed(["x/a.txt"], "zip"),
    "up.tar.gz": packed(["../a.txt"]),
    "root.tar.gz": packed(["/tmp/khub_a.txt"]),
    "link.tar.gz": packed(["x"], link="/etc/passwd"),
    "up.zip": packed(["../a.txt"], "zip"),
}
SHA = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
MD5 = "5d41402abc4b2a76b9719d911017c592"


class Server(http.server.BaseHTTPRequestHandler):
    asked = 0

    def do_GET(self):
        type(self).asked += 1
        name = self.path.partition("?")[0].strip("/")
        content = CONTENT.get(name.removeprefix("cut-"))
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"") + 9 * name.startswith("cut-")))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("KHUB_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "datasets"


@once
@pytest.mark.parametrize("digest", [None, SHA, MD5])
def test_a_file_is_fetched_once(address, home, digest):
    path = utils.get_file(origin=f"{address}/a.txt?x=1", file_hash=digest)
    assert path == str(home / "a.txt") and (home / "a.txt").read_bytes() == b"hello"
    asked = Server.asked
    assert utils.get_file("a.txt", f"{address}/gone", file_hash=digest) == path
    assert Server.asked == asked
    assert utils.get_file(origin=f"{address}/a.txt", force_download=True) == path
    assert Server.asked == asked + 1


@once
def test_a_wrong_hash_fetches_anew_and_then_fails(address, home):
    home.mkdir(parents=True)
    (home / "a.txt").write_bytes(b"older")
    utils.get_file(origin=f"{address}/a.txt", file_hash=SHA)
    assert (home / "a.txt").read_bytes() == b"hello"
    with pytest.raises(ValueError, match=f"has the md5 {MD5}, expected {'0' * 32}"):
        utils.get_file(origin=f"{address}/a.txt", md5_hash="0" * 32)
    with pytest.raises(OSError, match="9 bytes too early"):
        utils.get_file(origin=f"{address}/cut-a.txt", fname="a.txt", force_download=True)
    assert os.listdir(home) == ["a.txt"] and (home / "a.txt").read_bytes() == b"hello"
    with pytest.raises(OSError, match="404"):
        utils.get_file(origin=f"{address}/none.txt")
    with pytest.raises(ValueError, match="needs origin="):
        utils.get_file("a.txt")


@once
@pytest.mark.parametrize("name", ["good.tar.gz", "good.zip"])
def test_archives_are_unpacked(address, home, name):
    path = utils.get_file(origin=f"{address}/{name}", extract=True)
    assert path == str(home / name)
    assert (home / name / "x" / "a.txt").read_bytes() == b"hello"
    again = utils.get_file("other", f"{address}/{name}", untar=True, cache_subdir="more")
    assert os.listdir(again) == ["x"]


@once
@pytest.mark.parametrize("name", ["up.tar.gz", "root.tar.gz", "link.tar.gz", "up.zip", "a.txt"])
def test_hostile_archives_are_refused(address, home, name):
    with pytest.raises(ValueError, match="refused|no zip and no tar"):
        utils.get_file(origin=f"{address}/{name}", extract=True)
    assert os.listdir(home) == [f"{name}_archive"]
    assert not os.path.exists("/tmp/khub_a.txt") and not (home.parent / "a.txt").exists()


@once
def test_a_bomb_is_refused(tmp_path):
    from khub.utils.files import unpack

    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(100_000_000))
    with pytest.raises(ValueError, match="unpacked, claims 100,000,000 bytes"):
        unpack(tmp_path / "bomb.zip", tmp_path / "out")


# --- images --------------------------------------------------------------------------------------
@once
def test_images_to_files_and_back(tmp_path):
    x = RANDOM.integers(0, 256, (6, 9, 3)).astype("float32")
    for data_format, array in (("channels_last", x), ("channels_first", x.transpose(2, 0, 1))):
        path = tmp_path / f"{data_format}.png"
        utils.save_img(path, array, data_format, scale=False)
        again = utils.img_to_array(utils.load_img(path), data_format)
        np.testing.assert_array_equal(again, array)
    assert utils.load_img(path, "grayscale", (4, 5)).size == (5, 4)
    assert utils.load_img(path, target_size=(4, 4), keep_aspect_ratio=True).size == (4, 4)
    scaled = np.asarray(utils.array_to_img(x[..., :1] / 1000))
    assert (scaled.min(), scaled.max()) == (0, 255)
    utils.save_img(tmp_path / "x.jpg", RANDOM.random((4, 4, 4)))  # JPEG has no alpha
    with pytest.raises(ValueError, match="got \\(3, 4\\)"):
        utils.array_to_img(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="color_mode must be one of"):
        utils.load_img(path, "cmyk")


def test_smart_resize_keeps_the_middle():
    x = np.zeros((2, 4, 8, 3), "float32")
    x[:, :, 2:6] = 5
    y = khub.preprocessing.image.smart_resize(x, (6, 6))
    assert isinstance(y, np.ndarray) and y.shape == (2, 6, 6, 3)
    np.testing.assert_allclose(y, 5, rtol=1e-6)


@once
def test_norms():
    np.testing.assert_allclose(utils.normalize([[3.0, 4.0], [0.0, 0.0]]), [[0.6, 0.8], [0, 0]])
    np.testing.assert_allclose(utils.normalize(np.array([2.0, 6.0]), order=1), [0.25, 0.75])


# --- folders -------------------------------------------------------------------------------------
@pytest.fixture
def pictures(tmp_path):
    for i in range(12):
        path = tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        utils.save_img(path, np.full((5, 4, 3), 20.0 * i), scale=False)
    return tmp_path / "pictures"


def test_a_folder_of_images_trains(pictures):
    dataset = utils.image_dataset_from_directory(pictures, image_size=(4, 4), batch_size=5, seed=2)
    assert len(dataset) == 3 and dataset.class_names == ["a", "b"]
    first, second = ([x[:, 0, 0, 0].tolist() for x, _ in dataset] for _ in range(2))
    assert first != second and sorted(sum(first, [])) == [20.0 * i for i in range(12)]
    dataset.set_epoch(0)
    assert [x[:, 0, 0, 0].tolist() for x, _ in dataset] == first
    model = khub.Sequential(
        [khub.Input((4, 4, 3)), khub.layers.Flatten(), khub.layers.Dense(2, "softmax")]
    )
    model.compile("sgd", "sparse_categorical_crossentropy")
    if khub.backend.name != "numpy":
        model.fit(dataset, epochs=2, verbose=0)
    assert np.isfinite(model.evaluate(dataset, verbose=0))
    images = utils.image_dataset_from_directory(
        pictures, None, image_size=(4, 4), shuffle=False, verbose=False
    )
    assert model.predict(images, verbose=0).shape == (12, 2)


FOLDER_ERRORS = {
    "no folder": ({"directory": "/none"}, "is no folder"),
    "names": ({"class_names": ["a", "c"]}, "are not the folders"),
    "labels": ({"labels": [0, 1]}, "holds 12 files .* 2 labels"),
    "label_mode": ({"label_mode": "ints"}, "label_mode must be one of"),
    "subset": ({"validation_split": 0.5}, "belong together"),
    "seed": ({"validation_split": 0.5, "subset": "both"}, "a seed must say"),
    "interpolation": ({"interpolation": "area"}, "interpolation must be one of"),
}


@once
@pytest.mark.parametrize("name", FOLDER_ERRORS)
def test_what_a_folder_cannot_be(pictures, name):
    options, words = FOLDER_ERRORS[name]
    with pytest.raises(ValueError, match=words):
        list(utils.image_dataset_from_directory(**{"directory": pictures, **options}))


@once
def test_a_broken_image_is_named(pictures):
    (pictures / "a" / "bad.png").write_bytes(b"no image")
    with pytest.raises(OSError, match="bad.png"):
        list(utils.image_dataset_from_directory(pictures, verbose=False))


@once
def test_splits_of_rows_that_come_one_by_one():
    rows = [(np.full(2, i), i) for i in range(10)]
    left, right = utils.split_dataset(iter(rows), 0.8)
    assert [len(left), len(right)] == [8, 2]
    x, y = next(iter(right.batch(2)))
    assert x.tolist() == [[8, 8], [9, 9]] and y.tolist() == [8, 9]
    with pytest.raises(ValueError, match="leave no two parts of 10 rows"):
        utils.split_dataset(rows, 10)


# --- settings, plots -----------------------------------------------------------------------------
@once
def test_config_object():
    config = utils.Config(rate=0.1, units=3)
    config.rate, config["name"] = 0.2, "a"
    assert config.rate == 0.2 and config.get("x", 5) == 5 and list(config.keys())[-1] == "name"
    assert json.loads(config.to_json()) == config.as_dict() == dict(config.items())
    config.freeze()
    for act in (
        lambda: config.update(a=1),
        lambda: config.pop("rate"),
        lambda: setattr(config, "a", 1),
    ):
        with pytest.raises(ValueError, match="frozen"):
            act()
    config.unfreeze()
    assert config.pop("rate") == 0.2 and not config.frozen
    with pytest.raises(AttributeError, match="no setting 'rate'"):
        _ = config.rate


@once
def test_progress_bar(capsys):
    bar = utils.Progbar(4, stateful_metrics=["step"], interval=0)
    for i in range(1, 5):
        bar.update(i, [("loss", float(i)), ("step", i)])
    last = capsys.readouterr().out.split("\r")[-1]
    assert last.startswith("4/4") and "loss: 2.5000" in last and "step: 4.0000" in last
    khub.config.disable_interactive_logging()
    bar = utils.Progbar(None, verbose=2, unit_name="file")
    bar.add(3)
    bar.update(4, finalize=True)
    khub.config.enable_interactive_logging()
    assert capsys.readouterr().out.startswith("4/?")


def test_the_limits_of_a_trial_run():
    X, Y = np.zeros((20, 2), "float32"), np.zeros((20, 1), "float32")
    model = khub.Sequential([khub.Input((2,)), khub.layers.Dense(1)])
    model.compile("sgd", "mse")
    khub.config.set_max_epochs(2)
    khub.config.set_max_steps_per_epoch(3)
    try:
        assert len(model.predict(X, batch_size=4, verbose=0)) == 12
        if khub.backend.name != "numpy":
            seen = []
            count = khub.callbacks.LambdaCallback(on_train_batch_end=lambda i, logs: seen.append(i))
            model.fit(X, Y, batch_size=4, epochs=5, verbose=0, callbacks=[count])
            assert seen == [0, 1, 2] * 2
            model.fit(X[:8], Y[:8], batch_size=4, epochs=1, verbose=0)  # fewer than the limit
        with pytest.raises(ValueError, match="positive integer or None, got 0"):
            khub.config.set_max_epochs(0)
    finally:
        khub.config.set_max_epochs(None)
        khub.config.set_max_steps_per_epoch(None)
    assert len(model.predict(X, batch_size=4, verbose=0)) == 20


def test_flash_attention_can_be_forbidden(monkeypatch):
    khub.config.disable_flash_attention()
    try:
        assert not khub.config.is_flash_attention_enabled()
        x = khub.ops.ones((1, 3, 2, 4))
        seen = []
        if khub.backend.name == "torch":
            from torch.nn import attention

            real = attention.sdpa_kernel
            monkeypatch.setattr(attention, "sdpa_kernel", lambda k: seen.append(k) or real(k))
        elif khub.backend.name == "jax":
            import jax

            real = jax.nn.dot_product_attention

            def watched(*args, implementation=None, **kwargs):
                seen.append([implementation])
                return real(*args, implementation=implementation, **kwargs)

            monkeypatch.setattr(jax.nn, "dot_product_attention", watched)
        y = khub.ops.dot_product_attention(x, x, x)
        np.testing.assert_allclose(khub.ops.convert_to_numpy(y), 1.0, rtol=1e-6)
        if khub.backend.name in ("torch", "jax"):
            assert len(seen) == 1 and not any("FLASH" in str(k) for k in seen[0])
            assert khub.backend.name == "torch" or seen == [["xla"]]
    finally:
        khub.config.enable_flash_attention()


@once
def test_settings_that_are_fixed():
    khub.config.set_backend(khub.backend.name)
    with pytest.raises(RuntimeError, match="KHUB_BACKEND=other before khub is imported"):
        khub.config.set_backend("other")
    with pytest.raises(NotImplementedError, match="runs no code"):
        khub.config.enable_unsafe_deserialization()
    with pytest.raises(NotImplementedError, match="whole tracebacks"):
        khub.config.enable_traceback_filtering()
    assert not (khub.config.is_nnx_enabled() or khub.config.is_traceback_filtering_enabled())


def network():
    given = khub.Input((4,), name="given")
    inner = khub.Sequential([khub.Input((4,)), khub.layers.Dense(3, "relu")], name="inner")
    found = khub.ops.tanh(inner(given) + khub.layers.Dense(3, name="side")(given))
    return khub.Model(given, found)


@once
def test_names_and_symbols():
    khub.utils.clear_session()
    assert khub.layers.Dense(1).name == "dense"
    assert khub.backend.get_uid("dense") == 2
    model = network()
    assert utils.get_source_inputs(model.output) == [model.input]
    assert khub.backend.is_keras_tensor(model.output) and not utils.is_keras_tensor(1)
    kinds = khub.backend.is_float_dtype("bfloat16"), khub.backend.is_int_dtype(np.dtype("uint8"))
    assert kinds == (True, True) and utils.standardize_dtype(np.float32) == "float32"


@once
def test_a_model_is_drawn(tmp_path, monkeypatch):
    pytest.importorskip("pydot")
    flags = ("shapes", "dtype", "layer_names", "layer_activations", "trainable")
    options = {f"show_{flag}": True for flag in flags}
    text = utils.model_to_dot(network(), expand_nested=True, **options).to_string()
    wanted = "given", "side (Dense)", "relu", "(None, 3)", "float32", "trainable", "cluster_inner"
    assert [word for word in wanted if word not in text] == []
    assert text.count("->") == 6
    utils.plot_model(network(), tmp_path / "m.dot")
    assert "Dense" in (tmp_path / "m.dot").read_text()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImportError, match="install Graphviz"):
        utils.plot_model(network(), tmp_path / "m.png")
    program = tmp_path / "dot"
    program.write_text(f"#!{os.path.realpath('/bin/sh')}\necho picture\n")
    program.chmod(0o755)
    utils.plot_model(network(), tmp_path / "m.png")
    assert (tmp_path / "m.png").read_bytes() == b"picture\n"
    with pytest.raises(ValueError, match="no graph of layers"):
        utils.model_to_dot(khub.Sequential([khub.layers.Dense(1)]))


@once
def test_what_is_not_installed_is_named():
    from khub.utils.extras import optional

    with pytest.raises(ImportError, match=r"needs no_such_package: pip install 'khub\[plot\]'"):
        optional("no_such_package.inside", "plot")


# --- pictures ------------------------------------------------------------------------------------
@once
def test_boxes_are_drawn():
    image = np.zeros((1, 40, 60, 3), "float32")
    boxes = {"boxes": [[[10, 5, 30, 25], [0, 0, 59, 39]]], "labels": [[1, -1]]}
    draw = khub.visualization.draw_bounding_boxes
    drawn = draw(image, boxes, "xyxy", {1: ""}, (9, 8, 7), line_thickness=1)
    assert drawn.dtype == "uint8" and drawn.shape == image.shape
    assert drawn[0, 5, 10].tolist() == drawn[0, 25, 30].tolist() == [9, 8, 7]
    assert not drawn[0, 0].any() and not drawn[0, 24, 29].any()
    relative = {"boxes": [[[1 / 6, 1 / 8, 1 / 2, 5 / 8]]], "labels": [[1]]}
    again = draw(image, relative, "rel_xyxy", {1: ""}, (9, 8, 7), line_thickness=1)
    np.testing.assert_array_equal(again, drawn)
    named = draw(image, {**boxes, "confidence": [[0.5, 0.0]]}, "xyxy", {1: "x"}, (9, 8, 7))
    assert named[0, 8:22, 12:28].any()  # the label


@once
def test_masks_are_drawn():
    image, mask = np.full((1, 2, 2, 3), 100.0), np.array([[[0, 1], [2, -1]]])
    draw, colors = khub.visualization.draw_segmentation_masks, {0: (0, 0, 0), 1: (200, 0, 100)}
    drawn = draw(image, mask, 3, colors, alpha=0.5, ignore_index=2)
    assert drawn[0].tolist() == [[[50] * 3, [150, 50, 100]], [[100] * 3, [100] * 3]]
    first = draw(image.transpose(0, 3, 1, 2), mask[..., None], data_format="channels_first")
    assert first.shape == (1, 2, 2, 3)
    assert draw(image, mask, 3, colors, blend=False)[0, 0, 1].tolist() == [200, 0, 100]


@once
def test_galleries(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    view, images = khub.visualization, RANDOM.random((5, 8, 8, 3))
    path = tmp_path / "gallery.png"
    figure = view.plot_image_gallery(
        images, [0, 1, 2, 0, 1], label_map={0: "cat"}, value_range=(0, 1), path=path
    )
    assert path.stat().st_size > 100 and len(figure.axes) == 6
    assert figure.axes[0].get_title() == "true: cat" and figure.axes[1].get_title() == "true: 1"
    boxes = {"boxes": np.ones((5, 1, 4)), "labels": np.ones((5, 1))}
    figure = view.plot_bounding_box_gallery(
        images, "xywh", boxes, boxes, legend=True, rows=1, path=path
    )
    assert len(figure.axes) == 5 and len(figure.legends[0].get_texts()) == 2
    masks = RANDOM.integers(0, 3, (5, 8, 8))
    figure = view.plot_segmentation_mask_gallery(images, 3, y_true=masks, y_pred=masks, path=path)
    assert len(figure.axes) == 15
    matplotlib.pyplot.close("all")


def test_numpy_arrays_are_treated_alike_on_every_backend():
    np.testing.assert_array_equal(utils.to_categorical(np.array([[0], [2]])), np.eye(3)[[0, 2]])
    np.testing.assert_array_equal(utils.to_categorical(np.array(1), 2), [0, 1])
    tensor = khub.ops.convert_to_tensor([0, 2])
    np.testing.assert_array_equal(
        khub.ops.convert_to_numpy(utils.to_categorical(tensor)), np.eye(3)[[0, 2]]
    )
    found = utils.normalize(np.array([[1.0, -2.0, 4.0]]), order=np.inf)
    np.testing.assert_array_equal(found, [[0.25, -0.5, 1.0]])


@pytest.mark.parametrize(
    "wrong",
    [{"sequence_length": 0}, {"sampling_rate": 0}, {"sequence_stride": 0}, {"start_index": -1}],
)
def test_windows_need_positive_sizes(wrong):
    with pytest.raises(ValueError, match="must be positive and start_index not negative"):
        utils.timeseries_dataset_from_array(np.arange(9), None, **{"sequence_length": 3} | wrong)
