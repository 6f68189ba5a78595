"""`khub run`: a script's own Keras is khub, and all else is as `python script.py` has it."""

import os
import subprocess
import sys
from pathlib import Path

import blocking
import pytest

import khub

BACKEND = khub.backend.name
SETTINGS = {k: v for k, v in os.environ.items() if k not in ("KHUB_BACKEND", "KERAS_BACKEND")}
# As the command `khub` would start, with everything hidden that the backend does not need.
START = f"""
import sys
sys.path.insert(0, {str(Path(blocking.__file__).parent)!r})
import blocking
blocking.hide(blocking.others({BACKEND!r}))
sys.path[0] = "/where/the/command/is"
from khub.presets.cli import main
sys.exit(main())
"""


def run(*arguments, folder, chosen="KHUB_BACKEND"):
    return subprocess.run(
        [sys.executable, "-c", START, "run", *map(str, arguments)],
        cwd=folder,
        env={**SETTINGS, chosen: BACKEND},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def script(folder, text, name="script.py"):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


ALL = """
import importlib, sys
import keras
import keras.callbacks
import keras.ops as ops
import keras.optimizers.schedules
from keras import layers
from keras.layers import Dense
import tensorflow.keras.layers as theirs
from tensorflow import keras as of_tensorflow
from tensorflow.keras.models import Sequential
import tensorflow as tf
import beside

import khub
assert keras is khub is of_tensorflow is tf.keras
assert layers is khub.layers is theirs and ops is khub.ops and Dense is khub.layers.Dense
assert keras.callbacks is khub.callbacks and Sequential is khub.Sequential
assert khub.layers.__name__ == khub.layers.__spec__.name == "khub.layers"
assert keras.ops.convert_to_numpy(Dense(2)(ops.ones((3, 4)))).shape == (3, 2)
assert __name__ == "__main__" and sys.modules["__main__"].Dense is Dense
for name in ("keras.nothing", "tensorflow.keras.layers.nothing"):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        print(error)
print(sys.argv, __file__, sys.path[0], beside.HERE)
"""
MISSING = """
import importlib
import tensorflow as tf
def message(function):
    try:
        function()
    except ImportError as error:
        return str(error)
def names():
    from tensorflow import data
for function in (names, lambda: tf.data, lambda: importlib.import_module("tensorflow.lite")):
    print(message(function))
assert not hasattr(tf, "__file__")
"""


def test_every_way_to_import_keras(tmp_path):
    path = script(tmp_path / "sub", ALL)
    script(tmp_path / "sub", "HERE = 1", "beside.py")
    done = run("sub/script.py", "one", "--two", "-m", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    *problems, line = done.stdout.splitlines()
    assert problems == [
        "No module named 'keras.nothing': khub has no khub.nothing.",
        "No module named 'tensorflow.keras.layers.nothing': khub has no khub.layers.nothing.",
    ]
    wanted = ["sub/script.py", "one", "--two", "-m"]
    assert line == f"{wanted} sub/script.py {path.parent} 1"


def test_without_tensorflow_the_rest_of_it_is_missed_clearly(tmp_path):
    if BACKEND == "tensorflow":
        pytest.skip("TensorFlow is installed")
    done = run(script(tmp_path, MISSING), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    rest = "TensorFlow is not installed; khub stands in for tensorflow.keras only. Install"
    names = ["tensorflow.data", "tensorflow.data", "tensorflow.lite"]
    assert [line.split(" tensorflow, or")[0] for line in done.stdout.splitlines()] == [
        f"{name}: {rest}" for name in names
    ]


def test_tensorflow_itself_is_as_it_was(tmp_path):
    if BACKEND != "tensorflow":
        pytest.skip("needs TensorFlow")
    text = "import tensorflow as tf, tensorflow.data\nprint(int(tf.add(1, 2)), tf.data.Dataset)"
    done = run(script(tmp_path, text), folder=tmp_path)
    assert done.stdout.startswith("3 <class 'tensorflow."), done.stderr


def test_modules_run_by_name(tmp_path):
    text = "import sys, keras\nfrom . import other\nprint(sys.argv, sys.path[0], keras.__name__)"
    path = script(tmp_path / "package", text, "part.py")
    script(tmp_path / "package", "", "other.py")
    done = run("-m", "package.part", "--flag", folder=tmp_path)
    assert done.stdout == f"{[str(path), '--flag']} {tmp_path} khub\n", done.stderr
    done = run("-m", "package.none", folder=tmp_path)
    assert done.returncode == 1 and "No module named package.none" in done.stderr


def test_errors_and_exits_are_the_script_s_own(tmp_path):
    path = script(tmp_path, "def f():\n    raise ValueError('mine')\nf()")
    done = run(path, folder=tmp_path)
    assert done.returncode == 1
    head, first, *_, last = done.stderr[done.stderr.index("Traceback") :].splitlines()
    assert first == f'  File "{path}", line 3, in <module>' and last == "ValueError: mine"
    done = run(script(tmp_path, "1 +"), folder=tmp_path)
    assert done.returncode == 1 and "runpy" not in done.stderr and "SyntaxError" in done.stderr
    assert run(script(tmp_path, "raise SystemExit(7)"), folder=tmp_path).returncode == 7
    done = run("nowhere.py", folder=tmp_path)
    assert done.returncode == 2 and "there is no script 'nowhere.py'" in done.stderr


def test_a_script_that_chooses_another_backend_is_told_how(tmp_path):
    text = "import os\nos.environ['KERAS_BACKEND'] = 'openvino'\nimport keras\nprint('ran')"
    path = script(tmp_path, text)
    assert run(path, folder=tmp_path).stdout == "ran\n"  # the user has chosen
    done = run(path, folder=tmp_path, chosen="KERAS_BACKEND")
    assert done.returncode == 1
    assert f"sets KERAS_BACKEND to 'openvino', and khub has started on '{BACKEND}'" in done.stderr
    assert "set KHUB_BACKEND=openvino" in done.stderr
