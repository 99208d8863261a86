//! Cases about what entries mean: paths, links, whiteouts, devices, attributes, numbers, names.

use super::build::{Head, dir, file, hardlink, head, pax, symlink, tar, typed};
use super::{Case, reject, safe};

/// A directory with one xattr.
fn xattr(name: &str, value: &str) -> Vec<u8> {
    tar(&[pax(&[(format!("SCHILY.xattr.{name}"), value)]), dir("d/")])
}

/// A file with one PAX record.
fn record(key: &str, value: &str, name: &str) -> Vec<u8> {
    tar(&[pax(&[(key, value)]), file(name, "x")])
}

const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

pub(crate) const CASES: &[Case] = &[
    reject("dotdot.tar", "CVE-2007-4559 CVE-2018-1002207", || tar(&[file("../evil", "x")])),
    safe("abs.tar", "confined to the root; CVE-2021-32804", || tar(&[file("/etc/evil", "x")])),
    safe("sym-then-file.tar", "CVE-2026-46703: replace or resolve in the root", || {
        tar(&[symlink("a", "/srv/T"), file("a/pwn", "x")])
    }),
    safe("sym-dotdot-mkdir.tar", "CVE-2021-38511", || tar(&[symlink("s", ".."), file("s/exploit/foo/bar", "x")])),
    safe("sym-then-dir-chmod.tar", "CVE-2026-33056 GHSA-xx64-wwv2-hcqq", || {
        tar(&[symlink("d", "/srv/T"), Head { kind: b'5', mode: 0o777, ..head("d/") }.block()])
    }),
    safe("sym-trailing-slash.tar", "CVE-2026-39822", || {
        let chmod = Head { kind: b'5', mode: 0o777, ..head("d///") }.block();
        tar(&[symlink("d", "/srv/T"), chmod, file("d//./x", "x")])
    }),
    reject("hard-abs.tar", "a link to an absolute target, then written: CVE-2018-20990 CVE-2016-5418", || {
        tar(&[hardlink("p", "/etc/passwd"), file("p", "x")])
    }),
    reject("hard-dotdot.tar", "CVE-2026-50163 CVE-2026-23745", || tar(&[hardlink("p", "../../etc/passwd")])),
    reject("hard-via-symchain.tar", "CVE-2026-26960", || {
        let chain = [symlink("a/b/c/up", "../.."), symlink("a/b/escape", "c/up/../..")].concat();
        tar(&[chain, hardlink("exfil", "a/b/escape/etc/passwd")])
    }),
    safe("hard-to-symlink-then-write.tar", "link() must not follow", || {
        tar(&[symlink("s", "/srv/T/f"), hardlink("l", "s"), file("l", "x")])
    }),
    safe("hard-with-body.tar", "CVE-2016-5418: the body is never written through", || {
        let link = Head { kind: b'1', size: 512, link: b"k".to_vec(), ..head("l") }.block();
        tar(&[file("k", "A"), link, vec![b'B'; 512]])
    }),
    reject("hard-self.tar", "a link to itself", || tar(&[hardlink("l", "l")])),
    safe("hard-missing.tar", "the target may be in a lower layer", || tar(&[hardlink("l", "nope")])),
    reject("hard-to-dir.tar", "link() would give EPERM", || tar(&[dir("d/"), hardlink("l", "d")])),
    safe("hard-setuid-lower.tar", "link to a file of a lower layer", || {
        tar(&[Head { kind: b'1', link: b"bin/su".to_vec(), mode: 0o4755, ..head("bin/su2") }.block()])
    }),
    safe("dup-dir-to-sym.tar", "type confusion; CVE-2021-37701 CVE-2021-37712", || {
        tar(&[dir("d/"), symlink("d", "/srv/T"), file("d/x", "x")])
    }),
    safe("dup-file-sym-file.tar", "last wins, no write through", || {
        tar(&[file("x", "1"), symlink("x", "/srv/T/f"), file("x", "2")])
    }),
    reject("wh-dotdot.tar", "would remove the parent", || tar(&[file("d/.wh...", "")])),
    reject("wh-dot.tar", "would remove the directory", || tar(&[file("d/.wh..", "")])),
    reject("wh-empty.tar", "removes nothing", || tar(&[file("d/.wh.", "")])),
    safe("wh-through-sym.tar", "removal stays in the root", || {
        tar(&[symlink("e", "/srv/T"), file("e/.wh.victim", "")])
    }),
    safe("wh-opq-through-sym.tar", "stays in the root", || tar(&[symlink("e", "/srv/T"), file("e/.wh..wh..opq", "")])),
    safe("wh-root.tar", "opaque root", || tar(&[file(".wh..wh..opq", "")])),
    reject("wh-wh.tar", "marker of a marker", || tar(&[file(".wh..wh.foo", "")])),
    safe("wh-then-file.tar", "a file of the same layer survives", || tar(&[file("d/.wh.f", ""), file("d/f", "x")])),
    safe("file-then-wh.tar", "in either order", || tar(&[file("d/f", "x"), file("d/.wh.f", "")])),
    safe("wh-dir-type.tar", "a whiteout whatever its type", || tar(&[dir("d/.wh.x/"), file("d/.wh.x/y", "x")])),
    reject("chr00.tar", "char 0:0 is an overlayfs whiteout", || tar(&[typed("shadow", b'3')])),
    safe("dev-sda.tar", "never opened", || {
        tar(&[Head { kind: b'4', device: (8, 0), mode: 0o666, ..head("dev/sda") }.block()])
    }),
    safe("fifo-then-file.tar", "open must not block", || tar(&[typed("p", b'6'), file("p", "x")])),
    reject("xattr-trusted-overlay-redirect.tar", "steers overlayfs", || xattr("trusted.overlay.redirect", "/secret")),
    reject("xattr-trusted-overlay-opaque.tar", "steers overlayfs", || xattr("trusted.overlay.opaque", "y")),
    reject("xattr-trusted-overlay-metacopy.tar", "steers overlayfs", || xattr("trusted.overlay.metacopy", "")),
    reject("xattr-user-overlay-whiteout.tar", "steers overlayfs", || xattr("user.overlay.whiteout", "y")),
    reject("xattr-trusted-overlay-overlay-opaque.tar", "steers nested overlayfs", || {
        xattr("trusted.overlay.overlay.opaque", "y")
    }),
    safe("xattr-security-evm.tar", "kept", || xattr("security.evm", "x")),
    reject("xattr-system-posix_acl_access.tar", "not an ACL", || xattr("system.posix_acl_access", "zz")),
    safe("xattr-security-selinux.tar", "kept", || xattr("security.selinux", "u:r:t:s0")),
    safe("xattr-cap.tar", "kept byte for byte", || {
        tar(&[pax(&[("SCHILY.xattr.security.capability", CAPABILITY)]), file("ping", "x")])
    }),
    reject("xattr-64k.tar", "XATTR_SIZE_MAX", || record("SCHILY.xattr.user.a", &"A".repeat(65_537), "x")),
    reject("xattr-many.tar", "XATTR_LIST_MAX", || {
        let records: Vec<_> = (0..20_000).map(|i| (format!("SCHILY.xattr.user.{i}"), "")).collect();
        tar(&[pax(&records), file("x", "x")])
    }),
    reject("xattr-name-256.tar", "XATTR_NAME_MAX", || {
        record(&format!("SCHILY.xattr.user.{}", "n".repeat(256)), "1", "x")
    }),
    reject("name-256.tar", "NAME_MAX", || record("path", &"n".repeat(256), "z")),
    reject("path-1MiB.tar", "PATH_MAX; CVE-2025-4517", || record("path", &("a/".repeat(500_000) + "f"), "z")),
    reject("depth-4096-incremental.tar", "depth limit", || {
        let deeper = |i| [pax(&[("path", "d/".repeat(i))]), dir("d/")].concat();
        tar(&(1..1500).map(deeper).collect::<Vec<_>>())
    }),
    safe("non-utf8.tar", "bytes kept exactly", || tar(&[file(b"caf\xe9\xff", "x")])),
    safe("newline-name.tar", "a name like others", || tar(&[file("a\nb", "x")])),
    safe("esc-name.tar", "escaped in any output", || tar(&[file("\x1b]0;x\x07", "x")])),
    safe("case.tar", "two files", || tar(&[file("A", "1"), file("a", "2")])),
    safe("unicode-nfc-nfd.tar", "CVE-2021-37712: two files", || tar(&[file("\u{e9}", "x"), file("e\u{301}", "x")])),
    reject("uid-2^33.tar", "must not be cut to 0", || {
        tar(&[Head { uid: 1 << 33, gid: 1 << 33, ..head("a") }.with("x")])
    }),
    reject("uid-2^32-1.tar", "chown would leave root", || tar(&[Head { uid: (1 << 32) - 1, ..head("a") }.with("x")])),
    reject("uid-neg.tar", "negative", || tar(&[Head { uid: -1, ..head("a") }.with("x")])),
    safe("mtime-neg.tar", "exact", || tar(&[Head { mtime: -1, ..head("a") }.with("x")])),
    safe("mtime-2^33.tar", "exact", || tar(&[Head { mtime: (1 << 33) + 1, ..head("a") }.with("x")])),
    reject("mtime-2^62.tar", "beyond year 9999", || tar(&[Head { mtime: 1 << 62, ..head("a") }.with("x")])),
    safe("mtime-ns.tar", "-2 s + 500,000,000 ns", || record("mtime", "-1.5", "a")),
    reject("mtime-nan.tar", "not a number", || record("mtime", "nan", "a")),
    reject("mtime-exp.tar", "not a number", || record("mtime", "1e308", "a")),
    safe("mode-017777.tar", "masked by 07777", || tar(&[Head { mode: 0o17777, ..head("a") }.with("x")])),
    safe("setuid.tar", "only below a store root of mode 0700; CVE-2021-41091", || {
        tar(&[Head { mode: 0o4755, ..head("su") }.with("x")])
    }),
    safe("root-entry-file.tar", "the root, a directory of an old tar", || tar(&[file("./", "x")])),
    reject("root-as-symlink.tar", "the root replaced", || tar(&[symlink("./", "/srv/T"), file("x", "x")])),
    reject("dot-slash-dotdot.tar", "..", || tar(&[file("a/./../../x", "x")])),
    reject("empty-name.tar", "no name", || tar(&[file("", "x")])),
    reject("name-slash.tar", "the root as a plain file", || tar(&[file("/", "x")])),
    reject("unknown-type.tar", "must not be skipped in silence", || tar(&[Head { kind: b'Z', ..head("a") }.with("x")])),
    safe("contig-7.tar", "as a plain file", || tar(&[Head { kind: b'7', ..head("a") }.with("x")])),
    reject("gnu-M-multivol.tar", "part of a file", || tar(&[Head { kind: b'M', ..head("a") }.with("x")])),
    reject("gnu-N-names.tar", "CVE-2006-6097", || tar(&[Head { kind: b'N', ..head("a") }.with("Symlink /etc to x\n")])),
];
