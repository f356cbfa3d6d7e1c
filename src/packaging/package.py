#!/usr/bin/env python3
"""Packs a finished binary: nothing is compiled, and nothing is downloaded.

usage: package.py wheel   BINARY DIRECTORY   a wheel for PyPI
       package.py npm     BINARY DIRECTORY   a package for npm
       package.py archive BINARY DIRECTORY   the archive that cargo-binstall downloads
       package.py pages   BINARY DIRECTORY   the manual page and the completions, for the .deb
       package.py image   BINARY DIRECTORY   the context of an OCI image, from a static binary

It prints the path of what it wrote. Name, version and texts are from Cargo.toml. The same input gives
the same bytes: files have the time SOURCE_DATE_EPOCH, or 1980. Needs Python 3.11 or later.
"""

import base64
import gzip
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]
NAME, VERSION = PACKAGE["name"], PACKAGE["version"]
TEXTS = ["README.md", "LICENSE-APACHE", "LICENSE-MIT"]
# The first time that a zip file can have.
EPOCH = int(os.environ.get("SOURCE_DATE_EPOCH", "315532800"))
# Where distributions keep the roots: Debian, Fedora, SUSE.
ROOTS = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
]


class Binary:
    """What the ELF headers say about a binary for Linux."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.data = self.path.read_bytes()
        if self.data[:6] != b"\x7fELF\x02\x01":
            sys.exit(f"{path} is not a 64-bit little-endian ELF file; name the binary")
        machine = int.from_bytes(self.data[18:20], "little")
        machines = {62: ("x86_64", "x64"), 183: ("aarch64", "arm64")}
        if machine not in machines:
            sys.exit(f"{path} is for machine {machine}, which no package is made for")
        self.machine, self.npm_machine = machines[machine]
        loader = self.loader()
        self.is_static = loader is None
        self.libc = "musl" if loader and b"ld-musl" in loader else "gnu"

    def loader(self):
        """The program interpreter of a dynamic binary."""
        start = int.from_bytes(self.data[32:40], "little")
        size, count = (int.from_bytes(self.data[at : at + 2], "little") for at in (54, 56))
        for header in range(start, start + size * count, size):
            if int.from_bytes(self.data[header : header + 4], "little") == 3:
                at, length = (
                    int.from_bytes(self.data[header + field : header + field + 8], "little")
                    for field in (8, 32)
                )
                return self.data[at : at + length]
        return None

    def platform_tags(self):
        """The platforms of a wheel (PEP 600, PEP 656)."""
        if self.is_static:
            return f"manylinux_2_17_{self.machine}.musllinux_1_1_{self.machine}"
        if self.libc == "musl":
            return f"musllinux_1_2_{self.machine}"
        # The newest version of a symbol that the binary needs from glibc.
        found = re.findall(rb"GLIBC_(\d+)\.(\d+)\0", self.data)
        major, minor = max((int(major), int(minor)) for major, minor in found)
        return f"manylinux_{major}_{max(minor, 17)}_{self.machine}"


def output_of(binary, *arguments):
    """What the binary prints. It must be for this machine."""
    command = [binary.path.resolve(), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def pages(binary):
    """The manual page and the completions, by their place below /usr/share."""
    found = {f"man/man1/{NAME}.1": output_of(binary, "man")}
    for shell, place in {
        "bash": f"bash-completion/completions/{NAME}",
        "zsh": f"zsh/vendor-completions/_{NAME}",
        "fish": f"fish/vendor_completions.d/{NAME}.fish",
    }.items():
        found[place] = output_of(binary, "completions", shell)
    return found


def write_archive(path, files):
    """A .tar.gz of files: name, content, mode."""
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=EPOCH) as packed:
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for name, content, mode in files:
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode, entry.mtime = len(content), mode, EPOCH
                archive.addfile(entry, io.BytesIO(content))
    return path


def texts(prefix):
    return [(prefix + name, (ROOT / name).read_bytes(), 0o644) for name in TEXTS]


def wheel(binary, directory):
    """The binary is a script of the wheel: pip puts it beside the interpreter, as a command."""
    tag = f"py3-none-{binary.platform_tags()}"
    info = f"{NAME}-{VERSION}.dist-info"
    metadata = "\n".join(
        [
            "Metadata-Version: 2.4",
            f"Name: {NAME}",
            f"Version: {VERSION}",
            f"Summary: {PACKAGE['description']}",
            f"License-Expression: {PACKAGE['license']}",
            *(f"License-File: {name}" for name in TEXTS[1:]),
            f"Keywords: {','.join(PACKAGE['keywords'])}",
            "Classifier: Operating System :: POSIX :: Linux",
            "Requires-Python: >=3.7",
            "Description-Content-Type: text/markdown",
            "",
            (ROOT / "README.md").read_text(),
        ]
    )
    single_tags = "".join(f"Tag: py3-none-{one}\n" for one in tag.split("-")[2].split("."))
    header = "Wheel-Version: 1.0\nGenerator: package.py\nRoot-Is-Purelib: false\n"
    files = [
        (f"{NAME}-{VERSION}.data/scripts/{NAME}", binary.data, 0o755),
        (f"{info}/METADATA", metadata.encode(), 0o644),
        (f"{info}/WHEEL", (header + single_tags).encode(), 0o644),
        *texts(f"{info}/licenses/")[1:],
    ]
    record = ""
    for name, content, _ in files:
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(content)}\n"
    files.append((f"{info}/RECORD", f"{record}{info}/RECORD,,\n".encode(), 0o644))
    path = directory / f"{NAME}-{VERSION}-{tag}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content, mode in files:
            entry = zipfile.ZipInfo(name, time.gmtime(EPOCH)[:6])
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o100000 | mode) << 16
            archive.writestr(entry, content)
    return path


def npm(binary, directory):
    """The command is the binary itself: no process of Node is between it and its signals."""
    manifest = {
        "name": NAME,
        "version": VERSION,
        "description": PACKAGE["description"],
        "license": f"({PACKAGE['license']})",
        "keywords": PACKAGE["keywords"],
        "bin": {NAME: f"bin/{NAME}"},
        "files": ["bin", *TEXTS[1:]],
        "os": ["linux"],
        "cpu": [binary.npm_machine],
    }
    if not binary.is_static:
        manifest["libc"] = ["musl" if binary.libc == "musl" else "glibc"]
    files = [
        ("package/package.json", json.dumps(manifest, indent=2).encode() + b"\n", 0o644),
        *texts("package/"),
        (f"package/bin/{NAME}", binary.data, 0o755),
    ]
    return write_archive(directory / f"{NAME}-{VERSION}.tgz", files)


def archive(binary, directory):
    """The names are those of `package.metadata.binstall` in Cargo.toml."""
    libc = "musl" if binary.is_static else binary.libc
    top = f"{NAME}-{binary.machine}-unknown-linux-{libc}"
    share = [(f"{top}/share/{name}", text, 0o644) for name, text in pages(binary).items()]
    files = [(f"{top}/{NAME}", binary.data, 0o755), *texts(f"{top}/"), *share]
    return write_archive(directory / f"{top}-v{VERSION}.tgz", files)


def write_pages(binary, directory):
    for name, text in pages(binary).items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    return directory


def image(binary, directory):
    """The root file system, and the Containerfile. The relay and the gateway verify with the roots
    of the machine that builds the image: rebuild it when those change."""
    if not binary.is_static:
        sys.exit(f"{binary.path} needs libraries; build it with a recipe of static-binaries.md")
    roots = next((path for path in ROOTS if os.path.exists(path)), None)
    if roots is None:
        sys.exit("this machine has no root certificates; install ca-certificates")
    root = directory / "root"
    for name, content, mode in [
        (f"usr/bin/{NAME}", binary.data, 0o755),
        ("etc/ssl/certs/ca-certificates.crt", pathlib.Path(roots).read_bytes(), 0o644),
        *texts(f"usr/share/doc/{NAME}/"),
    ]:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
    (root / "tmp").mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
    shutil.copy(ROOT / "src/packaging/Containerfile", directory)
    return directory


def main():
    kinds = {"wheel": wheel, "npm": npm, "archive": archive, "pages": write_pages, "image": image}
    if len(sys.argv) != 4 or sys.argv[1] not in kinds:
        sys.exit(__doc__)
    directory = pathlib.Path(sys.argv[3])
    directory.mkdir(parents=True, exist_ok=True)
    print(kinds[sys.argv[1]](Binary(sys.argv[2]), directory))


if __name__ == "__main__":
    main()
