#!/bin/sh
# Makes what a release has from a binary: packaging/package.sh BINARY TARGET FOLDER, for example
# packaging/package.sh target/x86_64-unknown-linux-musl/dist/keygate x86_64-unknown-linux-musl target/package
#
#   keygate-VERSION-ARCH.tar.gz          the binary, units, configs, licence
#   keygate_VERSION_ARCH.deb             for Debian and Ubuntu, with the systemd unit
#   keygate-VERSION-ARCH.rootfs.tar.gz   the root file system of a container image: `docker import`
#   keygate-VERSION-ARCH.cdx.json        the bill of materials, CycloneDX
#   SHA256SUMS                           checksums of all of them
#
# Times and owners inside are fixed, so the same binary gives the same files.
set -eu
binary=$1 target=$2 out=$3
cd "$(dirname "$0")/.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
machine=${target%%-*}
case $machine in
    x86_64) architecture=amd64 ;;
    aarch64) architecture=arm64 ;;
    *) echo "package.sh: $machine has no name in Debian" >&2; exit 1 ;;
esac
name=keygate-$version-$machine
epoch=$(git log -1 --format=%ct 2>/dev/null || date +%s)
export SOURCE_DATE_EPOCH="$epoch"
rm -rf "$out"
mkdir -p "$out"
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT

archive() { # FOLDER FILE: everything below the folder, owned by root
    tar -C "$1" --sort=name --mtime="@$epoch" --owner="${3:-0}" --group="${3:-0}" --numeric-owner -c . | gzip -n9 >"$2"
}

# The binary by itself.
mkdir -p "$stage/tar/$name"
install -m 0755 "$binary" "$stage/tar/$name/keygate"
strip --strip-all "$stage/tar/$name/keygate" 2>/dev/null || true
binary=$stage/tar/$name/keygate
cp -r README.md LICENSE CHANGELOG.md conf "$stage/tar/$name/"
archive "$stage/tar" "$out/$name.tar.gz"

# Debian. The unit names the place of the package's binary.
deb=$stage/deb
install -D -m 0755 "$binary" "$deb/usr/bin/keygate"
install -D -m 0644 conf/one-node.toml "$deb/etc/keygate/keygate.toml"
install -d "$deb/usr/lib/systemd/system"
sed 's#/usr/local/bin/keygate#/usr/bin/keygate#' conf/systemd/keygate.service >"$deb/usr/lib/systemd/system/keygate.service"
install -D -m 0644 -t "$deb/usr/share/doc/keygate/examples" conf/keygate.toml conf/production.toml conf/systemd/*.conf
install -m 0644 README.md CHANGELOG.md "$deb/usr/share/doc/keygate"
install -m 0644 LICENSE "$deb/usr/share/doc/keygate/copyright"
# The binary writes these itself; one for another machine cannot.
if "$binary" --version >/dev/null 2>&1; then
    (cd "$deb/usr/share" && mkdir -p man/man1 bash-completion/completions zsh/vendor-completions fish/vendor_completions.d)
    "$binary" man "$deb/usr/share/man/man1"
    gzip -n9 "$deb"/usr/share/man/man1/*.1
    "$binary" completions bash >"$deb/usr/share/bash-completion/completions/keygate"
    "$binary" completions zsh >"$deb/usr/share/zsh/vendor-completions/_keygate"
    "$binary" completions fish >"$deb/usr/share/fish/vendor_completions.d/keygate.fish"
else
    echo "package.sh: $machine cannot run here: the package has no manual pages and no completions" >&2
fi
chmod -R u=rwX,go=rX "$deb"
install -D -m 0755 -t "$deb/DEBIAN" packaging/deb/postinst packaging/deb/prerm
echo /etc/keygate/keygate.toml >"$deb/DEBIAN/conffiles"
sed "s/VERSION/$version/; s/ARCHITECTURE/$architecture/; s/SIZE/$(du -sk --exclude=DEBIAN "$deb" | cut -f1)/" packaging/deb/control >"$deb/DEBIAN/control"
dpkg-deb --root-owner-group --build "$deb" "$out/keygate_${version}_$architecture.deb" >/dev/null

# The image: the binary, a config for one node on SQLite, root certificates, and a folder that belongs to the user of the process.
image=$stage/image
install -D -m 0755 "$binary" "$image/usr/local/bin/keygate"
install -D -m 0644 conf/one-node.toml "$image/etc/keygate/keygate.toml"
install -D -m 0644 /etc/ssl/certs/ca-certificates.crt "$image/etc/ssl/certs/ca-certificates.crt"
printf 'root:x:0:0::/:/nologin\nkeygate:x:65532:65532::/var/lib/keygate:/nologin\n' >"$image/etc/passwd"
printf 'root:x:0:\nkeygate:x:65532:\n' >"$image/etc/group"
install -d -m 1777 "$image/tmp"
mkdir -p "$image/var/lib"
install -d -m 0700 "$stage/home/var/lib/keygate"
chmod -R u=rwX,go=rX "$image/etc" "$image/usr" "$image/var"
tar -C "$image" --sort=name --mtime="@$epoch" --owner=0 --group=0 --numeric-owner -cf "$stage/rootfs.tar" .
tar -C "$stage/home" --sort=name --mtime="@$epoch" --owner=65532 --group=65532 --numeric-owner -rf "$stage/rootfs.tar" ./var/lib/keygate
gzip -n9 <"$stage/rootfs.tar" >"$out/$name.rootfs.tar.gz"

python3 packaging/sbom.py "$target" >"$out/$name.cdx.json"
cd "$out"
sha256sum -- * >SHA256SUMS
