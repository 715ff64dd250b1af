"""The network of an earlier bundle, ready to run on the test images of this build."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcompile.backends import engine
from kdcompile.backends.candidate_runner import Runner
from kdcompile.backends.onnxruntime_ import open_session
from kdcompile.backends.parity_inputs import source_of
from kdcompile.bundle.manifest import NAME, Bundle
from kdcompile.bundle.signature import open_bundle
from kdcompile.bundle.trust import Trust
from kdcompile.config.spec import Spec
from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256
from kdcompile.data.preprocess import Preprocess
from kdcompile.data.splits import load_splits, photos_digest
from kdcompile.gates.context import Earlier
from kdcompile.gates.deployed import Deployed
from kdcompile.tasks.task import Task, task_of

PREVIOUS = "previous"  # its name among the networks that run
OPTION = "--baseline BUNDLE, or [gates] previous.bundle"


@dataclass(frozen=True)
class EarlierNetwork:
    """An earlier bundle that may be judged against: of this task and these test photos."""

    bundle: Bundle
    preprocess: Preprocess

    def runner(
        self, board: Deployed | None, threads: int, as_written: bool
    ) -> tuple[Runner, Earlier]:
        """The network to call, and what a report says of it.

        Its engine where a board is open and takes it, else here the ONNX file that it ships or that
        its engine was built from; the report says which, and why.

        Args:
            board: where the student's engine runs; None where its ONNX file does.
            threads: of ONNX Runtime.
            as_written: as `open_session` takes it.

        Raises:
            KDError: its ONNX file does not load; `engine-unknown`, its engine's is not there.
        """
        bundle, why = self.bundle, ""
        if board is not None and bundle.engine is not None:
            try:
                precision = engine.take(board.place, bundle.engine, PREVIOUS)
            except KDError as error:
                if not error.code.startswith("engine-"):
                    raise
                why = f"; its engine does not load at {board.board.label}: {error.message}"
            else:
                about = self._about(precision, f"its engine at {board.board.label}")
                return engine.runner(board.place, board.board, PREVIOUS), about
        precision, model = str(bundle.manifest["precision"]), bundle.model
        if bundle.engine is not None:
            precision, model = source_of(bundle.engine, bundle.folder, bundle.manifest["files"])
        session = open_session(model, threads, as_written=as_written)
        ran = f"its ONNX file by {session.name} {session.version} on the host{why}"
        return session, self._about(precision, ran)

    def _about(self, precision: str, ran: str) -> Earlier:
        bundle = self.bundle
        title, sha256 = f"{bundle.name} for {bundle.target}", file_sha256(bundle.folder / NAME)
        return Earlier(title, sha256, precision, ran)


def earlier_folder(spec: Spec) -> Path | None:
    """The earlier bundle that a spec names, or None."""
    asked = spec.gates.previous
    return None if asked is None or asked.bundle is None else (spec.folder / asked.bundle).resolve()


def refuse_early(spec: Spec, trust: Trust | None = None) -> None:
    """Raise what `open_earlier` would at the end of a build, before it begins.

    Args:
        spec: of the build.
        trust: what the caller demands of the bundle.

    Raises:
        KDError: as `open_earlier`; the data cannot be read; `trust-idle`, there is no such bundle
            to demand something of.
    """
    folder = earlier_folder(spec)
    if folder is None and trust is not None:
        raise KDError(
            "trust-idle",
            "a key or an expectation is given, and no earlier bundle to hold against it",
            where="--trusted, --expect",
            fix=f"name the bundle with {OPTION}; or leave them out",
        )
    if folder is not None:
        splits = load_splits(spec.data, spec.folder)
        task = task_of(spec)
        open_earlier(folder, task, splits.classes, photos_digest(splits.test), trust)


def open_earlier(
    folder: Path,
    task: Task,
    classes: Sequence[str] | None,
    photos_sha256: str,
    trust: Trust | None = None,
) -> EarlierNetwork:
    """The network of a bundle, where a comparison with it means something.

    Args:
        folder: of the earlier bundle; every file is checked against its manifest.
        task: of this build.
        classes: the names that the data has for them.
        photos_sha256: the hash of this build's test images and their annotations.
        trust: what the caller demands of the bundle; by default what the environment does.

    Raises:
        KDError: those of `open_bundle`; `baseline-task` and
            `baseline-classes`, it predicts something else; `baseline-test-set`, it was judged on
            other test photos.
    """
    bundle = open_bundle(folder, trust)
    kind, names = bundle.manifest["task"], bundle.manifest.get("classes")
    if kind != task.like:
        raise _other("task", f"{folder.name} is of {kind}, this build of {task.like}", bundle)
    if names != (None if classes is None else list(classes)):
        what = f"{folder.name} has the classes {names}, this build {list(classes or ())}"
        raise _other("classes", what, bundle)
    _refuse_other_photos(bundle, photos_sha256)
    return EarlierNetwork(bundle, Preprocess.from_json(bundle.preprocess))


def _other(what: str, message: str, bundle: Bundle) -> KDError:
    return KDError(
        f"baseline-{what}",
        message,
        where=str(bundle.folder),
        fix=f"name a bundle of the same {what} with {OPTION}",
    )


def _refuse_other_photos(bundle: Bundle, photos_sha256: str) -> None:
    """A network may have been trained on what another build tests on: then nothing is proven."""
    data: dict[str, Any] = bundle.report().details.get("data") or {}
    known = data.get("test") or {}
    sha256 = known.get("photos_sha256")
    if sha256 == photos_sha256:
        return
    of = "does not say on which test images it was evaluated"
    if sha256 is not None:
        of = f"was evaluated on {known['images']} test images with the hash {sha256[:16]}"
    raise KDError(
        "baseline-test-set",
        f"{bundle.folder.name} {of}; this build's test split has the hash {photos_sha256[:16]}",
        where=str(bundle.folder),
        fix="give [data] the test split that the earlier bundle was evaluated on, or build that "
        "one again with this test split",
    )
