"""The mass spectrum of opposite-charge muon pairs in NanoAOD files, computed on workers and summed there as a tree.

Each partition (a range of events) is read with uproot and turned into a histogram with awkward; the histograms are
added in a tree of tasks, so one small result comes home. Without a FILE, one of the same layout is generated: J/psi and
Z decays over a falling continuum. With ``--port`` the files must be readable under the same paths on the workers.

Prints the numbers of partitions, events, muons and pairs, the spectrum as a text histogram (bars on a logarithmic
scale) whose highest row near the Z mass is marked, that peak's mass (about 91 GeV), and the name of the PNG it wrote.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import struct
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import awkward as ak
import dask
import numpy as np
import uproot

from daskvine import DaskVine

MASS_LIMIT_GEV = 120.0
BINS_PER_GEV = 2
BIN_COUNT = int(MASS_LIMIT_GEV) * BINS_PER_GEV
GEV_PER_ROW = 3
Z_WINDOW_GEV = (72, 111)
MUON_MASS_GEV = 0.1056584
BRANCHES = ["Muon_pt", "Muon_eta", "Muon_phi", "Muon_mass", "Muon_charge"]
# Histograms added by one task: a small number keeps the tree deep enough to run beside the reading.
FAN_IN = 4
BAR_WIDTH = 60
PARTITION_COUNT = 50
# Reading the list of branches of a real NanoAOD file takes 0.3 s, the muons of so many events about as long.
SMALLEST_PARTITION = 100_000

Partial = dict[str, Any]


# ---- what runs on the workers ------------------------------------------------------------------------------------


def histogram_of_events(path: str, start: int, stop: int) -> Partial:
    """Read events [start, stop) and return their counts and the histogram of pair masses."""
    with uproot.open(path) as file:
        events = file["Events"].arrays(BRANCHES, entry_start=start, entry_stop=stop)
    masses_gev = pair_masses(events)
    counts, _ = np.histogram(masses_gev, bins=BIN_COUNT, range=(0.0, MASS_LIMIT_GEV))
    return {"events": len(events), "muons": int(ak.sum(ak.num(events.Muon_pt))), "pairs": len(masses_gev), "counts": counts}


def pair_masses(events: ak.Array) -> np.ndarray:
    """The invariant masses, in GeV, of all muon pairs of opposite charge in the same event."""
    events = events[ak.num(events.Muon_pt) >= 2]
    # Double precision: at low mass the square is a small difference of large numbers.
    pt, eta, phi, mass = (ak.values_astype(events[f"Muon_{name}"], np.float64) for name in ("pt", "eta", "phi", "mass"))
    momentum = pt * np.cosh(eta)
    muons = ak.zip(
        {
            "x": pt * np.cos(phi),
            "y": pt * np.sin(phi),
            "z": pt * np.sinh(eta),
            "energy": np.sqrt(momentum**2 + mass**2),
            "charge": events.Muon_charge,
        }
    )
    pairs = ak.combinations(muons, 2, fields=["one", "two"])
    pairs = ak.flatten(pairs[pairs.one.charge * pairs.two.charge < 0])
    total = {name: ak.to_numpy(pairs.one[name] + pairs.two[name]) for name in ("x", "y", "z", "energy")}
    squared = total["energy"] ** 2 - total["x"] ** 2 - total["y"] ** 2 - total["z"] ** 2
    return np.sqrt(np.maximum(squared, 0.0))


def add(parts: list[Partial]) -> Partial:
    """The sum of several partial results."""
    return {name: sum(part[name] for part in parts) for name in parts[0]}


# ---- the graph ---------------------------------------------------------------------------------------------------


def plan_partitions(paths: list[str], partition_count: int | None) -> list[tuple[str, int, int]]:
    """Cut the files into about ``partition_count`` ranges of events of equal length; None chooses a fitting number.

    Raises
    ------
    SystemExit
        A file can't be read, or it is not NanoAOD.
    """
    event_counts = []
    for path in paths:
        try:
            with uproot.open(path) as file:
                missing = [name for name in BRANCHES if name not in file["Events"]]
                event_counts.append(file["Events"].num_entries)
        except (OSError, ValueError, uproot.KeyInFileError) as error:
            raise SystemExit(f"{path}: not a readable NanoAOD file (a ROOT file with the tree 'Events'): {error}") from None
        if missing:
            raise SystemExit(f"{path}: its tree 'Events' lacks {', '.join(missing)}; is it NanoAOD?")
    step = max(1, -(-sum(event_counts) // (partition_count or PARTITION_COUNT)))
    if partition_count is None:
        step = max(step, SMALLEST_PARTITION)
    ranges = zip(paths, event_counts, strict=True)
    return [(path, start, min(start + step, n)) for path, n in ranges for start in range(0, n, step)]


def tree_of_histograms(partitions: list[tuple[str, int, int]]) -> Any:
    """One dask.delayed value: the sum of all partitions' histograms, added in a tree."""
    level = [dask.delayed(histogram_of_events)(*partition) for partition in partitions]
    while len(level) > 1:
        level = [dask.delayed(add)(level[i : i + FAN_IN]) for i in range(0, len(level), FAN_IN)]
    return level[0]


# ---- generated input ---------------------------------------------------------------------------------------------


def two_body_decays(rng: np.random.Generator, masses_gev: np.ndarray) -> dict[str, np.ndarray]:
    """Two muons for each mother of a given mass: isotropic in its rest frame, boosted, then smeared by one percent."""
    n = len(masses_gev)
    pt, rapidity, phi = rng.exponential(12.0, n), rng.normal(0.0, 1.1, n), rng.uniform(-np.pi, np.pi, n)
    transverse_mass = np.hypot(masses_gev, pt)
    mother = np.stack([pt * np.cos(phi), pt * np.sin(phi), transverse_mass * np.sinh(rapidity)])
    mother_energy = transverse_mass * np.cosh(rapidity)
    cosine, azimuth = rng.uniform(-1.0, 1.0, n), rng.uniform(-np.pi, np.pi, n)
    sine = np.sqrt(1.0 - cosine**2)
    size = np.sqrt(masses_gev**2 / 4 - MUON_MASS_GEV**2)
    rest = size * np.stack([sine * np.cos(azimuth), sine * np.sin(azimuth), cosine])
    muons = []
    for sign in (1.0, -1.0):
        along = sign * (mother * rest).sum(axis=0)
        boost = (along / (mother_energy + masses_gev) + masses_gev / 2) / masses_gev
        muons.append((sign * rest + boost * mother) * rng.normal(1.0, 0.01, n))
    # Interleaved, so that muons 2i and 2i + 1 come from mother i.
    x, y, z = np.stack(muons, axis=2).reshape(3, 2 * n)
    pt = np.hypot(x, y)
    return {"pt": pt, "eta": np.arcsinh(z / pt), "phi": np.arctan2(y, x)}


def generate_partition(rng: np.random.Generator, event_count: int) -> ak.Array:
    """Muons of ``event_count`` events as NanoAOD keeps them: 45 % Z, 15 % J/psi, 25 % continuum, else one stray muon."""
    kind = rng.choice(4, size=event_count, p=[0.45, 0.15, 0.25, 0.15])
    masses_gev = rng.exponential(25.0, event_count) + 1.0
    offsets_gev = 1.25 * rng.standard_cauchy(event_count)
    masses_gev = np.where(kind == 0, 91.19 + np.where(np.abs(offsets_gev) < 30, offsets_gev, 0.0), masses_gev)
    masses_gev = np.where(kind == 1, 3.097, masses_gev)
    muons = two_body_decays(rng, masses_gev)
    first_charge = rng.choice(np.array([-1, 1], np.int32), event_count)
    kept = np.ones(2 * event_count, bool)
    kept[1::2] = kind != 3
    columns = {name: values[kept].astype(np.float32) for name, values in muons.items()}
    columns["mass"] = np.full(int(kept.sum()), MUON_MASS_GEV, np.float32)
    columns["charge"] = np.stack([first_charge, -first_charge], axis=1).ravel()[kept]
    return ak.unflatten(ak.zip(columns), np.where(kind == 3, 1, 2))


def generate_file(path: str, event_count: int, partition_count: int) -> None:
    """Write a NanoAOD-like file of that many events, in one cluster for each partition; always the same events."""
    rng = np.random.default_rng(20)
    sizes = [len(part) for part in np.array_split(np.empty(event_count, bool), partition_count)]
    with uproot.recreate(path, compression=uproot.ZLIB(1)) as file:
        types = {"pt": "float32", "eta": "float32", "phi": "float32", "mass": "float32", "charge": "int32"}
        record = ", ".join(f"{name}: {kind}" for name, kind in types.items())
        tree = file.mktree("Events", {"Muon": f"var * {{{record}}}"}, title="generated dimuon events")
        for size in sizes:
            tree.extend({"Muon": generate_partition(rng, size)})


# ---- what the user sees ------------------------------------------------------------------------------------------


def find_peak(counts: np.ndarray) -> tuple[int, float, int] | None:
    """The Z peak as (first GeV of its row, mean mass in GeV, pairs in the row); None without a pair near it."""
    bins_per_row = GEV_PER_ROW * BINS_PER_GEV
    first, last = (edge // GEV_PER_ROW for edge in Z_WINDOW_GEV)
    rows = counts.reshape(-1, bins_per_row)
    best = first + int(rows[first:last].sum(axis=1).argmax())
    pair_count = int(rows[best].sum())
    if pair_count == 0:
        return None
    centres_gev = (np.arange(bins_per_row) + 0.5) / BINS_PER_GEV + best * GEV_PER_ROW
    return best * GEV_PER_ROW, float(centres_gev @ rows[best]) / pair_count, pair_count


def text_histogram(counts: np.ndarray, peak_gev: int | None) -> str:
    """One line for each row of ``GEV_PER_ROW``, the one that starts at ``peak_gev`` marked."""
    rows = counts.reshape(-1, GEV_PER_ROW * BINS_PER_GEV).sum(axis=1)
    scale = BAR_WIDTH / np.log1p(max(1, int(rows.max())))
    lines = []
    for i, pair_count in enumerate(rows):
        low_gev = i * GEV_PER_ROW
        mark = "  <== Z peak" if low_gev == peak_gev else ""
        bar = "#" * round(scale * float(np.log1p(pair_count)))
        lines.append(f"{low_gev:3d}-{low_gev + GEV_PER_ROW:3d} GeV {pair_count:8d} |{bar}{mark}")
    return "\n".join(lines)


def write_png(path: Path, counts: np.ndarray) -> None:
    """Draw the spectrum with matplotlib where it is installed, else plain bars without axes."""
    if importlib.util.find_spec("matplotlib") is None:
        write_plain_png(path, counts)
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.stairs(counts, np.linspace(0.0, MASS_LIMIT_GEV, BIN_COUNT + 1), fill=True)
    axes.axvline(91.19, color="black", linewidth=0.8, linestyle="--", label="Z, 91.19 GeV")
    axes.set(xlabel="mass of the muon pair [GeV]", ylabel=f"pairs / {1 / BINS_PER_GEV} GeV", xlim=(0.0, MASS_LIMIT_GEV))
    axes.set_yscale("symlog", linthresh=1.0)
    axes.legend()
    figure.savefig(path, format="png")


def write_plain_png(path: Path, counts: np.ndarray, height: int = 300, bar_width: int = 3) -> None:
    """Write blue bars on white, logarithmic like the text, as an 8-bit RGB PNG made by hand."""
    bar_heights = np.rint(np.log1p(counts) / np.log1p(max(1, int(counts.max()))) * height).astype(int)
    is_bar = np.arange(height, 0, -1)[:, None] <= np.repeat(bar_heights, bar_width)[None, :]
    pixels = np.where(is_bar[:, :, None], np.array([31, 119, 180], np.uint8), np.uint8(255))
    # Each line of a PNG starts with the number of its filter; 0 is none.
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", pixels.shape[1], height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines.tobytes())) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def report(total: Partial, out: Path) -> None:
    """Print what the module's docstring promises and write the picture."""
    print(f"{total['events']} events, {total['muons']} muons, {total['pairs']} opposite-charge pairs")
    peak = find_peak(total["counts"])
    print(text_histogram(total["counts"], peak[0] if peak is not None else None))
    if peak is None:
        print(f"no pair between {Z_WINDOW_GEV[0]} and {Z_WINDOW_GEV[1]} GeV, so there is no Z peak to mark")
    else:
        print(f"Z peak: {peak[1]:.1f} GeV ({peak[2]} pairs between {peak[0]} and {peak[0] + GEV_PER_ROW} GeV)")
    write_png(out, total["counts"])
    print(f"wrote {out}")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE", help="NanoAOD files; without one, a file is generated")
    parser.add_argument("--cores", type=int, default=2, help="cores of the embedded worker (default: 2)")
    parser.add_argument("--port", type=int, help="listen here for external workers instead of starting one")
    parser.add_argument("--partitions", type=int, help="ranges of events, one task each (default: 50, fewer if files are small)")
    parser.add_argument("--events", type=int, default=1_500_000, help="events to generate without a FILE (default: 1500000)")
    parser.add_argument("--out", type=Path, default=Path("dimuon_mass.png"), help="PNG to write (default: dimuon_mass.png)")
    options = parser.parse_args(argv)
    if options.cores < 1:
        parser.error("--cores must be at least 1")
    if options.port is not None and not 0 <= options.port <= 65535:
        parser.error("--port must be between 0 and 65535")
    if options.partitions is not None and options.partitions < 1:
        parser.error("--partitions must be at least 1")
    if options.events < 1:
        parser.error("--events must be at least 1")
    if not options.files:
        options.partitions = min(options.partitions or PARTITION_COUNT, options.events)
    problem = problem_with_picture(options.out)
    if problem:
        parser.error(f"--out {options.out}: {problem}")
    return options


def problem_with_picture(path: Path) -> str:
    """Why no picture can be written there; found before the work, not after it. Empty when it can."""
    if path.suffix.lower() != ".png":
        return "the picture is a PNG, so its name must end in .png"
    if not path.parent.is_dir():
        return f"there is no directory {path.parent}; make it first"
    if path.is_dir():
        return "this is a directory; name a file in it"
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        return "you may not write there"
    return ""


def main(argv: list[str] | None = None) -> int:
    options = parse_arguments(argv)
    with tempfile.TemporaryDirectory(prefix="dimuon-") as directory:
        # Tasks run in directories of their own, so they need absolute paths.
        paths = [str(Path(path).resolve()) for path in options.files]
        if not paths:
            started_s = time.perf_counter()
            paths = [f"{directory}/generated.root"]
            generate_file(paths[0], options.events, options.partitions)
            print(f"generated {options.events} events in {time.perf_counter() - started_s:.1f} s")
        partitions = plan_partitions(paths, options.partitions)
        if not partitions:
            raise SystemExit("the files hold no events")
        with DaskVine(port=options.port) if options.port is not None else DaskVine(local_cores=options.cores) as m:
            started_s = time.perf_counter()
            (total,) = dask.compute(tree_of_histograms(partitions), scheduler=m.get)
            print(f"{len(partitions)} partitions in {time.perf_counter() - started_s:.1f} s")
    report(total, options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
