"""The command line. Each command imports what it needs, so that `burnish --help` and `burnish plan` start at once.

Exit codes: 0 done, 1 objective not met, 2 bad input, 3 a fault of ours, 130 interrupted. BURNISH_DEBUG=1 shows the traceback.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from burnish.errors import BuildError, BurnishError, CalibrationWarning, JobError, ObjectiveNotMet, ServeError

if TYPE_CHECKING:
    from burnish.graph.node import Graph
    from burnish.job import Job

app = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="What `optimize` or `compile` wrote.")]


class Interrupted(BurnishError):
    """Ctrl-C during a search."""

    exit_code = 130


@app.callback(epilog="Example: burnish optimize job.toml --out out/")
def commands() -> None:
    """Make a trained ranker cheap and fast to serve, and prove that it lost no accuracy."""


@app.command(epilog="Example: burnish optimize job.toml --out out/")
def optimize(
    job: Annotated[Path, typer.Argument(metavar="JOB.toml", help="Model, rows, objective: docs/job_file.md.")],
    out: Annotated[Path, typer.Option(help="Gets artifact/, report.html, report.json, trials.jsonl.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run was stopped.")] = False,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="For each kind of machines of a Ray cluster; auto: the one here.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find the cheapest deployment that meets the objective."""
    if ray is not None:
        _on_several(job, out, ray, as_json)
        return
    from burnish import terminal
    from burnish.search.loop import optimize as search
    from burnish.search.output import read_report

    with terminal.progress() as show:
        try:
            result = search(job, out, resume=resume, progress=show)
        except ObjectiveNotMet:
            content = read_report(out)
            _print_json(content) if as_json else terminal.trials(content)
            raise
        except KeyboardInterrupt:
            again = f"burnish optimize {job} --out {out} --resume"
            raise Interrupted(f"stopped; what was measured is kept. Go on with: {again}") from None
    report = read_report(out)
    if as_json:
        _print_json(report)
        return
    if result.reused:
        print(f"Nothing changed since {report['created']}: this is that run's decision. Delete {out} to measure again.\n")
    terminal.trials(report)
    terminal.plan(report)
    print(f"Report: {out / 'report.html'}")


def _on_several(job: Path, out: Path, address: str, as_json: bool) -> None:
    from burnish import terminal
    from burnish.search.distributed import optimize as search

    with terminal.progress() as show:
        found = search(job, out, address, progress=show.on)
    if as_json:
        _print_json({each.host: each.report for each in found})
        return
    for each in found:
        print(f"{each.host}: {' '.join(each.report['decision']['sentences'])}\nReport: {each.out / 'report.html'}\n")


@app.command(epilog="Example: burnish refresh out/ --model today.pt")
def refresh(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What `optimize` wrote.")],
    model: Annotated[
        str | None, typer.Option(help="A checkpoint, or a model as a job names one; default: the job's, loaded again.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Gets what `optimize` writes; default: takes DIR's place.")] = None,
    as_json: AsJson = False,
) -> None:
    """Put what was decided on a new checkpoint, and prove it again."""
    from burnish import terminal
    from burnish.search.output import read_report
    from burnish.search.refresh import refresh as run

    with terminal.progress() as show:
        found = run(directory, model, out, progress=show)
    content = read_report(out or directory)
    if as_json:
        _print_json(content)
        return
    terminal.trials(content)
    terminal.plan(content)
    print(f"{found.sentence}.\nReport: {(out or directory) / 'report.html'}")


@app.command(epilog="Example: burnish inspect job.toml")
def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL|JOB.toml", help="A job file, a .pt2 or a .onnx.")],
    as_json: AsJson = False,
) -> None:
    """Show the graph: sides, MACs, bytes, and what dominates."""
    from burnish.graph.show import facts, show, summary
    from burnish.recipe import FactorRequest, Recipe, Tidy, apply

    graph, _ = _captured(model)
    factored = apply(graph, Recipe((Tidy(), FactorRequest())))
    if as_json:
        costs = facts(factored)
        _print_json(facts(graph) | {"factored": {key: costs[key] for key in ("request", "candidate", "roofline")}})
    else:
        print(f"{show(graph)}\n\nWith what depends on the request alone computed once a request:\n{summary(factored)}")


@app.command("compile", epilog="Example: burnish compile job.toml --recipe int8 --backend native --out out/ranker")
def compile_(
    model: Annotated[str, typer.Argument(metavar="MODEL|JOB.toml", help="A job file, a .pt2 or a .onnx.")],
    out: Annotated[Path, typer.Option(help="Directory of the artifact.")],
    recipe: Annotated[str, typer.Option(help="A recipe's name, or a .toml or .json file.")] = "int8",
    backend: Annotated[
        str | None, typer.Option(help="native, onnxruntime, openvino, inductor, executorch, cuda, eager; default: the recipe's own.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="avx2, aarch64-linux, ...; one artifact for all of several, separated by commas; default: this one."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    split: Annotated[
        bool, typer.Option("--split", help="Two artifacts, OUT/user for this machine and OUT/device for the target: docs/edge.md.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Build one artifact by one recipe, without a search."""
    import burnish
    from burnish.runtime.artifact import refuse_foreign
    from burnish.search.subject import CALIBRATION_ROWS

    refuse_foreign(out)
    hosts = sorted((burnish.Host.target(name.strip()) for name in target.split(",")), key=_rank) if target else [None]
    graph, job = _captured(model)
    rows = job.rows("calibration", CALIBRATION_ROWS, graph.inputs).table if job and job.split_path("calibration") else None
    source = job.source if job else model
    if split:
        _compile_split(graph, out, recipe, rows, backend, hosts, threads, as_json)
        return
    artifact = burnish.compile(graph, recipe, rows, backend, hosts[0], threads, source)
    if len(hosts) > 1:
        from burnish.build import add_programs

        add_programs(artifact, [host.isa for host in hosts[1:] if host])
    artifact.save(out)
    told = {"path": str(out), "backend": artifact.manifest.programs[0].backend, "weight_bytes": artifact.weight_bytes}
    _print_json(told) if as_json else print(f"{out}: {told['backend']}, {told['weight_bytes']:,} bytes of weights")


@app.command(epilog="Example: burnish export out/ --to c --target aarch64-linux --out device/")
def export(
    directory: Directory,
    out: Annotated[Path, typer.Option(help="A new or empty directory.")],
    to: Annotated[str, typer.Option(help="c, executorch, k8s, kserve, mlflow, onnx, ray-serve, triton, wasm: docs/export.md.")] = "c",
    target: Annotated[str | None, typer.Option(help="aarch64-linux, x86_64-linux, or an instruction set; default: this machine's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write an artifact as what devices and other platforms run."""
    from burnish.export import export as run

    told = run(artifact_in(directory), to, target, out)
    _print_json(told) if as_json else print(f"{out}: {told['format']}, {', '.join(sorted(os.listdir(out)))}")


@app.command(epilog="Example: burnish bench out/ --vs onnxruntime,openvino,eager")
def bench(
    directory: Annotated[Path | None, typer.Argument(metavar="DIR", help="What `optimize` or `compile` wrote.")] = None,
    vs: Annotated[str, typer.Option(help="Backends to build and measure beside it, separated by commas.")] = "",
    job: Annotated[Path | None, typer.Option(metavar="JOB.toml", help="Rows and model; default: the job `optimize` ran.")] = None,
    candidates: Annotated[str, typer.Option(help="Candidates a request, separated by commas.")] = "1,16,128",
    seconds: Annotated[float, typer.Option(min=0.01, help="For each engine and each number of candidates.")] = 2.0,
    p99: Annotated[float | None, typer.Option(help="Milliseconds: find also the highest load that keeps them.")] = None,
    at: Annotated[str | None, typer.Option(metavar="URL", help="Measure also a server of DIR: http://HOST:PORT/v2/models/NAME.")] = None,
    floor: Annotated[bool, typer.Option("--floor", help="Print what one core can do at most; no DIR is needed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure latency and load, engines side by side in one run."""
    from burnish import terminal

    if floor:
        from burnish.measure.latency import pinned
        from burnish.native.floor import measure

        with pinned():
            found = measure()
        _print_json(found.facts()) if as_json else terminal.floor(found.facts())
        return
    if directory is None:
        raise typer.BadParameter("give the directory of an artifact, or --floor")
    from burnish.search.bench import side_by_side

    sizes = _numbers(candidates, "--candidates")
    names = [name.strip() for name in vs.split(",") if name.strip()]
    if p99 is not None and not p99 > 0:
        raise JobError(f"--p99 is {p99:g}. Give milliseconds above 0")
    rows = side_by_side(directory, names, job, sizes, seconds, p99, at)
    _print_json(rows) if as_json else terminal.bench(rows)


@app.command(epilog="Example: burnish serve out/ --http 8000")
def serve(
    directory: Directory,
    http: Annotated[int, typer.Option(help="Port of the REST protocol.")] = 8000,
    grpc: Annotated[int | None, typer.Option(help="Port of the gRPC protocol; default: none.")] = None,
    metrics: Annotated[int | None, typer.Option(help="A port of its own for /metrics; default: on the HTTP port.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    workers: Annotated[int, typer.Option(min=1, help="Processes, one core each.")] = 1,
    name: Annotated[str | None, typer.Option(help="The model's name in the protocol; default: the directory's.")] = None,
    deadline_ms: Annotated[
        float | None, typer.Option(help="Time of a request that says none; default: the objective's p99, else 1000.")
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="Allow calls that change the version that is served.")] = False,
    tokens: Annotated[Path | None, typer.Option(help="File of bearer tokens: docs/serving.md.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate (PEM): serve over TLS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key (PEM).")] = None,
    client_ca: Annotated[Path | None, typer.Option(help="Authority (PEM) that signs clients' certificates.")] = None,
    trust: Annotated[Path | None, typer.Option(help="Public key (PEM) that must have signed.")] = None,
    log: Annotated[str, typer.Option(help="text, json or requests (a line each).")] = "text",
) -> None:
    """Serve an artifact over REST and gRPC (Open Inference v2)."""
    from burnish.serve.server import Options
    from burnish.serve.server import serve as run

    told = locals()
    options = {each: told[each] for each in Options.__struct_fields__ if each in told}
    run(artifact_in(directory), Options(**{**options, "name": name or directory.resolve().name}))


@app.command(epilog="Example: burnish publish out/ ranker/ --canary 0.05")
def publish(
    what: Annotated[
        str, typer.Argument(metavar="WHAT", help="An artifact, changed table rows (.npz, .parquet), or a version that is there.")
    ],
    to: Annotated[Path, typer.Argument(metavar="VERSIONS", help="What `serve` serves: a directory of versions; made if there is none.")],
    shadow: Annotated[bool, typer.Option("--shadow", help="Beside the current version: score what that answers, and compare.")] = False,
    canary: Annotated[float | None, typer.Option(metavar="SHARE", help="Beside the current version: answer this share.")] = None,
    key: Annotated[Path | None, typer.Option(help="Sign the new version with this private key (PEM).")] = None,
    as_json: AsJson = False,
) -> None:
    """Add an artifact as a new version, and serve it."""
    from burnish.serve.versions import publish as add

    if shadow and canary is not None:
        raise ServeError("a version is tried as a shadow or as a canary. Give one of --shadow and --canary")
    found = artifact_in(Path(what)) if Path(what).is_dir() else what
    version = add(found, to, shadow=shadow, canary=canary, key=key)
    role = "shadow" if shadow else "canary" if canary is not None else "current"
    told = {"path": str(to), "version": version, "role": role}
    _print_json(told) if as_json else print(f"{to}: version {version} is the {role}{' one' if role == 'current' else ''}")


@app.command(epilog="Example: burnish sign out/ --key key.pem")
def sign(
    directory: Directory,
    key: Annotated[Path, typer.Option(help="A private ed25519 key (PEM).")],
    as_json: AsJson = False,
) -> None:
    """Sign an artifact, for `serve --trust`."""
    from burnish.serve.sign import sign as run

    written = run(artifact_in(directory), key)
    _print_json({"path": str(written)}) if as_json else print(f"{written} signs every file of {written.parent}")


@app.command(epilog="Example: burnish plan out/ --qps 80000 --p99 8")
def plan(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What `optimize` wrote.")],
    qps: Annotated[float | None, typer.Option(help="Requests a second; default: the job's.")] = None,
    p99: Annotated[float | None, typer.Option(help="Milliseconds; default: the job's.")] = None,
    price: Annotated[float | None, typer.Option(help="US dollars an hour for one machine; default: the job's.")] = None,
    cores: Annotated[int | None, typer.Option(min=1, help="Cores of one machine; default: the job's.")] = None,
    headroom: Annotated[float | None, typer.Option(help="Share of capacity kept free; default: the job's.")] = None,
    growth: Annotated[float | None, typer.Option(help="Share by which the load may grow; default: the job's.")] = None,
    swap: Annotated[float | None, typer.Option(help="Share of machines away in a swap; default: the job's.")] = None,
    spare: Annotated[int | None, typer.Option(help="Machines that may fail; default: the job's.")] = None,
    host: Annotated[str | None, typer.Option(help="Another host of the job, or a kind of the price file.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Simulate every request of the whole fleet.")] = False,
    as_json: AsJson = False,
) -> None:
    """Replicas, price and placement again for another load."""
    from burnish import terminal
    from burnish.place.plan import replan
    from burnish.search.output import read_report

    reserve: dict[str, Any] = {"headroom": headroom, "growth": growth, "swap": swap, "spare": spare}
    answer = replan(read_report(directory), qps=qps, p99_ms=p99, price_per_hour=price, cores=cores, host=host, check=check, **reserve)
    _print_json(answer) if as_json else terminal.planned(answer)


@app.command(epilog="Example: burnish verify out/")
def verify(directory: Directory, as_json: AsJson = False) -> None:
    """Check an artifact: hashes, instructions, golden outputs."""
    from burnish.runtime.artifact import Artifact

    artifact = Artifact.read(artifact_in(directory))
    artifact.verify()
    files = len(artifact.manifest.files) + 1
    told = {"path": str(artifact.path), "ok": True, "files": files, "golden_rows": artifact.manifest.golden.rows}
    _print_json(told) if as_json else print(f"{artifact.path}: {files} files and {told['golden_rows']} golden rows are as they were built")


@app.command(epilog="Example: burnish report out/")
def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What `optimize` wrote.")],
    as_json: AsJson = False,
) -> None:
    """Open the report in a browser."""
    from burnish.report.page import open_page
    from burnish.search.output import read_report

    content = read_report(directory)
    if as_json:
        _print_json(content)
    else:
        print(f"Report: {open_page(directory).resolve()}")


def artifact_in(directory: Path) -> Path:
    """The artifact that `directory` is, or holds as optimize leaves it."""
    return directory / "artifact" if not (directory / "manifest.json").exists() and (directory / "artifact").is_dir() else directory


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code. Errors are one sentence on standard error."""
    usage_error = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")  # typer carries its own click
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _told(warnings.showwarning)
            code = app(list(sys.argv[1:] if arguments is None else arguments) or ["--help"], standalone_mode=False)
    except (typer.Exit, typer.Abort) as stop:
        code = getattr(stop, "exit_code", 1)
    except BurnishError as error:
        return _fail(str(error), error.exit_code)
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except usage_error as error:  # type: ignore[misc]
        said = error.format_message()
        return _fail(f"{said}{'' if said.endswith(('.', '?')) else '.'} `burnish --help` lists the commands", 2)
    except ModuleNotFoundError as error:
        if (error.name or "burnish").partition(".")[0] == "burnish":
            return _fault(error)
        return _fail(f"this needs the package {error.name}, which is not installed: pip install 'burnish[optimize]'", 2)
    except Exception as error:  # the last line of defence: whatever was not foreseen is a fault of ours, and must not look like the user's
        return _fault(error)
    if code == 130:  # how typer passes Ctrl-C on
        return _fail("stopped; nothing is half-written", 130)
    return code if isinstance(code, int) else 0


def _told(otherwise: Callable[..., None]) -> Callable[..., None]:
    """Shows our own warnings as one sentence, without the place in our code."""

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, CalibrationWarning):
            print(f"Note: {message}.", file=sys.stderr)
        else:
            otherwise(message, category, *where, **more)

    return show


def _fault(error: Exception) -> int:
    met = f"{type(error).__name__}: {error}".splitlines()[0]
    return _fail(f"a fault of burnish, not of your input: {met}. Please report it with the output under BURNISH_DEBUG=1", 3)


def _fail(sentence: str, code: int) -> int:
    if os.environ.get("BURNISH_DEBUG") and sys.exc_info()[0] is not None:
        traceback.print_exc()
    print(f"burnish: {sentence}{'' if sentence.endswith(('.', '?')) else '.'}", file=sys.stderr)
    return code


def _compile_split(
    graph: Graph, out: Path, recipe: str, rows: Any, backend: str | None, hosts: Sequence[Any], threads: int, as_json: bool
) -> None:
    """`compile --split`: OUT/user and OUT/device."""
    from burnish.build import add_programs, compile_split

    if backend not in (None, "native"):
        raise BuildError(f"--split cuts the model for the native backend, and met --backend {backend}. Leave one of the two out")
    user, device = compile_split(graph, recipe, rows, hosts[0], threads)
    if len(hosts) > 1:
        add_programs(device, [host.isa for host in hosts[1:] if host])
    user.save(out / "user")
    device.save(out / "device")
    told = {"path": str(out), **device.manifest.measured["split"], "user_bytes": user.weight_bytes, "device_bytes": device.weight_bytes}
    del told["part"]
    sentence = f"{out}: {told['user_bytes']:,} bytes of weights for the user's part, {told['device_bytes']:,} for the device's"
    _print_json(told) if as_json else print(f"{sentence}; a request sends {told['payload_bytes']:,} bytes between them")


def _rank(host: Any) -> int:
    """Where a Host's instruction set stands among all: the most capable first."""
    from burnish.host import ISAS

    return list(ISAS).index(host.isa)


def _captured(model: str) -> tuple[Graph, Job | None]:
    """The Graph of a model or a job, and the Job (None for a model by itself)."""
    from burnish.capture import capture, load_model
    from burnish.job import Job

    path = Path(model)
    if path.suffix == ".toml":
        job = Job.read(path)
        return capture(load_model(job.model.load, job.base), job.signature), job
    if path.suffix not in (".pt2", ".onnx"):
        raise JobError(f"{model} is neither a job file (.toml) nor a .pt2 or .onnx. A model in Python needs a job, which says its inputs")
    loaded = load_model(model)
    return capture(loaded, _declared(loaded)), None


def _declared(model: Any) -> Any:
    """What a model file says of its inputs by itself: the example of an exported program, or an ONNX graph's declarations."""
    if isinstance(model, Path):
        import onnx_ir

        from burnish.inputs import Input

        graph = onnx_ir.load(model).graph
        declared = [value for value in graph.inputs if value.name not in graph.initializers]
        inputs = []
        for value in declared:
            shape = [n for n in value.shape[1:] if isinstance(n, int)] if value.shape is not None else []
            if value.shape is None or value.dtype is None or len(shape) != len(value.shape) - 1:
                raise JobError(f"{model} does not say the shape of input {value.name!r} behind the rows. Give a job file, which does")
            inputs.append(Input(str(value.name), str(value.dtype.numpy()), tuple(shape)))
        return inputs
    arguments, by_name = model.example_inputs or ((), {})
    if by_name and arguments:
        raise JobError("the exported program takes inputs both by position and by name. Give a job file, which names them all")
    arrays = {name: tensor.numpy() for name, tensor in by_name.items()} if by_name else tuple(tensor.numpy() for tensor in arguments)
    if not arrays:
        raise JobError("the exported program has no example inputs. Give a job file, which says its inputs")
    return arrays


def _numbers(text: str, option: str) -> list[int]:
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise JobError(f"{option} is {text!r}. Give whole numbers of at least 1, separated by commas")
    return numbers


def _print_json(content: Any) -> None:
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(content), indent=1).decode())


if __name__ == "__main__":
    sys.exit(main())
