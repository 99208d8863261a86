"""Runs layerstore and other tools over the same images and says what each took. Called by run.sh, as root.

Every tool gets an OCI layout on an ext4 in RAM and leaves a tree that can be used: a mounted root or, where a tool knows no images
or mounts, extracted layers. Time is by the wall, up to `sync`; CPU is that of all its processes; peak memory that of the largest.
Rounds take all tools in turn; medians are printed. Each tree of the first round is compared, file by file, with what GNU tar
extracts. Tools for backups are given that tree instead, store it and give it back.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import stat
import statistics
import subprocess
import sys
import tempfile
import time

import plot


class Missing(Exception):
    """A tool that is not here."""


class Run:
    """What some commands took."""

    def __init__(self):
        self.cpu = 0.0
        self.peak = 0

    def __call__(self, *command, shell=False, env=None):
        """Runs a command; a failure is told with its output."""
        args = ["bash", "-c", command[0]] if shell else [str(part) for part in command]
        with tempfile.TemporaryFile() as log, tempfile.NamedTemporaryFile("r") as took:
            # Through time(1): a child of this process would begin with the memory that Python takes.
            timed = ["/usr/bin/time", "-q", "-f", "%U %S %M", "-o", took.name, *args]
            code = subprocess.run(timed, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env).returncode
            if code != 0:
                log.seek(0)
                raise RuntimeError(f"{' '.join(args)}: {log.read().decode(errors='replace')[-2000:]}")
            user, system, peak = took.read().split()
            self.cpu += float(user) + float(system)
            self.peak = max(self.peak, int(peak) * 1024)


def needs(*programs):
    for program in programs:
        if shutil.which(program) is None:
            raise Missing(f"{program} is not installed")


def layers(layout):
    """Paths of an image's layer blobs, the lowest first."""
    def blob(digest):
        return os.path.join(layout, "blobs", *digest.split(":"))

    with open(os.path.join(layout, "index.json")) as f:
        manifest = json.load(f)["manifests"][0]
    with open(blob(manifest["digest"])) as f:
        return [blob(layer["digest"]) for layer in json.load(f)["layers"]]


def tag(layout):
    with open(os.path.join(layout, "index.json")) as f:
        annotations = json.load(f)["manifests"][0].get("annotations", {})
    return annotations.get("org.opencontainers.image.ref.name", "latest")


# Trees


def describe(path, status):
    kind = stat.S_IFMT(status.st_mode)
    what = None
    if kind == stat.S_IFREG:
        digest = hashlib.sha256()
        with open(path, "rb") as f:
            while block := f.read(1 << 20):
                digest.update(block)
        what = digest.hexdigest()
    elif kind == stat.S_IFLNK:
        return kind, os.readlink(path)
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        what = status.st_rdev
    return kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, what


def listing(root, found=None, prefix=b""):
    """Everything below a directory but the directory itself; with `found`, a layer over what is found there."""
    found = {} if found is None else found
    names = sorted(os.listdir(os.path.join(root, prefix)))
    for name in names:
        # Whiteouts first: they hide what is below, never what this layer has.
        if name == b".wh..wh..opq":
            forget(found, prefix)
        elif name.startswith(b".wh."):
            gone = os.path.join(prefix, name[4:])
            found.pop(gone, None)
            forget(found, gone)
    for name in names:
        if name.startswith(b".wh."):
            continue
        at = os.path.join(prefix, name)
        path = os.path.join(root, at)
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode) and stat.S_ISDIR(found.get(at, (0,))[0]):
            forget(found, at)
        found[at] = describe(path, status)
        if stat.S_ISDIR(status.st_mode):
            listing(root, found, at)
    return found


def forget(found, directory):
    below = directory + b"/" if directory else b""
    for path in [path for path in found if path.startswith(below)]:
        del found[path]


def stacked(directories):
    found = {}
    for directory in directories:
        listing(os.fsencode(directory), found)
    return found


def compare(wanted, got):
    """What is wrong with a tree, in a few words."""
    wrong = [path for path in sorted(wanted.keys() | got.keys()) if wanted.get(path) != got.get(path)]
    if not wrong:
        return "same"
    lacking = sum(path not in got for path in wrong)
    return f"{len(wrong)} names differ, {lacking} of them missing: /{wrong[0].decode(errors='replace')}"


# Tools. Each has `run`, which is timed, and `tree`, which lists what it left and then takes down what is mounted.


class Tool:
    backup = False
    verdict = ""

    def __init__(self, options):
        self.options = options

    def run(self, run):
        raise NotImplementedError

    def tree(self):
        return None

    def clean(self):
        pass


class Inflate(Tool):
    name = "gzip -dc, nothing written"

    def run(self, run):
        for layer in layers("in"):
            run(f"gzip -dc {layer} >/dev/null", shell=True)


class Layerstore(Tool):
    name = "layerstore import, mount"

    def run(self, run):
        os.mkdir("out/root")
        base = [self.options.layerstore, "--quiet", "--store", "out/store"]
        run(*base, "import", "in", "--name", "image")
        run(*base, "mount", "image", "out/root")

    def tree(self):
        return listing(b"out/root")

    def clean(self):
        unmount("out/root")
        mounts = "out/store/mounts"
        for mount in os.listdir(mounts) if os.path.isdir(mounts) else []:
            unmount(os.path.join(mounts, mount))


class LayerstoreExtract(Tool):
    name = "layerstore import, extract"
    backup = True

    def run(self, run):
        base = [self.options.layerstore, "--quiet", "--store", "out/store"]
        run(*base, "import", "in", "--name", "image")
        run(*base, "extract", "image", "out/root")

    def tree(self):
        return listing(b"out/root")


class Bsdtar(Tool):
    name = "bsdtar, layers in parallel"

    def run(self, run):
        needs("bsdtar")
        self.count = len(layers("in"))
        jobs = [f"mkdir out/{n}; bsdtar -xpf {layer} -C out/{n} &" for n, layer in enumerate(layers("in"))]
        run(" ".join(jobs) + " wait", shell=True)

    def tree(self):
        return stacked(f"out/{n}" for n in range(self.count))


class GnuTar(Tool):
    name = "GNU tar"

    def run(self, run):
        self.count = len(layers("in"))
        for n, layer in enumerate(layers("in")):
            os.mkdir(f"out/{n}")
            run("tar", "-xpzf", layer, "--numeric-owner", "-C", f"out/{n}")

    def tree(self):
        return stacked(f"out/{n}" for n in range(self.count))


class Umoci(Tool):
    name = "umoci unpack"

    def run(self, run):
        needs("umoci")
        run("umoci", "unpack", "--image", f"in:{tag('in')}", "out/bundle")

    def tree(self):
        return listing(b"out/bundle/rootfs")


class Storage(Tool):
    name = "containers/storage (skopeo copy)"

    def run(self, run):
        needs("skopeo", "podman")
        here = os.getcwd()
        target = f"containers-storage:[overlay@{here}/out/root+{here}/out/run]localhost/image:latest"
        run("skopeo", "--insecure-policy", "copy", "-q", f"oci:in:{tag('in')}", target)

    def podman(self):
        here = os.getcwd()
        return ["podman", "--root", f"{here}/out/root", "--runroot", f"{here}/out/run", "--storage-driver", "overlay"]

    def tree(self):
        mount = [*self.podman(), "image", "mount", "localhost/image:latest"]
        at = subprocess.run(mount, check=True, capture_output=True, text=True).stdout.strip()
        found = listing(os.fsencode(at))
        subprocess.run([*self.podman(), "image", "umount", "--force", "localhost/image:latest"], check=True, capture_output=True)
        return found

    def clean(self):
        unmount("out/root/overlay")


class Containerd(Tool):
    name = "containerd import, overlayfs"

    def run(self, run):
        needs("containerd", "ctr")
        run(*self.ctr, "images", "import", "--snapshotter", "overlayfs", "--base-name", "image", "in.tar")

    @contextlib.contextmanager
    def running(self):
        """The daemon, started before the clock is."""
        needs("containerd", "ctr")
        here = os.getcwd()
        with open("out/config.toml", "w") as f:
            f.write(f'version = 2\nroot = "{here}/out/root"\nstate = "{here}/out/state"\n')
            f.write('disabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
            f.write(f'[grpc]\naddress = "{here}/out/sock"\n')
        with open("out/log", "w") as log:
            daemon = subprocess.Popen(["containerd", "-c", "out/config.toml"], stdout=log, stderr=log)
        self.ctr = ["ctr", "-a", f"{here}/out/sock"]
        try:
            for _ in range(100):
                if subprocess.run([*self.ctr, "version"], capture_output=True).returncode == 0:
                    break
                time.sleep(0.1)
            yield daemon.pid
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait()

    def tree(self):
        name = subprocess.run([*self.ctr, "images", "ls", "-q"], check=True, capture_output=True, text=True).stdout.split()[0]
        os.mkdir("out/mounted")
        subprocess.run([*self.ctr, "images", "mount", name, "out/mounted"], check=True, capture_output=True)
        found = listing(b"out/mounted")
        unmount("out/mounted")
        return found


class Composefs(Tool):
    name = "composefs-rs pull, mount"

    def run(self, run):
        needs("cfsctl")
        os.mkdir("out/root")
        # Without fs-verity, which the RAM-backed ext4 does not have switched on.
        run("cfsctl", "--repo", "out/repo", "init", "--insecure")
        base = ["cfsctl", "--insecure", "--repo", "out/repo", "oci"]
        run(*base, "pull", f"oci:{os.getcwd()}/in:{tag('in')}", "image")
        run(*base, "mount", "image", "out/root")

    def tree(self):
        return listing(b"out/root")

    def clean(self):
        unmount("out/root")


class Casync(Tool):
    name = "casync make, extract"
    backup = True

    def run(self, run):
        needs("casync")
        run("casync", "make", "--store=out/store", "out/index.caidx", "tree")
        run("casync", "extract", "--store=out/store", "out/index.caidx", "out/root")

    def tree(self):
        return listing(b"out/root")


class Restic(Tool):
    name = "restic backup, restore"
    backup = True

    def run(self, run):
        needs("restic")
        env = dict(os.environ, RESTIC_PASSWORD="none", RESTIC_REPOSITORY="out/repo", RESTIC_CACHE_DIR="out/cache")
        run("restic", "init", env=env)
        run("restic", "backup", "tree", env=env)
        run("restic", "restore", "latest", "--target", "out/root", env=env)

    def tree(self):
        return listing(b"out/root/tree")


TOOLS = [Inflate, Layerstore, Composefs, Bsdtar, GnuTar, Containerd, Storage, Umoci, LayerstoreExtract, Casync, Restic]


def unmount(path):
    subprocess.run(["umount", "-q", path], check=False)


def daemon_usage(pid):
    """CPU seconds and peak memory of a process and those it waited for."""
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rpartition(")")[2].split()
    with open(f"/proc/{pid}/status") as f:
        peak = next(int(line.split()[1]) for line in f if line.startswith("VmHWM:"))
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK"), peak * 1024


def disk():
    return int(subprocess.run(["du", "-sx", "--block-size=1", "out"], capture_output=True, text=True).stdout.split()[0])


def once(tool, wanted):
    """One run of one tool: seconds, CPU seconds, peak memory, disk."""
    shutil.rmtree("out", ignore_errors=True)
    os.mkdir("out")
    subprocess.run("cat in/blobs/*/* in.tar >/dev/null; sync -f .", shell=True, check=True)
    run = Run()
    with tool.running() if hasattr(tool, "running") else contextlib.nullcontext() as pid:
        before = daemon_usage(pid)[0] if pid else 0
        begin = time.monotonic()
        tool.run(run)
        subprocess.run(["sync", "-f", "."], check=True)
        seconds = time.monotonic() - begin
        if pid:
            cpu, peak = daemon_usage(pid)
            run.cpu += cpu - before
            run.peak = max(run.peak, peak)
        used = 0 if isinstance(tool, Inflate) else disk()
        if wanted is not None:
            got = tool.tree()
            tool.verdict = "" if got is None else compare(wanted, got)
    tool.clean()
    return seconds, run.cpu, run.peak, used


def measure(options, layout, tools):
    """Medians by tool's name."""
    shutil.rmtree("in", ignore_errors=True)
    shutil.rmtree("tree", ignore_errors=True)
    shutil.copytree(layout, "in")
    subprocess.run(["tar", "-C", "in", "-cf", "in.tar", "."], check=True)
    shutil.rmtree("out", ignore_errors=True)
    os.mkdir("out")
    reference = GnuTar(options)
    reference.run(Run())
    wanted = reference.tree()
    # What the tools for backups are given: the whole tree, as umoci unpacks it.
    if any(tool.backup for tool in tools):
        subprocess.run(["umoci", "unpack", "--image", f"in:{tag('in')}", "out/bundle"], check=True, capture_output=True)
        os.rename("out/bundle/rootfs", "tree")
    took = {}
    for number in range(options.rounds):
        for tool in tools:
            try:
                one = once(tool, wanted if number == 0 else None)
                took.setdefault(tool.name, []).append(one)
            except Missing as missing:
                if number == 0:
                    print(f"left out: {tool.name}: {missing}", file=sys.stderr)
    return {name: tuple(map(statistics.median, zip(*rounds))) for name, rounds in took.items()}


def table(name, result, own, verdicts):
    print(f"\n| {name} | seconds | to layerstore | CPU s | peak MB | disk MB | tree |\n| --- | --- | --- | --- | --- | --- | --- |")
    for tool, (seconds, cpu, peak, used) in result.items():
        size = f"{used / 1e6:.0f}" if used else ""
        ratio = f"{seconds / result[own][0]:.2f}" if own in result else ""
        print(f"| {tool} | {seconds:.2f} | {ratio} | {cpu:.2f} | {peak / 1e6:.0f} | {size} | {verdicts[tool]} |")


@contextlib.contextmanager
def ram_disk():
    base = tempfile.mkdtemp(prefix="peers.", dir="/dev/shm")
    at = os.path.join(base, "mnt")
    os.mkdir(at)
    file = os.path.join(base, "ext4")
    subprocess.run(["truncate", "-s", "16G", file], check=True)
    subprocess.run(["mkfs.ext4", "-q", file], check=True)
    subprocess.run(["mount", "-o", "loop,discard", file, at], check=True)
    back = os.getcwd()
    os.chdir(at)
    try:
        yield
    finally:
        os.chdir(back)
        subprocess.run(["umount", "-R", "-l", at], check=False)
        shutil.rmtree(base, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("layouts", nargs="+", metavar="LAYOUT")
    parser.add_argument("--layerstore", required=True)
    parser.add_argument("--svg")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="names or parts of names, separated by commas")
    options = parser.parse_args()
    options.layouts = [os.path.realpath(layout) for layout in options.layouts]
    options.layerstore = os.path.realpath(options.layerstore)
    wanted = options.only.split(",") if options.only else [""]
    tools = [tool(options) for tool in TOOLS if any(part in tool.name for part in wanted)]
    results = {}
    with ram_disk():
        for layout in options.layouts:
            name = os.path.basename(layout)
            result = measure(options, layout, tools)
            verdicts = {tool.name: tool.verdict for tool in tools}
            backup = {tool.name for tool in tools if tool.backup}
            images = {tool: took for tool, took in result.items() if tool not in backup}
            stores = {tool: took for tool, took in result.items() if tool in backup}
            if images:
                table(f"{name}: an image to a usable root", images, Layerstore.name, verdicts)
                results[name] = images
            if stores:
                table(f"{name}: stored, and a whole tree of it", stores, LayerstoreExtract.name, verdicts)
            sys.stdout.flush()
    if options.svg and results:
        with open(options.svg, "w") as f:
            f.write(plot.draw(results))


if __name__ == "__main__":
    main()
