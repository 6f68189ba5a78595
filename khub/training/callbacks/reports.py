"""Callbacks that write down what happens: a table, a server, TensorBoard."""

import csv
import io
import json
import time
import warnings
from pathlib import Path

import numpy as np

from khub.backend import active
from khub.layers import Embedding
from khub.saving import files
from khub.training.callbacks.callback import Declared, Options, to_number


class CSVLogger(Declared):
    """Writes the logs of each epoch as a row of a CSV file.

    append: go on with the file that is there, under its own header
    """

    resumed = ("_end",)  # a resumed training writes over the rows after its backup
    filename: Path
    last: Options(separator=",", append=False)

    def on_train_begin(self, logs=None):
        mode = "r+" if self.append and Path(self.filename).is_file() else "w+"
        self._file = io.StringIO()
        if files.is_writer():
            self._file = open(self.filename, mode, newline="", encoding="utf-8")  # noqa: SIM115
        header = next(csv.reader(self._file, delimiter=self.separator), None)
        self.keys, self._end = header and header[1:], self._file.seek(0, 2)

    def on_epoch_end(self, epoch, logs=None):
        self._file.seek(self._end)
        self._file.truncate()
        rows = csv.writer(self._file, delimiter=self.separator)
        if self.keys is None:
            rare = self.model._compiled.running.rare
            held = {f"val_{key}" for key in logs if rare and not key.startswith("val_")}
            self.keys = sorted({*logs, *held})
            rows.writerow(["epoch", *self.keys])
        rows.writerow([epoch, *(logs.get(key, "NA") for key in self.keys)])
        self._file.flush()
        self._end = self._file.tell()

    def on_train_end(self, logs=None):
        self._file.close()


class RemoteMonitor(Declared):
    """Sends the logs of each epoch to a server by HTTP POST; warns where that fails.

    field: the form's field of the JSON text; send_as_json: the JSON text is the whole body
    """

    where: Options(root="http://localhost:9000", path="/publish/epoch/end/")
    what: Options(field="data", headers=None, send_as_json=False)

    def on_epoch_end(self, epoch, logs=None):
        from urllib import parse, request

        text, kind = json.dumps({"epoch": epoch, **(logs or {})}), {}
        if self.send_as_json:
            kind = {"Content-Type": "application/json"}
        else:
            text = parse.urlencode({self.field: text})
        headers = {**kind, **(self.headers or {})}
        try:
            where = request.Request(self.root + self.path, text.encode(), headers)
            request.urlopen(where, timeout=10).close()
        except OSError as error:
            warnings.warn(f"{self.root}{self.path} took no logs: {error}", stacklevel=2)


class TensorBoard(Declared):
    """Writes events for TensorBoard: losses and metrics, the model as text, histograms of weights.

    histogram_freq: every so many epochs, 0: never; update_freq: "epoch", or every so many batches
    ("batch": 1); write_images: weights as pictures, with the histograms; embeddings_freq: tables of
    Embedding layers for the projector every so many epochs; embeddings_metadata: the file of its
    rows' labels, or layer's name -> file; profile_batch: the number of the batch, or (first, last),
    that the framework's profiler looks at, 0: none
    """

    where: Options(log_dir="logs", histogram_freq=0, write_graph=True, write_images=False)
    speed: Options(write_steps_per_second=False, update_freq="epoch", profile_batch=0)
    embeddings: Options(embeddings_freq=0, embeddings_metadata=None)

    def setup(self):
        given = self.profile_batch
        given = given.split(",") if isinstance(given, str) else given
        given = [given] if isinstance(given, int) else [int(number) for number in given]
        if not 1 <= len(given) <= 2 or not 0 <= given[0] <= given[-1]:
            raise ValueError(
                "TensorBoard: profile_batch must be a number of a batch, or two in order, got "
                f"{self.profile_batch!r}."
            )
        if any(given) and not hasattr(active, "start_profile"):
            raise ValueError("The numpy backend has no profiler: leave profile_batch=0.")
        self._profiled, self._stop_profile = (given[0], given[-1]), None
        self._writers, self._steps, self._marks = {}, 0, {}

    @property
    def summary(self):
        """The module `tensorboard.summary`."""
        try:
            from tensorboard import summary
        except ImportError:
            raise ImportError("TensorBoard needs: pip install khub[tensorboard]") from None
        return summary

    def _write(self, run, step, *summaries):
        """Write into the folder of a run, "train" or "validation"."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if not files.is_writer():
            return
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
        wanted = self.write_steps_per_second and steps
        return {"steps_per_second": steps / seconds} if wanted else {}

    def on_train_begin(self, logs=None):
        _ = self.summary  # or say what to install
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._steps = int(self.model.optimizer.iterations)
        if self.write_graph and self.model.built:
            lines = []
            self.model.summary(print_fn=lambda text, **_: lines.extend(text.splitlines()))
            self._write("train", 0, text_pb("model", "\n".join(f"    {line}" for line in lines)))
        self._speed("epoch"), self._speed("batch")

    def on_train_batch_begin(self, batch, logs=None):
        if batch + 1 == self._profiled[0] and self._stop_profile is None:
            self._stop_profile = active.start_profile(str(self.log_dir))

    def _end_profile(self):
        if self._stop_profile is not None:
            self._stop_profile()
        self._stop_profile, self._profiled = None, (0, 0)

    def on_train_batch_end(self, batch, logs=None):
        if batch + 1 >= self._profiled[1] > 0:
            self._end_profile()
        self._steps += 1
        every = {"batch": 1, "epoch": 0}.get(self.update_freq, self.update_freq)
        if every and self._steps % every == 0:
            self._scalars("train", self._steps, "batch_{}", {**self._speed("batch"), **logs.copy()})

    def on_epoch_end(self, epoch, logs=None):
        rate = {"learning_rate": to_number(self.model.optimizer.learning_rate)}
        logs = {**(logs or {}), **rate, **self._speed("epoch")}
        held = {k[4:]: logs.pop(k) for k in list(logs) if k.startswith("val_")}
        self._scalars("train", epoch, "epoch_{}", logs)
        self._scalars("validation", epoch, "epoch_{}", held) if held else None
        if self.histogram_freq and epoch % self.histogram_freq == 0:
            from tensorboard.plugins.histogram.summary_v2 import histogram_pb

            weights = self.model.named_variables().items()
            values = [(path, v.numpy().astype("float32")) for path, v in weights]
            self._write("train", epoch, *(histogram_pb(f"{p}/histogram", v) for p, v in values))
            if self.write_images:
                self._write("train", epoch, *(_pictures(f"{p}/image", v) for p, v in values))
        if self.embeddings_freq and epoch % self.embeddings_freq == 0 and files.is_writer():
            self._project()
        self._flush()

    def _flush(self):
        for writer in self._writers.values():
            writer.flush()

    def _project(self):
        """Write the tables of Embedding layers, and the file by which the projector finds them."""
        tables = [x for x in self.model.named_layers().values() if isinstance(x, Embedding)]
        known, parts = self.embeddings_metadata or {}, []
        for layer in tables:
            labels = known.get(layer.name) if isinstance(known, dict) else known
            lines = [f'tensor_name: "{layer.name}"', f'tensor_path: "{layer.name}.tsv"']
            lines += [f'metadata_path: "{labels}"'] if labels else []
            parts.append("".join(f"  {line}\n" for line in lines))
            np.savetxt(Path(self.log_dir) / f"{layer.name}.tsv", layer.embeddings, delimiter="\t")
        text = "".join(f"embeddings {{\n{part}}}\n" for part in parts)
        (Path(self.log_dir) / "projector_config.pbtxt").write_text(text)

    def on_test_end(self, logs=None):
        step = int(self.model.optimizer.iterations)
        self._scalars("validation", step, "evaluation_{}_vs_iterations", logs)
        self._flush()

    def on_train_end(self, logs=None):
        self._end_profile()
        while self._writers:
            self._writers.popitem()[1].close()


def _pictures(tag, x):
    """Return the summary of a weight as gray pictures, lightest where it is largest."""
    from PIL import Image
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.plugins.image import metadata

    x = x.reshape(x.shape[0] if x.ndim else 1, -1)
    x = x.T if x.shape[0] > x.shape[1] else x
    levels = (255 * (x - x.min()) / max(np.ptp(x), 1e-12)).astype("uint8")
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "png")
    strings = [str(n).encode() for n in levels.shape[::-1]] + [file.getvalue()]
    shape = {"dim": [{"size": len(strings)}]}
    tensor = TensorProto(dtype="DT_STRING", string_val=strings, tensor_shape=shape)
    about = metadata.create_summary_metadata(display_name=None, description=None)
    return Summary(value=[Summary.Value(tag=tag, tensor=tensor, metadata=about)])
