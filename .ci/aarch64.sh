#!/usr/bin/env bash
# The wheel with its `cpu` extra under emulation of aarch64: the committed models in fp32, fp16 and
# int8, whole utterances and streams, must give the same text as here. QEMU and Python for arm64 come
# from Debian's packages and are unpacked into build/aarch64; nothing is installed, no root needed.
set -euo pipefail
cd "$(dirname "$0")/.."

# Debian 12's qemu 7.2 crashes while it imports ONNX Runtime 1.28 or newer; 10.0 does not.
suite=${SUITE:-trixie}
# Cortex-A72 is a Raspberry Pi 4's core. Cortex-A76, the relative of a Jetson Orin's cores, also computes in
# half precision, which makes fp16 models far slower under emulation than on A72. With SME, which QEMU's default
# has, one recording did not come to its end in ten minutes.
cpu=${CPU:-cortex-a72}
here=$PWD/build/aarch64
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

missing() { echo "test-aarch64: $1" >&2; exit 2; }
for tool in apt-get dpkg-deb; do
  command -v "$tool" > /dev/null || missing "$tool not found; run this on Debian, or in a Debian container"
done
[ -r "$keyring" ] || missing "$keyring not found: apt-get install debian-archive-keyring"
mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' |
  grep -v security | head -1)}
[ -n "$mirror" ] || missing "apt's lists name no Debian mirror: apt-get update, or set DEBIAN_MIRROR"

mkdir -p "$here"/{lists,cache,state,debs}/partial
: > "$here/status"
echo "deb [signed-by=$keyring] $mirror $suite main" > "$here/sources.list"
host=$(dpkg --print-architecture)
private() {
  apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o "APT::Architectures::=$host" \
    -o Dir::State="$here/state" -o Dir::State::lists="$here/lists" -o Dir::State::status="$here/status" \
    -o Dir::Cache="$here/cache" -o Dir::Cache::archives="$here/debs" -o Dir::Etc::sourceparts=- \
    -o Dir::Etc::sourcelist="$here/sources.list" -o Debug::NoLocking=1 -o APT::Sandbox::User= \
    -o APT::Install-Recommends=0 "$@"
}
if [ ! -e "$here/unpacked" ]; then
  private update -o APT::Update::Error-Mode=any || missing "cannot download the package lists of $suite from $mirror: set DEBIAN_MIRROR to a mirror that can be reached, or SUITE to a release that it has"
  (cd "$here/debs" && private download "qemu-user:$host" > /dev/null) || missing "cannot download qemu-user for $host in $suite from $mirror: set SUITE to another release of Debian"
  private install --download-only -y python3 python3-pip libstdc++6 > /dev/null ||
    missing "cannot download Python for arm64 in $suite from $mirror: set SUITE to another release of Debian"
  mkdir -p "$here/qemu" "$here/root"
  for package in "$here"/debs/*.deb; do
    case $package in
      */qemu-user*) dpkg-deb -x "$package" "$here/qemu" ;;
      *) dpkg-deb -x "$package" "$here/root" ;;
    esac
  done
  [ -e "$here/root/lib" ] || ln -s usr/lib "$here/root/lib"
  touch "$here/unpacked"
fi

shopt -s nullglob
pythons=("$here"/root/usr/bin/python3.??)
[ -n "${pythons[*]}" ] || missing "no Python in $here/root: rm -r $here, and run this again"
emulated() {
  "$here/qemu/usr/bin/qemu-aarch64" -cpu "$cpu" -L "$here/root" -E PYTHONPATH="$here/site" -E OMP_NUM_THREADS=1 "${pythons[0]}" "$@"
}

# Wheels are downloaded here: an index closes the connection while an emulated processor still
# computes the handshake. They are installed under emulation, which sees whether one is missing.
rm -rf "$here/site" "$here/wheels" "$here/committed" && mkdir "$here/site"
platforms=(--platform manylinux2014_aarch64)
for minor in {17..41}; do platforms+=(--platform "manylinux_2_${minor}_aarch64"); done # trixie's glibc is 2.41
.venv/bin/python -m pip download --quiet --only-binary :all: --python-version "${pythons[0]##*python}" \
  "${platforms[@]}" --dest "$here/wheels" "$(echo dist/*.whl)[cpu]" ||
  missing "cannot download the wheels for aarch64 and ${pythons[0]##*/}: set PIP_INDEX_URL to a package index that has them"
.venv/bin/python .ci/committed_models.py "$here/committed"
started=$SECONDS
emulated -m pip install --quiet --no-compile --no-index --find-links "$here/wheels" --target "$here/site" "ds2deploy[cpu]"
echo "installed under emulation in $((SECONDS - started)) s"
"$here/qemu/usr/bin/qemu-aarch64" -version | head -1; echo "processor: $cpu"
emulated .ci/committed_texts.py "$here/committed"
