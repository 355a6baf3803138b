"""Building a bundle: data set, network, Jacobians, sketch, Grams, index, manifest; resumable, the same bytes each time.

Work happens in OUT.partial (`natscope.precompute.bundles.work`). Arrays are filled shard by shard and a journal records
each shard only after it is on disk, so a build that was killed resumes where it was. The finished folder is renamed to
OUT in one step.
"""

import shutil
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import nn

from natscope.core.backdoor import Backdoor
from natscope.core.bundle.file_checks import bounded
from natscope.core.bundle.format import MANIFEST, WEIGHTS, Bundle, write_atomically, write_manifest
from natscope.core.device import device
from natscope.core.errors import BuildError, BundleError, DataError, out_of_memory
from natscope.core.features import FeatureMap, composition_of, kernel_of
from natscope.core.files import size
from natscope.core.index.spec import AUTO, MILVUS
from natscope.core.locks import locked
from natscope.core.methods import METHODS
from natscope.core.methods.artifacts import Size
from natscope.core.ood import distances, usual_distances
from natscope.core.pool import LARGEST_GRAM
from natscope.core.progress import Progress, silent
from natscope.core.rows import Rows
from natscope.precompute.bundles.artifacts import Preparation
from natscope.precompute.bundles.collection import check_server, filled, is_filled
from natscope.precompute.bundles.compare import differences, that_matter
from natscope.precompute.bundles.passes import Class, Gram, Jacobians, Predictions, Tangent, Trained
from natscope.precompute.bundles.recorded import check_recordable, manifest_of
from natscope.precompute.bundles.reuse import checked, reusable
from natscope.precompute.bundles.spec import (
    BuildSpec,
    artifact_bytes,
    estimated_bytes,
    left_out,
    size_of,
    versions,
    wanted,
)
from natscope.precompute.bundles.store import PROBED, Store
from natscope.precompute.bundles.work import CHECKPOINT, Work, as_begun
from natscope.precompute.data.datasets import Dataset, first_of_each, of_classes, scaled
from natscope.precompute.data.poison import fooled, poison
from natscope.precompute.engines.local import Engine, LocalEngine, threads_of
from natscope.precompute.training.models import ModelSpec, build_model, fitted, foreign, network_of
from natscope.precompute.training.train import accuracy, apart, beginning, train
from natscope.precompute.training.trusted import trust
from natscope.precompute.training.validate import check_suitable, check_trains
from natscope.precompute.training.weights import check_finite

_ADDING = ".adding"  # ends the name of the folder of work on methods that are added
_SAMPLED = 2000  # test images whose distance to the training images is measured
SAMPLED_KERNEL = 256  # training images whose Jacobians show what the kernel is made of


def build(
    spec: BuildSpec,
    out: Path,
    progress: Progress = silent,
    *,
    reuse: Path | None = None,
    engine: Engine | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Bundle:
    """Build a bundle, resume an interrupted build, or open the bundle that is there.

    The code of a user's own network is trusted from then on when the bundle is opened.

    Args:
        spec: the settings.
        out: the folder to publish.
        progress: called with the stage's name, steps done and steps in all.
        reuse: a bundle of the same network, whose Jacobians are taken where whole batches have the same labels.
        engine: where the passes over the examples run; in this process when None. The bytes are the same everywhere,
            with as many threads a task.
        tell: called with a sentence if an unfinished build cannot be resumed and is begun again.

    Raises:
        BuildError: if settings contradict each other, nothing can be reused, weights are not finite, the disk is too
            full, or an engine gave up.
        BundleError: if `out` holds something else, or another process is building it.
        DataError: if the data set cannot be loaded.

    Examples:
        >>> spec = natscope.BuildSpec(per_class=30, sketch=natscope.SketchSpec(dim=64), methods=())
        >>> len(natscope.build(spec, Path("bundles/small")).array("train_labels"))
        300
    """
    for name in (spec.model.architecture, *spec.own_code):
        trust(name)
    spec = spec.here(progress)
    settings = spec.settings()
    if reuse is not None:
        checked(reuse, spec)
    if out.exists() and not _missing(spec, bundle := existing(out, spec)) and is_filled(bundle):
        return bundle
    unfinished = out.with_name(out.name + ".partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with locked(out.with_name(out.name + ".lock")):
            if out.exists():
                return filled(_add(spec, existing(out, spec), progress, engine or LocalEngine(), tell), progress)
            with as_begun(unfinished, settings, threads_of(engine)):
                work = Work(unfinished, settings, progress=progress, tell=tell)
                if not work.published:
                    builder = _Builder(spec, work, progress, reuse, engine or LocalEngine())
                    with work.resuming(), foreign(spec.model):
                        builder.run()
                work.publish(out)
            return filled(Bundle(out), progress)
    except filelock.Timeout as error:
        raise BundleError(f"Another natscope is building {out} right now; wait for it, or stop it first.") from error
    except OSError as error:
        if out_of_memory(error):
            raise
        raise BuildError(f"The bundle {out} cannot be written: {error.strerror or error}.") from error


def existing(out: Path, spec: BuildSpec) -> Bundle:
    """Open the bundle that is already at `out`, or raise BundleError if its settings differ.

    The title may differ. An index that was left to natscope may be of any kind: bundles built by earlier versions have
    flat ones.
    """
    if not (out / MANIFEST).is_file():
        raise BundleError(f"{out} is in the way and is not a bundle; choose another folder.")
    bundle = Bundle(out)
    network = bundle.manifest.model.get("architecture")  # a forged manifest may contradict its settings
    known = bundle.manifest.results["settings"]
    settings = spec.settings(like=known)
    if settings.get("index", {}).get("kind") == AUTO:
        known, settings = ({k: v for k, v in s.items() if k != "index"} for s in (known, settings))
    known, settings = that_matter(known), that_matter(settings)
    if known != settings or network != settings["model"]["architecture"]:
        first = next(differences(known, settings), "its network is another than its settings say")
        raise BundleError(
            f"{out} holds a bundle with other settings: {first}; choose another folder, or delete that one first."
        )
    return bundle


def prepared(spec: BuildSpec, data: Dataset) -> tuple[Dataset, Backdoor | None]:
    """Return the data that a bundle holds: classes chosen, images limited, scaled and poisoned as the settings say.

    Raises:
        BuildError: if such data need a network that is not given.
        DataError: if a setting makes no sense for this data set.
    """
    if spec.classes is not None:
        data = of_classes(data, spec.classes)
    if spec.per_class is not None:
        data = first_of_each(data, spec.per_class)
    if spec.scaling is not None:
        data = scaled(data, *spec.scaling)
    if data.foreign and (spec.weights is None or ":" not in spec.model.architecture):
        raise BuildError("Inputs that are no images need a trained network of your own: name it and its weights.")
    return (data, None) if spec.poison is None else poison(data, spec.poison)


def check_room(needed: int, free: int, folder: Path) -> None:
    """Compare the bytes that a bundle still needs with those that are free in a folder; raises BuildError."""
    if free < needed:
        raise BuildError(
            f"The bundle needs about {size(needed)} and only {size(free)} are free at {folder}; make room or choose "
            "another folder with --out."
        )


def layout_of(spec: BuildSpec, features: FeatureMap, example: torch.Tensor) -> tuple[tuple[int, int], ...] | None:
    """Return the layers of a kernel of Linear weights alone, None for others; example is one input.

    Raises:
        BuildError: if the sketch cannot be made for this network.
    """
    layout = features.layout(example)
    if spec.sketch.kind == "exact" and (layout is None or spec.outputs == "all"):
        raise BuildError("The exact kernel needs a network of Linear weights alone, and --outputs own.")
    if spec.sketch.kind == "exact" and spec.index.kind not in (AUTO, "flat"):
        raise BuildError("The exact kernel has no feature vectors to index; choose another --sketch.")
    return layout


def _missing(spec: BuildSpec, bundle: Bundle) -> tuple[str, ...]:
    """Return the requested methods whose artifacts the bundle does not hold.

    A method that was left out because it cannot be added is tried again only if it is requested by name.
    """
    there = {*bundle.manifest.methods, *(bundle.manifest.results.get("left_out", {}) if spec.methods is None else ())}
    methods = wanted(spec.methods, size_of(len(bundle.array("train_labels")), bundle.sketch_spec))
    return tuple(name for name in methods if METHODS[name].files and name not in there)


def _add(spec: BuildSpec, bundle: Bundle, progress: Progress, engine: Engine, tell: Callable[[str], None]) -> Bundle:
    """Add what is missing for the requested methods; nothing else is computed or written again.

    New files lie in the bundle before the manifest names them, so a bundle is whole whenever this is interrupted.
    """
    methods = _missing(spec, bundle)
    if not methods:
        return bundle
    folder, identity = bundle.path.with_name(bundle.path.name + _ADDING), {"bundle": bundle.identity}
    with as_begun(folder, identity, threads_of(engine)), closing(engine):
        work = Work(folder, identity, folder=bundle.path, progress=progress, tell=tell)
        engine.begin(bundle.path)
        size = size_of(len(bundle.array("train_labels")), bundle.sketch_spec)
        _make_sure_of_room(work.path, artifact_bytes(methods, size))
        model = network_of(bundle)
        bundle.load_into(model)
        inputs, labels = bundle.inputs("train"), np.asarray(bundle.array("train_labels"))
        store = Store(bundle.path, work, progress, engine)
        network = ModelSpec.from_dict(bundle.manifest.model)
        trained = Trained(bundle.path.absolute(), network, bundle.modality.name, bundle.manifest.dataset)
        features = spec.feature_map(model, bundle.modality)
        preparation = Preparation(store, trained, features, inputs, labels, ekfac=spec.ekfac)
        with closing(trained), work.resuming(), foreign(spec.model):
            added, missing = preparation.add(methods, requested=spec.methods is not None)
        now, then = versions(), bundle.manifest.versions
        other = {key: now.get(key, "cpu") for key in ("threads", "device") if now.get(key) != then.get(key)}
        added = {name: settings | other for name, settings in added.items()}
        files = store.checked_records()
        work.check(files.values())
        manifest = replace(
            bundle.manifest,
            methods=bundle.manifest.methods | added,
            results=bundle.manifest.results
            | {"kernel": bundle.manifest.results["kernel"] | preparation.kernel}
            | _left_out(missing, bundle.manifest.results),
            files=bundle.manifest.files | files,
        )
        with work.resuming():
            write_manifest(bundle.path, manifest)
    shutil.rmtree(work.path)
    return Bundle(bundle.path)


class _Builder:
    """One run of a build, stage by stage; each stage asks the journal what is left to do."""

    def __init__(self, spec: BuildSpec, work: Work, progress: Progress, reuse: Path | None, engine: Engine) -> None:
        self.spec, self.work, self.progress, self.engine = spec, work, progress, engine
        data, self.skipped = spec.load(progress)
        self.data, self.backdoor = prepared(spec, data)
        self.model = fitted(spec.model, self.data.train, len(self.data.classes))
        self.store = Store(work.path, work, progress, engine)
        self.reuse = None if reuse is None else reusable(reuse, spec, self.data)

    def run(self) -> None:
        spec, data = self.spec, self.data
        model = build_model(self.model, seed=spec.training.seed)
        spec.load_into(model, self.model)  # a layer of initial zeros hides what is wrong with others
        images = data.train.inputs
        suitable = check_suitable(model, images, len(data.classes), self.model)
        known = {"by_torch_func": suitable.by_torch_func, "remarks": suitable.remarks, "data_remarks": data.remarks}
        found: dict[str, Any] = {name: told for name, told in known.items() if told}
        if spec.weights is None and ":" in self.model.architecture:
            make = partial(build_model, self.model, seed=spec.training.seed)
            check_trains(make(), images[:3], len(images) % spec.training.batch_size, self.model)
            found |= beginning(make, data.train.inputs, torch.tensor(data.train_labels), spec.training)
        with foreign(self.model):
            features = spec.feature_map(model.to(device()), data.modality)
            features.outputs(images[:1])  # it may make tensors on the processor
        layout = layout_of(spec, features, images[:1])
        check_server(spec.index)
        size = size_of(len(images), spec.sketch, suitable)
        methods_wanted = wanted(spec.methods, size)  # raises now for what cannot be added
        _make_sure_of_room(self.work.path, estimated_bytes(spec, data, layout, suitable))
        check_recordable(spec, data, self.backdoor, self.model, features, self.skipped)
        self._keep_inputs()
        self._train(model)
        for name, content in data.train.files().items():
            self.store.file(data.modality.files[name], partial(bytes, content), name=name)
        for split in ("train", "test"):
            for name, array in getattr(data, split).arrays().items():
                if name != data.modality.stored:
                    self.store.small(f"{split}_{name}", np.asarray(array))
            self.store.small(f"{split}_labels", getattr(data, f"{split}_labels"))
            sources = "\n".join(getattr(data, f"{split}_sources")).encode()
            self.store.small(f"{split}_sources", np.frombuffer(sources, np.uint8))
        network, folder = replace(self.model, start=None), self.work.path.absolute()
        trained = Trained(folder, network, data.modality.name, self.data.train.about())
        self.engine.begin(self.work.path)
        with closing(self.engine), closing(trained):
            self._passes(trained, features, layout, found, methods_wanted, size)

    def _passes(
        self,
        trained: Trained,
        features: FeatureMap,
        layout: tuple[tuple[int, int], ...] | None,
        found: dict[str, Any],
        methods_wanted: tuple[str, ...],
        size: Size,
    ) -> None:
        """Go over the examples, by tasks that open what is on disk by now."""
        spec, data, images = self.spec, self.data, self.data.train.inputs
        results = self._outputs(trained, features) | found
        some = features.features(images[:PROBED], data.train_labels[:PROBED])  # which measures the batches, too
        shape, halve, tangent = (len(images), some.shape[1]), spec.sketch.kind != "exact", Tangent.of(features)
        task = Jacobians("features", trained, tangent, reuse=self.reuse)
        own = self.store.features(task, shape, "Jacobians of the training examples", halve=halve)
        kernel = kernel_of(spec.sketch, layout)
        results |= {} if self.reuse is None else {"reused": self.reuse.to_dict(own, features.batch_size)}
        results["kernel"] = {
            "mean": float(np.mean(kernel.diagonal(own))),
            **composition_of(features, images[:SAMPLED_KERNEL], data.train_labels[:SAMPLED_KERNEL]),
        }
        members = np.bincount(data.train_labels, minlength=len(data.classes))
        kinds = {
            label: ("gram",) * (count <= LARGEST_GRAM)
            + ("index",) * (kernel.explicit and spec.index.kind_of(count) != MILVUS)
            for label, count in enumerate(members.tolist())
            if count
        }
        self.store.classes(Class(trained.folder, kernel, spec.index), kinds, "Grams and indexes, class by class")
        for label, title in enumerate(data.classes if spec.outputs == "all" else ()):
            name, gram = f"features_all_{label}", f"train_gram_{label}"
            self.store.features(replace(task, name=name, target=label), shape, f"Jacobians as {title}", halve=halve)
            self.store.small(gram, partial(self.store.gram, Gram(trained.folder, name), shape[0]))
        about = self.store, trained, features, images, data.train_labels
        preparation = Preparation(*about, ekfac=spec.ekfac, reuse=self.reuse)
        methods, missing = preparation.add(methods_wanted, requested=spec.methods is not None)
        results["kernel"] |= preparation.kernel
        self._finish(features, layout, results | _left_out(left_out(spec.methods, size) | missing), methods)

    def _keep_inputs(self) -> None:
        """Write what the network takes, where natscope cannot make it of the examples, and read it from there."""
        for split in ("train", "test") if self.data.foreign else ():
            examples, name = getattr(self.data, split), str(self.data.modality.stored)
            arrays = examples.arrays()
            arrays[name] = self._kept(f"{split}_{name}", arrays[name])
            again = self.data.modality.read(arrays.get, examples.files().__getitem__, examples.about())
            self.data = replace(self.data, **{split: again})

    def _kept(self, name: str, rows: Rows) -> np.ndarray:
        def shard(part: slice) -> np.ndarray:
            found = np.asarray(rows[part])
            if found.shape[1:] != rows.shape[1:] or found.dtype != np.float32 or not bounded(found):
                raise DataError(f"{self.data.name} has inputs that are not finite float32 numbers of one shape.")
            return found

        return self.store.large(name, rows.shape, np.dtype("float32"), shard, "Inputs")

    def _train(self, model: nn.Module) -> None:
        path = self.work.path / WEIGHTS
        if self.work.finished("weights"):
            model.load_state_dict(safetensors.torch.load_file(path))
        else:
            if self.spec.weights is None:
                labels, report = torch.from_numpy(np.array(self.data.train_labels)), partial(self.progress, "Training")
                kept = self.work.path / CHECKPOINT
                inputs, recipe = self.data.train.inputs, self.spec.training
                train(model, inputs, labels, recipe, checkpoint=kept, progress=report)
            else:
                self.spec.load_into(model, self.model)
            write_atomically(path, safetensors.torch.save(apart(model.state_dict())))
            self.work.mark("weights", file=path)
        check_finite(model, "train with a smaller learning rate")
        model.eval()

    def _outputs(self, trained: Trained, features: FeatureMap) -> dict[str, Any]:
        data, sample = self.data, self.data.test[:_SAMPLED]
        some, filled = features.outputs(sample.inputs), dict[str, np.ndarray]()
        for split, names in (("train", ("train_logits", "penultimate")), ("test", ("test_logits",))):
            task, count = Predictions(trained, Tangent.of(features), split, names), len(getattr(data, split))
            widths = (some.logits.shape[1:], some.penultimate.shape[1:])
            types = (some.logits.dtype, some.penultimate.dtype)
            forms = {name: ((count, *w), t) for name, w, t in zip(names, widths, types, strict=False)}
            filled |= self.store.fill(forms, task, "Predictions")
        found = distances(sample, some.penultimate, train=data.train, train_penultimate=filled["penultimate"])
        return {
            "train_accuracy": accuracy(filled["train_logits"], data.train_labels),
            "test_accuracy": accuracy(filled["test_logits"], data.test_labels),
            "usual_distances": usual_distances(found),
        } | self._attack(features)

    def _attack(self, features: FeatureMap) -> dict[str, Any]:
        """Measure on all test images, stamped, how often the backdoor works."""
        if self.backdoor is None:
            return {}

        data = self.data
        self.store.small("test_fooled", partial(fooled, features, self.backdoor, data.test, data.test_labels))
        return {"attack_success": float(np.load(self.work.path / "test_fooled.npy", allow_pickle=False).mean())}

    def _finish(
        self,
        features: FeatureMap,
        layout: tuple[tuple[int, int], ...] | None,
        results: dict[str, Any],
        methods: dict[str, Any],
    ) -> None:
        self.store.record("weights", self.work.path / WEIGHTS)
        settled = manifest_of(self.spec, self.data, self.backdoor, self.model, features, results, self.skipped)
        files = self.store.checked_records()
        write_manifest(self.work.path, replace(settled, layout=layout, methods=methods, files=files))


def _left_out(missing: dict[str, str], known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the results' entry on methods that cannot be added, merged with the earlier one."""
    found = (known or {}).get("left_out", {}) | missing
    return {"left_out": found} if found else {}


def _make_sure_of_room(folder: Path, needed: int) -> None:
    present = sum(f.stat().st_size for f in folder.iterdir() if f.is_file())
    check_room(needed - present, shutil.disk_usage(folder).free, folder.parent)
