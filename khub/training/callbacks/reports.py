"""Callbacks that write down what happens: a table, a server, TensorBoard."""

import csv
import json
import time
import warnings
from pathlib import Path

import numpy as np

from khub.training.callbacks.callback import Callback, to_number


class CSVLogger(Callback):
    """Writes the logs of each epoch as a row of a CSV file.

    append: go on with the file that is there, under its own header
    """

    resumed = ("_end",)  # a resumed training writes over the rows after its backup

    def __init__(self, filename, separator=",", append=False):
        super().__init__()
        self.filename, self.separator, self.append = Path(filename), separator, append
        self.keys, self._file, self._end = None, None, 0

    def on_train_begin(self, logs=None):
        going_on = self.append and self.filename.is_file()
        mode = "r+" if going_on else "w+"
        self._file = self.filename.open(mode, newline="", encoding="utf-8")
        header = next(csv.reader(self._file, delimiter=self.separator), None)
        self.keys = header[1:] if header else None
        self._end = self._file.seek(0, 2)

    def on_epoch_end(self, epoch, logs=None):
        self._file.seek(self._end)
        self._file.truncate()
        rows = csv.writer(self._file, delimiter=self.separator)
        if self.keys is None:
            self.keys = sorted(logs)
            if (self.params or {}).get("validation_freq", 1) > 1:
                self.keys = sorted({*logs, *(f"val_{k}" for k in logs if k[:4] != "val_")})
            rows.writerow(["epoch", *self.keys])
        rows.writerow([epoch, *(logs.get(key, "NA") for key in self.keys)])
        self._file.flush()
        self._end = self._file.tell()

    def on_train_end(self, logs=None):
        self._file.close()


class RemoteMonitor(Callback):
    """Sends the logs of each epoch to a server by HTTP POST; warns where that fails.

    field: the form's field of the JSON text; send_as_json: the JSON text is the whole body
    """

    def __init__(
        self,
        root="http://localhost:9000",
        path="/publish/epoch/end/",
        field="data",
        headers=None,
        send_as_json=False,
    ):
        super().__init__()
        self.root, self.path, self.field = root, path, field
        self.headers, self.send_as_json = headers or {}, send_as_json

    def on_epoch_end(self, epoch, logs=None):
        from urllib import parse, request

        text = json.dumps({"epoch": epoch, **(logs or {})})
        kind = {"Content-Type": "application/json"} if self.send_as_json else {}
        body = text if self.send_as_json else parse.urlencode({self.field: text})
        sent = request.Request(self.root + self.path, body.encode(), {**kind, **self.headers})
        try:
            request.urlopen(sent, timeout=10).close()
        except OSError as error:
            warnings.warn(f"{self.root + self.path} took no logs: {error}", stacklevel=2)


class TensorBoard(Callback):
    """Writes events for TensorBoard: scalars, the model as text, histograms of weights.

    histogram_freq, embeddings_freq: every so many epochs, 0: never
    update_freq: "epoch", or every so many batches ("batch": 1)
    embeddings_metadata: file of labels of all embedding layers, or name of a layer -> file
    """

    def __init__(
        self,
        log_dir="logs",
        histogram_freq=0,
        write_graph=True,
        write_images=False,
        write_steps_per_second=False,
        update_freq="epoch",
        profile_batch=0,
        embeddings_freq=0,
        embeddings_metadata=None,
    ):
        super().__init__()
        if profile_batch:
            raise NotImplementedError(
                "TensorBoard(profile_batch=...) is not here: run fit() in torch.profiler.profile, "
                "jax.profiler.trace or tf.profiler.experimental.Profile; it shows those traces."
            )
        self.log_dir, self.histogram_freq, self.write_graph = log_dir, histogram_freq, write_graph
        self.write_images, self.write_steps_per_second = write_images, write_steps_per_second
        self.update_freq = {"batch": 1, "epoch": None}.get(update_freq, update_freq)
        self.embeddings_freq, self.embeddings_metadata = embeddings_freq, embeddings_metadata
        self._writers, self._steps, self._marks = {}, 0, {}

    def set_model(self, model):
        super().set_model(model)
        try:
            import tensorboard  # noqa: F401
        except ImportError:
            raise ImportError("TensorBoard needs: pip install khub[tensorboard]") from None

    def _write(self, run, step, *summaries):
        """Write into the folder of a run, "train" or "validation"."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if run not in self._writers:
            self._writers[run] = EventFileWriter(str(Path(self.log_dir) / run))
        for summary in summaries:
            self._writers[run].add_event(Event(step=step, summary=summary, wall_time=time.time()))

    def _scalars(self, run, step, form, logs):
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb

        self._write(run, step, *(scalar_pb(form.format(k), v) for k, v in logs.items()))

    def _speed(self, of):
        """Return training steps a second since the last call for the same."""
        now = time.perf_counter(), self._steps
        seconds, steps = (a - b for a, b in zip(now, self._marks.get(of, now), strict=True))
        self._marks[of] = now
        return (
            {"steps_per_second": steps / seconds} if self.write_steps_per_second and steps else {}
        )

    def on_train_begin(self, logs=None):
        from tensorboard.plugins.text.summary_v2 import text_pb

        from khub.models.summary import summary_text

        self._steps = int(self.model.optimizer.iterations)
        if self.write_graph and self.model.built:
            lines = summary_text(self.model).splitlines()
            self._write("train", 0, text_pb("model", "\n".join(f"    {line}" for line in lines)))
        self._speed("epoch"), self._speed("batch")

    def on_train_batch_end(self, batch, logs=None):
        self._steps += 1
        if self.update_freq is not None and self._steps % self.update_freq == 0:
            self._scalars("train", self._steps, "batch_{}", {**self._speed("batch"), **logs.copy()})

    def on_epoch_end(self, epoch, logs=None):
        rate = {"learning_rate": float(to_number(self.model.optimizer.learning_rate))}
        logs = {**(logs or {}), **rate, **self._speed("epoch")}
        held = {k[4:]: logs.pop(k) for k in list(logs) if k.startswith("val_")}
        self._scalars("train", epoch, "epoch_{}", logs)
        self._scalars("validation", epoch, "epoch_{}", held) if held else None
        if self.histogram_freq and epoch % self.histogram_freq == 0:
            self._write("train", epoch, *self._weights())
        if self.embeddings_freq and epoch % self.embeddings_freq == 0:
            self._write_embeddings()
        for writer in self._writers.values():
            writer.flush()

    def on_test_end(self, logs=None):
        step = int(self.model.optimizer.iterations)
        self._scalars("validation", step, "evaluation_{}_vs_iterations", logs)
        self._writers["validation"].flush()

    def on_train_end(self, logs=None):
        while self._writers:
            self._writers.popitem()[1].close()

    def _weights(self):
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.histogram.summary_v2 import histogram_pb

        for path, variable in self.model.named_variables().items():
            values = variable.numpy().astype("float32")
            yield histogram_pb(f"{path}/histogram", values)
            if self.write_images:
                image = Summary.Image(**_image(values))
                yield Summary(value=[Summary.Value(tag=f"{path}/image", image=image)])

    def _write_embeddings(self):
        """Write each embedding layer's table, and say where it is in the projector's words."""
        from khub.layers import Embedding

        text, labels = [], self.embeddings_metadata
        for path, layer in self.model.named_layers().items():
            if isinstance(layer, Embedding):
                np.savetxt(Path(self.log_dir) / f"{path}.tsv", layer.embeddings, delimiter="\t")
                file = labels.get(layer.name) if isinstance(labels, dict) else labels
                own = {"tensor_name": path, "tensor_path": f"{path}.tsv", "metadata_path": file}
                lines = (f"{key}: {json.dumps(str(v))}" for key, v in own.items() if v is not None)
                text.append("embeddings {" + " ".join(lines) + "}\n")
        (Path(self.log_dir) / "projector_config.pbtxt").write_text("".join(text))


def _image(values):
    """Return a table of numbers as the fields of a grey image: the lowest black."""
    from io import BytesIO

    from PIL import Image

    rows = np.atleast_2d(values.reshape(-1, values.shape[-1]) if values.ndim > 2 else values)
    grey = np.uint8(255 * (rows - rows.min()) / max(np.ptp(rows), 1e-12))
    Image.fromarray(grey).save(file := BytesIO(), "png")
    height, width = grey.shape
    png = file.getvalue()
    return {"height": height, "width": width, "colorspace": 1, "encoded_image_string": png}
